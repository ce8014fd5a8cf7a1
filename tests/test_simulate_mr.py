"""scripts.simulate_mr: MR and true CT of one grid, from a CT alone."""

from dataclasses import replace

import numpy as np
import pytest

from data.errors import InputError
from data.volumes.volume import Volume, read_volume, same_grid, write_volume
from scripts import simulate_mr

AIR, FAT, MUSCLE, COMPACT, MARROW = -1000, -100, 45, 1200, -40
SPACING = (2.0, 2.0, 5.0)


def limb() -> tuple[Volume, np.ndarray]:
    """A thigh beside its couch, (6, 80, 70) voxels, and the distance of each from the femur's axis in mm."""
    y, x = np.mgrid[:80, :70]
    distance = 2 * np.hypot(y - 36, x - 33)
    plane = np.full((80, 70), AIR)
    for outer, hu in ((55, FAT), (42, MUSCLE), (14, COMPACT), (8, MARROW)):
        plane[distance < outer] = hu
    plane[72:74] = 300
    turned = (1.0, 0.0, 0.0, 0.0, 0.8, -0.6, 0.0, 0.6, 0.8)
    return Volume(np.stack([plane] * 6).astype(np.int16), SPACING, (5, -7, 11), turned), np.stack([distance] * 6)


@pytest.fixture
def ct(tmp_path):
    return write_volume(limb()[0], tmp_path / "CT" / "P01" / "ct.nii.gz")


def run(tmp_path, *options: str) -> None:
    simulate_mr.main([f"--out={tmp_path / 'out'}", *options])


def test_mr_and_ct_lie_on_the_cts_grid_and_the_tissues_have_their_signals(ct, tmp_path):
    run(tmp_path, f"--ct={ct}", "--skin_mm=0", "--bias=0")
    given, distance = limb()
    mr, true = (read_volume(tmp_path / f"out/P01/{name}.nii.gz") for name in ("mr", "ct"))
    assert same_grid(mr, given) and same_grid(true, given)
    assert mr.array.dtype == true.array.dtype == np.int16
    air, fat, muscle, cortex = (
        np.median(mr.array[(distance > low) & (distance < high)])
        for low, high in ((64, 70), (46, 51), (20, 38), (10.5, 12))
    )
    assert air < 60 and cortex < muscle < fat <= 1100
    assert muscle > 150 and fat > 500
    np.testing.assert_array_equal(true.array, np.where(given.array == 300, AIR, given.array))  # the couch is gone


def test_the_seed_decides_all_that_is_random(ct, tmp_path):
    mr = []
    for seed in (0, 0, 1):
        run(tmp_path, f"--ct={ct}", f"--seed={seed}", "--overwrite")
        mr.append(read_volume(tmp_path / "out/P01/mr.nii.gz").array)
    np.testing.assert_array_equal(mr[0], mr[1])
    assert np.abs(mr[0].astype(float) - mr[2]).mean() > 5


def test_images_of_a_dixon_scan(ct, tmp_path):
    run(tmp_path, f"--ct={ct}", "--contrasts", "water", "fat", "--skin_mm=0")
    distance = limb()[1]
    muscle, of_fat = (distance > 20) & (distance < 38), (distance > 46) & (distance < 51)
    water, fat = (read_volume(tmp_path / f"out/P01/{name}.nii.gz").array for name in ("water", "fat"))
    assert np.median(water[muscle]) > 2 * np.median(fat[muscle])
    assert np.median(fat[of_fat]) > 2 * np.median(water[of_fat])
    assert not (tmp_path / "out/P01/mr.nii.gz").exists()


def test_coarser_pixels_keep_the_grid(ct, tmp_path):
    """The noise of the air outside varies with the pixels it was drawn in: of 8 mm, less between neighbours of 2 mm."""
    variation = []
    for spacing in (2, 8):
        run(tmp_path, f"--ct={ct}", "--skin_mm=0", "--bias=0", f"--spacing_mm={spacing}", "--overwrite")
        mr, true = (read_volume(tmp_path / f"out/P01/{name}.nii.gz") for name in ("mr", "ct"))
        assert same_grid(mr, limb()[0]) and same_grid(true, mr)
        outside = limb()[1] > 64
        variation.append(np.abs(np.diff(mr.array.astype(float), axis=2))[outside[:, :, 1:]].mean())
    assert variation[1] < variation[0] / 2


