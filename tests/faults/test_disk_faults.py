"""Disks that are full or may not be written, for real: a file system of 1 MB in memory, and a limit on file sizes."""

import json

import numpy as np
import pytest
import torch

import test_adapt
import test_pipeline
from data.errors import InputError
from data.volumes.volume import Volume, read_volume, write_volume
from models.state_dicts import load_checkpoint, save_atomically
from tests.cohort_data import NAME, patient_mr, write_model, write_patients
from tests.faults.commands import adapt, assert_one_clear_error, fill, mount, pipeline, run, snapshot
from visualization.case_page import write_case_page

MIB = 1 << 20


def noise(mib: float) -> np.ndarray:
    """Return int16 (z, y, x) that hardly compress."""
    return np.random.default_rng(0).integers(-32768, 32767, (8, 64, round(mib * MIB / 1024)), np.int16)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".mhd", ".nrrd"])
def test_a_volume_on_a_full_disk_leaves_the_old_one(small_disk, suffix):
    path = write_volume(Volume(noise(0.3)), small_disk / f"a{suffix}")
    before = snapshot(small_disk)
    with pytest.raises(InputError, match=rf"a{suffix}: cannot be written"):
        write_volume(Volume(noise(3)), path)
    assert snapshot(small_disk) == before and not list(small_disk.glob(".writing-*"))
    np.testing.assert_array_equal(read_volume(path).array, noise(0.3))


