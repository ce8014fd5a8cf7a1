"""Whole-body phantom patients: MR, CT and labels without any patient's data.

The two domains differ as real collections do, so that what goes wrong on patients can be seen, and measured, on the
phantom: in MR the arms lie down beside the body and no couch is seen; in CT the arms are raised, the patients are
larger, another field of view is used, and a couch lies under the patient. Test patients have an MR and the true CT
of the same anatomy on the same grid.
"""

import logging
import math
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import scipy

from data.errors import InputError
from data.files import read_json, write_json
from data.phantom.anatomy import CENTRE_Z, Body, draw_body, draw_couch, random_body, random_couch
from data.phantom.labels import Tissue
from data.phantom.mr_images import SAME_AS, grain, mr_images, partial_volume
from data.phantom.shapes import Point
from data.volumes.dicom_contrasts import DIXON_NAMES
from data.volumes.volume import Volume, write_volume
from data.worker_processes import WorkerProcesses

log = logging.getLogger(__name__)

Domain = Literal["mr", "ct", "test"]
DOMAINS: tuple[Domain, ...] = get_args(Domain)

# Raised whenever the same seed starts to give other voxels: folders of an older generator are not mixed with new ones.
GENERATOR_VERSION = 1

DRAWN_MM = 2.0
"""The anatomy is drawn with pixels of at most this size; larger ones average it (partial volume)."""

CT_FIELD_SHARE = 500 / 512
"""In-plane field of view of the training CTs relative to that of the MRs: 500 mm at the default settings."""

# Tissue: (HU, standard deviation between patients, standard deviation of the texture inside a tissue).
CT_HU: dict[Tissue, tuple[float, float, float]] = {
    Tissue.AIR: (-1000, 0, 0),
    Tissue.FAT: (-100, 4, 6),
    Tissue.MUSCLE: (50, 4, 7),
    Tissue.CORTEX: (1000, 80, 110),
    Tissue.MARROW: (110, 25, 25),
    Tissue.TRABECULAR: (210, 30, 45),
    Tissue.CARTILAGE: (90, 10, 8),
    Tissue.BRAIN: (35, 2, 5),
    Tissue.CSF: (10, 2, 2),
    Tissue.LUNG: (-800, 35, 35),
    Tissue.BLOOD: (45, 4, 4),
    Tissue.LIVER: (60, 6, 5),
    Tissue.SPLEEN: (52, 4, 4),
    Tissue.KIDNEY: (34, 4, 5),
    Tissue.BOWEL: (30, 6, 14),
    Tissue.BLADDER: (8, 3, 2),
    Tissue.GAS: (-990, 5, 0),
    Tissue.COUCH_SHELL: (150, 50, 0),
    Tissue.COUCH_FOAM: (-900, 20, 8),
}


@dataclass(frozen=True)
class PhantomSettings:
    """The grid of the phantom's volumes.

    Attributes:
        matrix: rows and columns of a slice.
        slices: number of axial slices.
        spacing_mm: size of a pixel in MR and test volumes; the training CTs' is `CT_FIELD_SHARE` of it.
        slice_mm: distance of the slices.
    """

    matrix: int = 128
    slices: int = 96
    spacing_mm: float = 4.0
    slice_mm: float = 13.0

    def __post_init__(self) -> None:
        """Refuse a grid that holds no body."""
        for name, least in (("matrix", 16), ("slices", 4)):
            if getattr(self, name) < least:
                raise InputError(f"phantom: {name} is {getattr(self, name)}; expected at least {least}")
        for name in ("spacing_mm", "slice_mm"):
            if not 0.2 <= getattr(self, name) <= 100:
                raise InputError(f"phantom: {name} is {getattr(self, name)}; expected 0.2 to 100 mm")


@dataclass(frozen=True)
class Patient:
    """A phantom patient.

    Attributes:
        id: unique over all domains of a data set.
        mr: T1-weighted in-phase MR, int16 >= 0, scanner's own scale; None in the domain "ct".
        dixon: the four Dixon contrasts by name, where they are asked for, the first being `mr`.
        ct: CT in HU, int16; None in the domain "mr".
        labels: `Tissue` at the centre of every voxel, uint8, on the same grid.
    """

    id: str
    mr: Volume | None
    ct: Volume | None
    labels: Volume
    dixon: dict[str, Volume] = field(default_factory=dict)


def patient_id(domain: Domain, index: int) -> str:
    """Return the name of a patient: 'mr000', 'ct000', 'test000'."""
    return f"{domain}{index:03d}"


