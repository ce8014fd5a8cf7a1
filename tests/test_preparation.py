"""Preparing a data set: HU and MR units on disk, couch gone, spacing chosen, re-runs, bad volumes."""

import json
import logging
import re
import shlex
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from data.errors import InputError
from data.loading.augmentation import Augmentation
from data.loading.paired import open_paired_set
from data.loading.unaligned_dataset import open_unaligned
from data.prepared import preparation, slice_writing, trainable
from data.prepared.manifest import Manifest, read_manifest
from data.prepared.splits import validation_cases
from data.simulation.simulation_set import open_simulation_set
from data.values.intensity import IntensityMap
from data.volumes.paths import hash_source
from data.volumes.slice_frame import SliceFrame
from data.volumes.volume import Volume, from_sitk, read_volume, write_volume
from scripts import prepare_dataset
from tests.test_volume import write_series

FAT_MR, MUSCLE_MR = 900, 300


def cylinder(radius_mm: float, spacing=2.0, slices=6, size=60, offset=(0, 0)) -> np.ndarray:
    """Return distances from the axis over `radius_mm`, (z, y, x)."""
    y, x = np.indices((size, size)) - (size - 1) / 2
    distance = np.hypot(y - offset[0], x - offset[1]) * spacing / radius_mm
    return np.broadcast_to(distance, (slices, size, size))


def mr_volume(radius_mm=40.0, scale=1.0) -> Volume:
    inside = cylinder(radius_mm)
    array = np.where(inside < 0.8, MUSCLE_MR, np.where(inside < 1, FAT_MR, 0)) * scale
    noise = np.random.default_rng(0).rayleigh(8 * scale, array.shape)
    return Volume((array + noise).astype(np.float32), (2.0, 2.0, 4.0), (5.0, -7.0, 11.0))


def ct_volume(radius_mm=45.0) -> Volume:
    inside = cylinder(radius_mm)
    array = np.where(inside < 0.8, 50, np.where(inside < 1, -100, -1000)).astype(np.int16)
    array[:, 55:57, 5:55] = 150  # couch
    array[:, :2, :2] = -3024  # outside the scanner's field of view
    return Volume(array, (2.0, 2.0, 3.0))


@pytest.fixture
def raw(tmp_path) -> Path:
    for k in range(2):
        write_volume(mr_volume(scale=1 + k), tmp_path / f"mr/p{k}.nii.gz")
        ct = ct_volume()
        ct.array[-1, 10, 0] += k  # in the air: one volume given twice is warned of
        write_volume(ct, tmp_path / f"ct/q{k}.mha")
    return tmp_path


def test_several_processes_give_the_same_files(raw):
    prepare(raw)
    prepare(raw, "--workers", "2", out="parallel")
    for file in (raw / "set").rglob("*.np*"):
        assert file.read_bytes() == (raw / "parallel" / file.relative_to(raw / "set")).read_bytes()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_log_file_says_what_is_done_before_it_is(raw, caplog, monkeypatch, workers):
    caplog.set_level(logging.INFO)
    run_jobs, said = preparation.run_jobs, []

    def watched(work, jobs, *rest):
        done, failures = run_jobs(work, jobs, *rest)
        said.append([text for text in caplog.messages if "left" not in text][-1])  # a busy machine says how far it is
        return done, failures

    monkeypatch.setattr(preparation, "run_jobs", watched)
    prepare(raw, "--workers", workers)
    assert caplog.messages[0] == "searching for volumes"
    assert said == ["finding bodies: 4 volumes", "writing slices: 4 volumes"]


def prepare(raw: Path, *arguments, out="set", mr="mr/*", ct="ct/*") -> tuple[int, Manifest]:
    command = ["--ct", f"{raw}/{ct}", "--out", str(raw / out), "--workers", "1", "--size", "64"]
    command += [] if "--mr" in arguments or not mr else ["--mr", f"{raw}/{mr}"]
    code = prepare_dataset.main([*command, *arguments])
    return code, read_manifest(raw / out)


