"""The U-Net: the published layout, an independent forward pass, any size, weights of other layouts."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data.errors import InputError
from models.published_unet import published_state, unet_from_state
from models.state_dicts import save_atomically
from unet.unet_model import UNet

# Block: (features in, features out) at width 64, and what stands between its name and those of its two convolutions.
BLOCKS = {
    "inc": (1, 64, "conv.conv"), "down1": (64, 128, "mpconv.1.conv"), "down2": (128, 256, "mpconv.1.conv"),
    "down3": (256, 512, "mpconv.1.conv"), "down4": (512, 512, "mpconv.1.conv"), "up1": (1024, 256, "conv.conv"),
    "up2": (512, 128, "conv.conv"), "up3": (256, 64, "conv.conv"), "up4": (128, 64, "conv.conv"),
}  # fmt: skip
LATER_MIDDLES = {"conv.conv": "conv.double_conv", "mpconv.1.conv": "maxpool_conv.1.double_conv"}


def small(**arguments) -> UNet:
    """A U-Net of width 4, its parameters and statistics drawn so that every level matters to the output."""
    generator = torch.Generator().manual_seed(0)
    net = UNet(**{"width": 4, **arguments}).eval()
    for name, value in net.state_dict().items():
        if value.ndim == 4:
            value.normal_(0.0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("running_var", "weight")):
            value.uniform_(0.8, 1.5, generator=generator)
        elif value.is_floating_point():
            value.normal_(0.0, 0.2, generator=generator)
    return net


def image(*size: int) -> Tensor:
    return torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def as_later(state: dict[str, Tensor], bias: bool) -> dict[str, Tensor]:
    """The same weights under the names of 2020 and after."""
    renamed = {}
    for name, value in state.items():
        block = name.split(".")[0]
        middle = BLOCKS[block][2] if block in BLOCKS else ""
        later = "double_conv" if block == "inc" else LATER_MIDDLES.get(middle, "")
        if bias or not (value.ndim == 1 and name.split(".")[-2] in "03" and name.endswith("bias") and middle):
            renamed[name.replace(middle, later, 1)] = value
    return renamed


def test_names_and_shapes_are_the_published_ones():
    expected = {"outc.conv.weight": (1, 64, 1, 1), "outc.conv.bias": (1,)}
    for block, (in_nc, out_nc, middle) in BLOCKS.items():
        for position, source in ((0, in_nc), (3, out_nc)):
            expected[f"{block}.{middle}.{position}.weight"] = (out_nc, source, 3, 3)
            expected[f"{block}.{middle}.{position}.bias"] = (out_nc,)
            for name in ("weight", "bias", "running_mean", "running_var"):
                expected[f"{block}.{middle}.{position + 1}.{name}"] = (out_nc,)
            expected[f"{block}.{middle}.{position + 1}.num_batches_tracked"] = ()
    assert {name: tuple(value.shape) for name, value in UNet().state_dict().items()} == expected


def reference_forward(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network's output from its weights alone, for sizes that are multiples of 16."""

    def block(name: str, x: Tensor) -> Tensor:
        for position in (0, 3):
            conv, norm = (f"{name}.{BLOCKS[name][2]}.{position + k}." for k in (0, 1))
            x = F.conv2d(x, state[conv + "weight"], state[conv + "bias"], padding=1)
            mean, var = state[norm + "running_mean"], state[norm + "running_var"]
            x = F.batch_norm(x, mean, var, state[norm + "weight"], state[norm + "bias"]).clamp(min=0)
        return x

    skips = [block("inc", x)]
    for k in range(1, 5):
        skips.append(block(f"down{k}", F.max_pool2d(skips[-1], 2)))
    y = skips.pop()
    for k in range(1, 5):
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
        y = block(f"up{k}", torch.cat([skips.pop(), y], dim=1))
    return F.conv2d(y, state["outc.conv.weight"], state["outc.conv.bias"])


def test_the_forward_pass_is_the_published_one():
    net = small(n_classes=2)
    x = image(48, 32)
    expected = reference_forward(net.state_dict(), x)
    assert expected.shape == (2, 2, 48, 32)
    torch.testing.assert_close(net(x), expected)
    assert float(expected.detach().std()) > 0.01  # not a constant, which anything would equal


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33), (50, 31), (64, 15)])
def test_any_size_is_padded_by_its_edge_and_cropped_back(size):
    net, x = small(), image(*size)
    height, width = (-(-extent // 16) * 16 for extent in size)
    rows, columns = (
        torch.arange(whole).clamp(max=extent - 1) for whole, extent in zip((height, width), size, strict=True)
    )
    padded = x[..., rows, :][..., columns]
    with torch.inference_mode():
        found, whole = net(x), reference_forward(net.state_dict(), padded)
    assert found.shape == (2, 1, *size)
    torch.testing.assert_close(found, whole[..., : size[0], : size[1]])


def test_gradients_reach_the_input_from_a_padded_size():
    x = image(20, 20).requires_grad_()
    small()(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert float(x.grad.abs().sum()) > 0


@pytest.mark.parametrize("bias", [True, False], ids=["with bias", "without bias"])
@pytest.mark.parametrize("wide_up", [False, True])
def test_weights_of_later_layouts_load(tmp_path, wide_up, bias):
    net = small(n_classes=2, wide_up=wide_up)
    if not bias:
        for name, value in net.state_dict().items():
            if name.split(".")[-2] in "03" and name.endswith("bias"):
                value.zero_()
    state = as_later(net.state_dict(), bias)
    assert "down1.maxpool_conv.1.double_conv.0.weight" in state
    assert "inc.double_conv.3.weight" in state
    assert ("up1.conv.double_conv.0.bias" in state) == bias
    path = tmp_path / "later.pth"
    torch.save({f"module.{name}": value for name, value in state.items()}, path)
    loaded, arguments = unet_from_state(path)
    assert arguments == {"n_channels": 1, "n_classes": 2, "width": 4, "wide_up": wide_up}
    torch.testing.assert_close(loaded.eval()(image(32, 32)), net(image(32, 32)), rtol=0, atol=0)


def test_published_names_pass_through_and_label_values_are_dropped():
    state = small().state_dict()
    found = published_state({**state, "mask_values": [0, 1]})
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("outc.conv.weight"), "outc"),
        (lambda state: state.pop("up2.conv.conv.3.weight"), "missing: up2.conv.conv.3"),
        (lambda state: state.pop("up2.conv.conv.3.bias"), "missing: up2.conv.conv.3.bias:"),
        (lambda state: state.update({"up1.up.weight": torch.zeros(4, 4, 2, 2)}), "unexpected: .*up1.up.weight"),
        (lambda state: state.update({"down2.mpconv.1.conv.0.weight": torch.zeros(4, 4, 3, 3)}), "of another shape"),
        (lambda state: state.update({"epoch": 3}), "holds more than named tensors"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, change, message):
    state = dict(small().state_dict())
    save_atomically(state, tmp_path / "right.pth")
    unet_from_state(tmp_path / "right.pth")
    change(state)
    save_atomically(state, tmp_path / "wrong.pth")
    with pytest.raises(InputError, match=rf"wrong.pth: .*{message}"):
        unet_from_state(tmp_path / "wrong.pth")
