"""A tiny prepared data set of CT with masks, for the tests of the shape extractor."""

from pathlib import Path

import numpy as np

from data.prepared.manifest import Case, Manifest
from data.volumes.slice_frame import SliceFrame
from data.volumes.volume import Volume

SIZE, SPACING_MM = 32, 4.0


def draw_ct(seed: int, slices: int = 6, bone: bool = False, couch: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """CT, int16 HU (slices, SIZE, SIZE), of an ellipse of soft tissue with a lung and a bone, and its labels."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(float)
    hu, labels = np.full((slices, SIZE, SIZE), -1000.0), np.zeros((slices, SIZE, SIZE), np.uint8)
    centre, radii = rng.uniform(13, 16, 2), rng.uniform(7, 11, 2)
    for z in range(slices - 1):  # the last slice shows no body
        distance = np.hypot((rows - centre[0]) / radii[0], (columns - centre[1]) / radii[1])
        labels[z][distance < 1] = 1
        if bone:
            labels[z][distance < 0.3] = 2
        hu[z][distance < 1] = 20
        hu[z][(distance < 0.8) & (columns > centre[1] + 2)] = -800
        hu[z][distance < 0.3] = 900
    if couch:
        hu[:, 29:31][labels[:, 29:31] == 0] = 0
    return np.rint(hu + rng.normal(0, 15, hu.shape)).astype(np.int16), labels


def write_prepared(
    root: Path, patients: list[str], cases_each: int = 1, bone: bool = False, slices: int = 6
) -> Manifest:
    """Write `cases_each` prepared CTs of every patient, and the manifest; cases are called `<patient>_<k>`."""
    cases = []
    for number, patient in enumerate(patients):
        for k in range(cases_each):
            ct, labels = draw_ct(100 * number + k, slices, bone)
            case = Case(
                name=f"{patient}_{k}", patient=patient, split="train", domain="B", source="x.nii.gz",
                source_sha256=f"{number}.{k}", mask_source_sha256=None, extent_mm=100.0, in_plane_mm=SPACING_MM,
                percentiles=None, slices=slices, body_slices=(0, slices - 1),
                frame=SliceFrame.of(as_volume(ct), SIZE, SPACING_MM).to_dict(),
            )  # fmt: skip
            for file, array in ((case.image_file, ct), (case.mask_file, labels)):
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                np.save(root / file, array)
            cases.append(case)
    manifest = Manifest(SIZE, SPACING_MM, None, tuple(cases), {})
    manifest.write(root)
    return manifest


def as_volume(array: np.ndarray) -> Volume:
    return Volume(array, (SPACING_MM, SPACING_MM, 5.0), (10.0, -20.0, 300.0))
