"""The command lines of the published code and of upstream: what every option of theirs does here."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest

from ct_segmentation import train as extractor_command
from data.settings.published import Command, Published, translate
from data.settings.published_options import NEWER, OPTIONS
from data.values.intensity import IntensityMap
from models.inference_settings import InferenceSettings
from models.networks import Architecture
from options import pipeline_options, test_options, train_options

ROOT = Path(__file__).resolve().parents[1]
REQUIRED = ["--dataroot", "d", "--name", "n", "--gpu_ids", "-1"]
LINEAR = train_options.parse(REQUIRED).values()


def train_values(line):
    """Return the settings of a training's command line that are not those of `REQUIRED`."""
    values = train_options.parse([*REQUIRED, *line.split()]).values()
    return {name: value for name, value in values.items() if LINEAR.get(name) != value}


# What each published option does to a training's settings, in the order of the published code's files.
TRAINING = [
    ("--dataroot ./datasets/maps", {"dataroot": "datasets/maps"}),
    ("--batchSize 4", {"batch_size": 4}),
    ("--loadSize 286", {}),
    ("--loadSize 286 --resize_or_crop crop", {"preprocess": "crop"}),
    ("--loadSize 300 --resize_or_crop resize_and_crop", {"preprocess": "resize_and_crop", "load_size": 300}),
    ("--loadSize 128 --fineSize 128", {"preprocess": "resize_and_crop", "load_size": 128, "crop_size": 128}),
    ("--fineSize 256", {}),
    ("--fineSize 256 --resize_or_crop none", {}),
    ("--fineSize 200 --resize_or_crop crop", {"preprocess": "crop", "crop_size": 200}),
    ("--fineSize 256 --resize_or_crop crop", {"preprocess": "crop", "crop_size": 256}),
    ("--input_nc 1", {}),
    ("--output_nc=1", {}),
    ("--ngf 32", {"ngf": 32}),
    ("--ndf 32", {"ndf": 32}),
    ("--which_model_netD pixel", {"netD": "pixel"}),
    ("--which_model_netG unet_128", {"netG": "unet_128"}),
    ("--which_model_netD n_layers --n_layers_D 4", {"netD": "n_layers", "n_layers_D": 4}),
    ("--n_layers_D 3", {}),
    ("--gpu_ids -1", {}),
    ("--name cycle_Lcc", {"name": "cycle_Lcc"}),
    ("--dataset_mode unaligned", {}),
    ("--model cycle_gan", {}),
    ("--which_direction BtoA", {"direction": "BtoA"}),
    ("--nThreads 8", {"num_threads": 8}),
    ("--checkpoints_dir ./elsewhere", {"checkpoints_dir": "elsewhere"}),
    ("--norm batch", {"norm": "batch"}),
    ("--serial_batches", {"serial_batches": True}),
    ("--display_winsize 256", {}),
    ("--display_id -1", {}),
    ("--display_id 0", {}),
    ("--display_id 1", {"display_id": 1}),
    ("--display_server http://localhost --display_id 0", {}),
    ("--display_server http://far --display_id 2", {"display_id": 2, "display_server": "http://far"}),
    ("--display_env lib --display_id -1", {}),
    ("--display_port 8098 --display_id 1", {"display_id": 1, "display_port": 8098}),
    ("--display_port 8097 --display_id -1", {}),
    ("--display_id=-1 --display_port=8097", {}),
    ("--no_dropout", {}),
    ("--max_dataset_size inf", {}),
    ("--max_dataset_size 9", {"max_dataset_size": 9}),
    ("--resize_or_crop resize_and_crop", {"preprocess": "resize_and_crop"}),
    ("--resize_or_crop none", {}),
    ("--no_flip", {}),
    ("--init_type kaiming --init_gain 0.02", {"init_type": "kaiming"}),
    ("--init_gain 0.05", {"init_gain": 0.05}),
    ("--verbose", {}),
    ("--suffix x", {"name": "n_x"}),
    ("--suffix=", {}),
    (
        "--suffix {model}_{which_model_netG}_size{loadSize}",
        {"name": "n_cycle_gan_resnet_9blocks_size286"},
    ),
    (
        "--netG unet_128 --suffix {which_model_netG}_{niter} --niter 7",
        {"netG": "unet_128", "n_epochs": 7, "name": "n_unet_128_7"},
    ),
    ("--which_model_netG unet_128 --suffix {netG}", {"netG": "unet_128", "name": "n_unet_128"}),
    ("--display_freq 100", {"display_freq": 100}),
    ("--display_ncols 8", {"display_ncols": 8}),
    ("--display_ncols 0", {"display_ncols": 1}),
    ("--update_html_freq 1000", {"display_freq": 1000}),
    ("--update_html_freq 1000 --display_freq 50", {"display_freq": 50}),
    ("--print_freq 10", {"print_freq": 10}),
    ("--save_latest_freq 10", {"save_latest_freq": "10"}),
    ("--save_epoch_freq 2", {"save_epoch_freq": 2}),
    ("--continue_train", {"continue_train": True}),
    ("--continue_train --epoch_count 51", {"continue_train": True}),
    ("--epoch_count 1", {}),
    ("--epoch_count 11", {"n_epochs": 90}),
    ("--epoch_count 11 --niter 10 --niter_decay 5", {"n_epochs": 0, "n_epochs_decay": 5}),
    ("--phase train", {}),
    ("--which_epoch latest", {}),
    ("--which_epoch latest --continue_train", {"continue_train": True}),
    ("--which_epoch 20 --init_from other", {"init_from": "other", "epoch": "20"}),
    ("--niter 30", {"n_epochs": 30}),
    ("--niter_decay 30", {"n_epochs_decay": 30}),
    ("--beta1 0.9", {"beta1": 0.9}),
    ("--lr 0.001", {"lr": 0.001}),
    ("--no_lsgan", {"gan_mode": "vanilla"}),
    ("--pool_size 0", {"pool_size": 0}),
    ("--no_html", {"no_html": True}),
    ("--lr_policy lambda", {}),
    ("--lr_policy plateau", {"lr_policy": "plateau"}),
    ("--lr_policy step --lr_decay_iters 20", {"lr_policy": "step", "lr_decay_iters": 20}),
    ("--lr_decay_iters 50", {}),
    ("--lambda_A 5", {"lambda_A": 5.0}),
    ("--lambda_B 5", {"lambda_B": 5.0}),
    ("--lambda_identity 0", {"lambda_identity": 0.0}),
    ("--lambda_co_A 1", {"lambda_correlation_A": 1.0}),
    ("--lambda_co_B 1", {"lambda_correlation_B": 1.0}),
    ("--lambda_Self 0", {"lambda_shape": 0.0}),
    # Later upstream versions.
    ("--netG unet_256", {"netG": "unet_256"}),
    ("--netD pixel", {"netD": "pixel"}),
    ("--direction BtoA", {"direction": "BtoA"}),
    ("--num_threads 0", {"num_threads": 0}),
    ("--batch_size 2", {"batch_size": 2}),
    ("--preprocess resize_and_crop --load_size 300", {"preprocess": "resize_and_crop", "load_size": 300}),
    ("--preprocess crop --crop_size 128", {"preprocess": "crop", "crop_size": 128}),
    ("--epoch latest --continue_train", {"continue_train": True}),
    ("--load_iter 0", {}),
    ("--gan_mode vanilla", {"gan_mode": "vanilla"}),
    ("--n_epochs 3", {"n_epochs": 3}),
    ("--n_epochs_decay 3", {"n_epochs_decay": 3}),
]

