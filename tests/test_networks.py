"""Networks: the published ones reproduced, and what every entry of the registries must do."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.errors import InputError
from models.initialisation import INITIALISATIONS, initialise
from models.layers import NORMS, UPSAMPLINGS, ReflectionPad2d
from models.networks import (
    DISCRIMINATORS,
    GENERATORS,
    Architecture,
    PatchDiscriminator,
    build_discriminator,
    build_generator,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "published_networks.json").read_text())
SIZES = {"unet_128": 128, "unet_256": 256}  # the others: 32
# The U-Net of unet/ only resizes, has no dropout and takes any size; it has tests of its own.
PUBLISHED_GENERATORS = [name for name in GENERATORS if name != "unet"]
GENERATOR_CASES = [
    (name, upsample, norm) for name in PUBLISHED_GENERATORS for upsample in UPSAMPLINGS for norm in NORMS
] + [("unet", "resize", norm) for norm in NORMS]


def build(name: str, norm: str = "instance", **kwargs) -> nn.Module:
    if name in GENERATORS:
        net = build_generator(
            Architecture(name, ngf=4, norm=norm, **({"upsample": "resize"} if name == "unet" else {}) | kwargs)
        )
    else:
        net = build_discriminator(name, ndf=4, norm=norm)
    initialise(net, "xavier", 1.0, torch.Generator().manual_seed(1))
    return net.double()


def image_for(name: str, batch: int = 1) -> Tensor:
    size = SIZES.get(name, 32)
    generator = torch.Generator().manual_seed(2)
    return torch.rand(batch, 1, size, size, dtype=torch.float64, generator=generator) * 2 - 1


def as_published(case: dict) -> nn.Module:
    """The network of a golden case, its parameters filled by the rule that the file states."""
    args = dict(case["args"])
    if case["kind"] == "generator":
        net = build_generator(Architecture(args.pop("netG"), **args))
    else:
        net = build_discriminator(args.pop("netD"), **args)
    state = net.state_dict()
    for i, value in enumerate(state.values()):
        filling = 0.05 * torch.sin(0.37 * torch.arange(value.numel(), dtype=torch.float64) + i)
        value.copy_(filling.float().reshape(value.shape))
    return net.double()


def published_input(shape: list[int], k: float = 0.0) -> Tensor:
    t = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (torch.sin(0.011 * t + k) * torch.cos(0.0007 * t)).float().double().reshape(shape)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["args"].get("netG") or case["args"]["netD"])
def test_reproduces_the_published_forward(case):
    net = as_published(case)
    with torch.no_grad():
        out = net(published_input(case["input_shape"]))
    assert list(out.shape) == case["output_shape"]
    assert sum(p.numel() for p in net.parameters()) == case["parameters"]
    samples = [out.flatten()[round(j * (out.numel() - 1) / 15)].item() for j in range(16)]
    assert samples == pytest.approx(case["samples"], rel=1e-9, abs=1e-12)
    assert out.mean().item() == pytest.approx(case["mean"], rel=1e-9)
    assert out.std().item() == pytest.approx(case["std"], rel=1e-9)


@pytest.mark.parametrize("title", GOLDEN["state_dicts"])
def test_state_dict_and_size_are_the_published_ones(title):
    name = title.split()[0]
    with torch.device("meta"):
        net = build_generator(Architecture(name)) if name in GENERATORS else build_discriminator(name)
    shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
    assert shapes == GOLDEN["state_dicts"][title]
    assert list(shapes) == list(GOLDEN["state_dicts"][title])
    assert sum(p.numel() for p in net.parameters()) == GOLDEN["parameters_full"][name]


@pytest.mark.parametrize(("name", "upsample", "norm"), GENERATOR_CASES)
def test_generator_keeps_shape_and_range(name, upsample, norm):
    image = image_for(name, batch=2)
    with torch.no_grad():
        out = build(name, norm, upsample=upsample)(10 * image)
    assert out.shape == image.shape
    assert out.abs().max() <= 1
    assert out.std() > 0.01


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", [*GENERATORS, *DISCRIMINATORS])
def test_gradients_reach_every_parameter(name, norm):
    net = build(name, norm)
    net(image_for(name, batch=2)).square().sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        # A bias ahead of instance norm is subtracted again: its gradient is rightly 0.
        if not (norm == "instance" and key.endswith("bias")):
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", [*GENERATORS, *DISCRIMINATORS])
def test_instance_norm_acts_alike_in_training_and_use(name):
    net, image = build(name), image_for(name)
    assert not list(net.buffers())
    with torch.no_grad():
        training, use = net.train()(image), net.eval()(image)
    assert torch.equal(training, use)


def test_batch_norm_does_not():
    net, image = build("resnet_6blocks", "batch"), image_for("resnet_6blocks", batch=2)
    with torch.no_grad():
        assert not torch.allclose(net.train()(image), net.eval()(image))


@pytest.mark.parametrize("name", [*GENERATORS, *DISCRIMINATORS])
def test_samples_of_a_batch_do_not_see_each_other(name):
    net, images = build(name), image_for(name, batch=2)
    with torch.no_grad():
        assert torch.allclose(net(images)[1:], net(images[1:]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", PUBLISHED_GENERATORS)
def test_dropout_only_where_asked_and_only_in_training(name):
    image = image_for(name)
    plain, dropping = build(name), build(name, use_dropout=True)
    with torch.no_grad():
        assert torch.equal(plain.train()(image), plain(image))
        assert not torch.equal(dropping.train()(image), dropping(image))
        assert torch.equal(dropping.eval()(image), dropping(image))
    count = sum(isinstance(module, nn.Dropout) for module in dropping.modules())
    assert count == {"resnet_9blocks": 9, "resnet_6blocks": 6, "unet_128": 2, "unet_256": 3}[name]


@pytest.mark.parametrize("name", PUBLISHED_GENERATORS)
def test_resize_upsampling_moves_no_other_layer(name):
    transposed = {key: value.shape for key, value in build(name).state_dict().items()}
    resize = {key: value.shape for key, value in build(name, upsample="resize").state_dict().items()}
    doubled = sum(isinstance(module, nn.ConvTranspose2d) for module in build(name).modules())
    same = {key for key in transposed if resize.get(key) == transposed[key]}
    assert len(transposed) - len(same) == len(resize) - len(same) == 2 * doubled


def checkerboard(out: Tensor) -> float:
    """Spread, over the four phases of a 2 x 2 lattice, of the mean inside the image."""
    inner = out[..., 8:-8, 8:-8]
    return torch.stack([inner[..., i::2, j::2].mean() for i in (0, 1) for j in (0, 1)]).std().item()


def test_resize_leaves_no_checkerboard_in_a_flat_image():
    flat = torch.full((1, 4, 32, 32), 0.5)
    boards = {}
    for name, make in UPSAMPLINGS.items():
        torch.manual_seed(0)
        boards[name] = checkerboard(make(4, 1, 3, True)(flat))
    assert boards["resize"] < 1e-6 < 1e-2 < boards["transposed"]


def test_resize_repeats_pixels_before_it_convolves():
    doubling = UPSAMPLINGS["resize"](1, 1, 3, True)
    nn.init.dirac_(doubling[-1].weight)
    nn.init.zeros_(doubling[-1].bias)
    image = image_for("basic").float()
    assert torch.equal(doubling(image), image.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("name", "biases", "with_instance_norm"),
    [("resnet_6blocks", 1, 18), ("unet_128", 1, 14), ("basic", 2, 5), ("n_layers", 2, 5), ("pixel", 1, 3)],
)
def test_biases_as_published(name, biases, with_instance_norm, norm):
    net = build(name, norm)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == with_instance_norm
    found = sum(m.bias is not None for m in convolutions)
    assert found == (with_instance_norm if norm == "instance" else biases)


@pytest.mark.parametrize(("n_layers", "pixels"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_receptive_field_of_the_patch_discriminator(n_layers, pixels):
    net = PatchDiscriminator(1, ndf=2, n_layers=n_layers, norm="none").double()
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.1)
    image = torch.ones(1, 1, 2 * pixels, 2 * pixels, dtype=torch.float64, requires_grad=True)
    scores = net(image)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    rows, columns = torch.nonzero(image.grad[0, 0], as_tuple=True)
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == pixels


def test_pixel_discriminator_sees_one_pixel():
    net = build("pixel", "none")
    image = image_for("pixel").requires_grad_()
    net(image)[0, 0, 5, 7].backward()
    assert torch.nonzero(image.grad).tolist() == [[0, 0, 5, 7]]


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("resnet_9blocks", (8, 12), (8, 14)),
        ("resnet_6blocks", (12, 8), (4, 8)),
        ("unet_128", (128, 256), (128, 192)),
        ("unet_256", (256, 256), (256, 128)),
        ("basic", (24, 31), (24, 23)),
        ("n_layers", (24, 24), (23, 24)),
        ("pixel", (2, 2), (1, 4)),
    ],
)
def test_refuses_a_size_that_it_cannot_take(name, good, bad):
    net = build(name)
    with torch.no_grad():
        assert net(torch.zeros(1, 1, *good, dtype=torch.float64)).isfinite().all()
        with pytest.raises(InputError, match=f"{bad[0]} x {bad[1]} pixels; expected"):
            net(torch.zeros(1, 1, *bad, dtype=torch.float64))


def test_every_entry_has_a_size_case():
    cases = test_refuses_a_size_that_it_cannot_take.pytestmark[0].args[1]
    assert {name for name, *_ in cases} == {*PUBLISHED_GENERATORS, *DISCRIMINATORS}


def test_the_unet_generator_takes_any_size():
    image = torch.rand(1, 1, 21, 38, dtype=torch.float64)
    assert build("unet")(image).shape == image.shape


@pytest.mark.parametrize(
    ("norm", "batch", "trains"),
    [("batch", 1, False), ("batch", 2, True), ("instance", 2, False), ("none", 1, True)],
)
def test_the_unet_generator_cannot_train_where_a_norm_has_one_value(norm, batch, trains):
    net = build("unet", norm=norm).double()
    for size in (16, 32):
        image = torch.zeros(batch, 1, 16, size, dtype=torch.float64)
        if norm != "instance":  # which takes statistics in use, too
            assert net.eval()(image).shape == image.shape
        with nullcontext() if trains or size > 16 else pytest.raises(InputError, match=r"16 x 16 pixels, . a batch"):
            assert net.train()(image).isfinite().all()


@pytest.mark.parametrize("options", [{"upsample": "transposed"}, {"upsample": "resize", "use_dropout": True}])
def test_the_unet_generator_refuses_what_it_does_not_have(options):
    with pytest.raises(InputError, match="--upsample resize"):
        build_generator(Architecture("unet", ngf=4, **options))


@pytest.mark.parametrize(("n_layers", "smallest"), [(1, 6), (2, 12), (4, 48)])
def test_smallest_input_of_a_patch_discriminator_gives_one_score(n_layers, smallest):
    net = build_discriminator("n_layers", ndf=2, n_layers=n_layers)
    assert net(torch.rand(1, 1, smallest, smallest)).shape == (1, 1, 1, 1)
    with pytest.raises(InputError, match=f"at least {smallest}"):
        net(torch.rand(1, 1, smallest - 1, smallest))


@pytest.mark.parametrize(
    "call",
    [
        lambda: build_generator(Architecture("resnet_10blocks")),
        lambda: build_discriminator("patch"),
        lambda: build_generator(Architecture("resnet_9blocks", norm="layer")),
        lambda: build_generator(Architecture("unet_128", norm="layer")),
        lambda: build_discriminator("basic", norm="layer"),
        lambda: build_discriminator("pixel", norm="layer"),
        lambda: build_generator(Architecture("resnet_9blocks", upsample="bilinear")),
        lambda: build_generator(Architecture("unet_256", upsample="bilinear")),
        lambda: initialise(build_discriminator("pixel"), "uniform"),
    ],
)
def test_unknown_name_is_an_error_that_names_the_known_ones(call):
    with pytest.raises(InputError, match=r"unknown .*expected one of \w+, \w+"):
        call()


@pytest.mark.parametrize("name", ["basic", "pixel"])
def test_layers_that_would_be_ignored_are_refused(name):
    with pytest.raises(InputError, match="n_layers 5 does nothing"):
        build_discriminator(name, n_layers=5)
    with pytest.raises(InputError, match="n_layers is 0"):
        build_discriminator("n_layers", n_layers=0)


def expected_std(kind: str, gain: float, fan_in: int, fan_out: int) -> float:
    return {
        "normal": gain,
        "xavier": gain * (2 / (fan_in + fan_out)) ** 0.5,
        "kaiming": (2 / fan_in) ** 0.5,
        "orthogonal": gain / fan_in**0.5,  # fan_in > rows here, so rows are orthonormal
    }[kind]


@pytest.mark.parametrize("kind", INITIALISATIONS)
def test_initialisation_draws_what_it_says(kind):
    net = build_discriminator("basic", ndf=32, norm="batch")
    for parameter in net.parameters():
        nn.init.constant_(parameter, 9.0)
    initialise(net, kind, 0.5, torch.Generator().manual_seed(3))
    weight = net.model[5].weight.detach().double()  # 128 x 64 x 4 x 4
    assert weight.std().item() == pytest.approx(expected_std(kind, 0.5, 64 * 16, 128 * 16), rel=0.02)
    assert abs(weight.mean().item()) < 4 * weight.std().item() / weight.numel() ** 0.5
    if kind == "orthogonal":
        rows = weight.flatten(1)
        assert torch.allclose(rows @ rows.T, 0.25 * torch.eye(128, dtype=torch.float64), atol=1e-5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert 0.005 < module.weight.std() < 0.04
            assert abs(module.weight.mean() - 1) < 0.02
        if getattr(module, "bias", None) is not None:
            assert module.bias.count_nonzero() == 0


@pytest.mark.parametrize("kind", INITIALISATIONS)
def test_initialisation_follows_its_generator_alone(kind):
    net = build_generator(Architecture("resnet_6blocks", ngf=2))

    def drawn(seed: int) -> Tensor:
        initialise(net, kind, 0.02, torch.Generator().manual_seed(seed))
        return nn.utils.parameters_to_vector(net.parameters()).detach().clone()

    before = torch.get_rng_state()
    first = drawn(1)
    assert not torch.equal(first, drawn(2))
    assert torch.equal(first, drawn(1))
    assert torch.equal(before, torch.get_rng_state())


def test_published_initialisation_is_the_default():
    net = build_generator(Architecture("resnet_6blocks", ngf=32))
    initialise(net)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 1e4:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("padding", [1, 3, (1, 2, 3, 0)])
def test_the_repeatable_reflection_is_torch_s(padding):
    x = torch.rand(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.rand_like(F.pad(x, (padding,) * 4 if isinstance(padding, int) else padding))
    outputs, gradients = [], []
    before = torch.are_deterministic_algorithms_enabled()
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            outputs.append(ReflectionPad2d(padding)(x))
            gradients.append(torch.autograd.grad((outputs[-1] * weights).sum(), x)[0])
        finally:
            torch.use_deterministic_algorithms(before)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=0)
    torch.testing.assert_close(gradients[1], gradients[0])
