"""`scripts.prepare_sts`: the split, both layouts, and the CT on the MR's grid."""

from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from data.volumes.volume import Volume, read_volume, same_grid, write_volume
from scripts import prepare_sts

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "sts"


def write_source(root: Path, number: int, modality: str, nested: bool) -> Volume:
    spacing, shape = ((1.0, 1.0, 3.0), (4, 6, 6)) if modality == "MR_T1" else ((2.0, 2.0, 3.0), (4, 5, 5))
    array = np.full(shape, number, np.float32)
    array += np.arange(shape[2]) * spacing[0] * 10  # HU rise by 10 a mm to the left
    folder = root / "nifti" / f"STS_{number:03d}" / modality
    volume = Volume(array, spacing, (0.0, 0.0, 0.0))
    write_volume(volume, (folder / "image" if nested else folder) / "image.nii.gz")
    return volume


@pytest.mark.parametrize("nested", [True, False])
def test_no_patient_is_on_two_sides_and_ct_comes_to_the_mr_s_grid(tmp_path, nested):
    sides = [set(prepare_sts.TRAIN_MR), set(prepare_sts.TRAIN_CT), *map(set, prepare_sts.DEV.values())]
    assert [len(side) for side in sides] == [16, 16, 6, 4]
    assert len(set.union(*sides)) == 42
    for modality, numbers in (("MR_T1", sides[0] | sides[2] | sides[3]), ("CT", sides[1] | sides[2] | sides[3])):
        for number in numbers:
            write_source(tmp_path / "s", number, modality, nested)
    prepare_sts.main(["--source", str(tmp_path / "s"), "--out", str(tmp_path / "o")])
    files = sorted(str(path.relative_to(tmp_path / "o")) for path in (tmp_path / "o").rglob("*.nii.gz"))
    assert len(files) == 16 + 16 + 12 + 8
    assert {file.split("/")[1] for file in files if file.startswith("dev_more")} == {
        "STS_009",
        "STS_035",
        "STS_038",
        "STS_046",
    }
    mr = read_volume(tmp_path / "o/dev/STS_012/STS_012_MR_T1.nii.gz")
    ct = read_volume(tmp_path / "o/dev/STS_012/STS_012_CT_on_MR_grid.nii.gz")
    assert same_grid(mr, ct)
    assert ct.array.dtype == np.int16
    np.testing.assert_array_equal(ct.array[1, 2], 12 + 10 * np.arange(6))  # half way between CT pixels, too
    train = read_volume(tmp_path / "o/train/CT/STS_003_CT.nii.gz")
    assert train.spacing == pytest.approx((2, 2, 3))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="no folder nifti or dicom"):
        prepare_sts.main(["--source", str(tmp_path), "--out", str(tmp_path / "o")])
    write_source(tmp_path, 1, "MR_T1", nested=True)
    with pytest.raises(InputError, match=r"STS_005.MR_T1: no image"):
        prepare_sts.main(["--source", str(tmp_path), "--out", str(tmp_path / "o")])


@pytest.mark.parametrize("name", ["nifti/STS_001/MR_T1/image/image.nii.gz", "dicom/STS_001/MR_T1/image/000000.dcm"])
def test_a_git_lfs_pointer_is_told(name, tmp_path):
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(InputError, match=rf"{file.name}: a Git LFS pointer, not the image; fetch .* `git lfs pull`"):
        prepare_sts.main(["--source", str(tmp_path), "--out", str(tmp_path / "o")])


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="needs the STS volumes")
@pytest.mark.parametrize("number", [24, 42])
def test_the_public_dicom_gives_the_development_volumes(number, tmp_path):
    patient = f"STS_{number:03d}"
    (tmp_path / "dicom" / patient).mkdir(parents=True)
    for modality in ("MR_T1", "CT"):
        source = SHARED / "dicom" / patient
        (found,) = [path for path in source.iterdir() if path.name.startswith(modality[:2])]
        (tmp_path / "dicom" / patient / modality).mkdir()
        (tmp_path / "dicom" / patient / modality / "image").symlink_to(found)
    source = prepare_sts.choose_source(tmp_path, None)
    mr, ct = (read_volume(prepare_sts.find_image(source, number, modality)) for modality in ("MR_T1", "CT"))
    expected = read_volume(SHARED / "dev" / patient / f"{patient}_CT_on_MR_grid.nii.gz")
    found = prepare_sts.on_grid(ct, mr)
    assert same_grid(found, expected, tolerance=1e-3)
    difference = np.abs(found.array.astype(int) - expected.array)
    assert np.mean(difference <= 1) > 0.999
