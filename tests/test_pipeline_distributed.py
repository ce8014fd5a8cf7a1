"""`torchrun test_pipeline.py`: the cohort is shared, each patient done once, with the voxels of one process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cohort.results import Results
from data.volumes.volume import read_volume
from tests.cohort_data import NAME, write_broken, write_model, write_patients
from tests.processes import TORCHRUN, Program, run

ROOT = Path(__file__).resolve().parents[1]


def command(root: Path, *arguments, processes: int = 2, results: str = "out") -> list[str]:
    torchrun = ["--standalone", f"--nproc_per_node={processes}"]
    where = [
        "--input_dir",
        f"{root}/in",
        "--checkpoints_dir",
        f"{root}/checkpoints",
        "--results_dir",
        f"{root}/{results}",
    ]
    return [*torchrun, "test_pipeline.py", "--name", NAME, "--device", "cpu", *where, *arguments]


def launch(root: Path, *arguments, threads: int = 1, **how) -> Program:
    return run(*TORCHRUN, *command(root, *arguments, **how), OMP_NUM_THREADS=str(threads))


def launch_as_users_do(root: Path) -> subprocess.CompletedProcess:
    """With nothing imported before."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command(root)], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_do_every_patient_once_with_the_same_voxels(tmp_path):
    write_model(tmp_path)
    write_patients(tmp_path / "in", 6)
    write_broken(tmp_path / "in")
    # As many threads as cores for the one, half of them for each of the two.
    two, one = (launch(tmp_path, threads=3 - count, processes=count, results=f"by{count}") for count in (2, 1))
    assert two.returncode == one.returncode == 1  # of the broken ones
    lines = re.findall(r"rank (\d)  \[ ?\d+/10\] (\S+): (done|failed)", two.stderr)
    assert sorted(case for _, case, what in lines if what == "done") == [f"p{k}" for k in range(6)]
    assert sum(what == "failed" for *_, what in lines) == 4
    assert two.stderr.count("6 done (") == 1 and two.stderr.count("searching") == 1
    for k in range(6):
        files = [tmp_path / f"by{count}" / NAME / f"p{k}.nii.gz" for count in (2, 1)]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert read_volume(files[0]).size == (60, 60, 6)
    last_run = json.loads((tmp_path / "by2" / NAME / "summary.json").read_text())["last_run"]
    assert len(last_run["processes"]) == 2 and sum(process["done"] for process in last_run["processes"]) == 6


def finished(records: Path) -> dict[str, bytes]:
    """Return the records of the cases that are done by the cases' names; a killed rank leaves some that are begun."""
    found = {path.stem: path.read_bytes() for path in records.glob("[!.]*.json")}
    return {case: record for case, record in found.items() if json.loads(record)["status"] == "done"}


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_job_in_sight_and_a_second_run_does_the_rest(tmp_path):
    write_model(tmp_path)
    write_patients(tmp_path / "in", 6)
    claim = Results(tmp_path / "out" / NAME).claim("p5")  # the job waits for it, and cannot end before the kill
    job = Program(*TORCHRUN, *command(tmp_path, "--no_html"))
    records = tmp_path / "out" / NAME / "records"
    deadline = time.monotonic() + 300
    while not finished(records):
        assert time.monotonic() < deadline and job.poll() is None, job.stderr
        time.sleep(0.02)
    ranks = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    assert job.wait() != 0
    assert "exitcode  : -9" in job.stderr
    claim.release()
    before = finished(records)
    again = launch(tmp_path, "--no_html")
    assert again.returncode == 0, again.stderr
    after = finished(records)
    assert after.keys() == {f"p{k}" for k in range(6)}
    assert before.items() <= after.items()


@pytest.mark.slow
def test_a_signal_to_torchrun_lets_volumes_in_progress_finish_and_writes_the_summary(tmp_path):
    write_model(tmp_path)
    write_patients(tmp_path / "in", 4)
    claim = Results(tmp_path / "out" / NAME).claim("p3")  # the job waits for it
    job = Program(*TORCHRUN, *command(tmp_path, "--no_html"))
    records = tmp_path / "out" / NAME / "records"
    deadline = time.monotonic() + 300
    while len(finished(records)) < 3:
        assert time.monotonic() < deadline and job.poll() is None, job.stderr
        time.sleep(0.02)
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait() != 0
    claim.release()
    assert "SIGTERM: stopping after the volumes in progress" in job.stderr
    assert "stopped by a signal, with 1 case left" in job.stderr
    summary = json.loads((tmp_path / "out" / NAME / "summary.json").read_text())
    assert {case["case"]: case["status"] for case in summary["cases"]} == dict.fromkeys(["p0", "p1", "p2"], "done")


@pytest.mark.slow
def test_an_error_before_the_start_is_said_once_and_ends_all(tmp_path):
    write_model(tmp_path)
    job = launch_as_users_do(tmp_path)
    assert job.returncode != 0
    assert job.stderr.count("error: --input_dir") == 1 and "exitcode  : 2" in job.stderr
