"""`tools.shrink_volumes`: volumes with rounded values."""

import numpy as np
import pytest

from data.errors import InputError
from data.volumes.volume import Volume, read_volume, same_grid, write_volume
from tools import shrink_volumes


def test_values_are_the_nearest_multiples_in_int16():
    given = np.array([-1024.0, -901, -900, -3, -1.9, 0, 1.9, 3, 6.1, 3071])
    found = shrink_volumes.rounded(given, 4)
    np.testing.assert_array_equal(found, [-1024, -900, -900, -4, 0, 0, 0, 4, 8, 3072])
    assert found.dtype == np.int16
    np.testing.assert_array_equal(shrink_volumes.rounded(given, 4, -900)[:4], [-1000, -1000, -900, -4])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0, 1), "values from 0 to 1 are too few steps of 4"),
        ((0, 4e4), "values from 0 to 40000 do not fit into 16 bits"),
    ],
)
def test_values_that_would_be_lost_are_refused(tmp_path, values, said):
    array = np.resize(np.array(values, np.float32), (2, 2, 2))
    write_volume(Volume(array, (1.0, 1.0, 1.0)), tmp_path / "mr.nii.gz")
    with pytest.raises(InputError, match=rf"mr\.nii\.gz: {said}"):
        shrink_volumes.main(["--input", str(tmp_path / "*.nii.gz"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_copies_have_their_grids_and_are_smaller(tmp_path, capsys):
    noise = np.random.default_rng(0).normal(40, 15, (6, 30, 30)).astype(np.int16)
    noise[0, 0, :2] = -1000, 1000
    given = Volume(noise, (1.5, 1.5, 3.0), (1.0, 2.0, 3.0))
    for name in "ab":
        write_volume(given, tmp_path / f"in/{name}.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/b.nii.gz").write_bytes(b"made before")
    shrink_volumes.main(["--input", str(tmp_path / "in/*"), "--step", "8", "--out", str(tmp_path / "out")])
    copy = read_volume(tmp_path / "out/a.nii.gz")
    assert same_grid(copy, given)
    assert np.abs(copy.array.astype(int) - noise).max() <= 4
    assert (copy.array % 8 == 0).all()
    assert (tmp_path / "out/a.nii.gz").stat().st_size < 0.7 * (tmp_path / "in/a.nii.gz").stat().st_size
    assert (tmp_path / "out/b.nii.gz").read_bytes() == b"made before"
    assert "2 volumes in" in capsys.readouterr().out


def test_two_volumes_of_one_name_are_refused(tmp_path):
    for folder in "ab":
        write_volume(Volume(np.zeros((2, 2, 2), np.int16), (1.0, 1.0, 1.0)), tmp_path / folder / "ct.nii.gz")
    with pytest.raises(InputError, match=r"are both called ct\.nii\.gz"):
        shrink_volumes.main(["--input", str(tmp_path / "*/*"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
