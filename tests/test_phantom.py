import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.special import gamma

from data.errors import InputError
from data.phantom.anatomy import draw_couch, random_couch
from data.phantom.labels import (
    ARM_LABELS,
    BODY_LABELS,
    BONE_LABELS,
    COUCH_LABELS,
    Tissue,
    arm_mask,
    body_mask,
)
from data.phantom.mr_images import FAT_SHARE, MR_SIGNAL, SAME_AS, mr_images
from data.phantom.patients import (
    CT_HU,
    Patient,
    PhantomSettings,
    make_patient,
    patient_files,
    write_dataset,
)
from data.phantom.shapes import Canvas, SmoothField, Tube, capsule, ellipsoid, smooth_union
from data.volumes.dicom_contrasts import DIXON_NAMES
from data.volumes.volume import Volume, read_volume, same_grid
from scripts.make_phantom import main

BODY = PhantomSettings(matrix=128, slices=40, spacing_mm=4.0, slice_mm=31.0)
TINY = PhantomSettings(matrix=32, slices=8, spacing_mm=16.0, slice_mm=100.0)


@pytest.fixture(scope="module")
def mr_patients() -> list[Patient]:
    return [make_patient(5, index, "mr", BODY) for index in range(2)]


@pytest.fixture(scope="module")
def ct_patients() -> list[Patient]:
    return [make_patient(5, index, "ct", BODY) for index in range(2)]


@pytest.fixture(scope="module")
def paired_patient() -> Patient:
    return make_patient(5, 0, "test", BODY)


def places(labels: Volume, *tissues: Tissue) -> np.ndarray:
    """Patient coordinates (x, y, z in mm) of the voxels of some tissues, shape (n, 3)."""
    index = np.argwhere(np.isin(labels.array, tissues))[:, ::-1]
    return np.asarray(labels.origin) + index * np.asarray(labels.spacing)


def inside(labels: np.ndarray, tissue: Tissue) -> np.ndarray:
    """Voxels with a margin of one pixel of the same tissue (an arm's tissue counts as the body's) around them."""
    merged = labels.copy()
    for arm_tissue, body_tissue in SAME_AS.items():
        merged[labels == arm_tissue] = body_tissue
    return ndimage.binary_erosion(merged == tissue, np.ones((1, 3, 3), bool))


# The sets of labels


def test_every_label_is_air_body_or_couch():
    assert set(BODY_LABELS) | set(COUCH_LABELS) | {Tissue.AIR} == set(Tissue)
    assert not set(BODY_LABELS) & set(COUCH_LABELS)
    assert set(ARM_LABELS) < set(BODY_LABELS)
    assert set(BONE_LABELS) < set(BODY_LABELS)
    assert [tissue.value for tissue in Tissue] == list(range(len(Tissue)))
    assert set(CT_HU) | set(SAME_AS) == set(Tissue) == set(MR_SIGNAL) | set(SAME_AS)


