"""`train.py`: what it writes, exact resume, options and their aliases, errors."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import train
from data.errors import InputError
from data.values.intensity import IntensityMap
from models import run_folder
from models.cycle_gan_model import CycleGANModel
from models.inference_settings import read_inference_settings
from models.schedules import LearningRate
from models.shape_extractor import ExtractorSettings, ShapeExtractor, save_extractor
from models.state_dicts import save_network_weights
from options import train_options
from tests.test_datasets import dataroot  # noqa: F401

TINY = "--netG resnet_6blocks --netD pixel --ngf 2 --ndf 2 --num_threads 0 --device cpu --pool_size 2".split()
TINY += ["--lambda_shape", "0", "--lambda_shape_gan", "0"]
# Before the first state, in the middle of an epoch, and in the last one.
KILLED = {(3, "linear"), (8, "plateau"), (15, "linear")}
SHORT = "--n_epochs 2 --n_epochs_decay 1 --print_freq 1 --save_epoch_freq 2 --save_latest_freq 4".split()


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
    assert files == nets | {
        "latest_state.pth", "previous_state.pth", "inference.json", "opt.json", "losses.jsonl", "loss_log.txt", "web",
    }  # fmt: skip
    settings = read_inference_settings(folder)
    assert (settings.size, settings.spacing_mm, settings.generator.netG, settings.generator.ngf) == (
        16,
        1.0,
        "resnet_6blocks",
        2,
    )
    assert settings.mr_window == (0.0, 90.0)
    assert settings.typical_mr == IntensityMap.window(0, 90)
    assert settings.ct.knots[1] == (-250.0, -0.6)
    assert json.loads((folder / "opt.json").read_text())["batch_size"] == 2
    records = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    assert [(r["epoch"], r["iteration"]) for r in records] == [(e, i) for e in (1, 2, 3) for i in (1, 2, 3)]
    assert [r["lr"] for r in records] == pytest.approx([2e-4] * 6 + [1e-4] * 3)  # 1 - (3 - 2) / (1 + 1)
    for record in records:
        terms = [value for name, value in record["losses"].items() if name != "G" and not name.startswith("D_")]
        assert record["losses"]["G"] == pytest.approx(sum(terms), rel=1e-5)
        assert {"idt_A", "idt_B", "correlation_A", "correlation_B"} <= record["losses"].keys()
    assert len((folder / "loss_log.txt").read_text().splitlines()) == len(records)
    assert sorted(p.name for p in (folder / "web/images").iterdir()) == [f"epoch00{e}_000003.png" for e in (1, 2, 3)]
    assert (folder / "web/data/curves.js").read_text().count("point(") == len(records)


def test_what_is_shown_changes_no_result(dataroot, tmp_path):  # noqa: F811
    plain = run(dataroot, tmp_path, "--no_html", "--n_epochs", "1", name="plain")
    assert not (plain / "web").exists()
    shown = run(dataroot, tmp_path, "--n_epochs", "1", "--display_freq", "1", "--display_window", "bone", name="shown")
    assert_same_weights(plain, shown)
    other = ["--display_window", "40", "400", "--display_ncols", "3", "--print_freq", "2"]
    run(dataroot, tmp_path, *other, "--continue_train", name="plain")  # and a run may resume with other pictures


@pytest.mark.parametrize(
    "stop_at, policy",
    [
        pytest.param(stop_at, policy, marks=[] if (stop_at, policy) in KILLED else pytest.mark.slow)
        for stop_at in (3, 6, 8, 15)
        for policy in ("linear", "plateau")
    ],
)
def test_a_killed_run_resumes_bit_for_bit(dataroot, tmp_path, monkeypatch, stop_at, policy):  # noqa: F811
    """Six steps an epoch, states after 4 and 6 of them; the run dies in step `stop_at` of 18."""
    options = ["--use_dropout", "--preprocess", "crop", "--crop_size", "12", "--flip", "--lr_policy", policy]
    end_epoch, metrics = LearningRate.end_epoch, []

    def watch(self, metric=None):
        metrics.append(metric)
        end_epoch(self, metric)

    monkeypatch.setattr(LearningRate, "end_epoch", watch)
    whole = run(dataroot, tmp_path, *options, name="whole")
    expected_metrics = metrics.copy()
    assert expected_metrics[0] == pytest.approx(mean_loss(whole, epoch=1), rel=1e-5)
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
    metrics.clear()
    killed = run(dataroot, tmp_path, *options, "--continue_train", name="killed")
    assert_same_weights(whole, killed)
    assert metrics == expected_metrics[-len(metrics) :]
    for name in ("losses.jsonl", "loss_log.txt"):  # no record twice, none missing
        assert len((whole / name).read_text().splitlines()) == len((killed / name).read_text().splitlines())


def test_a_killed_warm_start_resumes_bit_for_bit(dataroot, tmp_path, monkeypatch):  # noqa: F811
    """Six steps an epoch, the first epoch warm; the run dies in the warm epoch, and again in the second."""
    options = "--warm_start simulated_mr --n_epochs_warm 1 --ema 0.9 --rotate 10 --zoom 0.1".split()
    options += ["--preprocess", "body_crop", "--crop_size", "12"]
    whole = run(dataroot, tmp_path, *options, name="whole")
    records = [json.loads(line) for line in (whole / "losses.jsonl").read_text().splitlines()]
    assert [sorted(r["losses"]) == ["G", "simulated_A", "simulated_B"] for r in records] == [True] * 6 + [False] * 18
    assert [r["lr"] for r in records[:7]] == [1e-3] * 6 + [2e-4]
    assert {"simulated_A", "gan_A", "D_A"} <= records[6]["losses"].keys()
    for method, dies_at, more in (("warm_step", 5, ()), ("step", 5, ("--continue_train",))):
        original, calls = getattr(CycleGANModel, method), []

        def dying(self, batch, original=original, calls=calls, dies_at=dies_at):
            calls.append(1)
            if len(calls) == dies_at:
                raise KeyboardInterrupt
            return original(self, batch)

        monkeypatch.setattr(CycleGANModel, method, dying)
        with pytest.raises(KeyboardInterrupt):
            run(dataroot, tmp_path, *options, *more, name="killed")
        monkeypatch.setattr(CycleGANModel, method, original)
    assert_same_weights(whole, run(dataroot, tmp_path, *options, "--continue_train", name="killed"))


def mean_loss(folder, epoch):
    """The mean of G over an epoch; every step is recorded with --print_freq 1."""
    records = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return np.mean([record["losses"]["G"] for record in records if record["epoch"] == epoch])


def test_the_number_of_loading_threads_changes_nothing(dataroot, tmp_path):  # noqa: F811
    folders = [run(dataroot, tmp_path, "--flip", "--num_threads", n, name=n) for n in ("0", "2")]
    assert_same_weights(*folders)


def test_a_finished_or_running_training_is_not_overwritten(dataroot, tmp_path):  # noqa: F811
    folder = run(dataroot, tmp_path)
    before = (folder / "latest_net_G_A.pth").read_bytes()
    with pytest.raises(InputError, match="already holds a run; resume it with --continue_train"):
        run(dataroot, tmp_path)
    assert (folder / "latest_net_G_A.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--ngf", "3"], "ngf: was 2, now 3"),
        (["--ct_transfer", "soft_tissue"], "ct_map: was IntensityMap"),
        (["--lambda_shape_gan", "5", "--shape_extractor", "E"], "lambda_shape_gan: was 0.0, now 5.0"),
        (["--norm", "batch", "--direction", "BtoA"], "direction: was AtoB, now BtoA; norm: was instance, now batch"),
        (["--pool_size", "4"], "pool_size: was 2, now 4"),
    ],
)
def test_a_run_is_continued_with_its_own_options_only(dataroot, tmp_path, changed, message):  # noqa: F811
    folder = run(dataroot, tmp_path)
    before = {file: file.read_bytes() for file in folder.glob("*.*")}
    if "E" in changed:
        settings = ExtractorSettings(width=2, n_classes=1, ct=IntensityMap.window(-1000, 1400), size=16, spacing_mm=1.0)
        save_extractor(ShapeExtractor(settings), tmp_path / "E")
        changed = [*changed[:-1], str(tmp_path / "E")]
    with pytest.raises(InputError, match=message):
        run(dataroot, tmp_path, "--continue_train", *changed)
    assert {file: file.read_bytes() for file in folder.glob("*.*")} == before


def test_more_epochs_may_follow(dataroot, tmp_path):  # noqa: F811
    longer = ["--n_epochs", "3", "--lr_policy", "step"]
    whole = run(dataroot, tmp_path, *longer, name="whole")
    run(dataroot, tmp_path, "--n_epochs", "1", "--n_epochs_decay", "1", "--lr_policy", "step", name="parts")
    assert_same_weights(whole, run(dataroot, tmp_path, *longer, "--continue_train", name="parts"))


def test_weights_that_were_imported_are_not_overwritten(dataroot, tmp_path):  # noqa: F811
    save_network_weights(torch.nn.Conv2d(1, 1, 1), tmp_path / "run/latest_net_G_A.pth")
    with pytest.raises(InputError, match="already holds a model"):
        run(dataroot, tmp_path)


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (["--ct_transfer", "soft_tissue"], "ct: IntensityMap"),
        (["--direction", "BtoA"], "direction: BtoA there, AtoB here"),
        (["--upsample", "resize"], "upsample: resize there, transposed here"),
    ],
)
def test_weights_of_another_kind_are_not_started_from(dataroot, tmp_path, there, message):  # noqa: F811
    run(dataroot, tmp_path, *there, name="there")
    with pytest.raises(InputError, match=f"--init_from there: .*{message}"):
        run(dataroot, tmp_path, "--init_from", "there", name="here")
    assert not (tmp_path / "here").exists()


def test_bad_slices_are_named_without_a_traceback_from_loading_threads(dataroot, tmp_path):  # noqa: F811
    with pytest.raises(InputError) as error:
        run(dataroot, tmp_path, "--preprocess", "crop", "--crop_size", "20", "--num_threads", "1")
    assert re.fullmatch(r"[mc]\d:\d: slice of 16 x 16 pixels, --crop_size 20 is larger", str(error.value))


def test_image_folders_say_their_windows_and_size(tmp_path):
    for folder in ("trainA", "trainB"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for k in range(2):
            Image.fromarray(np.full((24, 24), 40 * k, np.uint8)).save(tmp_path / "set" / folder / f"{k}.png")
    with pytest.raises(InputError, match="--mr_window LO HI"):
        run(tmp_path / "set", tmp_path)
    folder = run(tmp_path / "set", tmp_path, "--mr_window", "0", "400", "--preprocess", "none")
    settings = read_inference_settings(folder)
    assert (settings.size, settings.spacing_mm, settings.mr_window) == (24, None, (0.0, 400.0))


def test_resized_slices_teach_their_own_pixel_spacing(dataroot, tmp_path):  # noqa: F811
    folder = run(dataroot, tmp_path, "--preprocess", "resize_and_crop", "--load_size", "18", "--crop_size", "16")
    settings = read_inference_settings(folder)
    assert settings.size == 20  # 18 rounded up to a multiple of 4
    assert settings.spacing_mm == pytest.approx(16 / 18)


def test_a_run_without_adversarial_losses_has_no_discriminators_and_resumes_exactly(dataroot, tmp_path, capsys):  # noqa: F811
    def alone(name, *words):
        of_generators = [
            *"--netG resnet_6blocks --ngf 2 --num_threads 0 --device cpu --lambda_gan 0".split(),
            *NO_SHAPE,
        ]
        where = ["--dataroot", str(dataroot), "--name", name, "--checkpoints_dir", str(tmp_path)]
        train.main([*where, *of_generators, *SHORT, *words])
        return tmp_path / name

    whole, parts = alone("whole"), alone("parts", "--n_epochs", "1", "--n_epochs_decay", "0")
    parts = alone("parts", "--continue_train")
    assert {path.name for path in whole.glob("latest_net_*")} == {"latest_net_G_A.pth", "latest_net_G_B.pth"}
    state = torch.load(whole / "latest_state.pth", weights_only=True)["model"]
    assert (set(state["networks"]), set(state["optimisers"])) == ({"G_A", "G_B"}, {"G"})
    assert not [name for line in (whole / "losses.jsonl").open() for name in json.loads(line)["losses"] if "D_" in name]
    for net in ("G_A", "G_B"):
        a, b = (torch.load(folder / f"latest_net_{net}.pth", weights_only=True) for folder in (whole, parts))
        assert all(torch.equal(a[key], b[key]) for key in a)
    with pytest.raises(InputError, match=r"started with other options \(lambda_gan: was 0.0, now 1.0\)"):
        alone("parts", "--continue_train", "--lambda_gan", "1")
    with pytest.raises(SystemExit):
        alone("other", "--pool_size", "20")
    assert "--pool_size does nothing without --lambda_gan or --lambda_shape_gan" in capsys.readouterr().err


def test_the_weight_of_adversarial_losses_may_change_on_resume_but_not_to_nothing(dataroot, tmp_path, caplog):  # noqa: F811
    run(dataroot, tmp_path, "--n_epochs", "1", "--n_epochs_decay", "0")
    with pytest.raises(InputError, match=r"lambda_gan: was 1.0, now 0.0"):
        where = ["--dataroot", str(dataroot), "--name", "run", "--checkpoints_dir", str(tmp_path)]
        train.main(
            [*where, "--netG", "resnet_6blocks", "--ngf", "2", *NO_SHAPE, "--lambda_gan", "0", "--continue_train"]
        )
    run(dataroot, tmp_path, "--n_epochs", "1", "--n_epochs_decay", "0", "--lambda_gan", "0.5", "--continue_train")
    assert "lambda_gan: was 1.0, now 0.5" in caplog.text


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
    used = ["--preprocess", "resize_and_crop", "--init_from", "other"]
    for word in (published, f"--{name}"):
        assert train_options.parse([*REQUIRED, *used, word, text]).values()[name] == value


def test_values_may_begin_with_a_minus():
    knots = train_options.parse([*REQUIRED, "--ct_transfer", "-1000:-1,0:0.2,1400:1"]).data.ct_map.knots
    assert knots == ((-1000.0, -1.0), (0.0, 0.2), (1400.0, 1.0))
    options = train_options.parse([*REQUIRED, "--ct_window", "-1e3", "1400", "--mr_window", "-2", "3.5"]).data
    assert (options.ct_map.range, options.mr_window) == ((-1000.0, 1400.0), (-2.0, 3.5))
    assert train_options.parse([*REQUIRED, "--gpu_ids", "-1"]).run.device == torch.device("cpu")


def test_defaults_are_the_published_settings():
    settings = train_options.parse(REQUIRED)
    options = settings.values() | {"ct_map": settings.data.ct_map}
    published = {
        "netG": "resnet_9blocks", "netD": "basic", "ngf": 64, "ndf": 64, "norm": "instance", "init_type": "normal",
        "init_gain": 0.02, "gan_mode": "lsgan", "pool_size": 50, "lr": 2e-4, "beta1": 0.5, "n_epochs": 100,
        "n_epochs_decay": 100, "lr_policy": "linear", "batch_size": 1, "lambda_A": 10, "lambda_B": 10,
        "lambda_identity": 0.5, "lambda_correlation_A": 2, "lambda_correlation_B": 2, "flip": "", "lambda_shape": 10,
        "shape_loss": "l1",
        "mr_window": "percentile", "ct_map": IntensityMap.window(-1000, 1400), "upsample": "transposed",
    }  # fmt: skip
    assert {name: options[name] for name in published} == published


BY_CLOCK = ["--seconds", "60", "--lr_policy", "warmup_cosine"]
NO_SHAPE = ["--lambda_shape", "0", "--lambda_shape_gan", "0"]
NO_CORRELATION = ["--lambda_correlation_A", "0", "--lambda_correlation_B", "0"]
SHAPE = ["--model", "shape_extractor"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--netG", "resnet_7blocks"], "invalid choice"),
        (["--lr_policy", "exotic"], "invalid choice"),
        (["--batch_size", "0"], "whole number of 1 or more"),
        (["--seed", str(2**80)], "whole number of 0 or more, to 2147483647"),
        (["--seed", str(2**31)], "whole number of 0 or more, to 2147483647"),
        (["--seed", "-1"], "whole number of 0 or more"),
        (["--seed", "1.5"], "whole number of 0 or more"),
        (["--pool_size", "9" * 5000], "whole number of 0 or more"),
        (["--n_epochs", str(10**30)], "whole number of 0 or more"),
        (["--lr", "nan"], "number above 0"),
        (["--lambda_A", "-1"], "number of 0 or more"),
        (["--name", "a/b"], "without slashes"),
        (["--name", ".."], "without slashes"),
        (["--device", "toaster"], "expected auto, cpu"),
        (["--device", "cuda:99"], "CUDA devices"),
        (["--gpu_ids", "x"], "expected a number"),
        (["--mr_window", "400", "0"], "LO below HI"),
        (["--mr_window", "wide"], "percentile, tissue or LO HI"),
        (["--ct_window", "-1000", "1400", "--ct_transfer", "soft_tissue"], "expected one of them"),
        (["--ct_transfer", "spread"], "expected a name"),
        (["--n_epochs", "0", "--n_epochs_decay", "0"], "at least one epoch"),
        (["--n_epochs_warm", "2"], "does nothing without --warm_start simulated_mr"),
        (["--n_epochs_warm", "0"], "does nothing without --warm_start simulated_mr"),
        (["--warm_lr", "0.1"], "does nothing without --warm_start simulated_mr"),
        (["--lambda_simulated", "1", "--preprocess", "resize_and_crop"], "use body_crop"),
        (["--warm_start", "simulated_mr", "--preprocess", "resize_and_crop"], "use body_crop"),
        (["--ema", "1"], "from 0 to below 1"),
        (["--n_layers_D", "4"], "needs --netD n_layers"),
        (["--beta1", "1"], "below 1"),
        (["--init_from", "a", "--continue_train"], "expected one of them"),
        (["--load_size", "286"], "does nothing without --preprocess resize_and_crop"),
        (["--crop_size", "200"], "does nothing without --preprocess crop"),
        (["--lr_decay_iters", "10"], "does nothing without --lr_policy step"),
        ([*BY_CLOCK, "--warm_start", "simulated_mr"], "a warm start counts epochs"),
        (["--lcc_window", "7", *NO_CORRELATION], "without --lambda_correlation_A or --lambda_correlation_B"),
        (["--mi_window", "16"], "without --lambda_mi_A or --lambda_mi_B"),
        (["--mi_bins", "16"], "without --lambda_mi_A or --lambda_mi_B"),
        (["--lambda_mi_A", "1", "--mi_bins", "1"], "a whole number from 2 to 256"),
        (["--shape_loss", "l1", "--lambda_shape", "0"], "--shape_loss does nothing without --lambda_shape"),
        (["--shape_extractor", "e.pth", *NO_SHAPE], "nothing without --lambda_shape or --lambda_shape_gan"),
        (["--init_gain", "0.1", "--init_type", "kaiming"], "without --init_type normal, xavier, orthogonal"),
        (["--model", "simulated_pairs", "--limbs_share", "0.4"], "--limbs_share does nothing without --limbs"),
        (["--model", "paired", "--norm", "none", "--sync_batch_norm"], "nothing without --norm batch"),
        (["--model", "shape_extractor", "--sync_batch_norm", "--device", "cpu"], "--sync_batch_norm"),
        (["--epoch", "20", "--continue_train"], "does nothing without --init_from"),
        (["--epoch", "banana"], "whole number of 1 or more"),
        (["--preprocess", "resize_and_crop", "--crop_size", "300"], "larger than --load_size"),
        (["--no_such_option"], "--no_such_option: no such option"),
        (["--lambda_ident", "1"], "no such option; did you mean --lambda_identity?"),
        (["--display_window", "40"], "LEVEL WIDTH in HU"),
        (["--display_window", "40", "0"], "WIDTH above 0"),
        (["--display_port", "99999"], "port number up to 65535"),
        (["--display_start"], "--display_start does nothing without --display_id"),
        (["--display_env", "e"], "--display_env does nothing without --display_id"),
        (["--display_port", "8097"], "--display_port does nothing without --display_id"),
        (["--val_patients", "0.15"], "--val_patients does nothing without --val"),
        (["--val_freq", "5"], "--val_freq does nothing without --val"),
        (["--val_criterion=mae"], "--val_criterion does nothing without --val"),
        (["--epoch", "latest"], "--epoch does nothing without --init_from"),
        ([*BY_CLOCK, "--n_epochs", "100"], "--n_epochs does nothing with --seconds"),
        ([*BY_CLOCK, "--niter_decay=100"], "--n_epochs_decay does nothing with --seconds"),
        ([*SHAPE, "--val"], "--val does nothing with --model shape_extractor, which validates by itself"),
        ([*SHAPE, "--val_patients", "0.15"], "--val_patients does nothing with --model shape_extractor"),
        ([*SHAPE, "--val_criterion", "mae"], "--val_criterion does nothing with --model shape_extractor"),
        (["--display_id", "1", "--display_start", "--display_server", "http://far"], "is elsewhere"),
    ],
)
def test_bad_options_end_the_parsing_with_their_reason(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        train_options.parse([*REQUIRED, *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_options_that_do_something_are_taken_whatever_their_value():
    assert train_options.parse([*REQUIRED, *SHAPE, "--val_freq", "1"]).validation.val_freq == 1
    assert train_options.parse([*REQUIRED, "--val", "--val_freq", "5"]).validation.val
    assert train_options.parse([*REQUIRED, *BY_CLOCK]).schedule.seconds == 60
    assert (
        train_options.parse([*REQUIRED, "--lr_policy", "step", "--lr_decay_iters", "50"]).schedule.lr_decay_iters == 50
    )


SHARED_OPTIONS = (
    "batch_size beta1 checkpoints_dir compile continue_train crop_size ct_transfer ct_window dataroot "
    "deterministic device display_env display_freq display_id display_ncols display_port display_server "
    "display_start display_window ema epoch flip init_from load_size logger lr lr_decay_iters lr_policy "
    "max_dataset_size mr_window n_epochs n_epochs_decay name no_html num_threads precision preprocess "
    "print_freq rotate save_epoch_freq save_latest_freq seconds seed slab sync_batch_norm val val_criterion "
    "val_freq val_patients zoom"
).split()
GENERATOR_OPTIONS = "init_gain init_type netG ngf norm upsample use_dropout".split()
SIMULATION_OPTIONS = "leave_out limbs limbs_share mr_slice_mm other_sequences simulated_contrasts skin_mm".split()
PAIRS_OPTIONS = "bias bone_weight field_of_view lambda_hu lambda_reverse steps_per_epoch".split()
OPTIONS = {
    "cycle_gan": (
        "direction gan_mode lambda_A lambda_B lambda_correlation_A lambda_correlation_B lambda_gan lambda_identity "
        "lambda_mi_A lambda_mi_B lambda_shape lambda_shape_gan lambda_simulated lcc_window mi_bins mi_window "
        "n_epochs_warm n_layers_D ndf netD pool_size serial_batches shape_extractor shape_loss warm_lr warm_start"
    ).split()
    + GENERATOR_OPTIONS,
    "simulated_pairs": [*SIMULATION_OPTIONS, *PAIRS_OPTIONS, *GENERATOR_OPTIONS],
    "refined_pairs": (
        "lambda_keep n_layers_D ndf netD refined_share".split() + SIMULATION_OPTIONS + PAIRS_OPTIONS + GENERATOR_OPTIONS
    ),
    "paired": PAIRS_OPTIONS + GENERATOR_OPTIONS,
    "shape_extractor": ["val_share", "width"],
}


@pytest.mark.parametrize("model", train_options.METHODS)
def test_the_options_are_these(model):
    """An option is added, renamed or removed on purpose only."""
    settings = train_options.parse([*REQUIRED, "--model", model])
    assert sorted(settings.values()) == sorted([*SHARED_OPTIONS, *OPTIONS[model], "model"])
    assert settings.natures().keys() == settings.values().keys() | {"ct_map"}, "each says what resuming does with it"


def test_a_damaged_latest_state_gives_way_to_the_one_before_it(dataroot, tmp_path, caplog):  # noqa: F811
    broken = run(dataroot, tmp_path, name="broken")
    whole = shutil.copytree(broken, tmp_path / "whole")
    latest, previous = broken / "latest_state.pth", broken / "previous_state.pth"
    positions = [torch.load(path, weights_only=True)["position"] for path in (previous, latest)]
    assert [(at["epoch"], at["samples"]) for at in positions] == [(3, 4), (4, 0)]
    latest.write_bytes(latest.read_bytes()[:-1000])
    run(dataroot, tmp_path, "--continue_train", name="broken")
    assert "resuming from the state before it, previous_state.pth" in caplog.text
    assert_same_weights(broken, whole)
    latest.unlink()  # killed between putting the old one aside and the new one in its place
    run(dataroot, tmp_path, "--continue_train", "--n_epochs", "3", name="broken")
    previous.write_bytes(b"PK")
    latest.write_bytes(b"PK")
    with pytest.raises(
        InputError, match=r"latest_state.pth: .*; and the state before it: .*previous_state.pth: cannot be read"
    ):
        run(dataroot, tmp_path, "--continue_train", name="broken")


def test_a_run_killed_between_its_first_state_and_its_weights_resumes(dataroot, tmp_path, monkeypatch):  # noqa: F811
    whole = run(dataroot, tmp_path, name="whole")
    save_weights = run_folder.save_weights

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "save_weights", killed)
    with pytest.raises(KeyboardInterrupt):
        run(dataroot, tmp_path, name="killed")
    assert not list((tmp_path / "killed").glob("*_net_*"))
    monkeypatch.setattr(run_folder, "save_weights", save_weights)
    assert_same_weights(whole, run(dataroot, tmp_path, "--continue_train", name="killed"))
