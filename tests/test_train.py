"""`train.py`: what it writes, exact resume, options and their aliases, errors."""

import json

import pytest
import torch

import train
from data.errors import InputError
from data.intensity import IntensityMap
from models.cycle_gan_model import CycleGANModel
from models.inference_settings import read_inference_settings
from options import train_options
from tests.test_datasets import dataroot  # noqa: F401

TINY = "--netG resnet_6blocks --netD pixel --ngf 2 --ndf 2 --num_threads 0 --device cpu --pool_size 2".split()
TINY += ["--lambda_shape", "0", "--lambda_shape_gan", "0"]
SHORT = "--n_epochs 2 --n_epochs_decay 1 --print_freq 2 --save_epoch_freq 2 --save_latest_freq 4".split()


def run(dataroot, checkpoints, *arguments, name="run"):  # noqa: F811
    where = ["--dataroot", str(dataroot), "--name", name, "--checkpoints_dir", str(checkpoints)]
    train.main([*where, *TINY, *SHORT, *arguments])
    return checkpoints / name


def final_weights(folder):
    return {
        name: torch.load(folder / f"latest_net_{name}.pth", weights_only=True) for name in ("G_A", "G_B", "D_A", "D_B")
    }


def assert_same_weights(a, b):
    for name, weights in final_weights(a).items():
        for key, value in final_weights(b)[name].items():
            assert torch.equal(weights[key], value), f"{name} {key}"


def test_a_run_leaves_what_users_and_inference_need(dataroot, tmp_path):  # noqa: F811
    folder = run(
        dataroot, tmp_path / "ck", "--batch_size", "2", "--ct_transfer", "soft_tissue", "--mr_window", "0", "90"
    )
    files = {file.name for file in folder.iterdir()}
    nets = {f"{epoch}_net_{net}.pth" for epoch in ("latest", 2, 3) for net in ("G_A", "G_B", "D_A", "D_B")}
    assert files == nets | {"latest_state.pth", "inference.json", "opt.json", "losses.jsonl", "loss_log.txt", "samples"}
    settings = read_inference_settings(folder)
    assert (settings.size, settings.spacing_mm, settings.netG, settings.ngf) == (16, 1.0, "resnet_6blocks", 2)
    assert settings.mr_window == (0.0, 90.0)
    assert settings.typical_mr == IntensityMap.window(0, 90)
    assert settings.ct.knots[1] == (-250.0, -0.6)
    assert json.loads((folder / "opt.json").read_text())["batch_size"] == 2
    records = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    assert [(r["epoch"], r["iteration"]) for r in records] == [(e, i) for e in (1, 2, 3) for i in (2, 3)]
    assert [r["lr"] for r in records] == pytest.approx([2e-4] * 4 + [1e-4] * 2)  # 1 - (3 - 2) / (1 + 1)
    for record in records:
        terms = [value for name, value in record["losses"].items() if name != "G" and not name.startswith("D_")]
        assert record["losses"]["G"] == pytest.approx(sum(terms), rel=1e-5)
        assert {"idt_A", "idt_B", "correlation_A", "correlation_B"} <= record["losses"].keys()
    assert len((folder / "loss_log.txt").read_text().splitlines()) == len(records)
    assert sorted(p.name for p in (folder / "samples").iterdir()) == [f"epoch00{e}_000003.png" for e in (1, 2, 3)]