def test_a_prepared_data_set_holds_physical_values(raw):
    code, manifest = prepare(raw)
    assert code == 0
    assert (manifest.size, manifest.spacing_mm) == (64, 2.0)  # bodies of 90 mm fit at the acquired spacing
    assert [case.name for case in manifest.select("train", "A")] == ["p0", "p1"]
    for k, case in enumerate(manifest.select("train", "A")):
        slices, masks = np.load(raw / "set" / case.image_file), np.load(raw / "set" / case.mask_file)
        assert (slices.dtype, slices.shape, masks.dtype, masks.shape) == (
            np.float32,
            (6, 64, 64),
            np.uint8,
            (6, 64, 64),
        )
        np.testing.assert_array_equal(slices[:, 2:62, 2:62], mr_volume(scale=1 + k).array)  # nothing resampled
        truth = np.pad(cylinder(40.0) < 1, ((0, 0), (2, 2), (2, 2)))
        overlap = 2 * np.sum(truth & (masks > 0)) / (truth.sum() + masks.sum())
        assert overlap > 0.95  # on an 80 mm body, one pixel of 2 mm all round is 0.95
        assert case.percentiles[1] == pytest.approx(FAT_MR * (1 + k), rel=0.05)
        assert case.body_slices == (0, 6)
        assert SliceFrame.from_dict(case.frame).spacing_mm == 2.0
        assert read_volume(raw / f"set/bodies/{case.split}{case.domain}/{case.name}.nii.gz").array.sum() == masks.sum()
    for case in manifest.select("train", "B"):
        slices = np.load(raw / "set" / case.image_file)
        assert slices.dtype == np.int16
        assert slices[3, 32, 32] == 50
        assert slices.min() == -1000
        assert np.all(slices[:, 56:60] == -1000), "the couch is still there"


def test_hu_are_rounded_and_clipped_to_what_int16_holds(raw):
    """Metal beyond int16 must not come round as air."""
    ct = ct_volume()
    array = ct.array.astype(np.float32)
    array[3, 30, 29:33] = 40000, 49.6, -49.6, -2000
    write_volume(ct.with_array(array), raw / "ct/q0.mha")
    assert prepare(raw)[0] == 0
    assert np.load(raw / "set/trainB/q0.npy")[3, 32, 31:35].tolist() == [32767, 50, -50, -1024]


def test_a_second_run_touches_nothing_and_a_changed_source_is_done_again(raw, caplog):
    prepare(raw)
    files = {file: file.stat().st_mtime_ns for file in (raw / "set").rglob("*.np*")}
    caplog.set_level(logging.INFO)
    prepare(raw)
    said = ["searching for volumes", "checking what is prepared: 4 volumes",
            "already prepared: 4 volumes"]  # fmt: skip
    assert caplog.messages[:3] == said and "writing slices" not in caplog.text
    assert {file: file.stat().st_mtime_ns for file in files} == files
    write_volume(mr_volume(radius_mm=30.0), raw / "mr/p1.nii.gz")
    prepare(raw)
    changed = {file.name for file, time in files.items() if file.stat().st_mtime_ns != time}
    assert changed == {"p1.npy"}
    assert np.load(raw / "set/maskA/p1.npy")[0].sum() == pytest.approx(np.pi * 15**2, rel=0.15)


def test_a_bad_volume_is_reported_and_the_others_are_done(raw, caplog):
    (raw / "mr/broken.nii.gz").write_bytes(b"no volume")
    sitk.WriteImage(sitk.Image([5, 5], sitk.sitkInt16), str(raw / "ct/flat.nii.gz"))
    code, manifest = prepare(raw)
    assert code == 1
    assert [case.name for case in manifest.cases] == ["p0", "p1", "q0", "q1"]
    for name, reason in (("broken.nii.gz", "cannot be read as a volume"), ("flat.nii.gz", "2-D image")):
        assert any(name in text and reason in text for text in caplog.messages)


def test_nothing_left_to_train_on_is_an_error(raw):
    for file in (raw / "ct").iterdir():
        file.write_bytes(b"")
    with pytest.raises(InputError, match="no CT left to train on"):
        prepare(raw)