def make_patient(seed: int, index: int, domain: Domain, settings: PhantomSettings, dixon: bool = False) -> Patient:
    """Make one patient. The same arguments give the same voxels, whatever else is made beside it.

    Args:
        seed: of the data set, >= 0.
        index: of the patient in its domain, >= 0.
        domain: "mr" (arms down), "ct" (arms up, couch) or "test" (MR and CT of one anatomy; arms down, no couch).
        settings: the grid.
        dixon: whether the MR has four contrasts.
    """
    if seed < 0 or index < 0:
        raise InputError(f"phantom: seed {seed}, patient {index}; expected numbers >= 0")
    anatomy_rng, mr_rng, ct_rng = (
        np.random.default_rng((seed, DOMAINS.index(domain), index, stream)) for stream in range(3)
    )
    body = random_body(anatomy_rng, arms_up=domain == "ct")
    spacing, origin = _place(body, domain, settings, table_y_mm=float(anatomy_rng.uniform(-15, 15)))
    counts = (settings.matrix, settings.matrix, settings.slices)
    axes = tuple(o + step * np.arange(n) for o, step, n in zip(origin, spacing, counts, strict=True))
    parts = math.ceil(spacing[0] / DRAWN_MM)
    labels, fine_labels = _draw_labels(body, axes, parts, anatomy_rng if domain == "ct" else None)
    grid = Volume(labels, spacing, origin)
    arrays = {} if domain == "ct" else mr_images(fine_labels, parts, axes, mr_rng, dixon)
    images = {name: grid.with_array(array) for name, array in arrays.items()}
    return Patient(
        id=patient_id(domain, index),
        mr=images.get("in_phase"),
        ct=None if domain == "mr" else grid.with_array(_ct_image(fine_labels, parts, ct_rng)),
        labels=grid,
        dixon=images if dixon else {},
    )


