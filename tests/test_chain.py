"""The whole chain on tiny generated patients: generate, prepare, train, synthesise, score; through the commands."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

import test_adapt
import train
from data.volumes.volume import read_volume, same_grid
from evaluation.metrics import mae
from scripts import evaluate, make_phantom, prepare_dataset

SMALL = "--patients 2 --test_patients 1 --matrix 48 --slices 20 --spacing_mm 10.7 --slice_mm 60 --seed 3".split()
NETWORKS = "--netG resnet_6blocks --netD n_layers --n_layers_D 1 --ngf 4 --ndf 4 --lambda_Self 0 --lambda_shape_gan 0"
SCHEDULE = "--n_epochs 4 --n_epochs_decay 2 --num_threads 0 --device cpu --batch_size 2 --lr 0.001 --upsample resize"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    root = tmp_path_factory.mktemp("chain with spaces")
    make_phantom.main(["--out", str(root / "raw"), *SMALL])
    inputs = ["--mr", f"{root}/raw/train/mr/*", "--ct", f"{root}/raw/train/ct/*", "--out", str(root / "set")]
    assert prepare_dataset.main([*inputs, "--size", "48", "--workers", "1"]) == 0
    where = ["--name", "tiny run", "--checkpoints_dir", str(root / "ck"), "--device", "cpu"]
    train.main(["--dataroot", str(root / "set"), *where, *NETWORKS.split(), *SCHEDULE.split()])
    (patient,) = (root / "raw/test").iterdir()
    volumes = ["--input", str(patient / "mr.nii.gz"), "--reference", str(patient / "ct.nii.gz")]
    test_adapt.main([*where, *volumes, "--output", str(root / "results/sct.nii.gz")])
    return root, patient


def test_the_synthetic_ct_is_int16_hu_on_the_mr_s_grid(chain):
    root, patient = chain
    synthetic, mr = read_volume(root / "results/sct.nii.gz"), read_volume(patient / "mr.nii.gz")
    assert same_grid(synthetic, mr, tolerance=1e-6)
    image = sitk.ReadImage(str(root / "results/sct.nii.gz"))
    assert image.GetPixelID() == sitk.sitkInt16
    assert synthetic.array.min() >= -1000
    assert synthetic.array.max() <= 1400


def test_training_learnt_where_the_body_is(chain):
    """Minutes of training teach little, but more than an empty volume and than water everywhere."""
    root, patient = chain
    synthetic, ct = (read_volume(p).array.astype(float) for p in (root / "results/sct.nii.gz", patient / "ct.nii.gz"))
    everywhere = np.ones(ct.shape, bool)
    error = mae(synthetic, ct, everywhere)
    assert error < mae(np.full_like(ct, -1000), ct, everywhere)
    assert error < mae(np.zeros_like(ct), ct, everywhere)


def test_the_scores_are_those_of_the_evaluate_command(chain, capsys):
    root, patient = chain
    arguments = ["--pred", str(root / "results/sct.nii.gz"), "--ref", str(patient / "ct.nii.gz")]
    evaluate.main([*arguments, "--mr", str(patient / "mr.nii.gz"), "--json", str(root / "scores.json")])
    assert "MAE" in capsys.readouterr().out
    (scored,) = json.loads((root / "scores.json").read_text())["cases"]
    written = json.loads((root / "results/sct.json").read_text())
    assert {"mae", "psnr", "ssim", "ms_ssim", "dice_body", "dice_bone", "mae_bone"} <= scored.keys() & written.keys()
    assert {key: written[key] for key in scored if key != "case"} == {k: v for k, v in scored.items() if k != "case"}
    assert written["input"] == str((patient / "mr.nii.gz").resolve())
    assert (root / "results/sct.png").stat().st_size > 1000
    page = root / "results/sct_page"
    assert f"{written['mae']:.1f}" in (page / "index.html").read_text()
    assert {file.name for file in (page / "data").iterdir()} == {"mr.js", "ct.js", "reference.js"}
