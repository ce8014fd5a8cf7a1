"""The machinery of batch conversion: overlap and its bounds, claims, checks, statistics of the training set."""

import json
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import wasserstein_distance

from cohort.checks import NO_MR, NO_SECTIONS, Check, hu_statistics
from cohort.overlap import run_overlapped
from cohort.results import CaseRecord, Results
from cohort.summary import write_summary
from data.errors import InputError
from data.prepared.training_statistics import (
    HU_EDGES,
    TrainingStatistics,
    hu_distance,
    hu_histogram,
    slice_distances,
    slice_spread,
    training_statistics,
)
from data.values.intensity import IntensityMap
from models.inference_settings import read_inference_settings
from models.synthesis import prepare_volume, restore_volume
from tests.cohort_data import SETTINGS, patient_mr
from tests.processes import Program
from tests.test_preparation import FAT_MR, MUSCLE_MR, ct_volume, mr_volume, prepare, raw  # noqa: F401
from training.distributed import ProcessGroup

ROOT = Path(__file__).resolve().parents[1]


# Overlap


def is_text(value) -> bool:
    return isinstance(value, str)


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_items_than_allowed_are_in_memory(workers):
    lock, alive, most, taken = threading.Lock(), set(), [0], []

    def items():
        for k in range(30):
            taken.append(k)
            yield k

    def prepare_item(k):
        with lock:
            alive.add(k)
            most[0] = max(most[0], len(alive))
        time.sleep(0.001 * (k % 3))
        return [k]

    def finish(work, output):
        time.sleep(0.001 * (work[0] % 4))
        with lock:
            alive.remove(work[0])
        return f"{work[0]}:{output}"

    results = []
    for result in run_overlapped(items(), prepare_item, lambda work: work[0] ** 2, finish, is_text, workers):
        results.append(result)
        assert len(taken) <= len(results) + 2 * workers + 1
    assert sorted(results) == sorted(f"{k}:{k * k}" for k in range(30))
    assert workers < most[0] <= 2 * workers + 1


def test_the_stages_do_overlap():
    """Item 1 leaves the device only once 2 is prepared and 0 is being finished: one after the other would hang."""
    prepared, finishing, release = ([threading.Event() for _ in range(4)] for _ in range(3))

    def prepare_item(k):
        prepared[k].set()
        return [k]

    def translate(work):
        if work[0] == 1:
            assert prepared[2].wait(20) and finishing[0].wait(20)
            release[0].set()
        return threading.current_thread() is threading.main_thread()

    def finish(work, output):
        finishing[work[0]].set()
        if work[0] == 0:
            assert release[0].wait(20)
        return f"{work[0]} {output}"

    results = run_overlapped(range(4), prepare_item, translate, finish, is_text)
    assert sorted(results) == [f"{k} True" for k in range(4)]


def test_items_may_end_in_any_stage_and_our_own_errors_come_out():
    stages = (lambda k: "early" if k == 0 else [k], lambda work: "middle" if work == [1] else 0, lambda *a: "late")
    assert sorted(run_overlapped(range(3), *stages, is_text)) == ["early", "late", "middle"]
    for broken in range(3):

        def fail(*args):
            raise InputError("no results can be written")

        with pytest.raises(InputError, match="no results"):
            list(run_overlapped(range(3), *stages[:broken], fail, *stages[broken + 1 :], is_text))


# Claims and records


def test_a_claim_ends_with_its_process_however_that_ends(tmp_path):
    code = f"""
import time
from pathlib import Path
from cohort.results import Results
claim = Results(Path({str(tmp_path)!r})).claim("p1"); print(claim is not None, flush=True); time.sleep(300)"""
    program = Program("-c", code)
    program.wait_for("True\n")
    results = Results(tmp_path)
    assert results.claim("p1") is None
    other = results.claim("p2")
    assert other is not None
    program.kill()
    assert program.wait() == -signal.SIGKILL
    claim = results.claim("p1")
    assert claim is not None and results.claim("p1") is None
    claim.release()
    results.claim("p1").release()


def record(case="p1", **changes) -> CaseRecord:
    return replace(CaseRecord(case, "done", "/data/p1.nii", {"input_sha256": "1"}, "a", "2026"), **changes)


