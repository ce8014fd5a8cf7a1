"""`tools.slice_smoothness`: interpolated slices are told from acquired ones."""

import numpy as np
import pytest

from data.errors import InputError
from data.volumes.volume import Volume, write_volume
from tools import slice_smoothness


def noise(slices: int) -> np.ndarray:
    return 100 + np.random.default_rng(0).normal(0, 10, (slices, 24, 30))


def test_noise_is_as_rough_across_slices_as_within_and_a_mean_of_neighbours_is_smooth():
    thin = noise(41)
    assert np.median(slice_smoothness.smoothness(Volume(thin, (1, 1, 3)))) == pytest.approx(1, abs=0.05)
    thick = thin.copy()
    thick[1::2] = (thin[:-1:2] + thin[2::2]) / 2
    found = slice_smoothness.smoothness(Volume(thick, (1, 1, 3)))
    assert np.allclose(found[::2], 0, atol=1e-9)  # the second slice is the first of them
    # At an acquired slice a the others are means with b and c: (b + c) / 2 - a has a variance of 1.5. In rows it is 6,
    # 3 in the 20 means.
    assert found[1::2] == pytest.approx(np.full(19, np.sqrt(1.5 / (6 * (21 + 20 / 2) / 41))), abs=0.06)


def test_the_table_has_a_line_for_each_mr_and_slices_without_body_do_not_count(tmp_path, capsys):
    image = noise(12)
    image[:4] = 0
    write_volume(Volume(image, (1, 1, 2)), tmp_path / "a.nii.gz")
    slice_smoothness.main(["--mr", str(tmp_path)])
    line = capsys.readouterr().out.splitlines()[2]
    assert line.startswith("| a | ") and float(line.split("|")[2]) == pytest.approx(1, abs=0.05)


def test_a_volume_of_two_slices_is_refused(tmp_path):
    write_volume(Volume(np.where(np.arange(30) < 4, noise(5), 0)), tmp_path / "b.nii.gz")
    with pytest.raises(InputError, match=r"b.nii.gz: no slice has 300 voxels of body"):
        slice_smoothness.main(["--mr", str(tmp_path / "b.nii.gz")])
    write_volume(Volume(noise(2)), tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"a.nii.gz: 30 columns and 2 slices; expected more than 2 and 2"):
        slice_smoothness.main(["--mr", str(tmp_path / "a.nii.gz")])
