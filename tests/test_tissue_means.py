"""`tools.tissue_means`: every voxel has its tissue's mean HU, and files are not replaced."""

import numpy as np
import pytest

from data.errors import InputError
from data.phantom.labels import Tissue
from data.volumes.volume import Volume, read_volume, same_grid, write_volume
from tools.tissue_means import main

# Two slices of two rows.
LABELS = (
    Tissue.AIR,
    Tissue.LIVER,
    Tissue.FAT,
    Tissue.MUSCLE,
    Tissue.ARM_MUSCLE,
    Tissue.CORTEX,
    Tissue.ARM_CORTEX,
    Tissue.GAS,
)
HU = [-1000, 60, -100, 50, 50, 1000, 1000, -990]


def test_each_voxel_has_the_mean_of_its_tissue(tmp_path):
    labels = Volume(np.array(LABELS, np.uint8).reshape(2, 2, 2), (4.0, 4.0, 13.0), (-5.0, 3.0, 9.0))
    write_volume(labels, tmp_path / "phantom/test/test000/labels.nii.gz")
    words = ["--phantom", str(tmp_path / "phantom"), "--out", str(tmp_path / "out")]
    main(words)
    ct = read_volume(tmp_path / "out/test000.nii.gz")
    assert ct.array.ravel().tolist() == HU and same_grid(ct, labels)
    with pytest.raises(InputError, match=r"test000\.nii\.gz"):
        main(words)


def test_a_folder_without_test_patients_is_refused(tmp_path):
    with pytest.raises(InputError, match="no test patient"):
        main(["--phantom", str(tmp_path), "--out", str(tmp_path / "out")])