def test_records_survive_the_disk_and_damaged_ones_count_as_missing(tmp_path):
    results = Results(tmp_path)
    first = record(warnings=["w"], seconds={"read": 1.5}, scores={"mae": None})
    results.write(first)
    results.write(record("p2", status="failed", reason="why"))
    assert results.read("p1") == first and results.read("p3") is None
    assert [r.case for r in results.read_all()] == ["p1", "p2"]
    path = results.record_path("p1")
    for text in (
        "",
        "[]",
        "{",
        json.dumps(json.loads(path.read_text()) | {"format_version": 99}),
        '{"format_version": 1}',
    ):
        path.write_text(text)
        assert results.read("p1") is None
    assert [r.case for r in results.read_all()] == ["p2"]


def test_current_is_what_was_written_of_the_same_key(tmp_path):
    results = Results(tmp_path)
    results.folder.mkdir(exist_ok=True)
    results.volume_path("p1").write_bytes(b"voxels")
    from data.files import hash_files

    good = record(output_sha256=hash_files([results.volume_path("p1")]))
    assert results.is_current(good, {"input_sha256": "1"}, {})
    assert not results.is_current(good, {"input_sha256": "2"}, {})
    assert not results.is_current(replace(good, status="failed"), {"input_sha256": "1"}, {})
    assert not results.is_current(None, {"input_sha256": "1"}, {})
    results.volume_path("p1").write_bytes(b"other")
    assert not results.is_current(good, {"input_sha256": "1"}, {})
    results.volume_path("p1").unlink()
    assert not results.is_current(good, {"input_sha256": "1"}, {})


MODEL = {"name": "m", "epoch": "latest", "for": None, "folder": "checkpoints/m"}


def test_the_summary_joins_pipelines_and_forgets_what_is_settled(tmp_path):
    results = Results(tmp_path / "out")
    here = tmp_path / "in.nii"
    here.touch()
    results.write(record("done"))
    results.volume_path("done").write_bytes(b"x")
    results.write(record("deleted"))  # its volume is gone
    results.write(record("failed here", status="failed", input="/gone"))
    results.write(record("failed elsewhere", status="failed", input=str(here)))
    results.write(record("forgotten", status="failed", input="/gone"))
    results.write(record("converted under another name", status="failed", input="/data/p1.nii"))
    write_summary(results, {"failed here"}, MODEL, [], {"seconds": 1})
    summary = json.loads((results.folder / "summary.json").read_text())
    assert [case["case"] for case in summary["cases"]] == ["done", "failed elsewhere", "failed here"]
    assert summary["counts"] == {"done": 1, "failed": 2, "with_warnings": 0}
    write_summary(results, {"failed here"}, MODEL, [], None)
    assert json.loads((results.folder / "summary.json").read_text())["last_run"] == {"seconds": 1}


def test_one_process_is_a_team():
    group = ProcessGroup()
    assert [group.count("a"), group.count("a"), group.count("b")] == [0, 1, 0]
    assert group.share(lambda: 5) == 5 and group.gather("x") == ["x"]


# Statistics of the training set


@pytest.mark.parametrize("window", [None, (-1000.0, 1400.0), (-160.0, 240.0)])
def test_the_distance_of_histograms_is_wasserstein_s(window):
    rng = np.random.default_rng(0)
    first, second = rng.normal(-200, 300, 4000), rng.gamma(2, 300, 3000) - 500
    low, high = window or (HU_EDGES[0], HU_EDGES[-1])
    expected = wasserstein_distance(first.clip(low, high), second.clip(low, high))
    found = hu_distance(hu_histogram(first), hu_histogram(second), window)
    assert found == pytest.approx(expected, abs=32)  # a bin
    shifted = hu_distance(hu_histogram(first), hu_histogram(first + 64))
    assert shifted == pytest.approx(64, abs=0.5)  # whole bins: exact but for what is clipped
    assert hu_distance(hu_histogram(first), hu_histogram(first), window) == 0


def test_histograms_count_every_voxel_in_its_bin():
    counts = hu_histogram(np.array([[-5000, -1024, -993, -992], [0, 31, 3071, 30000]], np.int16))
    assert counts.sum() == 8 and counts[0] == 3 and counts[1] == 1 and counts[32] == 2 and counts[-1] == 2
    assert len(counts) == len(HU_EDGES) - 1


def test_slices_without_enough_body_are_left_out():
    slices = np.zeros((3, 20, 20), np.int16)
    masks = np.zeros((3, 20, 20), np.uint8)
    masks[0, :10], masks[1, 0, :1] = 1, 1
    slices[0, :5] = 100
    counts, spread = slice_spread(slices, masks)
    assert counts.sum() == 201
    distances = slice_distances(slices, masks, hu_histogram(np.zeros(10)))
    assert distances.shape == (1,) and distances[0] == pytest.approx(50, abs=16)
    assert spread == pytest.approx((hu_distance(hu_histogram(slices[0][masks[0] > 0]), counts),) * 2)