def test_ct_alone_is_enough_to_simulate_mr_and_mr_can_be_added(raw, caplog):
    caplog.set_level(logging.INFO)
    _, manifest = prepare(raw, mr=None)
    assert [(case.domain, case.name) for case in manifest.cases] == [("B", "q0"), ("B", "q1")]
    assert "prepared without MR" in caplog.messages[-1] and "add --mr GLOB and --spacing_mm 2" in caplog.messages[-1]
    root = raw / "set"
    assert sorted(open_simulation_set(root).volumes) == ["q0", "q1"]
    ct_map = IntensityMap.window(-1000, 1400)
    opened = {
        "--model cycle_gan": lambda: open_unaligned(root, "tissue", ct_map, Augmentation(), masks=False, seed=0),
        "--model paired": lambda: open_paired_set(root, "tissue", ct_map),
    }
    for method, open_data in opened.items():
        with pytest.raises(InputError, match=f"prepared without MR, which {method} needs") as error:
            open_data()
        assert "\n" not in str(error.value)
    words = shlex.split(str(error.value).partition("python -m scripts.prepare_dataset ")[2])
    globs = iter([f"{raw}/mr/*", f"{raw}/ct/*"])
    files = {file: file.stat().st_mtime_ns for file in root.rglob("*.np*")}
    command = [next(globs) if word == "GLOB" else word for word in words]
    assert prepare_dataset.main([*command, "--workers", "1"]) == 0
    assert {file: file.stat().st_mtime_ns for file in files} == files
    assert [case.name for case in read_manifest(root).select("train", "A")] == ["p0", "p1"]
    assert len(opened["--model cycle_gan"]().a) == 12


def test_of_ct_alone_the_mr_simulated_from_it_validates(raw):
    write_volume(ct_volume(radius_mm=40.0), raw / "ct/q1.mha")
    _, manifest = prepare(raw, mr=None)
    cases = validation_cases(manifest, None, 0)
    assert cases.mr == () and len(cases.ct) == 1 and cases.left_out == {cases.ct[0].patient}
    _, tested = prepare(raw, "--test_mr", f"{raw}/mr/*", mr=None)
    assert [case.name for case in validation_cases(tested, None, 0).mr] == ["p0", "p1"]


