"""README's way from volumes to scores: its commands, read from the page, run in order on small generated patients."""

import contextlib
import io
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import test_adapt
from data.masks.body_mask import ct_body_mask
from data.prepared.manifest import read_manifest
from data.volumes.volume import Volume, read_volume, same_grid, write_volume
from evaluation.metrics import mae
from evaluation.report import score_case
from models.inference_settings import read_inference_settings
from models.state_dicts import load_checkpoint
from scripts import make_phantom
from tests import documented
from tests.documented import ROOT

SMALL = "--patients 2 --test_patients 2 --matrix 48 --slices 20 --spacing_mm 10.7 --slice_mm 60 --seed 3".split()
# What makes each command small; names and paths stay as README has them.
CPU = "--num_threads 0 --device cpu"
SMALLER = {
    "scripts.prepare_dataset": "--size 48 --workers 1",
    "train --model simulated_pairs": f"--ngf 8 --slab 1 --crop_size 48 --batch_size 2 --steps_per_epoch 80 "
    f"--n_epochs 1 --lr 0.01 --ema 0.9 --field_of_view 0 {CPU}",
    "ct_segmentation.train": f"--width 4 --epochs 1 {CPU}",
    "train": f"--netG resnet_6blocks --netD n_layers --n_layers_D 1 --ngf 4 --ndf 4 --n_epochs 1 --n_epochs_decay 0 "
    f"--max_dataset_size 8 {CPU}",
    "scripts.import_generator": "--netG resnet_6blocks --ngf 4 --size 48",
    "test_adapt": "--device cpu",
    "test_pipeline": "--device cpu --num_threads 1",
}
# The demo and the tests themselves, several processes or GPUs, and what is shown without its data.
NOT_RUN = (
    "git clone",
    "scripts/demo.sh",
    "scripts/test.sh",
    "torchrun",
    "gpu_",
    "--model paired",
    "--help",
    "plot_losses",
    "CASE",
)


def left_out(line: str) -> bool:
    """Tell whether a line is not run here."""
    return any(word in line for word in NOT_RUN) and not line.endswith("\\")


def small(words: list[str]) -> list[str]:
    """Return a command line with the options that make it small; what continues a run has them from it."""
    name, arguments = documented.split(words)
    if "--continue_train" in arguments:
        return words
    of_method = f"{name} {' '.join(arguments[:2])}"
    return [*words, *SMALLER.get(of_method, SMALLER.get(name, "")).split()]


def lay_out(root: Path) -> None:
    """Put generated patients where README has them."""
    made = root / "made"
    make_phantom.main(["--out", str(made), *SMALL])
    for domain in ("mr", "ct"):
        shutil.copytree(made / "train" / domain, root / "raw" / domain)
    for case in sorted((made / "test").iterdir()):
        shutil.copytree(case, root / "patients" / case.name)
    for name in ("mr.nii.gz", "ct.nii.gz"):
        shutil.copy(case / name, root / name)
    write_volume(thigh(), root / "MR.nii.gz")
    (root / "checkpoints").mkdir()
    (root / "checkpoints/recommended").symlink_to(ROOT / "checkpoints/recommended")
    (root / "masks").mkdir()
    ring = np.zeros((5, 9, 9), np.uint8)
    ring[1:4, 2:7, 2:7] = 1
    ring[2, 4, 4] = 0
    sitk.WriteImage(sitk.GetImageFromArray(ring), root / "masks/ring.nii.gz")


def thigh() -> Volume:
    """A limb of 60 mm for the shipped model: fat (950) around muscle (300) around a shaft of dark bone with marrow."""
    z, y, x = np.mgrid[:6, :40, :40]
    radius = np.hypot(y - 19.5, x - 19.5) * 2
    array = np.select([radius < 5, radius < 9, radius < 22, radius < 30], [900, 40, 300, 950], 0).astype(np.float32)
    return Volume(array + 10 * (array > 0) * np.sin(x + 2 * y + 3 * z), (2.0, 2.0, 3.27))


@pytest.fixture(scope="module")
def way(tmp_path_factory):
    """The folder after all commands, what was run, and what was said."""
    root = tmp_path_factory.mktemp("way with spaces")
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    lay_out(root)
    documented.make_place(root)
    done = []
    with contextlib.chdir(root):
        for text in documented.way(ROOT / "README.md"):
            for words in documented.noted(root, "\n".join(line for line in text.splitlines() if not left_out(line))):
                if "checkpoints/theirs" in words:
                    Path("checkpoints/theirs").mkdir()
                    shutil.copy("checkpoints/mine/latest_net_G_A.pth", "checkpoints/theirs")
                documented.run(small(words))
                done.append(documented.split(words)[0])
        patient = ["--input", "mr.nii.gz", "--reference", "ct.nii.gz", "--output", "scored.nii.gz"]
        test_adapt.main(["--name", "recommended_mine_small", "--device", "cpu", *patient])
    logging.getLogger().removeHandler(handler)
    return root, done, said.getvalue()


def test_all_commands_of_the_way_were_run_in_order(way):
    assert way[1] == [
        "test_adapt", "scripts.prepare_dataset", "train", "train", "scripts.export_model", "ct_segmentation.train",
        "train", "train", "test_adapt", "test_adapt", "test_pipeline", "scripts.evaluate",
        "scripts.trivial_predictors", "scripts.evaluate", "scripts.compare_scores", "scripts.export_model",
        "scripts.import_generator", "scripts.resample", "scripts.simulate_mr", "fill_hole",
    ]  # fmt: skip