def test_preparation_records_what_training_statistics_need(raw):  # noqa: F811
    _, manifest = prepare(raw)
    found = training_statistics(manifest)
    for case in manifest.select("train", "B"):
        slices, masks = np.load(raw / "set" / case.image_file), np.load(raw / "set" / case.mask_file)
        np.testing.assert_array_equal(case.hu_histogram, hu_histogram(slices[masks > 0]))
        assert slice_distances(slices, masks, found.hu_histogram).max() <= found.hu_slice_limits[1] + 1e-6
    assert sum(found.hu_histogram) == sum(sum(case.hu_histogram) for case in manifest.select("train", "B"))
    assert found.in_plane_mm == (2.0, 2.0) and found.through_mm == (3.0, 4.0)  # of MR and CT
    assert found.mr_high[1] == pytest.approx(2 * found.mr_high[0], rel=0.01)  # the second MR is twice as bright
    assert found.mr_median[0] == pytest.approx(found.mr_median[1], abs=0.01)  # of the same contrast
    assert found.mr_median[0] == pytest.approx(MUSCLE_MR / FAT_MR, abs=0.02)
    older = [replace(case, hu_histogram=None) for case in manifest.cases]
    assert training_statistics(replace(manifest, cases=tuple(older))) is None
    outside = [replace(case, hu_histogram=(0,) * 128) for case in manifest.cases]
    assert training_statistics(replace(manifest, cases=tuple(outside))) is None


def test_a_data_set_of_an_earlier_version_is_brought_up_to_date(raw):  # noqa: F811
    _, manifest = prepare(raw)
    for path in [*(raw / "set/trainA").glob("*.json"), *(raw / "set/trainB").glob("*.json")]:
        data = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in data.items() if k[:3] not in ("mr_", "hu_", "met")}))
    assert prepare(raw)[1] == manifest


def test_statistics_survive_inference_json_and_older_files_have_none(tmp_path):
    settings = replace(SETTINGS, training=TRAINING)
    settings.write(tmp_path / "run")
    assert read_inference_settings(tmp_path / "run") == settings
    path = tmp_path / "run/inference.json"
    data = json.loads(path.read_text())
    del data["training"]
    path.write_text(json.dumps(data))
    assert read_inference_settings(tmp_path / "run").training is None
    path.write_text(json.dumps(data | {"training": {"hu_slice_limits": 1}}))
    with pytest.raises(InputError, match="damaged"):
        read_inference_settings(tmp_path / "run")


# Checks

CT = IntensityMap.window(-1000, 1400)
MR_SETTINGS = replace(SETTINGS, size=60, spacing_mm=2.0)


def truth(mr) -> np.ndarray:
    """HU of the cylinder that the MR shows: fat around muscle, a little bone."""
    hu = np.where(mr.array > 600, -100, np.where(mr.array > 150, 50, -1000)).astype(np.float32)
    hu[:, 28:32, 28:32] = 700
    return hu


def converted(hu_of=truth, mr=None, settings=MR_SETTINGS, training=None, body=None):
    """Return the findings of a conversion whose network puts out `hu_of(mr)`."""
    mr = mr or patient_mr()
    _, plan = prepare_volume(mr, settings, body)
    hu = hu_of(mr)
    translated = plan.target_map.to_network(plan.frame.prepare(mr.with_array(hu), -1000.0)[plan.with_body])
    check = Check(plan, training)
    restore_volume(translated, plan, check)
    return check.findings


def statistics_of(mr, hu) -> TrainingStatistics:
    _, plan = prepare_volume(mr, MR_SETTINGS)
    counts, spread = slice_spread(hu, plan.body)
    figures = converted(mr=mr).figures
    return TrainingStatistics(
        tuple(counts.tolist()),
        (spread[0] + 5, spread[1] + 5),
        (figures["mr_high"],) * 2,
        (figures["mr_median"],) * 2,
        (2.0, 2.0),
        (4.0, 4.0),
    )


TRAINING = statistics_of(patient_mr(), truth(patient_mr()))