@pytest.mark.parametrize("option", [["--mr_mask", "masks/*"], ["--bias_correction"]])
def test_options_of_the_mr_need_mr(raw, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        prepare(raw, *option, mr=None)
    assert capsys.readouterr().err == (
        f"error: {option[0]} does nothing without --mr\nhelp: python -m scripts.prepare_dataset --help\n"
    )


@pytest.mark.parametrize("prepared_before", [False, True])
def test_test_volumes_that_are_swapped_are_said_in_one_line(prepared_before, raw, caplog):
    """Also where they are added to training volumes that were prepared, and so accepted, before."""
    if prepared_before:
        prepare(raw, "--spacing_mm", "2")
        caplog.clear()
    for name, volume in (("mr", mr_volume(radius_mm=35.0)), ("ct", ct_volume(radius_mm=35.0))):
        write_volume(volume, raw / f"test/{name}/t{name}.nii.gz")
    test = ["--test_mr", f"{raw}/test/ct/*", "--test_ct", f"{raw}/test/mr/*", "--spacing_mm", "2"]
    with pytest.raises(
        InputError, match=r"look swapped: --test_mr has .*tct.nii.gz with .*, --test_ct has .*tmr.nii.gz without"
    ):
        prepare(raw, *test)


def test_splits_are_looked_at_by_the_same_processes(raw, monkeypatch):
    calls = []
    monkeypatch.setattr(trainable, "run_jobs", lambda work, jobs, workers, title: (calls.append(jobs), ([], []))[1])
    write_volume(mr_volume(radius_mm=35.0), raw / "test/t.nii.gz")
    write_volume(ct_volume(radius_mm=35.0), raw / "test/u.nii.gz")
    prepare(raw, "--test_mr", f"{raw}/test/t.nii.gz", "--test_ct", f"{raw}/test/u.nii.gz")
    (jobs,) = calls
    assert [(job.split, job.domain, job.source.name) for job in jobs] == [
        ("train", "A", "p0"), ("train", "A", "p1"), ("train", "B", "q0"), ("train", "B", "q1"),
        ("test", "A", "t"), ("test", "B", "u"),
    ]  # fmt: skip


def test_auto_spacing_holds_every_body(raw, caplog):
    write_volume(mr_volume(radius_mm=58.0), raw / "mr/wide.nii.gz")
    code, manifest = prepare(raw, "--size", "40")
    assert code == 0
    assert all(case.lost_voxels == 0 for case in manifest.cases)
    assert 116 / 40 <= manifest.spacing_mm < 125 / 40
    assert "outside the frame" not in caplog.text


def test_a_data_set_keeps_its_pixels_where_a_smaller_patient_is_added_and_refuses_a_larger_one(raw):
    """Which models trained on it would not take; that was chosen by nobody."""
    _, before = prepare(raw, "--size", "40")
    write_volume(mr_volume(radius_mm=30.0), raw / "mr/p2_mr.nii.gz")
    _, manifest = prepare(raw, "--size", "40")
    assert manifest.spacing_mm == before.spacing_mm and len(manifest.cases) == len(before.cases) + 1
    write_volume(mr_volume(radius_mm=58.0), raw / "mr/wide.nii.gz")
    kept = f"--spacing_mm {before.spacing_mm}"
    said = rf"with pixels of {before.spacing_mm:g} mm; to fit whole, wide .* needs (3|2\.9)\S* mm\. {kept} keeps them"
    with pytest.raises(InputError, match=said):
        prepare(raw, "--size", "40")
    assert read_manifest(raw / "set") == manifest
    _, cut = prepare(raw, "--size", "40", "--spacing_mm", str(before.spacing_mm))
    assert cut.spacing_mm == before.spacing_mm and len(cut.cases) == len(manifest.cases) + 1
    _, larger = prepare(raw, "--size", "40", "--overwrite")
    assert larger.spacing_mm > before.spacing_mm


def test_a_data_set_keeps_its_pixels_where_all_of_it_is_analysed_again(raw, monkeypatch):
    """As by a later version, or after all volumes were exported again."""
    prepare(raw, "--spacing_mm", "3")
    monkeypatch.setattr("data.prepared.bodies.METHOD_VERSION", 99)
    assert prepare(raw)[1].spacing_mm == 3


def test_a_damaged_manifest_is_mended_by_preparing_again(raw):
    _, before = prepare(raw)
    path = raw / "set/manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99'))
    assert prepare(raw)[1] == before == read_manifest(raw / "set")


def test_volumes_that_get_other_names_are_not_missed(raw):
    """A second MR in a patient's folder renames the first one's case."""
    for k in range(2):
        (raw / f"in/s{k}").mkdir(parents=True)
        (raw / f"mr/p{k}.nii.gz").rename(raw / f"in/s{k}/mr.nii.gz")
    prepare(raw, mr="in/*/mr*.nii.gz")
    for k in range(2):
        write_volume(mr_volume(scale=3 + k), raw / f"in/s{k}/mr_t2.nii.gz")
    _, manifest = prepare(raw, mr="in/*/mr*.nii.gz")
    assert [case.name for case in manifest.select("train", "A")] == ["s0__mr", "s0__mr_t2", "s1__mr", "s1__mr_t2"]


def test_what_a_data_set_has_is_not_lost_where_only_what_is_new_is_given(raw, caplog):
    prepare(raw)
    for path in sorted((raw / "ct").iterdir())[1:]:
        path.unlink()
    prepare(raw)
    assert f"{raw}/set: leaves out volumes that it had before (--ct: q1)" in caplog.text
    with pytest.raises(
        InputError, match=r"volumes that are not given now \(--mr: p0, p1\); give those that it has together"
    ):
        prepare(raw, mr=None)
    assert [case.name for case in read_manifest(raw / "set").cases] == ["p0", "p1", "q0"]
    prepare(raw, "--overwrite", mr=None)
    assert [case.name for case in read_manifest(raw / "set").cases] == ["q0"]


def test_a_body_that_does_not_fit_is_counted_with_a_way_out(raw, caplog):
    _, manifest = prepare(raw, "--size", "40", "--spacing_mm", "2")
    lost = {case.name: case.lost_voxels for case in manifest.cases}
    body = read_volume(raw / "set/bodies/trainB/q0.nii.gz").array
    assert lost["q0"] == body.sum() - body[:, 10:50, 10:50].sum() > 0
    assert f"q0: {lost['q0']} body voxels lie outside the frame of 40 x 2 mm" in caplog.text
    suggested = float(caplog.text.split("q0:")[1].split("--spacing_mm ")[1].split()[0])
    _, manifest = prepare(raw, "--size", "40", "--spacing_mm", str(suggested), "--overwrite")
    assert {case.lost_voxels for case in manifest.cases} == {0}


def test_supplied_masks_win_and_keep_their_labels(raw):
    labels = np.zeros((6, 60, 60), np.uint8)
    labels[1:5, 20:40, 20:40] = 1
    labels[1:5, 28:32, 28:32] = 2
    for k in range(2):
        write_volume(mr_volume().with_array(labels), raw / f"masks/p{k}_mask.nii.gz")
    _, manifest = prepare(raw, "--mr_mask", f"{raw}/masks/*")
    case = manifest.select("train", "A")[0]
    np.testing.assert_array_equal(np.load(raw / "set" / case.mask_file)[:, 2:62, 2:62], labels)
    assert case.body_slices == (1, 5)
    assert case.percentiles[1] < 1.2 * MUSCLE_MR  # the fat lies outside the supplied mask


def test_one_patient_in_train_and_test_is_refused(raw):
    with pytest.raises(InputError, match="is in both train and test: p0"):
        prepare(raw, "--test_mr", str(raw / "mr/p0.nii.gz"))
    write_volume(mr_volume(radius_mm=33.0), raw / "test/t0.nii.gz")
    _, manifest = prepare(raw, "--test_mr", str(raw / "test/t0.nii.gz"), out="other")
    assert [case.name for case in manifest.select("test", "A")] == ["t0"]
    assert np.load(raw / "other/testA/t0.npy").shape == (6, 64, 64)


def test_synthrad_layout_and_stored_axis_order(tmp_path):
    """`<case>/mr.nii.gz` with its mask; a volume stored coronally gives the same slices as the axial one."""
    mr, ct = mr_volume(), ct_volume()
    coronal = from_sitk(sitk.PermuteAxes(mr.to_sitk(), [0, 2, 1]))
    assert coronal.direction != mr.direction
    for case, volume in (("1A", mr), ("2B", coronal)):
        write_volume(volume, tmp_path / case / "mr.nii.gz")
        write_volume(ct, tmp_path / case / "ct.nii.gz")
        write_volume(volume.with_array(np.ones(volume.array.shape, np.uint8)), tmp_path / case / "mask.nii.gz")
    patterns = [
        "--mr",
        f"{tmp_path}/*/mr.nii.gz",
        "--ct",
        f"{tmp_path}/*/ct.nii.gz",
        "--mr_mask",
        f"{tmp_path}/*/mask.nii.gz",
    ]
    assert prepare_dataset.main([*patterns, "--out", str(tmp_path / "set"), "--size", "64", "--workers", "1"]) == 0
    assert [case.name for case in read_manifest(tmp_path / "set").select("train", "A")] == ["1A", "2B"]
    axial, turned = (np.load(tmp_path / f"set/trainA/{case}.npy") for case in ("1A", "2B"))
    np.testing.assert_allclose(turned, axial, atol=1e-4)


def test_the_record_of_a_case_says_where_it_came_from(raw):
    prepare(raw)
    record = json.loads((raw / "set/trainA/p0.json").read_text())
    assert record["source"].endswith("mr/p0.nii.gz")
    assert len(record["source_sha256"]) == 64


def test_an_interrupted_run_in_another_frame_leaves_nothing_that_looks_whole(raw, monkeypatch):
    prepare(raw)
    save, calls = slice_writing._save_array, []

    def save_some(path, array):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(path, array)

    monkeypatch.setattr(slice_writing, "_save_array", save_some)
    with pytest.raises(KeyboardInterrupt):
        prepare(raw, "--spacing_mm", "3", "--overwrite")
    with pytest.raises(InputError, match="no such file; make the data set"):
        read_manifest(raw / "set")
    monkeypatch.undo()
    prepare(raw)  # the first frame again: the case that was cut short must not count as done
    prepare(raw, out="fresh")
    for file in (raw / "fresh").rglob("*.npy"):
        assert file.read_bytes() == (raw / "set" / file.relative_to(raw / "fresh")).read_bytes()


def correct(path: Path) -> Volume:
    """Cut a body mask as a user might, with a second label."""
    body = read_volume(path)
    array = body.array.copy()
    array[:, :28] = 0
    array[:, 30:32, 29:31] = 2
    write_volume(body.with_array(array), path)
    return body.with_array(array)


def test_a_corrected_body_is_kept_and_used(raw, caplog):
    caplog.set_level("INFO")
    prepare(raw)
    path = raw / "set/bodies/trainA/p0.nii.gz"
    corrected = correct(path)
    before = path.read_bytes()
    for arguments in ((), (), ("--spacing_mm", "2.5"), ("--spacing_mm", "2")):
        caplog.clear()
        _, manifest = prepare(raw, *arguments, "--overwrite")
        assert path.read_bytes() == before
        assert [text for text in caplog.messages if "corrected by hand" in text] == [
            f"{path}: corrected by hand, kept and used"
        ]
    case = manifest.select("train", "A")[0]
    assert case.labels == 2
    np.testing.assert_array_equal(np.load(raw / "set" / case.mask_file)[:, 2:62, 2:62], corrected.array)
    write_volume(mr_volume(scale=3), raw / "mr/p0.nii.gz")  # a new source does not cost the correction either
    prepare(raw)
    assert path.read_bytes() == before


def test_a_corrected_body_supplied_as_the_mask_is_not_overwritten(raw):
    prepare(raw)
    paths = [raw / f"set/bodies/trainA/p{k}.nii.gz" for k in range(2)]
    corrected = correct(paths[0])
    before = [path.read_bytes() for path in paths]
    for arguments in (("--mr_mask", f"{raw}/set/bodies/trainA/*"), ()):
        prepare(raw, *arguments)
        assert paths[0].read_bytes() == before[0]
        np.testing.assert_array_equal(np.load(raw / "set/maskA/p0.npy")[:, 2:62, 2:62], corrected.array)
    masks = raw / "masks"
    for k in range(2):
        write_volume(mr_volume().with_array(np.ones((6, 60, 60), np.uint8)), masks / f"p{k}.nii.gz")
    code, manifest = prepare(raw, "--mr_mask", f"{masks}/*")  # which of the two masks is meant?
    assert (code, [case.name for case in manifest.select("train", "A")]) == (1, ["p1"])
    assert paths[0].read_bytes() == before[0]


def test_a_run_that_can_write_nothing_keeps_the_manifest(raw):
    _, manifest = prepare(raw)
    for file in (raw / "ct").iterdir():
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"left to train on[^$]*q0\.mha: the file is empty"):
        prepare(raw, "--spacing_mm", "3", "--overwrite")
    assert read_manifest(raw / "set") == manifest


