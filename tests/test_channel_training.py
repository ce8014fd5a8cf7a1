"""Trainings on generated Dixon patients with two contrasts and with slabs: run, resume bit for bit, convert."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import test_adapt
import test_pipeline
import train
from data.errors import InputError
from data.prepared.arrays import read_contrasts
from data.prepared.manifest import read_manifest
from data.volumes.volume import read_volume, same_grid
from models.base_model import Place
from models.cycle_gan_model import CycleGANModel
from models.inference_settings import read_inference_settings
from models.paired_model import PairedModel
from models.shape_extractor import save_extractor
from models.state_dicts import load_checkpoint
from options import train_options
from scripts import make_phantom, prepare_dataset
from tests.test_shape_constraint import extractor
from tests.test_train import TINY, assert_same_weights

SMALL = "--patients 2 --test_patients 1 --matrix 32 --slices 12 --spacing_mm 16 --slice_mm 100 --seed 3".split()
NAMES = ("in_phase", "fat")
SHORT = "--n_epochs 2 --n_epochs_decay 1 --print_freq 1 --max_dataset_size 8 --save_latest_freq 3".split()
ARMS = {
    "two contrasts": [*NAMES],
    "slabs": ["in_phase", "--slab", "3"],
    "both, with shape": [*NAMES, "--slab", "3", "--lambda_shape", "10", "--lambda_shape_gan", "1"],
    "both after a warm start": [*NAMES, "--slab", "3", "--warm_start", "simulated_mr", "--n_epochs_warm", "1"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Generated patients, prepared with one contrast and with two, each with a shape extractor."""
    root = tmp_path_factory.mktemp("dixon")
    make_phantom.main(["--out", str(root / "raw"), "--dixon", *SMALL])
    for name, contrasts in (("one", NAMES[:1]), ("two", NAMES)):
        mr = [word for c in contrasts for word in ("--mr", f"{c}={root}/raw/train/mr/*_{c}.nii.gz")]
        where = ["--ct", f"{root}/raw/train/ct/*", "--out", f"{root}/{name}", "--slice_mm", "100"]
        assert prepare_dataset.main([*mr, *where, "--size", "32", "--workers", "1"]) == 0
        (root / name / "shape_extractor").mkdir()
        save_extractor(extractor(), root / name / "shape_extractor/extractor.pth")
    return root


def run(root: Path, arm: str, *more: str, name: str, checkpoints: Path) -> Path:
    words = ARMS[arm]
    two = NAMES[1] in words
    dataroot = root / ("two" if two else "one")
    where = ["--dataroot", str(dataroot), "--name", name, "--checkpoints_dir", str(checkpoints)]
    train.main([*where, *TINY, *SHORT, *words[2 if two else 1 :], *more])
    return checkpoints / name


def end_steps_by_a_kill(patch, after: int) -> None:
    steps, average = [], CycleGANModel._average

    def killed(model):
        steps.append(1)
        if len(steps) == after:
            raise KeyboardInterrupt
        average(model)

    patch.setattr(CycleGANModel, "_average", killed)


@pytest.mark.parametrize(
    "arm", [pytest.param(arm, marks=pytest.mark.slow if arm == "both after a warm start" else []) for arm in ARMS]
)
def test_a_training_runs_resumes_bit_for_bit_and_converts(root, tmp_path, monkeypatch, arm):
    whole = run(root, arm, name="whole", checkpoints=tmp_path)
    with monkeypatch.context() as patch:
        end_steps_by_a_kill(patch, after=12)  # in the second epoch, a step after a state was saved
        with pytest.raises(KeyboardInterrupt):
            run(root, arm, name="parts", checkpoints=tmp_path)
    parts = run(root, arm, "--continue_train", name="parts", checkpoints=tmp_path)
    assert_same_weights(whole, parts)
    settings = read_inference_settings(whole)
    names = NAMES if "fat" in ARMS[arm] else NAMES[:1]
    slab = 3 if "--slab" in ARMS[arm] else 1
    assert (settings.contrasts, settings.slab) == (names, slab)
    assert settings.slice_mm == 100
    assert settings.channels == (len(names) * slab, slab)
    records = [json.loads(line) for line in (whole / "losses.jsonl").read_text().splitlines()]
    assert all(np.isfinite(list(record["losses"].values())).all() for record in records)
    with Image.open(next((whole / "web/images").glob("*.png"))) as sheet:
        assert sheet.width > 32
    patient = root / "raw/test/test000"
    inputs = [word for name in names[::-1] for word in ("--input", f"{name}={patient}/{name}.nii.gz")]
    where = ["--name", "whole", "--checkpoints_dir", str(tmp_path), "--device", "cpu"]
    test_adapt.main([*where, *inputs, "--reference", f"{patient}/ct.nii.gz", "--output", f"{tmp_path}/sct.nii.gz"])
    synthetic = read_volume(tmp_path / "sct.nii.gz")
    assert synthetic.array.dtype == np.int16
    assert same_grid(synthetic, read_volume(patient / "ct.nii.gz"))
    patterns = [f"{name}=*/{name}.nii.gz" for name in names]
    cohort = ["--input_dir", f"{root}/raw/test", "--pattern", *patterns, "--results_dir", f"{tmp_path}/out"]
    assert test_pipeline.main([*where, *cohort]) == 0
    np.testing.assert_array_equal(read_volume(tmp_path / "out/whole/test000.nii.gz").array, synthetic.array)