TRAINING_ERRORS = [
    ("--input_nc 3", "slices are gray"),
    ("--output_nc 3", "--slab how many neighbouring slices"),
    ("--dataset_mode aligned", "use --model paired"),
    ("--dataset_mode single", "--model chooses the data"),
    ("--model paired --dataset_mode unaligned", "use --model cycle_gan for unpaired ones"),
    ("--model pix2pix", "use --model paired"),
    ("--model test", "use test_adapt.py or test_pipeline.py"),
    ("--model colorization", "slices have no colour"),
    ("--model paired --which_direction BtoA", "use --model cycle_gan"),
    ("--gpu_ids 0,1,2", "torchrun train.py"),
    ("--display_winsize 512", "pictures have the size of the slices"),
    ("--display_port 8097", "does nothing without --display_id"),
    ("--no_dropout --use_dropout", "--no_dropout and --use_dropout: expected one of them"),
    ("--resize_or_crop scale_width --fineSize 512", "use --preprocess resize_and_crop and --load_size N --crop_size N"),
    ("--preprocess scale_width_and_crop", "use --preprocess resize_and_crop and the same sizes"),
    ("--resize_or_crop crop --preprocess none", "expected one of them"),
    ("--resize_or_crop sideways", "invalid choice: 'sideways'"),
    ("--loadSize 300", "--load_size does nothing without --preprocess resize_and_crop"),
    ("--no_flip --flip x", "--no_flip and --flip: expected one of them"),
    ("--model simulated_pairs --no_flip", "learns from mirrored slices"),
    ("--suffix {banana}", "published options in braces"),
    ("--suffix {", "published options in braces"),
    ("--suffix {0}", "published options in braces"),
    ("--suffix {suffix.format}", "published options in braces"),
    ("--suffix a/b", "without slashes"),
    ("--name a b --suffix c", "expected one --name"),
    ("--epoch_count 0", "a whole number of 1 or more"),
    ("--epoch_count 102", "a new run begins at epoch 1"),
    ("--phase val", "--val validates"),
    ("--which_epoch 50 --continue_train", "--init_from n --epoch 50 --name NEW"),
    ("--epoch 50 --continue_train", "does nothing without --init_from"),
    ("--which_epoch 50", "does nothing without --init_from"),
    ("--no_lsgan --gan_mode lsgan", "expected one of them"),
    ("--model paired --no_lsgan", "has no adversarial loss"),
    ("--load_iter 100", "use --epoch"),
    ("--save_by_iter", "--save_latest_freq saves the whole state"),
    ("--lambda_L1 100", "use --model paired"),
    ("--use_wandb", "use --display_id 1 for visdom"),
    ("--wandb_project_name x", "losses.jsonl has all values"),
    ("--verbose yes", "--verbose: expected no value, found yes"),
    ("--phase", "--phase: expected one value, found none"),
    ("--phase train test", "--phase: expected one value, found train test"),
    ("--model paired --serial_batches", "--serial_batches: no such option"),
]