def test_sequences_that_are_not_t1_weighted(ct, tmp_path):
    """Of twelve, some show muscle brighter than fat; none does where all are T1-weighted."""
    distance = limb()[1]
    muscle, fat = (distance > 20) & (distance < 38), (distance > 46) & (distance < 51)
    brighter = {}
    for share in (0, 0.9):
        brighter[share] = 0
        for seed in range(12):
            run(tmp_path, f"--ct={ct}", "--skin_mm=0", f"--seed={seed}", f"--other_sequences={share}", "--overwrite")
            mr = read_volume(tmp_path / "out/P01/mr.nii.gz").array
            brighter[share] += np.median(mr[muscle]) > np.median(mr[fat])
    assert brighter[0] == 0 and 2 <= brighter[0.9] <= 10


def test_a_folder_of_cases_and_a_mask(ct, tmp_path):
    write_volume(limb()[0], tmp_path / "CT" / "P02" / "ct.nii.gz")
    folder = [f"--ct={tmp_path / 'CT'}", "--ct_pattern={case}/ct.nii.gz"]
    run(tmp_path, *folder)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["P01", "P02"]
    with pytest.raises(InputError, match="exists already; choose another --out"):
        run(tmp_path, *folder)
    given, distance = limb()
    mask = write_volume(given.with_array((distance < 30).astype(np.uint8)), tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match=r"mask.nii.gz: one mask, but --ct .* is a folder of 2 cases"):
        run(tmp_path, *folder, f"--mask={mask}", "--overwrite")
    run(tmp_path, f"--ct={ct}", f"--mask={mask}", "--overwrite")
    true = read_volume(tmp_path / "out/P01/ct.nii.gz").array
    assert (true[distance > 35] == AIR).all()
    np.testing.assert_array_equal(true[distance < 30], given.array[distance < 30])


def test_one_bad_ct_of_a_folder_costs_no_other(ct, tmp_path, caplog):
    given = limb()[0]
    write_volume(given, tmp_path / "CT/P03/ct.nii.gz")
    write_volume(replace(given, array=(given.array + 1000).clip(0)), tmp_path / "CT/P02/ct.nii.gz")
    words = [f"--ct={tmp_path / 'CT'}", "--ct_pattern={case}/ct.nii.gz", f"--out={tmp_path / 'out'}"]
    assert simulate_mr.main(words) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["P01", "P03"]
    assert "CT/P02/ct.nii.gz: " in caplog.text and "2 of 3 cases done, 1 failed" in caplog.text


def test_what_is_no_ct_and_wrong_options_are_refused(ct, tmp_path, capsys):
    given = limb()[0]
    mr = write_volume(replace(given, array=(given.array + 1000).clip(0)), tmp_path / "mr.nii.gz")
    with pytest.raises(InputError, match=rf"{mr}: .*not a CT in HU"):
        run(tmp_path, f"--ct={mr}")
    for option, said in (("--contrasts=t2", "expected mr, or different ones of"), ("--seed=-1", "expected 0 to")):
        with pytest.raises(SystemExit):
            run(tmp_path, f"--ct={ct}", option)
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_thick_slices_are_smoother_across_slices(tmp_path):
    """Lines of one slice each: in thick slices a part of them is left."""
    body, _ = limb()
    striped = body.array.copy()
    striped[::2][(striped[::2] > -50) & (striped[::2] < 80)] = -90
    write_volume(body.with_array(striped), tmp_path / "P01.nii.gz")
    rough = []
    for mm in (0, 40):
        options = ["--skin_mm=0", "--bias=0", "--seed=3", f"--mr_slice_mm={mm}", "--overwrite"]
        run(tmp_path, f"--ct={tmp_path / 'P01.nii.gz'}", *options)
        mr = read_volume(tmp_path / "out/P01/mr.nii.gz").array.astype(float)
        rough.append(np.abs(np.diff(mr, axis=0)).mean())
    assert rough[1] < 0.7 * rough[0]