def test_each_command_names_the_next(way):
    said = way[2]
    for command in (
        "next: bash scripts/train_recommended.sh datasets/mine",
        "next: python test_adapt.py --name recommended_mine --input MR.nii.gz",
        "next: python test_adapt.py --name recommended_mine_small --input MR.nii.gz",
        "next: python train.py --dataroot datasets/mine --name NAME",
        "next: python test_adapt.py --name mine --input MR.nii.gz",
        "next: python -m scripts.evaluate --pred results/recommended_mine_small/mr.nii.gz --ref ct.nii.gz "
        "--mr mr.nii.gz --resample_reference",
        "next: python -m scripts.evaluate --pred results/recommended_mine_small --ref patients "
        "--ref_pattern '{case}/ct.nii.gz' "
        "--mr patients --mr_pattern '{case}/mr.nii.gz' --resample_reference --skip_missing",
        "next: python test_adapt.py --name published --input MR.nii.gz",
    ):
        assert command in said


def test_the_run_is_what_was_asked_for(way):
    root = way[0]
    manifest = read_manifest(root / "datasets/mine")
    assert (manifest.size, len(manifest.select("train", "A")), len(manifest.select("train", "B"))) == (48, 2, 2)
    losses = [json.loads(line) for line in (root / "checkpoints/mine/losses.jsonl").read_text().splitlines()]
    assert {record["epoch"] for record in losses} == {1}  # --continue_train found a run that is done
    assert read_inference_settings(root / "checkpoints/recommended_mine").slab == 1


@pytest.mark.parametrize(
    ("result", "source"),
    [
        ("recommended/MR.nii.gz", "MR.nii.gz"),
        ("recommended_mine_small/mr.nii.gz", "mr.nii.gz"),
        ("recommended_mine_small/test000.nii.gz", "patients/test000/mr.nii.gz"),
        ("recommended_mine_small/test001.nii.gz", "patients/test001/mr.nii.gz"),
    ],
)
def test_each_synthetic_ct_is_int16_hu_on_the_mr_s_grid(result, source, way):
    root = way[0]
    synthetic = read_volume(root / "results" / result)
    assert same_grid(synthetic, read_volume(root / source), tolerance=1e-6)
    assert sitk.ReadImage(str(root / "results" / result)).GetPixelID() == sitk.sitkInt16
    assert -1000 <= synthetic.array.min() < synthetic.array.max() <= 1400


def test_one_patient_and_the_cohort_give_the_same_ct(way):
    root = way[0]
    one, many = (read_volume(root / "results/recommended_mine_small" / f"{name}.nii.gz") for name in ("mr", "test001"))
    assert np.array_equal(one.array, many.array)


def test_training_learnt_where_the_body_is(way):
    """Seconds of training teach little, but much more than an empty volume."""
    root = way[0]
    synthetic, ct = (read_volume(root / path).array.astype(float) for path in ("scored.nii.gz", "ct.nii.gz"))
    everywhere = np.ones(ct.shape, bool)
    error = mae(synthetic, ct, everywhere)
    assert error < mae(np.full_like(ct, -1000), ct, everywhere) / 1.5


def test_the_scores_are_those_of_the_volumes_and_of_one_patient(way):
    root = way[0]
    cases = json.loads((root / "scores.json").read_text())["cases"]
    assert [case["case"] for case in cases] == ["test000", "test001"]
    for case in cases:
        folder = root / "patients" / case["case"]
        mr, ct = (read_volume(folder / name) for name in ("mr.nii.gz", "ct.nii.gz"))
        synthetic = read_volume(root / f"results/recommended_mine_small/{case['case']}.nii.gz")
        assert {name: value for name, value in case.items() if name != "case"} == score_case(synthetic, ct, mr=mr)
        scored = ct_body_mask(ct) & (mr.array > 0)
        difference = np.abs(synthetic.array.astype(float) - ct.array)[scored].mean()
        assert case["mae"] == pytest.approx(difference, abs=1e-3)
    written = json.loads((root / "scored.json").read_text())
    scores = {name: value for name, value in cases[1].items() if name != "case"}
    assert {name: written[name] for name in scores} == scores
    assert written["input"] == str((root / "mr.nii.gz").resolve())
    assert f"{written['mae']:.1f}" in (root / "scored_page/index.html").read_text()
    assert {file.name for file in (root / "scored_page/data").iterdir()} == {"mr.js", "ct.js", "reference.js"}


def test_the_tools_made_what_the_table_says(way):
    root = way[0]
    full = load_checkpoint(root / "checkpoints/mine/latest_net_G_A.pth")
    half = load_checkpoint(root / "checkpoints/mine_small/latest_net_G_A.pth")
    assert all(torch.equal(half[name], full[name].half()) for name in full)
    taken = load_checkpoint(root / "checkpoints/published/latest_net_G_A.pth")
    assert all(torch.equal(taken[name], full[name]) for name in full)
    assert read_inference_settings(root / "checkpoints/published").spacing_mm == 1.5
    resampled = read_volume(root / "ct_like_mr.nii.gz")
    assert np.array_equal(resampled.array, read_volume(root / "ct.nii.gz").array)  # it lay on that grid
    filled = sitk.GetArrayFromImage(sitk.ReadImage(str(root / "filled/ring.nii.gz")))
    assert (filled[2, 4, 4], filled.sum()) == (1, 3 * 5 * 5)
