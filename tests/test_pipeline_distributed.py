"""`torchrun test_pipeline.py`: the cohort is shared, each patient done once, with the voxels of one process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cohort.team import DistributedTeam
from data.volume import read_volume
from tests.cohort_data import NAME, write_broken, write_model, write_patients

ROOT = Path(__file__).resolve().parents[1]


def launch(root: Path, *arguments, processes: int = 2, results: str = "out") -> subprocess.CompletedProcess:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    where = [
        "--input_dir",
        f"{root}/in",
        "--checkpoints_dir",
        f"{root}/checkpoints",
        "--results_dir",
        f"{root}/{results}",
    ]
    command = [*torchrun, "test_pipeline.py", "--name", NAME, "--device", "cpu", *where, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_two_processes_do_every_patient_once_with_the_same_voxels(tmp_path):
    write_model(tmp_path)
    write_patients(tmp_path / "in", 6)
    write_broken(tmp_path / "in")
    two, one = (launch(tmp_path, processes=count, results=f"by{count}") for count in (2, 1))
    assert two.returncode == one.returncode == 1  # of the broken ones
    lines = re.findall(r"rank (\d)  \[ ?\d+/10\] (\S+): (done|failed)", two.stderr)
    assert sorted(case for _, case, what in lines if what == "done") == [f"p{k}__mr" for k in range(6)]
    assert sum(what == "failed" for *_, what in lines) == 4
    assert {rank for rank, *_ in lines} == {"0", "1"}
    assert two.stderr.count("6 done (") == 1 and two.stderr.count("searching") == 1
    for k in range(6):
        files = [tmp_path / f"by{count}" / NAME / f"p{k}__mr.nii.gz" for count in (2, 1)]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert read_volume(files[0]).size == (60, 60, 6)
    last_run = json.loads((tmp_path / "by2" / NAME / "summary.json").read_text())["last_run"]
    assert len(last_run["processes"]) == 2 and sum(process["done"] for process in last_run["processes"]) == 6


@pytest.mark.slow
def test_an_error_before_the_start_is_said_once_and_ends_all(tmp_path):
    write_model(tmp_path)
    run = launch(tmp_path)
    assert run.returncode != 0
    assert run.stderr.count("error: --input_dir") == 1 and "exitcode  : 2" in run.stderr


def test_each_process_of_a_machine_takes_its_gpu_unless_one_is_named(monkeypatch):
    team = DistributedTeam.__new__(DistributedTeam)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = []
    for rank in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        found.append(str(team.device(torch.device("cuda"))))
    assert found == ["cuda:0", "cuda:1", "cuda:0"]
    assert [str(team.device(torch.device(name))) for name in ("cuda:1", "cpu")] == ["cuda:1", "cpu"]
