"""The second pass of a preparation: write the slices and masks of a volume whose body is known."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.errors import InputError
from data.files import whole_file, write_json
from data.masks.body_mask import remove_couch
from data.prepared.case_volumes import read_source_volumes, without_bias
from data.prepared.jobs import Job
from data.prepared.manifest import Case
from data.prepared.training_statistics import MIN_BODY_SHARE, section_figures, slice_spread
from data.values.intensity import AIR_HU
from data.volumes.slice_frame import SliceFrame
from data.volumes.volume import Volume, read_volume

# CT is stored as int16; scanners mark voxels outside their field of view by values far below air.
CT_STORED_HU = (-1024, 32767)


@dataclass(frozen=True)
class SliceWriter:
    """The second pass, for one frame setting; a class so that it travels to worker processes."""

    size: int
    spacing_mm: float
    slice_mm: float | None
    view: str

    def is_done(self, job: Job) -> bool:
        """Tell whether the slices and masks of an analysed volume are there, in this frame."""
        case = job.analysed
        made_for = (case.frame.get("size"), case.frame.get("spacing_mm"), case.frame.get("slice_mm"))
        files = [job.root / file for file in (*case.image_files, case.mask_file)]
        recorded = case.domain == "A" or None not in (case.hu_histogram, case.section_cm2)
        return recorded and made_for == (self.size, self.spacing_mm, self.slice_mm) and all(f.exists() for f in files)

    def __call__(self, job: Job) -> Case:
        """Write one analysed volume's slices and masks."""
        case = job.analysed
        if case.frame:
            write_json(job.record_path, replace(case, frame={}).to_dict())
        volumes = read_source_volumes(job.source, log_notes=False)
        body = read_volume(job.body_path, log_notes=False).array > 0
        if case.bias_corrected:
            volumes = without_bias(job.source, volumes, body)
        volume = volumes[0]
        frame = SliceFrame.of(volume, self.size, self.spacing_mm, self.slice_mm, self.view)
        labels = _labels(job.supplied_mask(), body)
        masks = frame.prepare_labels(volume.with_array(labels))
        histogram = spread = section = gas = None
        if case.domain == "B":
            slices = ct_slices(volume, body, frame)
            histogram, spread = slice_spread(slices, masks)
            section, gas = section_figures(slices, masks, self.spacing_mm)
            _save_array(job.root / case.image_file, slices)
        else:
            for file, contrast in zip(case.image_files, volumes, strict=True):
                _save_array(job.root / file, _mr_slices(contrast, frame))
        _save_array(job.root / case.mask_file, masks)
        case = replace(
            case,
            slices=frame.slices,
            body_slices=_body_slices(masks),
            lost_voxels=frame.outside(body),
            labels=int(labels.max()),
            frame=frame.to_dict(),
            hu_histogram=None if histogram is None else tuple(histogram.tolist()),
            hu_slice_spread=spread,
            section_cm2=section,
            gas_share=gas,
        )
        write_json(job.record_path, case.to_dict())
        return case


def _mr_slices(volume: Volume, frame: SliceFrame) -> np.ndarray:
    return frame.prepare(volume, fill=float(volume.array.min()))


def ct_slices(volume: Volume, body: np.ndarray, frame: SliceFrame) -> np.ndarray:
    """Return the slices of a CT without its couch, int16 HU (slices, size, size), in a frame."""
    slices = frame.prepare(remove_couch(volume, body), fill=AIR_HU)
    return np.rint(slices).clip(*CT_STORED_HU).astype(np.int16)


def _labels(mask_path: Path | None, body: np.ndarray) -> np.ndarray:
    """Return the mask to store, uint8: 1 for the body, or the labels 1, 2, ... of a supplied mask that has several."""
    if not mask_path:
        return body.astype(np.uint8)
    supplied = read_volume(mask_path, log_notes=False).array
    values = np.unique(supplied[supplied != 0])
    if len(values) == 1:
        return body.astype(np.uint8)
    if not np.array_equal(values, np.arange(1, len(values) + 1)):
        found = ", ".join(f"{value:g}" for value in values[:8])
        raise InputError(f"{mask_path}: labels {found}; expected one value, or 1 (body), 2 (bone), 3, ...")
    return supplied.astype(np.uint8)


def _body_slices(masks: np.ndarray) -> tuple[int, int]:
    used = np.flatnonzero(np.count_nonzero(masks, axis=(1, 2)) >= MIN_BODY_SHARE * masks[0].size)
    return (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)


def _save_array(path: Path, array: np.ndarray) -> None:
    with whole_file(path) as scratch:
        np.save(scratch, array)