def test_a_checkpoint_on_a_full_disk_leaves_the_old_one(small_disk):
    save_atomically({"step": 1, "weight": torch.ones(1000)}, small_disk / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth: cannot be written: .*No space left on device"):
        save_atomically({"step": 2, "weight": torch.ones(MIB)}, small_disk / "a.pth")
    assert load_checkpoint(small_disk / "a.pth")["step"] == 1 and not list(small_disk.glob(".writing-*"))


def test_a_page_on_a_full_disk_is_gone_rather_than_half(small_disk):
    mr, ct = patient_mr(), patient_mr().with_array(np.zeros((6, 60, 60), np.int16))
    write_case_page(small_disk / "page", "case", mr, ct, None, {})
    before = snapshot(small_disk)
    filler = fill(small_disk)
    other = ct.with_array(np.random.default_rng(0).integers(-999, 999, (6, 60, 60), np.int16))
    with pytest.raises((InputError, OSError), match="No space left"):
        write_case_page(small_disk / "page", "case", mr, other, None, {})
    kept = snapshot(small_disk)
    # By design the page goes first: an earlier page's geometry must never meet other voxels.
    assert small_disk / "page/index.html" not in kept
    assert all(kept[path] for path in before if path.name != "index.html")  # no file was cut to nothing
    filler.unlink()
    assert write_case_page(small_disk / "page", "case", mr, other, None, {}).exists()


def test_a_cohort_on_a_disk_that_fills_up(small_disk, tmp_path):
    """What was done stays; what had no room is said, and is done when there is room."""
    write_model(tmp_path)
    write_patients(tmp_path / "in", 1)
    (tmp_path / "out").symlink_to(small_disk)
    assert test_pipeline.main(pipeline(tmp_path, tmp_path / "in", "--no_html")) == 0
    kept = (small_disk / NAME / "p0.nii.gz").read_bytes()
    write_patients(tmp_path / "in", 3)
    filler = fill(small_disk, but_for=4096)
    result = run("test_pipeline.py", *pipeline(tmp_path, tmp_path / "in", "--no_html"))
    assert result.returncode in (1, 2) and "Traceback" not in result.stderr
    assert "No space left on device" in result.stderr
    assert (small_disk / NAME / "p0.nii.gz").read_bytes() == kept
    filler.unlink()
    assert test_pipeline.main(pipeline(tmp_path, tmp_path / "in", "--no_html")) == 0
    summary = json.loads((small_disk / NAME / "summary.json").read_text())
    assert [case["status"] for case in summary["cases"]] == ["done"] * 3


def test_a_page_and_a_summary_that_the_disk_had_no_room_for_are_made_when_there_is(tmp_path, monkeypatch, caplog):
    write_model(tmp_path)
    write_patients(tmp_path / "in", 1)
    arguments = pipeline(tmp_path, tmp_path / "in")
    page = tmp_path / "out" / NAME / "pages/p0/index.html"

    def full(*_, **__):
        raise InputError("cannot be written: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("cohort.conversion.write_case_page", full)
        patched.setattr("cohort.summary.write_json", full)
        assert test_pipeline.main(arguments) == 1  # not 2: a volume was written
    assert "failed: the summary was not written: cannot be written: No space left on device" in caplog.text
    assert (tmp_path / "out" / NAME / "p0.nii.gz").exists() and not page.exists()
    assert test_pipeline.main(arguments) == 0
    assert page.exists() and (tmp_path / "out" / NAME / "summary.json").exists()
    made = page.stat().st_mtime_ns
    assert test_pipeline.main(arguments) == 0
    assert page.stat().st_mtime_ns == made


@pytest.mark.parametrize("part", ["save_preview", "score_case", "write_report", "write_case_page"])
def test_a_disk_that_is_full_after_the_volume_is_no_run_that_was_not_started(site, monkeypatch, caplog, part):
    """Exit code 2 would say that nothing was written."""
    name = {"save_preview": "picture", "write_case_page": "page"}.get(part, "report")
    ct = patient_mr().with_array(np.where(patient_mr().array > 100, 40, -1000).astype(np.int16))
    write_volume(ct, site / "ct.nii.gz")
    volume = site / "new/sct.nii.gz"
    arguments = adapt(site, site / "good.nii.gz", "--reference", site / "ct.nii.gz", "--output", volume)

    def full(*given, **named):
        raise InputError("cannot be written: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(test_adapt, part, full)
        assert test_adapt.main(arguments) == 1
    (warning,) = [entry.getMessage() for entry in caplog.records if " not made: " in entry.getMessage()]
    assert warning == (
        f"warning: {name} not made: cannot be written: No space left on device; the volume itself is written: {volume}"
    )
    assert read_volume(volume).array.shape == (6, 60, 60)
    others = {"picture": "sct.png", "page": "sct_page/index.html", "report": "sct.json"}
    assert all((site / "new" / file).exists() for other, file in others.items() if other != name)
    headings, save = [], test_adapt.save_preview
    monkeypatch.setattr(test_adapt, "save_preview", lambda *given: (headings.append(given[4]), save(*given)))
    assert test_adapt.main(arguments) == 0  # there is room again
    assert all((site / "new" / file).exists() for file in others.values())
    scores = json.loads((site / "new/sct.json").read_text())
    (lines,) = headings
    assert lines[:2] == ["good", f"synthetic CT, not for clinical use; model: {NAME}"]
    assert lines[2] == f"MAE {scores['mae']:.1f} HU, bone Dice {scores['dice_bone']:.3f}"


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
import test_adapt
from data.errors import run_command
run_command(lambda: test_adapt.main(sys.argv[1:]))
"""


def test_a_volume_beyond_the_limit_of_file_sizes(site):
    mr = patient_mr()
    rough = mr.array + np.random.default_rng(1).normal(0, 60, mr.array.shape)
    write_volume(mr.with_array(np.abs(rough).astype(np.float32)), site / "good.nii.gz")
    before = snapshot(site)
    result = run("-c", LIMITED, *adapt(site, site / "good.nii.gz"))
    assert_one_clear_error(result, "good.nii.gz: cannot be written", "File too large")
    assert snapshot(site) == before


@pytest.mark.parametrize("command", ["one patient", "a cohort"])
def test_results_that_may_not_be_written(site, command):
    """As root, permissions bind nobody: the folder is a file system that is mounted read-only."""
    write_patients(site / "in", 1)
    with mount(site / "locked", "size=1m,ro"):
        arguments = adapt(site, site / "good.nii.gz") if command == "one patient" else pipeline(site, site / "in")
        script = "test_adapt.py" if command == "one patient" else "test_pipeline.py"
        before = snapshot(site)
        result = run(script, *arguments, "--results_dir", site / "locked")
        assert_one_clear_error(result, str(site / "locked"), "Read-only file system")
        assert snapshot(site) == before