def test_masks_of_labels():
    labels = np.array([[[0, 1, 3, 4, 16, 19, 20, 17, 21, 22]]], np.uint8)
    np.testing.assert_array_equal(body_mask(labels)[0, 0], [0, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(np.isin(labels, BONE_LABELS)[0, 0], [0, 0, 1, 1, 0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(arm_mask(labels)[0, 0], [0, 0, 0, 0, 0, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(np.isin(labels, COUCH_LABELS)[0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 1, 1])


# Anatomy


@pytest.mark.parametrize("domain", ["mr", "ct", "test"])
def test_every_tissue_is_present_and_a_couch_in_ct_only(domain, mr_patients, ct_patients, paired_patient):
    patients = {"mr": mr_patients, "ct": ct_patients, "test": [paired_patient]}[domain]
    expected = set(Tissue) if domain == "ct" else set(Tissue) - set(COUCH_LABELS)
    for patient in patients:
        assert {Tissue(label) for label in np.unique(patient.labels.array)} == expected


def test_organs_lie_where_they_belong(mr_patients, ct_patients):
    for patient in mr_patients + ct_patients:
        at = {tissue: places(patient.labels, tissue).mean(axis=0) for tissue in Tissue if tissue not in COUCH_LABELS}
        x, y, z = ({tissue: centre[axis] for tissue, centre in at.items()} for axis in range(3))
        assert x[Tissue.LIVER] < -20 < 20 < x[Tissue.SPLEEN]  # x grows to the patient's left
        assert x[Tissue.BLOOD] > 0  # the heart
        assert z[Tissue.BRAIN] > z[Tissue.LUNG] > z[Tissue.LIVER] > z[Tissue.KIDNEY] > z[Tissue.BLADDER]
        assert z[Tissue.BLADDER] > z[Tissue.MARROW]  # mostly of the femora
        assert y[Tissue.KIDNEY] > y[Tissue.BOWEL] + 20  # y grows to the back
        assert y[Tissue.TRABECULAR] > y[Tissue.BLADDER]  # the spine and pelvis


def test_bodies_have_plausible_sizes_and_are_in_one_piece(mr_patients, ct_patients):
    for patient in mr_patients + ct_patients:
        body = body_mask(patient.labels.array)
        litres = body.sum() * np.prod(patient.labels.spacing) / 1e6
        assert 30 < litres < 120  # without the lower legs
        parts, _ = ndimage.label(body, np.ones((3, 3, 3)))
        assert np.bincount(parts[body]).max() > 0.99 * body.sum()
        assert 0.05 < arm_mask(patient.labels.array).sum() / body.sum() < 0.15
        # The field of view holds the whole width, arms too; the largest CT patients' elbows may leave it.
        assert body[:, :, [0, -1]].sum() <= (0 if patient.ct is None else 0.001 * body.sum())


def test_arms_lie_down_in_mr_and_test_and_up_in_ct(mr_patients, ct_patients, paired_patient):
    for patient in [*mr_patients, paired_patient]:
        arms, lungs = places(patient.labels, *ARM_LABELS), places(patient.labels, Tissue.LUNG)
        # BRAIN holds the spinal cord too: take its middle, which lies in the head.
        assert arms[:, 2].max() < np.median(places(patient.labels, Tissue.BRAIN)[:, 2]) - 50
        assert arms[:, 2].min() < places(patient.labels, Tissue.BLADDER)[:, 2].mean()
        assert arms[:, 2].mean() < lungs[:, 2].mean()
        assert abs(arms[:, 0]).min() > 100
    for patient in ct_patients:
        arms = places(patient.labels, *ARM_LABELS)
        assert arms[:, 2].max() > places(patient.labels, Tissue.BRAIN)[:, 2].max() + 20
        assert arms[:, 2].min() > places(patient.labels, Tissue.LIVER)[:, 2].max()
        assert 0.3 < (arms[:, 0] > 0).mean() < 0.7


def test_bone_lies_inside_the_body_with_marrow_inside_cortex(mr_patients):
    labels = mr_patients[0].labels.array
    around = ndimage.binary_dilation(labels == Tissue.ARM_MARROW, ndimage.generate_binary_structure(3, 1)[1:2])
    around &= labels != Tissue.ARM_MARROW
    assert (labels[around] == Tissue.ARM_CORTEX).mean() > 0.8
    outside = labels == Tissue.AIR
    near_air = ndimage.binary_dilation(outside, np.ones((1, 3, 3), bool)) & np.isin(labels, BONE_LABELS)
    assert near_air.sum() < 0.01 * np.isin(labels, BONE_LABELS).sum()


def test_patients_differ(mr_patients, paired_patient):
    first, second = mr_patients
    assert (first.labels.array != second.labels.array).mean() > 0.05
    assert (first.labels.array != paired_patient.labels.array).mean() > 0.05
    other_seed = make_patient(6, 0, "mr", TINY)
    assert (other_seed.labels.array != make_patient(5, 0, "mr", TINY).labels.array).any()


# The couch


def test_couch_lies_behind_the_body_touching_or_nearly(ct_patients):
    for patient in ct_patients:
        labels, (pixel, _, _) = patient.labels.array, patient.labels.spacing
        couch, body = np.isin(labels, COUCH_LABELS), body_mask(labels)
        assert (couch == (couch.any(axis=0) & ~body)).all()  # the same in every slice
        for column in np.flatnonzero(couch.any(axis=(0, 1))):
            behind = np.flatnonzero(body[:, :, column].any(axis=0))
            top = np.flatnonzero(couch[:, :, column].any(axis=0)).min()
            assert behind.size == 0 or behind.max() < top
        gap = ndimage.distance_transform_edt(~body.any(axis=0))[couch.any(axis=0)].min() * pixel
        assert gap <= 10 + 2 * pixel
        # A closed wall with foam inside: no foam borders on air.
        foam = ndimage.binary_dilation(labels[0] == Tissue.COUCH_FOAM)
        assert (labels[0][foam] == Tissue.AIR).sum() == 0


def test_couch_gap_and_wall_follow_the_body():
    xs = ys = np.arange(-250.0, 251.0)
    labels = np.zeros((2, 501, 501), np.uint8)
    labels[:, 200:300, 240:261] = Tissue.MUSCLE  # rearmost voxel at y = 49
    couches = [random_couch(np.random.default_rng(seed), labels, (xs, ys)) for seed in range(40)]
    gaps = np.array([couch.y - 49.5 for couch in couches])
    # The body is 20 mm wide: the couch's curve adds less than a millimetre.
    assert gaps.min() < 1
    assert 5 < gaps.max() < 11
    draw_couch(couches[0], labels, (xs, ys))
    column = labels[0, :, 250]
    assert (column == Tissue.MUSCLE).sum() == 100
    assert (column == Tissue.COUCH_SHELL).sum() == pytest.approx(2 * couches[0].wall, abs=2)
    assert np.isin(column, COUCH_LABELS).sum() == pytest.approx(couches[0].thickness, abs=1)


# The images


def test_image_types_and_geometry(mr_patients, ct_patients, paired_patient):
    for patient in mr_patients:
        assert patient.ct is None
        assert same_grid(patient.mr, patient.labels)
        assert patient.mr.spacing == (4.0, 4.0, 31.0)
    for patient in ct_patients:
        assert patient.mr is None
        assert same_grid(patient.ct, patient.labels)
        assert patient.ct.spacing == (3.90625, 3.90625, 31.0)
    assert same_grid(paired_patient.mr, paired_patient.ct)
    assert same_grid(paired_patient.mr, paired_patient.labels)
    assert paired_patient.ct.direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    for image in (mr_patients[0].mr, ct_patients[0].ct, paired_patient.mr, paired_patient.ct):
        assert image.array.dtype == np.int16
        assert image.array.shape == (40, 128, 128)
    assert paired_patient.labels.array.dtype == np.uint8


@pytest.mark.parametrize("index", [0, 1])
def test_ct_means_are_the_tissues_hu(index, ct_patients):
    ct, labels = ct_patients[index].ct.array.astype(float), ct_patients[index].labels.array
    tested = set()
    for tissue, (hu, between, within) in CT_HU.items():
        voxels = ct[inside(labels, tissue)]
        if voxels.size >= 60:
            tested.add(tissue)
            # Sub-voxel structures (fat sheets, cortex at the margin) leave a few HU.
            allowed = 4 * between + 4 * (within + 16) / np.sqrt(voxels.size) + 12
            assert np.median(voxels) == pytest.approx(hu, abs=allowed), tissue.name
    assert tested >= {Tissue.AIR, Tissue.FAT, Tissue.MUSCLE, Tissue.LUNG, Tissue.LIVER, Tissue.BRAIN, Tissue.BLOOD}
    assert tested >= {Tissue.TRABECULAR, Tissue.SPLEEN, Tissue.KIDNEY, Tissue.BLADDER, Tissue.COUCH_FOAM}


def test_ct_is_in_hounsfield_units(ct_patients, paired_patient):
    ranges = {Tissue.AIR: (-1005, -980), Tissue.FAT: (-120, -80), Tissue.MUSCLE: (35, 65), Tissue.LUNG: (-900, -700)}
    ranges |= {Tissue.LIVER: (40, 85), Tissue.BLADDER: (-5, 25), Tissue.TRABECULAR: (100, 300)}
    for patient in [*ct_patients, paired_patient]:
        for tissue, (low, high) in ranges.items():
            assert low < np.median(patient.ct.array[inside(patient.labels.array, tissue)]) < high, tissue.name


def test_cortex_is_dense_in_ct_and_dark_in_mr():
    settings = PhantomSettings(matrix=256, slices=10, spacing_mm=2.0, slice_mm=60.0)
    patient = make_patient(5, 1, "test", settings)
    cortex = inside(patient.labels.array, Tissue.CORTEX)
    assert cortex.sum() > 60
    assert 650 < np.median(patient.ct.array[cortex]) < 1350
    fat = np.median(patient.mr.array[inside(patient.labels.array, Tissue.FAT)])
    assert np.median(patient.mr.array[cortex]) < 0.2 * fat


def test_bone_threshold_of_the_metrics_finds_the_bones(paired_patient):
    truth, found = np.isin(paired_patient.labels.array, BONE_LABELS), paired_patient.ct.array > 250
    assert (found & ndimage.binary_dilation(truth, np.ones((1, 3, 3)))).sum() > 0.95 * found.sum()
    cortex = np.isin(paired_patient.labels.array, (Tissue.CORTEX, Tissue.ARM_CORTEX))
    assert found[cortex].mean() > 0.8


def test_mr_contrast_is_t1_weighted_in_phase(mr_patients):
    for patient in mr_patients:
        labels = patient.labels.array
        signal = {tissue: np.median(patient.mr.array[inside(labels, tissue)]) for tissue in MR_SIGNAL if tissue < 17}
        fat = signal[Tissue.FAT]
        for tissue in (Tissue.MUSCLE, Tissue.LIVER, Tissue.BRAIN, Tissue.TRABECULAR, Tissue.BLADDER):
            assert signal[tissue] / fat == pytest.approx(MR_SIGNAL[tissue][0], rel=0.45), tissue.name
        assert signal[Tissue.MARROW] > 0.6 * fat
        assert fat > signal[Tissue.TRABECULAR] > signal[Tissue.MUSCLE] > signal[Tissue.BLADDER] > signal[Tissue.LUNG]


def test_mr_scales_differ_between_patients_and_fit_int16(mr_patients):
    fats = [np.median(p.mr.array[inside(p.labels.array, Tissue.FAT)]) for p in mr_patients]
    assert max(fats) > 1.3 * min(fats)
    for patient in mr_patients:
        assert patient.mr.array.min() >= 0
        assert patient.mr.array.max() < 6000


def test_mr_noise_is_rician(mr_patients):
    for patient in mr_patients:
        air = ndimage.binary_erosion(patient.labels.array == Tissue.AIR, np.ones((1, 7, 7), bool))
        noise = patient.mr.array[air].astype(float)
        # Without signal a Rician magnitude is Rayleigh's: mean / standard deviation = sqrt(pi / (4 - pi)).
        assert noise.mean() / noise.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.03)


def test_mr_bias_field_is_smooth_and_not_flat():
    labels = np.full((30, 64, 64), Tissue.FAT, np.uint8)
    axes = (np.linspace(-250, 250, 64), np.linspace(-250, 250, 64), np.linspace(-600, 600, 30))
    mr = mr_images(labels, 1, axes, np.random.default_rng(0))["in_phase"].astype(float)
    smooth = ndimage.gaussian_filter(mr, (1, 3, 3))
    assert smooth.std() / smooth.mean() > 0.04
    assert abs(np.diff(smooth[5:-5, 10:-10, 10:-10], axis=2)).max() / smooth.mean() < 0.03


# Determinism


def test_patients_are_the_same_every_time_whatever_the_field():
    settings = PhantomSettings(matrix=96, slices=12, spacing_mm=4.0, slice_mm=100.0)
    once, again = (make_patient(7, 2, "test", settings) for _ in range(2))
    for name in ("mr", "ct", "labels"):
        np.testing.assert_array_equal(getattr(once, name).array, getattr(again, name).array)
    wider = make_patient(7, 2, "test", dataclasses.replace(settings, matrix=128))
    # The same voxel centres: what is drawn does not depend on the grid. Random fields are summed at other offsets.
    assert (wider.labels.array[:, 16:-16, 16:-16] == once.labels.array).mean() > 0.9999


def test_short_field_holds_the_trunk():
    patient = make_patient(5, 0, "ct", PhantomSettings(matrix=128, slices=32, spacing_mm=4.0, slice_mm=16.0))
    assert {Tissue.LUNG, Tissue.LIVER, Tissue.KIDNEY, Tissue.BOWEL} <= {
        Tissue(v) for v in np.unique(patient.labels.array)
    }
    assert np.isin(patient.labels.array[[0, -1]], BODY_LABELS).any(axis=(1, 2)).all()


# The data set on disk


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "set"
    write_dataset(out, TINY, seed=3, patients=2, test_patients=1)
    return out


def test_layout_and_contents(dataset):
    assert set(files_of(dataset)) == {
        "phantom.json",
        *(f"train/{domain}/{domain}00{i}_{domain}.nii.gz" for domain in ("mr", "ct") for i in (0, 1)),
        *(f"truth/{domain}00{i}_labels.nii.gz" for domain in ("mr", "ct") for i in (0, 1)),
        *(f"test/test000/{kind}.nii.gz" for kind in ("mr", "ct", "labels")),
    }
    patient = make_patient(3, 1, "ct", TINY)
    for kind, path in patient_files(dataset, "ct", "ct001").items():
        written, made = read_volume(path), getattr(patient, kind)
        assert written.array.dtype == made.array.dtype
        assert same_grid(written, made)
        np.testing.assert_array_equal(written.array, made.array)
    record = json.loads((dataset / "phantom.json").read_text())
    assert record["settings"] == dataclasses.asdict(TINY)
    assert record["seed"] == 3
    assert record["ids"] == {"mr": ["mr000", "mr001"], "ct": ["ct000", "ct001"], "test": ["test000"]}


def test_workers_and_patient_count_do_not_change_a_byte(dataset, tmp_path):
    write_dataset(tmp_path / "set", TINY, seed=3, patients=1, test_patients=1, workers=2)
    made, known = files_of(tmp_path / "set"), files_of(dataset)
    assert len(made) == 1 + 2 + 2 + 3
    for name in made.keys() - {"phantom.json"}:
        assert made[name] == known[name], name


def test_rerun_keeps_what_is_there_and_makes_what_is_missing(dataset):
    before = files_of(dataset)
    times = {name: (dataset / name).stat().st_mtime_ns for name in before}
    (dataset / "truth" / "mr001_labels.nii.gz").unlink()
    write_dataset(dataset, TINY, seed=3, patients=2, test_patients=1)
    assert files_of(dataset) == before
    rewritten = {name for name in before if (dataset / name).stat().st_mtime_ns != times[name]}
    assert rewritten == {"truth/mr001_labels.nii.gz"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"patients": 1}, "patients"),
        ({"settings": dataclasses.replace(TINY, slice_mm=99.0)}, "slice_mm"),
    ],
)
def test_another_data_set_in_the_folder_is_an_error(dataset, change, named):
    before = files_of(dataset)
    arguments = {"settings": TINY, "seed": 3, "patients": 2, "test_patients": 1} | change
    with pytest.raises(InputError, match=rf"{named}.*another --out"):
        write_dataset(dataset, **arguments)
    assert files_of(dataset) == before


def test_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="another --out"):
        write_dataset(tmp_path, TINY, patients=1)
    assert files_of(tmp_path) == {"notes.txt": b"mine"}
    (tmp_path / "phantom.json").write_text("[1, 2")
    with pytest.raises(InputError, match=r"phantom\.json"):
        write_dataset(tmp_path, TINY, patients=1)


@pytest.mark.parametrize(
    "arguments", [{"seed": -1}, {"patients": -1}, {"test_patients": -2}, {"workers": 0}], ids=lambda a: next(iter(a))
)
def test_numbers_out_of_range_are_errors(tmp_path, arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        write_dataset(tmp_path / "set", TINY, **arguments)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", ["matrix", "slices", "spacing_mm", "slice_mm"])
def test_grids_that_hold_no_body_are_errors(name):
    with pytest.raises(InputError, match=name):
        PhantomSettings(**{name: 0})


def test_command_line(tmp_path):
    grid = ["--matrix", "32", "--slices", "5", "--spacing_mm", "16", "--slice_mm", "90"]
    main(["--out", str(tmp_path / "set"), "--patients", "0", "--test_patients", "1", "--seed", "9", *grid])
    mr = read_volume(tmp_path / "set" / "test" / "test000" / "mr.nii.gz")
    expected = make_patient(9, 0, "test", PhantomSettings(32, 5, 16.0, 90.0)).mr
    np.testing.assert_array_equal(mr.array, expected.array)


# The shapes


@pytest.fixture(scope="module")
def plain_canvas() -> Canvas:
    still = [SmoothField(np.random.default_rng(axis), 1e-6, (500.0,)) for axis in range(3)]
    axis = np.arange(-40.0, 41.0)
    return Canvas((axis, axis, axis), still)


def test_capsule_distance(plain_canvas):
    view = plain_canvas.everywhere()
    distance = capsule(view, (0, 0, -20), (0, 0, 20), 6, 4)
    assert distance[40, 40, 40] == pytest.approx(-5, abs=1e-3)  # the middle of the axis: mean radius
    assert distance[40, 40, 60] == pytest.approx(15, abs=1e-3)
    assert distance[75, 40, 40] == pytest.approx(35 - 20 - 4, abs=1e-3)
    ball = capsule(view, (3, 0, 0), (3, 0, 0), 7)
    assert ball[40, 40, 43] == pytest.approx(-7, abs=1e-3)
    np.testing.assert_allclose(ball, ellipsoid(view, (3, 0, 0), (7, 7, 7)), atol=2e-3)


def test_ellipsoid_volume_and_distance(plain_canvas):
    distance = ellipsoid(plain_canvas.everywhere(), (1, -2, 3), (20, 14, 9))
    assert (distance < 0).sum() == pytest.approx(4 / 3 * np.pi * 20 * 14 * 9, rel=0.01)
    assert distance[43, 38, 41] == pytest.approx(-9, abs=1e-2)
    assert distance[43, 38, 66] == pytest.approx(5, abs=1e-2)  # x: 25 from the centre


def test_tube_follows_its_table_and_mirrors(plain_canvas):
    tube = Tube([(30, 10, 0, 8, 4), (-30, 10, 0, 8, 4)])
    view = plain_canvas.everywhere()
    distance = tube.distance(view)
    assert (distance < 0).sum() == pytest.approx(np.pi * 8 * 4 * 60, rel=0.1)
    assert distance[40, 40, 50] == pytest.approx(-4, abs=1e-2)
    assert distance[75, 40, 50] == pytest.approx(5, abs=1e-2)
    np.testing.assert_allclose(tube.distance(view, side=-1), distance[:, :, ::-1], atol=1e-3)
    boxy = Tube([(30, 0, 0, 24, 15), (-30, 0, 0, 24, 15)], exponent=4.0).distance(view)
    area = 4 * 24 * 15 * gamma(1 + 1 / 4) ** 2 / gamma(1 + 2 / 4)  # of a superellipse
    assert (boxy < 0).sum() == pytest.approx(area * 60, rel=0.05)


def test_smooth_union_only_fills_the_crease():
    a, b = np.array([0.0, 1.0, -3.0, 5.0]), np.array([0.0, 9.0, 4.0, 5.0])
    np.testing.assert_allclose(smooth_union(a, b, 4.0), [-1, 1, -3, 4])


def test_smooth_field_has_its_deviation_and_any_grid_gives_the_same():
    field = SmoothField(np.random.default_rng(3), 4.0, (300.0, 200.0))
    axis = np.arange(-3000.0, 3000.0, 60.0)
    whole = field.evaluate(axis, axis, axis)
    assert whole.std() == pytest.approx(4.0, rel=0.1)
    np.testing.assert_allclose(field.evaluate(axis[7:9], axis[20:23], axis[50:51]), whole[50:51, 20:23, 7:9], atol=1e-4)


def test_view_holds_every_voxel_of_its_deformed_box():
    warp = [SmoothField(np.random.default_rng(axis), 6.0, (120.0, 60.0)) for axis in range(3)]
    axis = np.arange(-60.0, 61.0, 3.0)
    canvas = Canvas((axis, axis, axis), warp)
    everything = canvas.everywhere()
    low, high = np.array([-20, -10, 5]), np.array([15, 20, 30])
    coordinates = (everything.x, everything.y, everything.z)
    wanted = np.all([(lo <= c) & (c <= hi) for c, lo, hi in zip(coordinates, low, high, strict=True)], axis=0)
    view = canvas.view(tuple(low), tuple(high))
    held = np.zeros_like(wanted)
    held[view.box] = True
    assert wanted.sum() > 100
    assert held[wanted].all()
    assert held.sum() < wanted.size / 2


@pytest.fixture(scope="module")
def dixon_patient() -> Patient:
    return make_patient(5, 0, "test", BODY, dixon=True)


def test_the_four_contrasts_leave_everything_else_as_it_is(dixon_patient, paired_patient):
    assert tuple(dixon_patient.dixon) == DIXON_NAMES
    np.testing.assert_array_equal(dixon_patient.dixon["in_phase"].array, paired_patient.mr.array)
    np.testing.assert_array_equal(dixon_patient.ct.array, paired_patient.ct.array)
    assert paired_patient.dixon == {}
    assert all(same_grid(volume, paired_patient.mr) for volume in dixon_patient.dixon.values())


@pytest.mark.parametrize("tissue", [Tissue.FAT, Tissue.MUSCLE, Tissue.LIVER, Tissue.BRAIN, Tissue.SPLEEN])
def test_contrasts_are_what_the_fat_share_makes_of_the_signal(dixon_patient, tissue):
    """Of a signal s with the fat share f: |s (1 - 2 f)| in opposed phase, s (1 - f) of water and s f of fat."""
    place = ndimage.binary_erosion(dixon_patient.labels.array == tissue, np.ones((1, 3, 3)))
    assert place.sum() > 50
    in_phase, *others = (np.median(volume.array[place]) for volume in dixon_patient.dixon.values())
    f = FAT_SHARE.get(tissue, 0.0)
    expected = [abs(1 - 2 * f), 1 - f, f]
    # Beside subcutaneous fat noise is 0.015 to 0.03, which lifts the magnitude of what has no signal.
    np.testing.assert_allclose(np.divide(others, in_phase), expected, atol=0.12)


def test_noise_of_water_and_fat_is_lower_by_the_root_of_two(dixon_patient):
    """The background of a magnitude image is Rayleigh's: its mean is sigma sqrt(pi / 2)."""
    air = ndimage.binary_erosion(dixon_patient.labels.array == Tissue.AIR, iterations=3)
    means = [volume.array[air].mean() for volume in dixon_patient.dixon.values()]
    np.testing.assert_allclose(np.divide(means, means[0]), [1, 1, 0.5**0.5, 0.5**0.5], rtol=0.02)


def test_opposed_phase_is_dark_where_water_and_fat_share_a_voxel():
    """Of a quarter fat and three of muscle there is 0.75 * 0.36 * 0.97 + 0.25 * 0.05 of water and 0.248 of fat."""
    block = np.full((2, 2), Tissue.MUSCLE)
    block[0, 0] = Tissue.FAT
    labels, axes = np.tile(block, (4, 32, 32)), (np.arange(32.0), np.arange(32.0), np.arange(4.0))
    images = mr_images(labels, 2, axes, np.random.default_rng(0), dixon=True)
    in_phase, opposed, water, fat = (np.median(image) for image in images.values())
    w, f = 0.75 * 0.36 * 0.97 + 0.25 * 0.05, 0.75 * 0.36 * 0.03 + 0.25 * 0.95
    np.testing.assert_allclose([water / in_phase, fat / in_phase], [w / (w + f), f / (w + f)], atol=0.04)
    assert opposed < 0.15 * in_phase


def test_the_command_writes_a_file_for_each_contrast(tmp_path):
    size = ["--matrix", "32", "--slices", "8", "--spacing_mm", "16", "--slice_mm", "100", "--seed", "5"]
    command = ["--out", str(tmp_path), "--patients", "1", "--test_patients", "1", *size]
    main([*command, "--dixon"])
    names = [f"train/mr/mr000_{name}.nii.gz" for name in DIXON_NAMES] + [
        f"test/test000/{name}.nii.gz" for name in DIXON_NAMES
    ]
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.nii.gz")}
    others = {"train/ct/ct000_ct.nii.gz", "test/test000/ct.nii.gz", "test/test000/labels.nii.gz"}
    assert written == {*names, *others, "truth/mr000_labels.nii.gz", "truth/ct000_labels.nii.gz"}
    plain = make_patient(5, 0, "mr", TINY).mr
    np.testing.assert_array_equal(read_volume(tmp_path / names[0]).array, plain.array)
    with pytest.raises(InputError, match=r"made with \{'dixon': True\}, asked for \{'dixon': False\}"):
        main(command)


def test_a_folder_of_before_dixon_resumes(tmp_path):
    write_dataset(tmp_path, TINY, 5, patients=1, test_patients=0)
    path = tmp_path / "phantom.json"
    data = json.loads(path.read_text())
    assert data.pop("dixon") is False
    path.write_text(json.dumps(data))
    write_dataset(tmp_path, TINY, 5, patients=1, test_patients=0)
    with pytest.raises(InputError, match="use another --out"):
        write_dataset(tmp_path, TINY, 5, patients=1, test_patients=0, dixon=True)