@pytest.mark.parametrize(
    ("changed", "was"),
    [
        (["--size", "32"], "prepared with --size 64, now --size 32"),
        (["--slice_mm", "3"], "prepared with --slice_mm None, now --slice_mm 3.0"),
        (["--size", "32", "--spacing_mm", "4"], "with --size 64 --spacing_mm 2.0, now --size 32 --spacing_mm 4.0"),
    ],
)
def test_a_data_set_is_not_turned_into_one_of_other_slices_by_mistake(raw, changed, was):
    prepare(raw)
    before = {path: path.read_bytes() for path in (raw / "set").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=f"{was}; choose another --out, or prepare all of it again with --overwrite"):
        prepare(raw, *changed)
    assert {path: path.read_bytes() for path in (raw / "set").rglob("*") if path.is_file()} == before
    _, manifest = prepare(raw, *changed, "--overwrite")
    assert (manifest.size, manifest.slice_mm) != (64, None)
    prepare(raw, *changed)


def test_one_corrected_mask_is_used_and_the_others_are_computed(raw, caplog):
    caplog.set_level("INFO")
    _, computed = prepare(raw, out="computed")
    labels = np.zeros((6, 60, 60), np.uint8)
    labels[1:5, 20:40, 20:40] = 1
    write_volume(mr_volume().with_array(labels), raw / "masks/p1_mask.nii.gz")
    _, manifest = prepare(raw, "--mr_mask", f"{raw}/masks/*")
    assert "masks for 1 of 2 volumes; computed for the others: p0" in caplog.text
    p0, p1 = manifest.select("train", "A")
    np.testing.assert_array_equal(np.load(raw / "set" / p1.mask_file)[:, 2:62, 2:62], labels)
    other = computed.select("train", "A")[0].mask_file
    np.testing.assert_array_equal(np.load(raw / "set" / p0.mask_file), np.load(raw / "computed" / other))