def test_a_model_of_two_contrasts_refuses_without_its_second_by_name(root, tmp_path):
    run(root, "two contrasts", name="two", checkpoints=tmp_path)
    patient = root / "raw/test/test000"
    where = ["--name", "two", "--checkpoints_dir", str(tmp_path), "--device", "cpu"]
    with pytest.raises(InputError, match="--input: no fat; expected in_phase, fat"):
        test_adapt.main([*where, "--input", f"in_phase={patient}/in_phase.nii.gz"])


def test_the_manifest_says_what_each_contrast_is(root):
    manifest = read_manifest(root / "two")
    assert manifest.contrasts == NAMES
    for case in manifest.select("train", "A"):
        assert case.further[0].source.endswith(f"{case.name}_fat.nii.gz")
        assert case.further[0].percentiles != case.percentiles


def start(root: Path, tmp_path: Path, arm: str, *more: str, name="run") -> Path:
    return run(root, arm, *more, "--n_epochs", "1", "--n_epochs_decay", "0", name=name, checkpoints=tmp_path)


def test_windows_by_name_reach_the_model(root, tmp_path):
    rules = ["--mr_window", "fat=0:900", "in_phase=tissue"]
    folder = start(root, tmp_path, "two contrasts", *rules)
    assert read_inference_settings(folder).mr_window == {"fat": (0.0, 900.0), "in_phase": "tissue"}
    with pytest.raises(InputError, match="--mr_window: no fat; expected in_phase, fat"):
        start(root, tmp_path, "two contrasts", "--mr_window", "in_phase=tissue", name="other")


@pytest.mark.parametrize(
    ("arm", "more", "message"),
    [
        ("two contrasts", ["--direction", "BtoA"], "--direction BtoA: makes MR of one contrast; .* in_phase, fat"),
    ],
)
def test_what_several_contrasts_cannot_is_refused(root, tmp_path, arm, more, message):
    with pytest.raises(InputError, match=message):
        start(root, tmp_path, arm, *more)


def test_another_slab_or_other_contrasts_are_refused_on_resume_and_as_a_start(root, tmp_path):
    start(root, tmp_path, "slabs")
    with pytest.raises(InputError, match="slab: was 3, now 5"):
        start(root, tmp_path, "slabs", "--slab", "5", "--continue_train")
    with pytest.raises(InputError, match="contrasts: was in_phase, now in_phase, fat"):
        start(root, tmp_path, "two contrasts", "--slab", "3", "--continue_train")
    with pytest.raises(InputError, match=r"--init_from run: .*contrasts: .*in_phase.* there, .*fat.* here"):
        start(root, tmp_path, "two contrasts", "--slab", "3", "--init_from", "run", name="next")


def test_an_even_slab_is_refused(capsys):
    with pytest.raises(SystemExit):
        train.main(["--dataroot", "d", "--name", "n", "--slab", "2"])
    assert "--slab" in capsys.readouterr().err


def test_several_contrasts_validate_as_in_use(root, tmp_path):
    rule = ["--val", "--val_patients", "0.5"]
    folder = start(root, tmp_path, "both, with shape", "--lambda_shape", "0", "--lambda_shape_gan", "0", *rule)
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    (values,) = [line["validation"] for line in lines if "validation" in line]
    assert {"histogram", "cycle", "body_dice", "simulated_mae"} <= values.keys()
    assert (folder / "best_net_G_A.pth").exists()


