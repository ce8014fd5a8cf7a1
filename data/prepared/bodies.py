"""The first pass of a preparation: find each body and keep its mask, so that the pixel spacing can be chosen."""

from typing import Any

import numpy as np

from data.files import write_json
from data.prepared.case_volumes import describe_mr, find_body, read_source_volumes, without_bias
from data.prepared.jobs import BEGUN, Job
from data.prepared.manifest import Case, FurtherContrast
from data.prepared.sources import Source
from data.volumes.paths import hash_source
from data.volumes.slice_frame import SliceFrame
from data.volumes.volume import Volume, write_volume

# To be raised when the same volume comes to give another mask, other slices or another window: body masks, couch
# removal, frame, the level of fat, the bias field.
METHOD_VERSION = 6


def analyse(job: Job) -> Case:
    """Find one volume's body; write its mask on the volume's grid. A known, unchanged case comes back as it is.

    The mask under `bodies/` is not written where the user corrected it or supplies that very file.
    """
    source = job.source
    digests = [hash_source(one.path) for one in (source, *source.further)]
    mask_path = job.supplied_mask()
    mask_digest = hash_source(mask_path) if mask_path else None
    if job.known and _is_current(job, job.known, digests, mask_digest):
        return job.known
    volumes = read_source_volumes(source)
    body = find_body(source, job.domain, volumes, mask_path)
    volume = volumes[0]
    if mask_path and job.is_body_file(mask_path):
        body_digest = job.known.body_sha256 if job.known else None
    else:
        body_digest = _write_body(job, volume.with_array(body.astype(np.uint8)))
    if job.corrects_bias:
        volumes = without_bias(source, volumes, body)
    described: list[dict[str, Any]] = [{"percentiles": None}]
    if job.domain == "A":
        described = [describe_mr(one, body, job.corrects_bias) for one in volumes]
    further = zip(source.further, digests[1:], described[1:], strict=True)
    frame = SliceFrame.of(volume, size=1, spacing_mm=1.0, view=job.view)
    case = Case(
        name=source.name,
        patient=source.patient,
        split=job.split,
        domain=job.domain,
        source=str(source.path),
        source_sha256=digests[0],
        mask_source_sha256=mask_digest,
        extent_mm=frame.body_extent_mm(body),
        in_plane_mm=frame.in_plane_mm,
        **described[0],
        contrast=source.contrast,
        further=tuple(
            FurtherContrast(_contrast_name(one), str(one.path), digest, one.series_uid, **figures)
            for one, digest, figures in further
        ),
        bias_corrected=job.corrects_bias,
        series_uid=source.series_uid,
        body_sha256=body_digest,
        method=METHOD_VERSION,
        view=job.view,
    )
    write_json(job.record_path, case.to_dict())
    return case


def _contrast_name(source: Source) -> str:
    assert source.contrast is not None, "of several contrasts each has a name"
    return source.contrast


def _is_current(job: Job, known: Case, digests: list[str], mask_digest: str | None) -> bool:
    """Tell whether what was recorded of a volume still holds."""
    source = job.source
    if not job.body_path.exists():
        return False
    if job.domain == "A" and known.fat_level is None and known.fat_problem is None:  # of an older version
        return False
    of_source = (known.source_sha256, known.mask_source_sha256, known.series_uid, known.patient)
    contrasts = (known.contrast, *((one.name, one.source_sha256, one.series_uid) for one in known.further))
    recorded = (*of_source, known.method, known.bias_corrected, known.view, *contrasts)
    further = zip(source.further, digests[1:], strict=True)
    given = (source.contrast, *((one.contrast, digest, one.series_uid) for one, digest in further))
    current = (digests[0], mask_digest, source.series_uid, source.patient, METHOD_VERSION, job.corrects_bias, job.view)
    return recorded == (*current, *given)


def _write_body(job: Job, body: Volume) -> str:
    """Write a body mask; return its hash."""
    # Without its hash, a body that an interruption leaves is not taken for one corrected by hand.
    write_json(job.record_path, BEGUN)
    write_volume(body, job.body_path)
    return hash_source(job.body_path)
