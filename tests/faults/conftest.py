"""What the fault suite starts from: a model, a converted patient, volumes that make a data set, a small disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import test_adapt
from data.volumes.volume import write_volume
from tests.cohort_data import patient_mr, write_model
from tests.faults.commands import adapt, mount
from tests.test_preparation import ct_volume, mr_volume


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A model in checkpoints/, a good patient in good.nii.gz, and the result that was made of it in out/."""
    write_model(tmp_path)
    write_volume(patient_mr(), tmp_path / "good.nii.gz")
    test_adapt.main(adapt(tmp_path, tmp_path / "good.nii.gz"))
    return tmp_path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two MR in mr/ and two CT in ct/."""
    for k in range(2):
        write_volume(mr_volume(scale=1 + k), tmp_path / f"mr/p{k}.nii.gz")
        write_volume(ct_volume(), tmp_path / f"ct/q{k}.mha")
    return tmp_path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    with mount(tmp_path / "small", "size=1m"):
        yield tmp_path / "small"
