"""A checkpoint folder of the published code or of upstream is taken over whole, used and continued from."""

import logging
from pathlib import Path

import pytest
import torch

from data.errors import InputError
from data.values.intensity import IntensityMap
from models.cycle_gan_model import CycleGANModel, CycleGANSettings
from models.inference_settings import read_inference_settings
from models.networks import Architecture, build_discriminator, build_generator
from models.run_folder import load_weights
from models.state_dicts import load_checkpoint, load_network_weights
from scripts import export_model, import_generator
from tests.test_datasets import dataroot  # noqa: F401
from tests.test_networks import GOLDEN, as_published, published_input
from tests.test_train import final_weights, run

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
TINY = ["--netG", "resnet_6blocks", "--ngf", "2", "--netD", "pixel", "--ndf", "2"]
FRAME = ["--size", "16", "--spacing_mm", "1.0"]


def published_state(net):
    """A network's weights as DataParallel and instance norm with running statistics saved them."""
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    norms = [name for name, part in net.named_modules() if isinstance(part, torch.nn.InstanceNorm2d)]
    for name in norms:
        state |= {f"module.{name}.running_mean": torch.ones(2), f"module.{name}.running_var": torch.ones(2)}
        state[f"module.{name}.num_batches_tracked"] = torch.tensor(3)
    return state


def published_folder(path, *names, epoch="latest"):
    """A folder of tiny networks; return them by name."""
    path.mkdir(exist_ok=True)
    torch.manual_seed(3)
    made = {}
    for name in names:
        is_generator = name.startswith("G")
        architecture = Architecture("resnet_6blocks", ngf=2)
        made[name] = build_generator(architecture) if is_generator else build_discriminator("pixel", ndf=2)
        old = name == "D_B"  # the format of torch before 1.6, as the published code wrote
        where = path / f"{epoch}_net_{name}.pth"
        torch.save(published_state(made[name]), where, _use_new_zipfile_serialization=not old)
    return made


def take_over(tmp_path, *more, name="taken"):
    words = ["--weights", str(tmp_path / "theirs"), "--name", name, "--checkpoints_dir", str(tmp_path)]
    import_generator.main([*words, *TINY, *FRAME, *more])
    return tmp_path / name


def assert_same(state, net):
    own = net.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[key], value) for key, value in own.items())


def test_a_whole_folder_is_taken_over_and_training_continues_from_it(dataroot, tmp_path, caplog):  # noqa: F811
    made = published_folder(tmp_path / "theirs", "G_A", "G_B", "D_A", "D_B")
    folder = take_over(tmp_path, "--ct_window", "-1000", "1400")
    assert {path.name for path in folder.iterdir()} == {"inference.json", *(f"latest_net_{name}.pth" for name in made)}
    for name, state in final_weights(folder).items():
        assert_same(state, made[name])
    settings = read_inference_settings(folder)
    assert (settings.mr_window, settings.ct) == ((0.0, 400.0), IntensityMap.window(-1000, 1400))
    caplog.set_level(logging.INFO)
    still = ["--lr", "1e-30", "--n_epochs", "1", "--n_epochs_decay", "0", "--mr_window", "0", "400"]
    continued = run(dataroot, tmp_path, "--init_from", "taken", *still, name="continued")
    assert "taken: G_A, G_B, D_A, D_B loaded (latest)" in caplog.text and "missing" not in caplog.text
    for name, state in final_weights(continued).items():  # the rate is so low that no weight moves
        assert_same(state, made[name])


def test_what_a_folder_lacks_starts_anew_and_is_said(dataroot, tmp_path, caplog):  # noqa: F811
    caplog.set_level(logging.INFO)
    made = published_folder(tmp_path / "theirs", "G_A", "G_B", epoch=20)
    folder = take_over(tmp_path, "--epoch", "20")
    assert "missing: D_A, D_B; train.py --init_from taken starts them from random weights" in caplog.text
    still = ["--lr", "1e-30", "--n_epochs", "1", "--n_epochs_decay", "0"]
    continued = final_weights(run(dataroot, tmp_path, "--init_from", folder.name, *still, name="continued"))
    assert_same(continued["G_B"], made["G_B"])


