from dataclasses import replace

import numpy as np
import pytest

from data.errors import InputError, run_command
from data.volumes.volume import Volume, read_volume, same_grid, write_volume
from evaluation import baselines
from scripts import trivial_predictors

SHAPE = (10, 40, 36)


def limb(scale: float = 1) -> tuple[Volume, np.ndarray]:
    """T1-like MR of a limb (fat ring 950, muscle 300, cortex 20) with faint noise in air, and its true body."""
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    distance = np.hypot(y - 19.5, x - 17.5)
    section = np.select([distance <= 3, distance <= 10, distance <= 14], [20.0, 300.0, 950.0], default=2.0)
    array = np.repeat(section[None], SHAPE[0], axis=0) * scale
    body = np.repeat((distance <= 14)[None], SHAPE[0], axis=0)
    return Volume(array.astype(np.float32), (2, 2, 3), (-10, 20, 30)), body


def test_constant_predictor():
    mr, body = limb()
    ct = baselines.constant_predictor(mr, body)
    assert ct.array.dtype == np.int16
    assert same_grid(ct, mr)
    np.testing.assert_array_equal(ct.array, np.where(body, 40, -1000))


@pytest.mark.parametrize("scale", [1, 0.001, 37], ids="scale {}".format)
def test_threshold_predictor_tells_fat_muscle_and_bone_at_any_scale(scale):
    mr, body = limb(scale)
    ct = baselines.threshold_predictor(mr, body)
    tissue = limb()[0].array
    expected = np.select([~body, tissue == 950, tissue == 300, tissue == 20], [-1000, -100, 45, 700])
    assert ct.array.dtype == np.int16
    assert same_grid(ct, mr)
    np.testing.assert_array_equal(ct.array, expected)


def test_threshold_predictor_is_not_thrown_by_a_bright_spot():
    mr, body = limb()
    expected = baselines.threshold_predictor(mr, body).array
    mr.array[5, 19, 25] = 60000
    changed = baselines.threshold_predictor(mr, body).array != expected
    assert np.argwhere(changed).tolist() == [[5, 19, 25]]


def test_threshold_predictor_does_not_depend_on_the_share_of_air():
    mr, body = limb()
    margin = ((0, 0), (90, 90), (90, 90))
    wide = Volume(np.pad(mr.array, margin), mr.spacing)
    ct = baselines.threshold_predictor(wide, np.pad(body, margin)).array
    np.testing.assert_array_equal(ct[:, 90:-90, 90:-90], baselines.threshold_predictor(mr, body).array)


def test_threshold_predictor_takes_no_skin_for_bone():
    mr, body = limb()
    mr.array[:, 19, :] = 20  # one row of dark voxels through the limb, 2 mm each: the outer one is skin
    row = baselines.threshold_predictor(replace(mr, spacing=(2, 2, 4)), body).array[5, 19]
    assert np.flatnonzero(body[5, 19]).tolist() == list(range(4, 32))
    assert row.tolist() == [-1000] * 4 + [45] + [700] * 26 + [45] + [-1000] * 4


def test_threshold_predictor_refuses_what_it_cannot_scale():
    mr, body = limb()
    with pytest.raises(InputError, match="body mask of the MR is empty"):
        baselines.threshold_predictor(mr, np.zeros_like(body))
    with pytest.raises(InputError, match="95th percentile inside the body is 0"):
        baselines.threshold_predictor(mr.with_array(np.zeros(SHAPE)), body)


def test_command_writes_both_predictors_for_every_case(tmp_path):
    mr, body = limb()
    for name in ("a", "b"):
        write_volume(mr, tmp_path / "D" / name / f"{name}_MR.nii.gz")
        write_volume(mr.with_array(body), tmp_path / "M" / f"{name}.mha")
    arguments = [f"--mr={tmp_path / 'D'}", "--mr_pattern={case}/{case}_MR.nii.gz", f"--mask={tmp_path / 'M'}"]
    trivial_predictors.main([*arguments, f"--out={tmp_path / 'out'}"])
    for predictor, predict in baselines.PREDICTORS.items():
        assert sorted(file.name for file in (tmp_path / "out" / predictor).iterdir()) == ["a.nii.gz", "b.nii.gz"]
        written = read_volume(tmp_path / "out" / predictor / "b.nii.gz")
        assert same_grid(written, mr)
        assert written.array.dtype == np.int16
        np.testing.assert_array_equal(written.array, predict(mr, body).array)


def test_command_finds_the_body_of_one_mr(tmp_path):
    mr, body = limb()
    write_volume(mr, tmp_path / "x.y.mha")
    trivial_predictors.main([f"--mr={tmp_path / 'x.y.mha'}", f"--out={tmp_path / 'out'}"])
    found = read_volume(tmp_path / "out" / "constant" / "x.y.nii.gz").array == 40
    assert 2 * (found & body).sum() / (found.sum() + body.sum()) > 0.9


def test_command_refuses_masks_that_do_not_fit(tmp_path, capsys):
    mr, body = limb()
    write_volume(mr, tmp_path / "mr" / "a.nii.gz")
    write_volume(mr, tmp_path / "mr" / "b.nii.gz")
    write_volume(Volume(body, (2, 2, 3)), tmp_path / "masks" / "a.nii.gz")
    folders = [f"--mr={tmp_path / 'mr'}", f"--mask={tmp_path / 'masks'}", f"--out={tmp_path / 'out'}"]
    with pytest.raises(InputError, match=r"has no mask of b; expected"):
        trivial_predictors.main(folders)
    with pytest.raises(InputError, match="has no mask of a, b"):
        trivial_predictors.main([folders[0], f"--mask={tmp_path / 'masks' / 'a.nii.gz'}", folders[2]])
    (tmp_path / "mr" / "b.nii.gz").unlink()
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: trivial_predictors.main(folders))
    assert stop.value.code == 2
    assert "the mask is not on the MR's grid" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        trivial_predictors.main([folders[0], folders[2], "--mask_pattern={case}.mha"])
    assert "--mask_pattern needs --mask" in capsys.readouterr().err


def test_an_mr_that_was_standardised_has_no_thresholds():
    mr, body = limb()
    standardised = mr.with_array((mr.array - mr.array.mean()) / mr.array.std())
    with pytest.raises(InputError, match="the MR does not start at 0"):
        baselines.threshold_predictor(standardised, body)


def test_one_bad_mr_costs_no_other(tmp_path, caplog):
    mr, _ = limb()
    for name in "abc":
        write_volume(mr, tmp_path / "mr" / f"{name}.nii.gz")
    (tmp_path / "mr/b.nii.gz").write_bytes((tmp_path / "mr/a.nii.gz").read_bytes()[:300])
    assert trivial_predictors.main([f"--mr={tmp_path / 'mr'}", f"--out={tmp_path / 'out'}"]) == 1
    assert sorted(path.name for path in (tmp_path / "out/threshold").iterdir()) == ["a.nii.gz", "c.nii.gz"]
    assert "failed: b: " in caplog.text and "2 of 3 cases done, 1 failed" in caplog.text