PAIRED = "--model paired --slab 3 --crop_size 16 --batch_size 2 --steps_per_epoch 4 --n_epochs 2 --netG unet --ngf 2"
PAIRED += " --lambda_reverse 1 --mr_window fat=0:500 in_phase=percentile --save_latest_freq 3 --device cpu"


@pytest.fixture(scope="module")
def pairs(root) -> Path:
    """A patient's two contrasts and CT on one grid."""
    mr = [word for c in NAMES for word in ("--mr", f"{c}={root}/raw/test/*/{c}.nii.gz")]
    where = ["--ct", f"{root}/raw/test/*/ct.nii.gz", "--patient_regex", "(test[0-9]+)", "--out", str(root / "pairs")]
    assert prepare_dataset.main([*mr, *where, "--slice_mm", "100", "--size", "32", "--workers", "1"]) == 0
    return root / "pairs"


def test_pairs_of_several_contrasts_train_resume_bit_for_bit_and_convert(root, pairs, tmp_path, monkeypatch):
    where = ["--dataroot", str(pairs), "--checkpoints_dir", str(tmp_path), *PAIRED.split()]
    assert train.main([*where, "--name", "whole"]) == 0
    with monkeypatch.context() as patch:
        steps, draw = [], PairedModel.draw

        def killed(model):
            steps.append(1)
            if len(steps) == 8:  # in the second epoch, after a state was saved
                raise KeyboardInterrupt
            return draw(model)

        patch.setattr(PairedModel, "draw", killed)
        with pytest.raises(KeyboardInterrupt):
            train.main([*where, "--name", "parts"])
    assert train.main([*where, "--name", "parts", "--continue_train"]) == 0
    for net, shape in (("G_A", 6), ("G_B", 3)):
        a, b = (load_checkpoint(tmp_path / name / f"latest_net_{net}.pth") for name in ("whole", "parts"))
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert next(iter(a.values())).shape[1] == shape
    settings = read_inference_settings(tmp_path / "whole")
    assert (settings.contrasts, settings.slab, settings.channels) == (NAMES, 3, (6, 3))
    assert settings.mr_window == {"fat": (0.0, 500.0), "in_phase": "percentile"}
    patient = root / "raw/test/test000"
    inputs = [f"{name}={patient / name}.nii.gz" for name in reversed(NAMES)]
    use = [
        "--name",
        "whole",
        "--checkpoints_dir",
        str(tmp_path),
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "ct.nii"),
    ]
    assert test_adapt.main([*use, "--input", inputs[0], "--input", inputs[1]]) == 0
    assert same_grid(read_volume(tmp_path / "ct.nii"), read_volume(patient / "ct.nii.gz"))
    with pytest.raises(InputError, match="no fat"):
        test_adapt.main([*use, "--input", inputs[1]])
    one = replace(read_manifest(pairs), cases=tuple(replace(c, further=()) for c in read_manifest(pairs).cases))
    monkeypatch.setattr("data.loading.paired.read_manifest", lambda _: one)
    rule = ["--mr_window", "percentile"]
    with pytest.raises(InputError, match="contrasts: was in_phase, fat, now None"):
        train.main([*where, *rule, "--name", "whole", "--continue_train"])