@pytest.mark.parametrize(
    ("spoil", "more", "message"),
    [
        (lambda folder: (folder / "latest_net_G_B.pth").write_bytes(b"PK"), [], r"latest_net_G_B\.pth: cannot be read"),
        (lambda folder: (folder / "latest_net_G_A.pth").unlink(), [], r"latest_net_G_A\.pth: no such file"),
        (lambda folder: None, ["--epoch", "7"], r"7_net_G_A\.pth: no such file"),
        (lambda folder: None, ["--ngf", "4"], "ngf: 2 there, 4 here"),
        (lambda folder: (folder / "inference.json").unlink(), [], r"inference\.json: no such file"),
        (lambda folder: (folder / "inference.json").write_text("{"), [], r"inference\.json"),
    ],
)
def test_a_start_that_fails_leaves_nothing_behind(dataroot, tmp_path, spoil, more, message):  # noqa: F811
    published_folder(tmp_path / "theirs", "G_A", "G_B")
    spoil(take_over(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        run(dataroot, tmp_path, "--init_from", "taken", *more, name="failed")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_exported_model_is_fine_tuned(dataroot, tmp_path, caplog):  # noqa: F811
    """Its generator is taken over, in half precision as it is; the others are those of a new run with that seed."""
    still = ["--lr", "1e-30", "--n_epochs", "1", "--n_epochs_decay", "0"]
    run(dataroot, tmp_path, name="trained")
    export_model.main(["--checkpoints_dir", str(tmp_path), "--name", "trained", "--out", str(tmp_path / "small")])
    caplog.set_level(logging.INFO)
    tuned = final_weights(run(dataroot, tmp_path, "--init_from", "small", *still, name="tuned"))
    assert "small: G_A loaded (latest); missing, so started from random weights: G_B, D_A, D_B" in caplog.text
    exported = torch.load(tmp_path / "small/latest_net_G_A.pth", weights_only=True)
    fresh = final_weights(run(dataroot, tmp_path, *still, name="fresh"))
    for name, state in tuned.items():
        expected = exported if name == "G_A" else fresh[name]
        for key, value in state.items():  # a bias of 0 moves by the rate
            torch.testing.assert_close(value, expected[key].to(value.dtype), rtol=0, atol=1e-28)
    assert not torch.equal(*(next(iter(state["G_A"].values())) for state in (tuned, fresh)))


@pytest.mark.parametrize(
    "name", ["pure_cyclegan", "cycle_Lcc", "Self+Lcc_finetune", "phantom", "recommended", "wholebody"]
)
def test_every_shipped_model_can_be_started_from(name, caplog):
    caplog.set_level(logging.INFO)
    folder = CHECKPOINTS / name
    settings = read_inference_settings(folder)
    g = settings.generator
    method = CycleGANSettings(
        netG=g.netG, ngf=g.ngf, norm=g.norm, use_dropout=g.use_dropout, upsample=g.upsample, netD="pixel", ndf=4,
        lambda_shape=0.0, lambda_shape_gan=0.0,
    )  # fmt: skip
    model = CycleGANModel(method, torch.device("cpu"), slab=settings.slab)
    load_weights(folder, model, "latest")
    assert f"{folder}: G_A loaded (latest); missing, so started from random weights: G_B, D_A, D_B" in caplog.text
    shipped = load_checkpoint(folder / "latest_net_G_A.pth")
    own = model.netG_A.state_dict()
    assert all(torch.equal(own[key], value.to(own[key].dtype)) for key, value in shipped.items())
    assert all(parameter.dtype == torch.float32 for parameter in model.netG_A.parameters())


def test_a_generator_trained_alone_is_generator_a(tmp_path):
    made = published_folder(tmp_path / "theirs", "G")
    folder = take_over(tmp_path)
    assert_same(torch.load(folder / "latest_net_G_A.pth", weights_only=True), made["G"])


def test_a_folder_that_does_not_fit_leaves_nothing_behind(tmp_path):
    published_folder(tmp_path / "theirs", "G_B")
    with pytest.raises(
        InputError, match=r"no latest_net_G_A\.pth; .*there are latest_net_G_B\.pth: choose one with --ep"
    ):
        take_over(tmp_path)
    published_folder(tmp_path / "theirs", "G_A", "D_A")
    with pytest.raises(InputError, match=r"latest_net_D_A\.pth: does not fit"):
        take_over(tmp_path, "--netD", "basic")
    assert not (tmp_path / "taken").exists()


@pytest.mark.parametrize(("channels", "what"), [(3, "colour images, 3 channels"), (2, "images of 2 channels")])
def test_networks_of_several_channels_are_refused_by_their_number(tmp_path, channels, what):
    (tmp_path / "theirs").mkdir()
    net = build_generator(Architecture("resnet_6blocks", ngf=2, input_nc=channels))
    torch.save(net.state_dict(), tmp_path / "theirs/latest_net_G_A.pth")
    with pytest.raises(InputError, match=f"does not fit .*for {what}, and slices have 1"):
        take_over(tmp_path)
    assert not (tmp_path / "taken").exists()


def test_overwriting_leaves_no_network_of_the_model_before(tmp_path):
    published_folder(tmp_path / "theirs", "G_A", "G_B", "D_A", "D_B")
    take_over(tmp_path)
    for name in ("G_B", "D_A", "D_B"):
        (tmp_path / f"theirs/latest_net_{name}.pth").unlink()
    with pytest.raises(InputError, match="--overwrite"):
        take_over(tmp_path)
    folder = take_over(tmp_path, "--overwrite")
    assert sorted(path.name for path in folder.iterdir()) == ["inference.json", "latest_net_G_A.pth"]


def test_the_published_networks_values_survive(tmp_path):
    case = GOLDEN["cases"][0]
    net = as_published(case)
    args = case["args"]
    (tmp_path / "theirs").mkdir()
    torch.save(published_state(net.float()), tmp_path / "theirs/latest_net_G_A.pth")
    frame = ["--size", "32", "--spacing_mm", "1", "--netG", args["netG"], "--ngf", str(args.get("ngf", 64))]
    words = ["--weights", str(tmp_path / "theirs"), "--name", "golden", "--checkpoints_dir", str(tmp_path)]
    import_generator.main([*words, *frame])
    taken = build_generator(read_inference_settings(tmp_path / "golden").generator)
    load_network_weights(taken, tmp_path / "golden/latest_net_G_A.pth")
    with torch.inference_mode():
        image = published_input(case["input_shape"])
        out, expected = taken.double().eval()(image), net.double().eval()(image)
    assert torch.equal(out, expected)  # difference 0 from the network itself
    samples = [out.flatten()[round(j * (out.numel() - 1) / 15)].item() for j in range(16)]
    assert samples == pytest.approx(case["samples"], rel=1e-4, abs=1e-5)  # its weights are float32 in the file
