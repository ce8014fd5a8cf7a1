"""Prepare the public soft-tissue-sarcoma volumes as inputs: `python -m scripts.prepare_sts --source S --out DIR`.

S is the folder `ibsi_validation` of the repository github.com/theibsi/data_sets (Creative Commons Attribution 3.0;
Vallieres et al. 2015, The Cancer Imaging Archive, DOI 10.7937/K9/TCIA.2015.7GO2GSKS), with `dicom/` or `nifti/` in it:

    S/dicom/STS_nnn/{MR_T1,CT}/image/*.dcm
    S/nifti/STS_nnn/{MR_T1,CT}/image/*.nii.gz    or one .nii.gz directly in the folder of the modality

Writes DIR/train/MR and DIR/train/CT, of 16 patients each and none in both, and DIR/dev/STS_nnn of 6 others and
DIR/dev_more/STS_nnn of 4 more, with MR and CT on the MR's grid (linear, -1000 HU outside the CT). A second run writes
what is missing only.
docs/public_data.md says how to fetch S.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from data.errors import InputError, run_command
from data.settings.parser import CommandParser
from data.values.intensity import AIR_HU
from data.volumes.dicom import list_series
from data.volumes.volume import Volume, read_volume, write_volume

log = logging.getLogger(__name__)

TRAIN_MR = (1, 5, 7, 11, 15, 17, 20, 22, 25, 28, 31, 33, 37, 40, 44, 49)
TRAIN_CT = (3, 6, 8, 13, 16, 18, 21, 23, 27, 29, 32, 36, 39, 41, 47, 50)
# Patients to choose settings by, with the names of their folders: six, and four more.
DEV = {"dev": (2, 12, 24, 26, 42, 51), "dev_more": (9, 35, 38, 46)}
FORMATS = ("nifti", "dicom")
LFS_POINTER = b"version https://git-lfs"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="python -m scripts.prepare_sts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="the folder ibsi_validation")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--format", choices=FORMATS, help="which of the two to read (default: the one that is there)")
    return parser.parse_args(arguments)


def find_image(source: Path, number: int, modality: str) -> Path:
    """Return a patient's volume file or series folder.

    Raises:
        InputError: there is none, more than one, or a pointer in its place.
    """
    folder = source / f"STS_{number:03d}" / modality
    places = [place for place in (folder / "image", folder) if place.is_dir()]
    for place in places:
        files = sorted(place.glob("*.nii.gz"))
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise InputError(f"{place}: holds {names}; expected one image")
        inside = files or sorted(file for file in place.iterdir() if file.is_file())
        if inside and inside[0].open("rb").read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(f"{inside[0]}: a Git LFS pointer, not the image; fetch the images with `git lfs pull`")
        if files:
            return files[0]
        if list_series(place):
            return place
    raise InputError(f"{folder}: no image; expected {folder}/image with one .nii.gz file or a DICOM series")


def on_grid(ct: Volume, mr: Volume) -> Volume:
    """Return the CT on the MR's grid, int16 HU: linear, -1000 outside the CT."""
    image = sitk.Resample(ct.to_sitk(), mr.to_sitk(), sitk.Transform(), sitk.sitkLinear, AIR_HU, sitk.sitkFloat32)
    return mr.with_array(np.rint(sitk.GetArrayFromImage(image)).astype(np.int16))


def as_int16(volume: Volume) -> Volume:
    """Return the volume rounded to int16."""
    return volume.with_array(np.rint(volume.array).astype(np.int16))


def choose_source(source: Path, wanted: str | None) -> Path:
    """Return the folder of the format to read."""
    there = [name for name in FORMATS if wanted in (None, name) and any(source.glob(f"{name}/*"))]
    if not there:
        raise InputError(
            f"{source}: has no folder {wanted or 'nifti or dicom'} with images; expected ibsi_validation of data_sets"
        )
    return source / there[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write what is missing.

    Raises:
        InputError: an image is missing or damaged.
    """
    options = parse_arguments(arguments)
    source, out = choose_source(options.source, options.format), options.out
    for modality, folder, numbers in (("MR_T1", "MR", TRAIN_MR), ("CT", "CT", TRAIN_CT)):
        for number in numbers:
            path = out / "train" / folder / f"STS_{number:03d}_{modality}.nii.gz"
            if not path.exists():
                log.info("%s", write_volume(as_int16(read_volume(find_image(source, number, modality))), path))
    for folder, number in ((folder, number) for folder, numbers in DEV.items() for number in numbers):
        patient = f"STS_{number:03d}"
        paths = [out / folder / patient / f"{patient}_{what}.nii.gz" for what in ("MR_T1", "CT_on_MR_grid")]
        if not all(path.exists() for path in paths):
            mr, ct = (read_volume(find_image(source, number, modality)) for modality in ("MR_T1", "CT"))
            for volume, path in zip((as_int16(mr), on_grid(ct, mr)), paths, strict=True):
                if not path.exists():
                    log.info("%s", write_volume(volume, path))


if __name__ == "__main__":
    run_command(main)