def test_a_solid_body_does_not_hide_what_the_network_lost():
    """Half of the body is air in what the network makes; filled, its outline would be the MR's."""

    def half(mr):
        hu = truth(mr).copy()
        hu[:, :, hu.shape[2] // 2 :] = -1000
        return hu

    plain, solid = (converted(hu_of=half, settings=replace(MR_SETTINGS, solid_body=s)) for s in (False, True))
    assert plain.figures["body_dice"] < 0.8
    assert solid.figures["body_dice"] == plain.figures["body_dice"] and solid.warnings == plain.warnings != []


def test_a_good_conversion_has_no_warning():
    findings = converted(training=replace(TRAINING, section_cm2=(50.0, 60.0), gas_share=0.0))
    assert findings.warnings == [] and findings.unchecked == []
    figures = findings.figures
    assert figures["body_dice"] > 0.95 and figures["slice_width_mm"] == MR_SETTINGS.size * MR_SETTINGS.spacing_mm
    assert figures["odd_slices_share"] == 0 and figures["hu_distance"] < 5
    assert figures["low_end_share"] < 0.01 and figures["high_end_share"] == 0
    assert figures["mr_clipped_share"] == pytest.approx(0.01, abs=0.002)
    assert (figures["in_plane_mm"], figures["through_mm"]) == (2.0, 4.0)
    without = converted()
    assert without.warnings == [] and "inference.json" in without.unchecked[0] and "hu_distance" not in without.figures


OF_CT_ALONE = replace(TRAINING, mr_high=None, mr_median=None)


def test_a_model_trained_on_ct_alone_is_checked_but_for_mr_intensities():
    findings = converted(training=OF_CT_ALONE)
    assert findings.warnings == [] and findings.unchecked == [NO_MR, NO_SECTIONS]
    assert findings.figures["hu_distance"] < 5
    assert "half of the slices by" in "; ".join(converted(inverted, training=OF_CT_ALONE).warnings)
    coarse = replace(patient_mr(), spacing=(2.0, 2.0, 9.0))
    (warning,) = converted(mr=coarse, training=OF_CT_ALONE).warnings
    assert warning == "spacing of 9 mm between slices; in the training set 4 mm"
    bright = converted(lambda _: truth(patient_mr()), mr=mr_volume(scale=5.0), training=OF_CT_ALONE)
    assert bright.warnings == []  # of MR nothing is known


def test_the_statistics_of_ct_alone(raw, tmp_path):  # noqa: F811
    _, manifest = prepare(raw)
    both = training_statistics(manifest)
    found = training_statistics(replace(manifest, cases=tuple(manifest.select("train", "B"))))
    spacings = {"in_plane_mm": (2.0, 2.0), "through_mm": (3.0, 3.0)}  # of CT
    assert found == replace(both, mr_high=None, mr_median=None, **spacings)
    settings = replace(SETTINGS, training=found)
    path = settings.write(tmp_path)
    assert read_inference_settings(tmp_path) == settings
    data = json.loads(path.read_text())
    data["training"]["mr_high"] = [1.0, 2.0]
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="damaged"):
        read_inference_settings(tmp_path)


def smaller(mr):
    return np.where(patient_mr(28.0).array > 150, 50, -1000).astype(np.float32)


def inverted(mr):
    hu = truth(mr)
    return np.where(hu == 50, 400, np.where(hu == -100, 300, hu)).astype(np.float32)


def partly_inverted(mr):
    hu = truth(mr)
    hu[2] = inverted(mr)[2]
    return hu


def saturated(mr):
    return np.where(truth(mr) > 0, 1400, truth(mr)).astype(np.float32)


@pytest.mark.parametrize(
    "hu_of, words",
    [
        (smaller, ["the body in the synthetic CT differs from that in the MR: Dice"]),
        (lambda mr: np.full(mr.array.shape, -1000, np.float32), ["no body in the synthetic CT", "low end, -1000 HU"]),
        (saturated, ["of the body at the CT window's high end, 1400 HU"]),
        (inverted, ["half of the slices by"]),
        (partly_inverted, ["1 of 6 slices have an HU histogram that is more than"]),
    ],
)
def test_a_bad_ct_is_a_warning(hu_of, words):
    text = "; ".join(converted(hu_of, training=TRAINING).warnings)
    assert all(word in text for word in words), text
    assert text.count("HU histogram") <= 1  # told once


@pytest.mark.parametrize(
    "mr, words",
    [
        (mr_volume(scale=5.0), "another scanner, sequence or scaling"),
        (mr_volume(scale=0.1), "another scanner, sequence or scaling"),
        (replace(patient_mr(), spacing=(2.0, 2.0, 9.0)), "spacing of 9 mm between slices; in the training set 4 mm"),
        (replace(patient_mr(), spacing=(0.9, 0.9, 4.0)), "spacing of 0.9 mm in the plane; in the training set 2 mm"),
    ],
)
def test_an_mr_unlike_those_trained_on_is_a_warning(mr, words):
    settings = replace(MR_SETTINGS, spacing_mm=mr.spacing[0])
    assert words in "; ".join(converted(mr=mr, settings=settings, training=TRAINING).warnings)
    assert words not in "; ".join(converted(mr=mr, settings=settings).warnings)


