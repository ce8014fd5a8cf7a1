"""A tiny cohort and a tiny model of random weights, for the tests of batch conversion."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from data.values.intensity import IntensityMap
from data.volumes.volume import Volume, write_volume
from models.inference_settings import InferenceSettings
from models.networks import Architecture, build_generator
from models.state_dicts import save_network_weights
from tests.test_preparation import mr_volume
from tests.test_volume import write_series

NAME = "tiny"
SETTINGS = InferenceSettings(
    generator=Architecture("resnet_6blocks", ngf=2, norm="instance", upsample="resize"), direction="AtoB", size=32,
    spacing_mm=4.0, slice_mm=None, mr_window="percentile", typical_mr=None, ct=IntensityMap.window(-1000, 1400),
    versions={},
)  # fmt: skip
BROKEN = {
    "truncated.nii.gz": "cannot be read as a volume",
    "flat.nii.gz": "2-D image",
    "nan.nii.gz": "are NaN or infinite",
    "empty": "the folder is empty",
}


def write_model(root: Path, seed: int = 0, settings: InferenceSettings = SETTINGS) -> Path:
    """Write a model below `root`/checkpoints; return that folder."""
    torch.manual_seed(seed)
    settings.write(root / "checkpoints" / NAME)
    net = build_generator(settings.generator)
    save_network_weights(net, root / "checkpoints" / NAME / "latest_net_G_A.pth")
    return root / "checkpoints"


def patient_mr(radius_mm: float = 40.0) -> Volume:
    """A cylinder of muscle and fat, 60 x 60 pixels of 2 mm, 6 slices of 4 mm."""
    return mr_volume(radius_mm)


def write_patients(root: Path, count: int = 3) -> list[Path]:
    """Write `count` patients of different sizes as `root`/p<k>/mr.nii.gz."""
    return [write_volume(patient_mr(32.0 + 2 * k), root / f"p{k}" / "mr.nii.gz") for k in range(count)]


def write_dicom_patient(folder: Path, **series) -> None:
    """Write a patient as a DICOM series, oblique."""
    array = np.rint(patient_mr().array).astype(np.uint16)
    more = series.pop("change", lambda k, header: None)

    def change(k, header):
        header.Rows, header.Columns, header.PixelSpacing = 60, 60, [2.0, 2.0]
        header.PixelData = array[k].tobytes()
        more(k, header)

    write_series(folder, change=change, **series)


def write_broken(root: Path) -> None:
    """Write what cannot be converted: the keys of `BROKEN`."""
    whole = write_volume(patient_mr(), root / "truncated.nii.gz").read_bytes()
    (root / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    sitk.WriteImage(sitk.Image([40, 40], sitk.sitkInt16), str(root / "flat.nii.gz"))
    bad = patient_mr()
    bad.array[2, 30, 30] = np.nan
    write_volume(bad, root / "nan.nii.gz")
    (root / "empty").mkdir()