def test_names_and_patients_are_checked_before_any_work(raw, monkeypatch):
    monkeypatch.setattr(preparation, "analyse", None)
    with pytest.raises(InputError, match="the same patient is in both train and test: p0"):
        prepare(raw, "--test_mr", str(raw / "mr/p0.nii.gz"))
    write_volume(mr_volume(), raw / "mr/p0.mha")
    with pytest.raises(InputError, match="several volumes would be called p0"):
        prepare(raw)


def test_one_volume_under_two_names_in_train_and_test_is_refused(raw):
    (raw / "other.nii.gz").write_bytes((raw / "mr/p0.nii.gz").read_bytes())
    with pytest.raises(InputError, match="the same source is in both train and test: p0"):
        prepare(raw, "--test_mr", str(raw / "other.nii.gz"))


def test_one_volume_under_two_names_is_warned_of_with_both(raw, caplog):
    (raw / "ct/q9.mha").write_bytes((raw / "ct/q0.mha").read_bytes())
    (raw / "ct/notes.txt").write_text("q1 moved\n")
    (raw / "ct/q1.json").write_text("{}")  # called after its volume
    caplog.set_level("INFO")
    code, manifest = prepare(raw)
    names = [f"{raw}/ct/{name}.mha" for name in ("q0", "q9")]
    assert [message for message in caplog.messages if "same volume" in message] == [
        f"warning: {names[0]} and {names[1]} are the same volume, which counts twice: leave out one of them, e.g. "
        f"{names[1]}, and run the command again"
    ]
    assert f"no volumes, and skipped: {raw}/ct/notes.txt" in caplog.messages
    assert (code, len(manifest.select("train", "B"))) == (0, 3)