def test_the_contrasts_of_a_pair_are_channels_in_order_under_one_field_with_a_gain_each(pairs):
    words = [*PAIRED.split(), "--dataroot", str(pairs), "--name", "x", "--bias", "0", "--field_of_view", "0"]
    settings = train_options.parse(words)
    opened = PairedModel.open_data(settings.model, settings.data)
    assert opened.contrasts == NAMES and opened.mr_maps == ("mr", "mr1")
    (case,) = read_manifest(pairs).select("train", "A")
    images, _ = read_contrasts(pairs, case)
    (maps,) = opened.volumes.values()
    fat = images[1][slice(*case.body_slices)]
    np.testing.assert_allclose(maps["mr1"], np.clip(fat / 250 - 1, -1, 1), atol=1e-3)
    for name, value in (("mr", 0.0), ("mr1", -0.5)):
        maps[name][:] = value
    model = PairedModel.from_data(settings.model, settings.data, opened, Place(torch.device("cpu")))
    gains = []
    for _ in range(20):
        mr, hu, counted = model.draw()
        assert (mr.shape, hu.shape, counted.shape) == ((2, 6, 16, 16), (2, 3, 16, 16), (2, 3, 16, 16))
        middle = (mr[:, :, 6:10, 6:10] + 1) / 2  # within the slices, however they are turned
        gain = middle.unflatten(1, (2, 3)) / torch.tensor([0.5, 0.25]).view(1, 2, 1, 1, 1)
        assert gain.std(dim=(2, 3, 4)).max() < 0.08  # noise alone, 0.01 / 0.25
        gains.append(gain.mean(dim=(2, 3, 4)))
    logs = torch.cat(gains).log()
    assert logs.std(dim=0).tolist() == pytest.approx([0.15, 0.15], rel=0.35)
    assert abs(np.corrcoef(logs.T)[0, 1]) < 0.5


SIMULATED = "--model simulated_pairs --simulated_contrasts fat in_phase".split()
SIMULATED += "--slab 3 --crop_size 16 --batch_size 2 --ngf 2".split()


def test_pairs_of_simulated_contrasts_train_and_their_model_takes_these_by_name(root, tmp_path):
    where = ["--dataroot", str(root / "one"), "--checkpoints_dir", str(tmp_path), "--device", "cpu", "--no_html"]
    length = ["--steps_per_epoch", "2", "--n_epochs", "1", "--mr_window", "in_phase=tissue", "fat=percentile"]
    assert train.main([*where, "--name", "dixon", *SIMULATED, *length, "--val", "--val_patients", "0.5"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "dixon/losses.jsonl").read_text().splitlines()]
    (values,) = [line["validation"] for line in lines if "validation" in line]
    assert 0 < values["simulated_mae"] < 2000
    settings = read_inference_settings(tmp_path / "dixon")
    assert settings.contrasts == ("fat", "in_phase")
    assert (settings.generator.input_nc, settings.generator.output_nc) == (6, 3)
    words = ["--name", "dixon", "--checkpoints_dir", str(tmp_path), "--device", "cpu"]
    inputs = [f"{c}={root}/raw/test/test000/{c}.nii.gz" for c in NAMES]
    assert (
        test_adapt.main([*words, "--input", inputs[0], "--input", inputs[1], "--output", f"{tmp_path}/ct.nii.gz"]) == 0
    )
    with pytest.raises(InputError, match="no in_phase"):
        test_adapt.main([*words, "--input", inputs[1], "--output", f"{tmp_path}/b.nii.gz"])
    more = [*SIMULATED, *length, "--continue_train"]
    with pytest.raises(InputError, match=r"simulated_contrasts: was .*fat.*, now .*fat"):
        train.main([*where, "--name", "dixon", *more, "--simulated_contrasts", "fat", "--mr_window", "tissue"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--simulated_contrasts", "fat", "fat"],
            "fat fat: expected mr, or different ones of in_phase",
        ),
        (["--simulated_contrasts", "mr", "fat"], "--simulated_contrasts: mr fat: expected mr, or different"),
        (["--simulated_contrasts", "t2"], "t2: expected mr, or different"),
        (["--mr_window", "in_phase=tissue"], "--mr_window: no fat; expected fat, in_phase"),
        (["--model", "refined_pairs"], "--simulated_contrasts: one contrast is refined"),
    ],
)
def test_contrasts_that_cannot_be_simulated_are_named(root, tmp_path, capsys, words, message):
    where = ["--dataroot", str(root / "one"), "--name", "x", "--checkpoints_dir", str(tmp_path), "--device", "cpu"]
    with pytest.raises(SystemExit):
        train.main([*where, *SIMULATED, *words])
    assert message in capsys.readouterr().err


def test_simulated_mr_are_refined_by_real_mr_of_the_same_contrast_alone(root, tmp_path):
    where = ["--dataroot", str(root / "one"), "--name", "x", "--checkpoints_dir", str(tmp_path), "--device", "cpu"]
    words = ["--model", "refined_pairs", "--simulated_contrasts", "water", *SIMULATED[5:]]
    with pytest.raises(InputError, match="water: is refined by real MR of the same contrast"):
        train.main([*where, *words])
