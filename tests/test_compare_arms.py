"""`scripts.compare_arms`: the share of arms kept, the table over seeds, and the command on generated patients."""

import json

import numpy as np
import pytest

import train
from data.errors import InputError
from data.phantom.labels import ARM_LABELS, Tissue
from data.volumes.volume import Volume, read_volume
from scripts import compare_arms, make_phantom, prepare_dataset

SMALL = "--patients 2 --test_patients 1 --matrix 48 --slices 20 --spacing_mm 10.7 --slice_mm 60 --seed 3".split()
NETWORKS = "--netG resnet_6blocks --netD n_layers --n_layers_D 1 --ngf 4 --ndf 4 --lambda_Self 0 --lambda_shape_gan 0"
SCHEDULE = "--n_epochs 4 --n_epochs_decay 2 --num_threads 0 --device cpu --batch_size 2 --lr 0.001 --upsample resize"


def test_arms_kept_is_the_share_of_arm_voxels_that_are_not_air():
    labels = np.full((1, 4, 10), Tissue.AIR, np.uint8)
    labels[0, 0] = Tissue.MUSCLE  # the trunk does not count
    labels[0, 1, :8] = np.repeat(ARM_LABELS, 2)
    hu = np.full(labels.shape, -1000, np.int16)
    hu[0, 1, :3] = -499
    hu[0, 1, 3] = -500
    hu[0, 2] = 40  # nor does what was painted elsewhere
    grid = Volume(labels, (1, 1, 1), (0, 0, 0))
    assert compare_arms.arms_kept(grid.with_array(hu), grid) == 3 / 8
    assert np.isnan(compare_arms.arms_kept(grid.with_array(hu), grid.with_array(np.zeros_like(labels))))


def test_the_table_gives_the_mean_and_the_range_of_the_seeds():
    scores = dict.fromkeys(compare_arms.SCORES, 0.5)
    rows = [
        {"model": "a", "checkpoints": seed, "case": case, **scores, "mae": mae}
        for seed, case, mae in (("s1", "p", 100), ("s1", "q", 120), ("s2", "p", 90), ("s2", "q", np.nan))
    ]
    line = compare_arms.format_comparison(rows, ["a"]).splitlines()[2]
    assert "100.0 (90.0 to 110.0)" in line
    assert line.count("0.500 (0.500 to 0.500)") == 3


def test_the_command_scores_every_model_of_every_seed(tmp_path, capsys):
    make_phantom.main(["--out", str(tmp_path / "raw"), *SMALL])
    inputs = ["--mr", f"{tmp_path}/raw/train/mr/*", "--ct", f"{tmp_path}/raw/train/ct/*"]
    assert prepare_dataset.main([*inputs, "--out", str(tmp_path / "set"), "--size", "48", "--workers", "1"]) == 0
    for seed in ("1", "2"):
        where = ["--name", "a", "--checkpoints_dir", str(tmp_path / f"seed{seed}"), "--seed", seed]
        short = ["--max_dataset_size", "2", "--n_epochs", "1", "--n_epochs_decay", "0"]
        train.main(["--dataroot", str(tmp_path / "set"), *where, *NETWORKS.split(), *SCHEDULE.split(), *short])
    folders = [str(tmp_path / "seed1"), str(tmp_path / "seed2")]
    arguments = ["--phantom", str(tmp_path / "raw"), "--names", "a", "--out", str(tmp_path / "out"), "--device", "cpu"]
    compare_arms.main([*arguments, "--checkpoints_dir", *folders])
    rows = json.loads((tmp_path / "out/scores.json").read_text())["cases"]
    assert [(row["checkpoints"], row["model"], row["case"]) for row in rows] == [
        ("seed1", "a", "test000"), ("seed2", "a", "test000"),
    ]  # fmt: skip
    labels = read_volume(tmp_path / "raw/test/test000/labels.nii.gz")
    for row in rows:
        pred = read_volume(tmp_path / f"out/{row['checkpoints']}/a/test000.nii.gz")
        assert row["arms_kept"] == compare_arms.arms_kept(pred, labels)
    mean = f"{np.mean([row['mae'] for row in rows]):.1f}"
    assert mean in capsys.readouterr().out
    path = tmp_path / "out/seed1/a/test000.nii.gz"
    whole = read_volume(path).array.astype(int)
    compare_arms.main([*arguments, "--checkpoints_dir", folders[0], "--precision", "bf16", "--overwrite"])
    assert 0 < np.abs(read_volume(path).array - whole).max() < 60
    with pytest.raises(InputError, match="no test patient"):
        compare_arms.main(["--phantom", str(tmp_path / "set"), *arguments[2:], "--checkpoints_dir", *folders])
    with pytest.raises(InputError, match="different names"):
        compare_arms.main([*arguments, "--checkpoints_dir", folders[0], folders[0]])