def _draw_labels(
    body: Body, axes: tuple[np.ndarray, ...], parts: int, couch_rng: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels at the voxels' centres and at those of `parts` x `parts` pieces of each voxel.

    Args:
        body: the patient.
        axes: voxel centres along x, y and z, mm.
        parts: pieces of a pixel's side.
        couch_rng: draws the couch; None: no couch.
    """

    def draw(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return draw_body(body, (x / body.scale[0], y / body.scale[1], z / body.scale[2] + CENTRE_Z))

    x, y, z = axes
    fine_x, fine_y = (_split(axis, parts) for axis in (x, y))
    fine_labels = draw(fine_x, fine_y, z)
    labels = draw(x, y, z) if parts > 1 else fine_labels.copy()
    if couch_rng is not None:
        couch = random_couch(couch_rng, fine_labels, (fine_x, fine_y))
        draw_couch(couch, fine_labels, (fine_x, fine_y))
        draw_couch(couch, labels, (x, y))
    return labels, fine_labels


def _split(axis: np.ndarray, parts: int) -> np.ndarray:
    """Return the centres of the `parts` equal pieces of each step of an axis."""
    offsets = (np.arange(parts) - (parts - 1) / 2) / parts * (axis[1] - axis[0])
    return (axis[:, None] + offsets).ravel()


def _place(body: Body, domain: Domain, settings: PhantomSettings, table_y_mm: float) -> tuple[Point, Point]:
    """Return spacing and origin of the field of view; z is 0 in the middle of the trunk."""
    pixel = settings.spacing_mm * (CT_FIELD_SHARE if domain == "ct" else 1.0)
    length = settings.slices * settings.slice_mm
    # The field starts above the head or the hands; where it is too short for the body, it keeps to the trunk.
    top = min((body.top_z - CENTRE_Z) * body.scale[2] + 15, 0.6 * length)
    half = pixel * (settings.matrix - 1) / 2
    return (pixel, pixel, settings.slice_mm), (-half, table_y_mm - half, top - length + settings.slice_mm)


def _ct_image(fine_labels: np.ndarray, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Return a CT in HU, int16 in [-1024, 3071]: tissue means and texture, partial volume, Gaussian noise."""
    mean, texture = np.zeros(len(Tissue), np.float32), np.zeros(len(Tissue), np.float32)
    for tissue, (hu, between, within) in CT_HU.items():
        mean[tissue], texture[tissue] = hu + rng.normal(0, 1) * between, within
    for tissue, model in SAME_AS.items():
        mean[tissue], texture[tissue] = mean[model], texture[model]
    image = partial_volume(mean[fine_labels], parts)
    image += partial_volume(texture[fine_labels], parts) * grain(image.shape, rng)
    image += rng.uniform(8, 16) * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def write_dataset(
    out: str | Path,
    settings: PhantomSettings,
    seed: int = 0,
    patients: int = 8,
    test_patients: int = 2,
    workers: int = 1,
    dixon: bool = False,
) -> Path:
    """Write a data set of phantom patients; existing files of the same call are kept.

    Layout: `train/mr/ID_mr.nii.gz`, `train/ct/ID_ct.nii.gz` (other patients), `test/ID/{mr,ct,labels}.nii.gz`,
    `truth/ID_labels.nii.gz` for the training patients, and `phantom.json`. With `dixon` there is a file for each
    contrast in place of the MR: `train/mr/ID_in_phase.nii.gz`, `test/ID/in_phase.nii.gz`, ...

    Args:
        out: the folder.
        settings: the grid.
        seed: of all patients, >= 0.
        patients: training patients in each domain.
        test_patients: patients with MR and CT.
        workers: processes; they change the time only.
        dixon: whether the MR have four contrasts.

    Returns:
        The path of `phantom.json`.

    Raises:
        InputError: a number is out of range, or the folder holds a data set made otherwise.
    """
    for name, value, least in (
        ("seed", seed, 0),
        ("patients", patients, 0),
        ("test_patients", test_patients, 0),
        ("workers", workers, 1),
    ):
        if value < least:
            raise InputError(f"phantom: {name} is {value}; expected at least {least}")
    out = Path(out)
    counts = dict(zip(DOMAINS, (patients, patients, test_patients), strict=True))
    record = {
        "generator": GENERATOR_VERSION,
        "seed": seed,
        "settings": asdict(settings),
        "patients": counts,
        "dixon": dixon,
    }
    path = _claim_folder(out, record)
    todo = [
        (out, seed, index, domain, settings, dixon)
        for domain, count in counts.items()
        for index in range(count)
        if not all(file.exists() for file in patient_files(out, domain, patient_id(domain, index), dixon).values())
    ]
    log.info("%s: %d patients to make, %d already there", out, len(todo), sum(counts.values()) - len(todo))
    _write_patients(todo, workers)
    return path


def _write_patients(todo: list[tuple], workers: int) -> None:
    if workers == 1:
        for task in todo:
            log.info("made %s", _write_patient(*task))
        return
    with WorkerProcesses(workers) as pool:
        for future in as_completed([pool.submit(_write_patient, *task) for task in todo]):
            log.info("made %s", future.result())


def patient_files(out: Path, domain: Domain, name: str, dixon: bool = False) -> dict[str, Path]:
    """Return where a patient's volumes lie in a data set: those of "mr", "ct", "labels" that its domain has.

    With `dixon` the four contrasts stand in place of "mr".
    """
    mr = DIXON_NAMES if dixon else ("mr",)
    if domain == "test":
        return {kind: out / "test" / name / f"{kind}.nii.gz" for kind in (*mr, "ct", "labels")}
    kinds = mr if domain == "mr" else (domain,)
    images = {kind: out / "train" / domain / f"{name}_{kind}.nii.gz" for kind in kinds}
    return {**images, "labels": out / "truth" / f"{name}_labels.nii.gz"}


def _write_patient(out: Path, seed: int, index: int, domain: Domain, settings: PhantomSettings, dixon: bool) -> str:
    patient = make_patient(seed, index, domain, settings, dixon)
    volumes = {"mr": patient.mr, "ct": patient.ct, "labels": patient.labels, **patient.dixon}
    for kind, path in patient_files(out, domain, patient.id, dixon).items():
        volume = volumes[kind]
        assert volume is not None, "these are what the patient has"
        if not path.exists():
            write_volume(volume, path)
    return patient.id


def _claim_folder(out: Path, record: dict) -> Path:
    """Write what the folder's data set is, or check that it is the one already there."""
    path = out / "phantom.json"
    if path.exists():
        try:
            found = {"dixon": False} | read_json(path)  # what earlier versions did not say
        except InputError as error:
            raise InputError(f"{path}: not a phantom's record ({error}); delete {out} or use another --out") from error
        different = [name for name, value in record.items() if found.get(name) != value]
        if different:
            was, now = ({name: which.get(name) for name in different} for which in (found, record))
            raise InputError(
                f"{out}: holds a phantom made with {was}, asked for {now}; use another --out or delete that folder"
            )
        return path
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not a phantom data set; expected a new or empty folder: use another --out")
    ids = {domain: [patient_id(domain, i) for i in range(count)] for domain, count in record["patients"].items()}
    versions = {"numpy": np.__version__, "scipy": scipy.__version__}
    return write_json(path, {**record, "ids": ids, "versions": versions})