@pytest.mark.parametrize(("line", "changed"), TRAINING)
def test_a_published_option_of_training_does_this(line, changed):
    assert train_values(line) == changed


@pytest.mark.parametrize(("line", "message"), TRAINING_ERRORS)
def test_a_published_option_that_is_gone_names_its_replacement(line, message, capsys):
    with pytest.raises(SystemExit) as stop:
        train_values(line)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_every_option_of_the_table_is_tested_here():
    for rows, tested in (
        ({row.name for row in OPTIONS.values() if row.train}, [*TRAINING, *TRAINING_ERRORS]),
        ({row.name for row in OPTIONS.values() if row.use}, [*USE, *USE_ERRORS]),
    ):
        words = {word.partition("=")[0] for case in tested for word in case[0].split()}
        assert not rows - words


def test_the_published_code_had_58_options_and_all_are_known():
    published = (
        "dataroot batchSize loadSize fineSize input_nc output_nc ngf ndf which_model_netD which_model_netG n_layers_D "
        "gpu_ids name dataset_mode model which_direction nThreads checkpoints_dir norm serial_batches display_winsize "
        "display_id display_server display_env display_port no_dropout max_dataset_size resize_or_crop no_flip "
        "init_type init_gain verbose suffix display_freq display_ncols update_html_freq print_freq save_latest_freq "
        "save_epoch_freq continue_train epoch_count phase which_epoch niter niter_decay beta1 lr no_lsgan pool_size "
        "no_html lr_policy lr_decay_iters lambda_A lambda_B lambda_identity lambda_co_A lambda_co_B lambda_Self"
    ).split()
    assert len(published) == 58
    assert {f"--{name}" for name in published} <= {row.name for row in OPTIONS.values() if row.train}


def test_all_published_options_at_their_defaults_are_the_defaults_here_but_for_what_is_shown():
    """Also the rule behind `as published`: 58 options in one line, flags but --no_dropout left off."""
    last = list(OPTIONS).index("--lambda_Self")
    words = ["--no_dropout"]
    for row in list(OPTIONS.values())[: last + 1]:
        if row.default is not None and row.name not in ("--gpu_ids", "--resize_or_crop"):
            words += [f"{row.name}={row.default}"]
    values = train_options.parse([*REQUIRED, *words]).values()
    assert {name: value for name, value in values.items() if LINEAR[name] != value} == {
        "dataroot": "datasets/MR2CT", "name": "Self+Lcc_finetune", "num_threads": 4, "display_id": 1,
        "display_env": "lib", "display_freq": 100, "display_ncols": 8, "save_epoch_freq": 2,
    }  # fmt: skip