def test_a_file_that_cannot_be_written_fails_its_volume_alone(raw, monkeypatch):
    def full(file, array):
        if "p0" in file.name:
            raise OSError("No space left on device")
        file.write_bytes(b"")

    monkeypatch.setattr(np, "save", full)
    code, manifest = prepare(raw)
    assert (code, [case.name for case in manifest.cases]) == (1, ["p1", "q0", "q1"])


def test_a_note_on_reading_is_said_once(raw, caplog):
    """Each volume is read twice, and its body mask keeps its transforms."""
    volume = mr_volume()
    affine = np.diag([-2.0, -2.0, 4.0, 1.0])
    image = nibabel.Nifti1Image(volume.array.T, affine)
    image.header["pixdim"][1:4] = 1
    nibabel.save(image, raw / "mr/p0.nii.gz")
    _, manifest = prepare(raw)
    assert [case.name for case in manifest.select("train", "A")] == ["p0", "p1"]
    assert [message.split(": ")[1] for message in caplog.messages if "pixdim" in message] == [f"{raw}/mr/p0.nii.gz"]


def test_a_series_is_chosen_by_its_uid(raw):
    first = write_series(raw / "dicom", uid="1.2.3.1111")
    write_series(raw / "dicom", uid="1.2.3.2222", change=lambda k, header: setattr(header, "RescaleSlope", "2"))
    write_series(raw / "dicom", change=lambda k, header: None, uid="1.2.3.1111")
    labels = Volume(np.ones_like(first, np.uint8))
    grid = read_volume(raw / "dicom", "1.2.3.1111")
    write_volume(grid.with_array(labels.array), raw / "dicom_mask.nii.gz")
    arguments = ["--mr", str(raw / "dicom"), "--mr_mask", str(raw / "dicom_mask.nii.gz")]
    with pytest.raises(InputError, match="2 DICOM series; expected one"):
        prepare(raw, *arguments)
    for uid in ("1.2.3.1111", "1.2.3.2222"):  # the second into the same folder: done again
        _, manifest = prepare(raw, *arguments, "--series_uid", uid, "--spacing_mm", "0.7")
        case = manifest.select("train", "A")[0]
        assert case.series_uid == uid
        expected = SliceFrame.of(grid, 64, 0.7).prepare(read_volume(raw / "dicom", uid), fill=0)
        np.testing.assert_allclose(np.load(raw / "set" / case.image_file).max(), expected.max(), rtol=1e-5)
    with pytest.raises(InputError, match=r"--series_uid 9\.9: in none of the DICOM folders"):
        prepare(raw, *arguments, "--series_uid", "1.2.3.1111", "9.9")


@pytest.mark.parametrize("option", ["--slice_mm", "--spacing_mm"])
@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan", "wide"])
def test_impossible_spacings_are_refused_at_once(option, value, capsys):
    with pytest.raises(SystemExit):
        prepare_dataset.parse(["--mr", "m", "--ct", "c", "--out", "o", f"{option}={value}"])
    assert "expected a positive number of mm" in capsys.readouterr().err


