"""Prepared MR and CT of the same patients on one grid, to train on as pairs."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import InputError, listed
from data.loading.slices import prepared_windows
from data.prepared.arrays import read_case, read_contrasts
from data.prepared.manifest import Case, Manifest, read_manifest
from data.prepared.slice_spacing import common_slice_spacing
from data.prepared.splits import same_frame
from data.prepared.trainable import check_has_mr
from data.values.intensity import IntensityMap
from data.values.mr_rules import Rule
from data.volumes.volume import resampling

log = logging.getLogger(__name__)

_AIR_BELOW_HU = -500
_LISTED = 3  # patients in a message


@dataclass(frozen=True)
class PairedSet:
    """MR and CT of the same patients.

    Attributes:
        volumes: by the MR's case name its maps, (n, H, W): those of its contrasts (`mr_maps`), float16 in [-1, 1];
            `hu`, int16; and `counted`, uint8, 1 inside the MR's body mask and where the CT is air. An MR whose field of
            view ends within the body says nothing of what lies beyond.
        slice_mm: distance of their slices.
        manifest: the data set with these volumes alone.
    """

    volumes: dict[str, dict[str, np.ndarray]]
    slice_mm: float
    manifest: Manifest

    @property
    def pixel_mm(self) -> float:
        """Spacing within slices."""
        return self.manifest.spacing_mm

    @property
    def contrasts(self) -> tuple[str, ...]:
        """Names of the MR's contrasts, in the order of channels."""
        return self.manifest.contrasts

    @property
    def mr_maps(self) -> tuple[str, ...]:
        """What the maps of the contrasts are called, in their order: `mr`, `mr1`, `mr2`, ..."""
        return _mr_maps(len(self.contrasts))


def _why_no_pairs(dataroot: Path, manifest: Manifest) -> str:
    """Return why MR and CT make no pair, by their patients and grids, and the way out."""
    mr, ct = ({case.patient for case in manifest.select("train", domain)} for domain in "AB")
    if both := sorted(mr & ct):
        return (
            f"{dataroot}: MR and CT of {listed(both, _LISTED)} lie on different grids; register the CT to the MR, "
            f"resample it to its grid ({resampling('CT', 'MR')}), and prepare the data set again"
        )
    return (
        f"{dataroot}: no patient has both MR and CT. MR of {listed(sorted(mr), _LISTED)}; CT of "
        f"{listed(sorted(ct), _LISTED) or 'nobody'}. If these are the same patients, prepare the data set again with "
        "--patient_regex, which finds in a name what MR and CT share, such as 'P\\d+' in P07_mr and P07_ct"
    )


def _mr_maps(count: int) -> tuple[str, ...]:
    return ("mr", *(f"mr{k}" for k in range(1, count)))


def open_paired_set(
    dataroot: Path, mr_rule: Rule | Mapping[str, Rule], ct_map: IntensityMap, leave_out: Collection[str] = ()
) -> PairedSet:
    """Open the training volumes below `dataroot` of patients that have an MR and a CT on the MR's grid.

    MR without such a CT, and CT without such an MR, are skipped, and that is said. `leave_out`: patients that do
    not train.

    Raises:
        InputError: no such patient, a damaged file, or volumes of different slice spacings.
    """
    manifest = read_manifest(dataroot)
    check_has_mr(dataroot, manifest, "--model paired")
    manifest = manifest.without(leave_out)
    of_mr = [case for case in manifest.select("train", "A") if case.has_body]
    pairs: list[tuple[Case, Case]] = []
    for mr in of_mr:
        of_patient = [ct for ct in manifest.select("train", "B") if ct.patient == mr.patient and same_frame(mr, ct)]
        pairs += [(mr, ct) for ct in of_patient[:1]]
    if not pairs:
        raise InputError(_why_no_pairs(dataroot, manifest))
    if len(pairs) < len(of_mr):
        log.info("%d of %d MR have no CT on their grid and are skipped", len(of_mr) - len(pairs), len(of_mr))
    windows = prepared_windows([mr for mr, _ in pairs], mr_rule, ct_map)
    volumes = {mr.name: _read(dataroot, mr, ct, maps) for (mr, ct), maps in zip(pairs, windows, strict=True)}
    slice_mm = common_slice_spacing(dataroot, manifest, [mr for mr, _ in pairs])
    return PairedSet(volumes, slice_mm, manifest.with_only(case for pair in pairs for case in pair))


def _read(dataroot: Path, mr: Case, ct: Case, windows: Sequence[IntensityMap]) -> dict[str, np.ndarray]:
    kept = slice(*mr.body_slices)
    contrasts, body = read_contrasts(dataroot, mr)
    maps = {
        name: window.to_network(image[kept]).astype(np.float16)
        for name, image, window in zip(_mr_maps(len(contrasts)), contrasts, windows, strict=True)
    }
    hu = np.array(read_case(dataroot, ct)[0][kept])
    counted = (body[kept] > 0) | (hu < _AIR_BELOW_HU)
    return maps | {"hu": hu, "counted": counted.astype(np.uint8)}