@pytest.mark.parametrize("policy", ["linear", "plateau"])
@pytest.mark.parametrize("stop_at", [3, 6, 8, 15])
def test_a_killed_run_goes_on_bit_for_bit(dataroot, tmp_path, monkeypatch, stop_at, policy):  # noqa: F811
    """Six steps an epoch, states after 4 and 6 of them; the run dies in step `stop_at` of 18."""
    options = ["--use_dropout", "--preprocess", "crop", "--crop_size", "12", "--flip", "--lr_policy", policy]
    whole = run(dataroot, tmp_path, *options, name="whole")
    step, calls = CycleGANModel.step, []

    def dying(self, batch):
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(CycleGANModel, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(dataroot, tmp_path, *options, name="killed")
    monkeypatch.setattr(CycleGANModel, "step", step)
    if stop_at == 3:  # nothing was saved yet
        with pytest.raises(InputError, match="nothing to continue"):
            run(dataroot, tmp_path, *options, "--continue_train", name="killed")
        return
    torch.manual_seed(123)  # whatever the random state of the new process
    killed = run(dataroot, tmp_path, *options, "--continue_train", name="killed")
    assert_same_weights(whole, killed)


def test_the_number_of_loading_processes_changes_nothing(dataroot, tmp_path):  # noqa: F811
    folders = [run(dataroot, tmp_path, "--flip", "--num_threads", n, name=n) for n in ("0", "2")]
    assert_same_weights(*folders)


def test_a_finished_or_running_experiment_is_not_overwritten(dataroot, tmp_path):  # noqa: F811
    folder = run(dataroot, tmp_path)
    before = (folder / "latest_net_G_A.pth").read_bytes()
    with pytest.raises(InputError, match="holds a run already; go on with it by --continue_train"):
        run(dataroot, tmp_path)
    assert (folder / "latest_net_G_A.pth").read_bytes() == before


def test_resized_slices_teach_their_own_pixel_spacing(dataroot, tmp_path):  # noqa: F811
    folder = run(dataroot, tmp_path, "--preprocess", "resize_and_crop", "--load_size", "18", "--crop_size", "16")
    settings = read_inference_settings(folder)
    assert settings.size == 20  # 18 rounded up to a multiple of 4
    assert settings.spacing_mm == pytest.approx(16 / 18)


PUBLISHED = {
    "--batchSize": ("batch_size", "3", 3),
    "--niter": ("n_epochs", "7", 7),
    "--niter_decay": ("n_epochs_decay", "9", 9),
    "--loadSize": ("load_size", "300", 300),
    "--fineSize": ("crop_size", "200", 200),
    "--which_model_netG": ("netG", "unet_128", "unet_128"),
    "--which_model_netD": ("netD", "pixel", "pixel"),
    "--which_direction": ("direction", "BtoA", "BtoA"),
    "--which_epoch": ("epoch", "20", "20"),
    "--nThreads": ("num_threads", "4", 4),
    "--lambda_Self": ("lambda_shape", "3", 3.0),
    "--lambda_co_A": ("lambda_correlation_A", "0.5", 0.5),
    "--lambda_co_B": ("lambda_correlation_B", "0.25", 0.25),
}
REQUIRED = ["--dataroot", "d", "--name", "n"]


@pytest.mark.parametrize("published", PUBLISHED)
def test_published_option_names_are_aliases(published):
    name, text, value = PUBLISHED[published]
    assert getattr(train_options.parse([*REQUIRED, published, text]), name) == value
    assert getattr(train_options.parse([*REQUIRED, f"--{name}", text]), name) == value


def test_defaults_are_the_published_settings():
    options = vars(train_options.parse(REQUIRED))
    published = {
        "netG": "resnet_9blocks", "netD": "basic", "ngf": 64, "ndf": 64, "norm": "instance", "init_type": "normal",
        "init_gain": 0.02, "gan_mode": "lsgan", "pool_size": 50, "lr": 2e-4, "beta1": 0.5, "n_epochs": 100,
        "n_epochs_decay": 100, "lr_policy": "linear", "batch_size": 1, "lambda_A": 10, "lambda_B": 10,
        "lambda_identity": 0.5, "lambda_correlation_A": 2, "lambda_correlation_B": 2, "flip": False, "lambda_shape": 10,
        "shape_loss": "l1",
        "mr_window": "percentile", "ct_map": IntensityMap.window(-1000, 1400), "upsample": "transposed",
    }  # fmt: skip
    assert {name: options[name] for name in published} == published


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--netG", "resnet_7blocks"], "invalid choice"),
        (["--lr_policy", "exotic"], "invalid choice"),
        (["--batch_size", "0"], "whole number of 1 or more"),
        (["--lr", "nan"], "number above 0"),
        (["--lambda_A", "-1"], "number of 0 or more"),
        (["--name", "a/b"], "without slashes"),
        (["--name", ".."], "without slashes"),
        (["--device", "toaster"], "expected auto, cpu"),
        (["--device", "cuda:99"], "CUDA devices"),
        (["--gpu_ids", "x"], "expected a number"),
        (["--mr_window", "400", "0"], "LO below HI"),
        (["--mr_window", "wide"], "percentile or LO HI"),
        (["--ct_window", "-1000", "1400", "--ct_transfer", "soft_tissue"], "expected one of them"),
        (["--ct_transfer", "spread"], "expected a name"),
        (["--n_epochs", "0", "--n_epochs_decay", "0"], "at least one epoch"),
        (["--n_layers_D", "4"], "needs --netD n_layers"),
        (["--beta1", "1"], "below 1"),
        (["--init_from", "a", "--continue_train"], "expected one of them"),
        (["--preprocess", "resize_and_crop", "--crop_size", "300"], "larger than --load_size"),
        (["--no_such_option"], "unrecognized arguments"),
        (["--lambda_ident", "1"], "unrecognized arguments"),
    ],
)
def test_bad_options_end_the_parsing_with_their_reason(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        train_options.parse([*REQUIRED, *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_options_are_these():
    """An option is added, renamed or removed on purpose only."""
    names = sorted(vars(train_options.parse(REQUIRED)))
    assert names == sorted(
        "augmentation batch_size beta1 checkpoints_dir continue_train crop_size ct_map ct_transfer ct_window dataroot "
        "device direction display_freq epoch flip gan_mode init_from init_gain init_type lambda_A lambda_B "
        "lambda_correlation_A lambda_correlation_B lambda_identity lambda_shape lambda_shape_gan load_size lr "
        "lr_decay_iters lr_policy max_dataset_size mr_window "
        "n_epochs n_epochs_decay n_layers_D name ndf netD netG ngf norm num_threads pool_size precision preprocess "
        "print_freq save_epoch_freq save_latest_freq seed "
        "shape_extractor shape_loss upsample use_dropout".split()
    )