def flat_inside(raw) -> tuple[str, ...]:
    """Make the MR of p0 constant in its supplied mask."""
    mr = mr_volume()
    body = np.zeros(mr.array.shape, np.uint8)
    body[:, 25:35, 25:35] = 1
    write_volume(mr.with_array(np.where(body, 300, mr.array).astype(np.float32)), raw / "mr/p0.nii.gz")
    for k in range(2):
        write_volume(mr.with_array(body), raw / f"masks/p{k}.nii.gz")
    return "--mr_mask", f"{raw}/masks/*"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda mr: np.full_like(mr, 300), "the volume is constant"),
        (lambda mr: (mr > 100).astype(np.float32), "only 2 different values: this looks like a mask"),
        (None, r"the MR is constant in the body \(300\)"),
    ],
)
def test_an_mr_without_contrast_is_refused_by_its_name(raw, caplog, make, words):
    more = () if make else flat_inside(raw)
    if make:
        mr = mr_volume()
        write_volume(mr.with_array(make(mr.array)), raw / "mr/p0.nii.gz")
    code, manifest = prepare(raw, *more)
    assert (code, [case.name for case in manifest.select("train", "A")]) == (1, ["p1"])
    failed = [text for text in caplog.messages if "failed" in text]
    assert re.search(rf"failed: .*mr/p0\.nii\.gz: .*{words}", failed[0]) and len(failed) == 2
    page = raw / "set/bodies/index.html"
    assert failed[1].startswith(
        f"1 of {len(manifest.cases) + 1} volumes failed, listed on {page}, and are not in the data set; "
    )
    assert "mr/p0.nii.gz" in page.read_text()


def test_one_volume_of_the_other_modality_does_not_make_them_swapped(raw):
    """It is left out: prepared is what is left."""
    write_volume(ct_volume(), raw / "mr/a.nii.gz")
    write_volume(mr_volume(), raw / "ct/a.nii.gz")
    code, manifest = prepare(raw)
    assert code == 1 and [case.name for case in manifest.cases] == ["p0", "p1", "q0", "q1"]


def corrected(path: Path) -> Path:
    mask = read_volume(path)
    mask.array[:, :25] = 0
    return write_volume(mask, path)


def test_masks_that_were_corrected_under_an_earlier_name_are_named(raw, caplog):
    """Data sets that are merged give their cases the names of the folders, too."""
    shutil.copytree(raw / "ct", raw / "all/a")
    shutil.copytree(raw / "ct", raw / "all/b")
    merged = ["--ct", f"{raw}/all/*/*", "--out", f"{raw}/set", "--workers", "1", "--size", "64", "--mr", f"{raw}/mr/*"]
    prepare(raw, ct="all/a/*")
    bodies = raw / "set/bodies/trainB"
    corrected(bodies / "q0.nii.gz")
    caplog.clear()
    assert prepare_dataset.main([*merged, "--overwrite"]) == 0
    (warning,) = [text for text in caplog.messages if "corrected mask" in text]
    assert warning == (
        f"warning: {bodies}/q0.nii.gz: a corrected mask that is not used, because its case is now called a__q0; to use "
        f"it, move it to {bodies}/a__q0.nii.gz after this run, and run again"
    )
    digest = hash_source(bodies / "q0.nii.gz")
    (bodies / "q0.nii.gz").rename(bodies / "a__q0.nii.gz")
    caplog.clear()
    assert prepare_dataset.main([*merged, "--overwrite"]) == 0
    assert not [text for text in caplog.messages if "corrected mask" in text]
    (case,) = [case for case in read_manifest(raw / "set").cases if case.name == "a__q0"]
    assert case.mask_source_sha256 == digest


def test_a_mask_without_a_record_is_named_with_the_cases_that_it_may_be_of(raw, caplog):
    shutil.copytree(raw / "ct", raw / "all/a")
    shutil.copytree(raw / "ct", raw / "all/b")
    bodies = raw / "set/bodies/trainB"
    bodies.mkdir(parents=True)
    for name in ("q1", "other"):
        shutil.copy(raw / "mr/p1.nii.gz", bodies / f"{name}.nii.gz")
    prepare(raw, ct="all/*/*")
    (warning,) = [text for text in caplog.messages if "corrected mask" in text]
    assert warning == (
        f"warning: {bodies}/q1.nii.gz: a corrected mask that is not used, because no case is called q1; it may be of "
        f"a__q1 or b__q1; to use it, move it to {bodies}/CASE.nii.gz after this run, and run again"
    )