def test_another_contrast_is_a_warning_whatever_the_units():
    mr = patient_mr()
    fat, muscle = mr.array > 600, (mr.array > 150) & (mr.array <= 600)
    other = mr.with_array(np.where(fat, mr.array / 3, np.where(muscle, mr.array * 2.5, mr.array)).astype(np.float32))
    text = "; ".join(converted(lambda _: truth(mr), mr=other, training=TRAINING).warnings)
    assert "MR contrast differs from that of the training set" in text and "scaling" not in text


def test_a_fixed_window_that_does_not_fit_is_a_warning():
    assert converted(settings=replace(MR_SETTINGS, mr_window=(0.0, 2000.0))).warnings == []
    (warning,) = converted(settings=replace(MR_SETTINGS, mr_window=(0.0, 250.0))).warnings
    assert "% of the body's MR intensities lie outside the model's window of 0 to 250" in warning


@pytest.mark.parametrize(
    ("degrees", "axis", "tilt"), [(0, 0, 0), (14, 0, 14), (20, 0, 20), (20, 1, 20), (30, 2, 0), (70, 0, 20)]
)
def test_tilted_slices_are_a_warning(degrees, axis, tilt):
    """About the patient's left-right or front-back axis; turned within their planes they are as axial as before."""
    turn = Rotation.from_euler("xyz"[axis], degrees, degrees=True).as_matrix()
    findings = converted(mr=replace(patient_mr(), direction=tuple(turn.ravel())))
    assert findings.figures["tilt_deg"] == pytest.approx(tilt, abs=1e-4)
    warned = [text for text in findings.warnings if "are tilted by" in text]
    assert len(warned) == (tilt > 15)
    if warned:
        assert f"tilted by {tilt} degrees against the axial planes" in warned[0]


@pytest.mark.parametrize(("share", "warned"), [(0.02, False), (0.04, True)])
def test_muscle_that_was_taken_for_fat_is_a_warning(share, warned):
    """Less than 5 % of fat, brighter by half and more than what sets the scale."""
    mr = patient_mr()
    body = mr.array > 150
    values = np.where(body, 300, mr.array).astype(np.float32)
    values[body] = np.where(np.random.default_rng(0).random(np.count_nonzero(body)) < share, 900, 300)
    settings = replace(MR_SETTINGS, mr_window="tissue")
    warnings = converted(lambda _: truth(mr), mr=mr.with_array(values), settings=settings).warnings
    found = [text for text in warnings if "which was set by the fat that was found" in text]
    assert len(found) == warned
    if warned:
        assert "% of the body's MR intensities lie outside the model's window of 0 to 36" in found[0]


def test_a_body_wider_than_the_slices_of_the_training_is_a_warning():
    """A disc of 20 pixels of 2 mm, on a grid of odd size: 42 pixels hold it, and the network takes 44."""
    findings = converted(settings=replace(MR_SETTINGS, size=32))
    assert findings.figures["slice_width_mm"] == 88
    wider = "the body is 84 mm wide: slices of 88 mm are used; the model was trained on 64 mm"
    assert findings.warnings[0] == wider


def test_hu_statistics_are_those_of_the_body():
    ct = ct_volume()
    body = ct.array > -500
    found = hu_statistics(ct, body)
    values = ct.array[body].astype(float)
    assert found["mean"] == pytest.approx(values.mean(), abs=1e-3)
    assert found["std"] == pytest.approx(values.std(), abs=1e-3)
    assert (found["p01"], found["p50"], found["p99"]) == (-100, 50, 150)
    assert found["bone_share"] == 0
    assert hu_statistics(ct.with_array(ct.array * 10), body)["bone_share"] == pytest.approx(
        (values > 25).mean(), abs=1e-3
    )


def test_training_writes_the_statistics(raw, tmp_path):  # noqa: F811
    import train

    _, manifest = prepare(raw)
    tiny = "--netG resnet_6blocks --netD pixel --ngf 2 --ndf 2 --num_threads 0 --device cpu --n_epochs 1"
    tiny += " --max_dataset_size 1 --n_epochs_decay 0 --lambda_shape 0 --lambda_shape_gan 0"
    train.main([*tiny.split(), "--dataroot", f"{raw}/set", "--name", "r", "--checkpoints_dir", f"{tmp_path}/ck"])
    assert read_inference_settings(tmp_path / "ck/r").training == training_statistics(manifest)