@pytest.mark.parametrize("newer", NEWER)
def test_old_and_new_names_stand_in_one_row_each(newer):
    assert OPTIONS[newer].train
    assert f"`{NEWER[newer]}`" in OPTIONS[newer].train.says


MAPS = {"dataroot": "datasets/maps", "name": "maps_cyclegan"}


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("--dataroot ./datasets/maps --name maps_cyclegan --model cycle_gan", MAPS),
        ("--dataroot ./datasets/maps --name maps_cyclegan --model cycle_gan --no_dropout", MAPS),
        ("--dataroot ./datasets/maps --name maps_cyclegan --model cycle_gan --pool_size 50 --no_dropout", MAPS),
        ("--dataroot ./datasets/maps --name maps_cyclegan --model cycle_gan --display_id 0", MAPS),
        (
            "--model cycle_gan --name temp --dataroot ./datasets/mini --niter 1 --niter_decay 0 --save_latest_freq 10 "
            "--print_freq 1 --display_id -1",
            {"dataroot": "datasets/mini", "name": "temp", "n_epochs": 1, "n_epochs_decay": 0, "print_freq": 1,
             "save_latest_freq": "10"},
        ),
        (
            "--model cycle_gan --name temp --dataroot ./datasets/mini --n_epochs 1 --n_epochs_decay 0 "
            "--save_latest_freq 10 --print_freq 1 --display_id -1",
            {"dataroot": "datasets/mini", "name": "temp", "n_epochs": 1, "n_epochs_decay": 0, "print_freq": 1,
             "save_latest_freq": "10"},
        ),
        (
            "--dataroot ./datasets/MR2CT/ --name cycle_Lcc --batchSize 4 --lambda_Self 0 --lambda_co_A 2 "
            "--lambda_co_B 2 --input_nc 1 --output_nc 1 --loadSize 286 --fineSize 256 --continue_train "
            "--epoch_count 26 --which_epoch latest --display_id 0 --display_port 8097 --display_env lib",
            {"dataroot": "datasets/MR2CT", "name": "cycle_Lcc", "batch_size": 4, "lambda_shape": 0.0,
             "continue_train": True},
        ),
    ],
)  # fmt: skip
def test_published_command_lines_train(line, changed):
    assert train_values(line) == changed


def test_the_pix2pix_line_is_led_to_the_paired_method(capsys):
    line = (
        "--dataroot ./datasets/facades --name facades_pix2pix --model pix2pix --which_model_netG unet_256 "
        "--which_direction BtoA --lambda_A 100 --dataset_mode aligned --no_lsgan --norm batch --pool_size 0"
    )
    with pytest.raises(SystemExit):
        train_options.parse(line.split())
    assert "use --model paired" in capsys.readouterr().err


def test_methods_with_defaults_of_their_own_keep_them():
    words = ["--model", "simulated_pairs", "--no_dropout", "--dataset_mode", "unaligned", "--direction", "AtoB"]
    plain = train_options.parse([*REQUIRED, "--model", "simulated_pairs"]).values()
    assert train_options.parse([*REQUIRED, *words]).values() == plain
    size = train_options.parse([*REQUIRED, "--model", "simulated_pairs", "--fineSize", "256"])
    assert (size.data.preprocess, size.data.crop_size) == ("body_crop", 256)  # 160 by default: 256 asks for more


def test_one_line_of_the_log_says_what_became_of_them(caplog):
    caplog.set_level(logging.INFO)
    train_values("--no_dropout --lr_policy lambda --display_id 0 --niter 5 --phase train")
    (record,) = caplog.records
    assert record.getMessage() == (
        "published options: --lr_policy lambda is --lr_policy linear; not needed here: --no_dropout, --phase train "
        "(docs/published.md)"
    )
    caplog.clear()
    train_values("--niter 5 --batchSize 2")  # names that mean the same need no word
    assert not caplog.records


def test_only_the_first_process_says_it(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("RANK", "1")
    train_values("--no_dropout")
    assert not caplog.records


def test_the_extractors_command_takes_them_too(tmp_path, capsys):
    words = ["--dataroot", str(tmp_path), "--gpu_ids", "-1"]
    plain = extractor_command.parse(words)
    assert extractor_command.parse([*words, "--no_flip", "--dataset_mode", "unaligned", "--verbose"]) == plain
    with pytest.raises(SystemExit):
        extractor_command.parse([*words, "--input_nc", "3"])
    assert "slices are gray" in capsys.readouterr().err
    named = extractor_command.parse([*words, "--name", "e", "--suffix", "{batchSize}", "--batch_size", "4"])
    assert named.run.name == "e_4"


@pytest.fixture
def model(tmp_path):
    """The record of a model of a U-Net; its weights are not needed for parsing."""
    ct = IntensityMap.window(-1000, 1400)
    settings = InferenceSettings(
        generator=Architecture("unet_256", 32, "batch"), direction="AtoB", size=256, spacing_mm=1.0, slice_mm=None,
        mr_window=(0.0, 400.0), typical_mr=None, ct=ct, versions={},
    )  # fmt: skip
    settings.write(tmp_path / "n")
    return ["--name", "n", "--checkpoints_dir", str(tmp_path), "--gpu_ids", "-1"]


# Lines of test commands, and what they change in the options of test_adapt.py and of test_pipeline.py.
USE = [
    ("--dataroot x", {}, {}),  # the input: see the test
    ("--batchSize 2", {"batch_size": 2}, {"batch_size": 2}),
    ("--batch_size 2", {"batch_size": 2}, {"batch_size": 2}),
    ("--loadSize 256 --fineSize 256 --resize_or_crop resize_and_crop", {}, {}),
    ("--load_size 256 --crop_size 256 --preprocess none", {}, {}),
    ("--input_nc 1 --output_nc 1", {}, {}),
    ("--ngf 32 --which_model_netG unet_256 --norm batch --no_dropout", {}, {}),
    ("--netG unet_256", {}, {}),
    ("--ndf 64 --which_model_netD basic --netD basic --n_layers_D 3 --init_type normal --init_gain 0.02", {}, {}),
    ("--gpu_ids -1 --checkpoints_dir CHECKPOINTS --name n", {}, {}),
    ("--dataset_mode single --model test", {}, {}),
    ("--dataset_mode unaligned --model cycle_gan", {}, {}),
    ("--which_direction AtoB", {"direction": "AtoB"}, {"direction": "AtoB"}),
    ("--direction BtoA", {"direction": "BtoA"}, {"direction": "BtoA"}),
    ("--model_suffix _B", {"direction": "BtoA"}, {"direction": "BtoA"}),
    ("--model_suffix _B --which_direction BtoA", {"direction": "BtoA"}, {"direction": "BtoA"}),
    ("--model_suffix _A --direction AtoB", {"direction": "AtoB"}, {"direction": "AtoB"}),
    ("--nThreads 3", {}, {"num_threads": 3}),
    ("--num_threads 3", {}, {"num_threads": 3}),
    ("--serial_batches --no_flip --verbose --eval --phase test", {}, {}),
    ("--display_winsize 256 --display_id 1 --display_server http://h --display_env lib --display_port 8097", {}, {}),
    ("--max_dataset_size inf", {}, {}),
    ("--which_epoch 20", {"epoch": "20"}, {"epoch": "20"}),
    ("--epoch 20", {"epoch": "20"}, {"epoch": "20"}),
    ("--results_dir ./out/", {"results_dir": Path("out")}, {"results_dir": Path("out")}),
    ("--how_many 5", {}, {"num_test": 5}),
    ("--num_test 5", {}, {"num_test": 5}),
    ("--ntest 5", {}, {"num_test": 5}),
    ("--ntest 9 --how_many 5", {}, {"num_test": 5}),
    ("--ntest inf", {}, {}),
    ("--aspect_ratio 1.0 --load_iter 0 --model_suffix _A", {}, {}),
    ("--suffix=", {}, {}),
]
USE_ERRORS = [
    ("--input_nc 3", "was trained with input_nc 1"),
    ("--norm instance", "was trained with norm batch"),
    ("--which_model_netG resnet_9blocks", "was trained with netG unet_256, as its inference.json says; leave it out"),
    ("--dataset_mode aligned", "a true CT to score against is --reference"),
    ("--model banana", "the model is chosen with --name"),
    ("--phase train", "chosen with --input or --input_dir"),
    ("--aspect_ratio 2", "results lie on the MR's own grid"),
    ("--model_suffix _C", "expected _A or _B"),
    ("--model_suffix _B --direction AtoB", "expected one of them"),
    ("--model_suffix _A --direction BtoA", "was trained with direction AtoB"),
    ("--max_dataset_size 5", "--num_test of test_pipeline.py"),
    ("--load_iter 5", "use --epoch"),
    ("--how_many 0", "whole number of 1 or more"),
    ("--no_html=1", "ignored explicit argument"),
]


@pytest.mark.parametrize(("line", "in_adapt", "in_pipeline"), USE)
def test_a_published_option_of_use_does_this(line, in_adapt, in_pipeline, model):
    words = line.replace("CHECKPOINTS", model[3]).split()
    for parse, required, changed in (
        (test_options.parse, ["--input", "x"], in_adapt), (pipeline_options.parse, ["--input_dir", "x"], in_pipeline),
    ):  # fmt: skip
        before = vars(parse([*model, *required]))
        given = words if "--dataroot" in words else [*required, *words]
        after = vars(parse([*model, *given]))
        assert {name: value for name, value in after.items() if before[name] != value} == changed


@pytest.mark.parametrize(("line", "message"), USE_ERRORS)
def test_what_a_published_option_of_use_cannot_have_is_said(line, message, model, capsys):
    with pytest.raises(SystemExit) as stop:
        pipeline_options.parse([*model, "--input_dir", "x", *line.split()])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_dropout_of_a_models_record_counts(tmp_path, model, capsys):
    ct = IntensityMap.window(-1000, 1400)
    InferenceSettings(
        generator=Architecture(use_dropout=True), direction="AtoB", size=256, spacing_mm=1.0, slice_mm=None,
        mr_window=(0.0, 400.0), typical_mr=None, ct=ct, versions={},
    ).write(tmp_path / "n")  # fmt: skip
    with pytest.raises(SystemExit):
        test_options.parse([*model, "--input", "x", "--no_dropout"])
    assert "--no_dropout: " in (said := capsys.readouterr().err) and "trained with use_dropout True" in said


@pytest.mark.parametrize(
    "line",
    [
        "--dataroot ./datasets/maps --name n --model cycle_gan",
        "--dataroot ./datasets/maps --name n --model cycle_gan --phase test --no_dropout",
        "--dataroot ./datasets/maps --name n --model test",
        "--dataroot ./datasets/maps --name n --model test --which_model_netG unet_256 --which_direction AtoB "
        "--dataset_mode single --norm batch",
        "--dataroot ./datasets/maps --name n --model test --num_test 1 --model_suffix _A --no_dropout",
        "--dataroot ./datasets/maps --name n --model test --ngf 32 --how_many 50 --loadSize 256 --fineSize 256 "
        "--batchSize 4 --input_nc 1 --output_nc 1 --phase test --display_id 1 --display_env lib",
    ],
)
def test_published_test_lines_convert(line, model):
    options = pipeline_options.parse([*model, *line.split()])
    assert (options.name, options.input_dir, options.list) == (["n"], Path("datasets/maps"), None)
    one = test_options.parse([*model, *line.split()])
    assert one.input == [(None, Path("datasets/maps"))]


def test_words_that_are_not_published_stay_as_they_are():
    words = ["first", "--a", "--b=x=y", "--mr_window", " -2", "3", "--c"]
    assert translate(words, OPTIONS, Command.TRAIN).words == words


def table_text(table: Mapping[str, Published]) -> str:
    """Return the table of published options as Markdown, for docs/published.md."""
    rows = ["| published | default there | training here | use here |", "| --- | --- | --- | --- |"]
    for row in table.values():
        default = "off" if row.default is None else row.default or "empty"
        rows.append(
            f"| `{row.name}` | {default} | {row.train.says if row.train else ''} | {row.use.says if row.use else ''} |"
        )
    return "\n".join(rows) + "\n"


def test_the_documentation_shows_the_table():
    """After a change of the options, put what `table_text(OPTIONS)` returns in the place of the old table."""
    assert table_text(OPTIONS) in (ROOT / "docs/published.md").read_text()
