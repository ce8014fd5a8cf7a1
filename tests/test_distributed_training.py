"""`torchrun train.py`: the gradients of one process with the whole batch, one set of files, restarts, other ranks."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from data.loading.unaligned_dataset import UnalignedSampler
from data.prepared.manifest import Manifest
from tests.distributed_step import take_step
from tests.processes import TORCHRUN, Program
from tests.test_datasets import dataroot, open_plain  # noqa: F401
from tests.test_train import SHORT, TINY, assert_same_weights, final_weights, run
from tests.test_validation import MM, SIZE, write_case
from training.distributed import DistributedProcessGroup, ProcessGroup

ROOT = Path(__file__).resolve().parents[1]


def torchrun(*arguments: object, launcher: tuple[object, ...] = ("--standalone", "--nproc_per_node=2")) -> Program:
    """Start torchrun; output and errors come together."""
    return Program(*TORCHRUN, *launcher, *arguments, together=True)


def finished(job: Program) -> tuple[int, str]:
    """Wait for a job, and return its exit code and output."""
    return job.wait(), job.stdout


def finished_as_users_run_it(*arguments: object) -> tuple[int, str]:
    """Run torchrun with nothing imported before."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    job = subprocess.run(
        [*command, *map(str, arguments)], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
    )  # fmt: skip
    return job.returncode, job.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("agents", [1, 2])
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(tmp_path, agents):
    """With two agents, as on two machines: each starts one process, and they meet at an address."""
    port = free_port()
    together = (f"--nnodes={agents}", f"--nproc_per_node={2 // agents}", "--rdzv_backend=c10d",
                f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=test")  # fmt: skip
    jobs = [torchrun("tests/distributed_step.py", tmp_path / "two.pth", launcher=together) for _ in range(agents)]
    outcomes = [finished(job) for job in jobs]
    assert [code for code, _ in outcomes] == [0] * agents, outcomes
    two = torch.load(tmp_path / "two.pth", weights_only=True)
    one = take_step(ProcessGroup())
    assert two["losses"].keys() == one["losses"].keys() > {"shape", "gan_S", "D_S", "correlation_A"}
    for name, loss in one["losses"].items():
        torch.testing.assert_close(two["losses"][name], loss, rtol=1e-5, atol=1e-7)
    assert two["gradients"].keys() == one["gradients"].keys()
    for net in ("G_A", "G_B", "D_A", "D_B", "D_S"):
        own = {name: gradient for name, gradient in one["gradients"].items() if name.startswith(net)}
        largest = max(gradient.abs().max().item() for gradient in own.values())
        for name, gradient in own.items():  # a bias before instance norm has none but what rounding leaves
            torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-4, atol=1e-5 * largest)


def draws(dataset, *, rank=0, processes=1, batch_size=1, epoch=1, start=0):
    sampler = UnalignedSampler(dataset, 5, None, batch_size, rank, processes)
    sampler.set_epoch(epoch, start)
    found = list(sampler)
    assert len(found) == len(sampler)
    assert -(-(sampler.samples - start) // sampler.together) == -(-len(found) // batch_size)
    return found


@pytest.mark.parametrize("start", [0, 2])
def test_processes_share_the_order_of_one(dataroot, start):  # noqa: F811
    """Six samples in steps of 2 x 2: the second step has three, of which ... or two; nobody waits for a partner."""
    dataset = open_plain(dataroot)
    alone = draws(dataset, start=start)
    parts = [draws(dataset, rank=rank, processes=2, batch_size=2, start=start) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1])
    steps = [part[k : k + 2] for k in range(0, len(parts[0]), 2) for part in parts]
    assert [draw for step in steps for draw in step] == alone


def test_a_step_that_does_not_come_out_even_is_filled_from_the_epoch_s_beginning(dataroot):  # noqa: F811
    dataset = open_plain(dataroot)
    alone = draws(dataset)
    parts = [draws(dataset, rank=rank, processes=4) for rank in range(4)]
    assert [[draw.position for draw in part] for part in parts] == [[0, 4], [1, 5], [2, 0], [3, 1]]
    assert all(draw == alone[draw.position] for part in parts for draw in part)


@pytest.mark.slow
def test_a_job_writes_once_and_resumes_with_other_numbers_of_processes(dataroot, tmp_path):  # noqa: F811
    """Six samples, two processes of one each: three steps an epoch."""
    where = ["--dataroot", dataroot, "--name", "two", "--checkpoints_dir", tmp_path]
    code, output = finished_as_users_run_it("train.py", *where, *TINY, *SHORT)
    assert code == 0, output
    assert output.count("two: cycle_gan, 3 steps an epoch, on cpu in fp32, with 2 processes") == 1
    assert output.count("trained: ") == 1
    records = [json.loads(line) for line in (tmp_path / "two/losses.jsonl").read_text().splitlines()]
    assert [(r["epoch"], r["iteration"]) for r in records] == [(e, i) for e in (1, 2, 3) for i in (1, 2, 3)]
    state = torch.load(tmp_path / "two/latest_state.pth", weights_only=True)
    assert len(state["processes"]) == 2 and state["position"]["epoch"] == 4
    pools = [process["model"]["A"]["images"] for process in state["processes"]]
    assert not torch.equal(*pools)  # each has seen its own slices
    more = ["--n_epochs", "3", "--continue_train"]
    one = run(dataroot, tmp_path, *more, name="two")  # with one process
    assert len((one / "losses.jsonl").read_text().splitlines()) == 9 + 6
    code, output = finished(torchrun("train.py", *where, *TINY, *SHORT, *more, "--n_epochs_decay", "2"))
    assert code == 0 and "processes: was 1, now 2" in output, output
    assert len((one / "losses.jsonl").read_text().splitlines()) == 15 + 3


@pytest.mark.slow
def test_the_plateau_of_several_processes_resumes_from_the_mean_of_their_losses(dataroot, tmp_path):  # noqa: F811
    """Three steps an epoch, one epoch; the state after two of them is the one before the last."""
    plateau = [*TINY, *SHORT, "--n_epochs", "1", "--n_epochs_decay", "0", "--lr_policy", "plateau", "--no_html"]
    plateau += ["--save_latest_freq", "2", "--checkpoints_dir", tmp_path, "--dataroot", dataroot]

    def train_in_two(name, *more):
        code, output = finished(torchrun("train.py", *plateau, "--name", name, *more))
        assert code == 0, output
        state = torch.load(tmp_path / name / "latest_state.pth", weights_only=True)
        (best,) = {schedule["best"] for schedule in state["rate"]["plateaus"]}
        return best

    whole = train_in_two("whole")
    lines = (tmp_path / "whole/losses.jsonl").read_text().splitlines()
    losses = [json.loads(line)["losses"]["G"] for line in lines]  # float32, of all processes
    assert len(losses) == 3 and whole == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert whole != float(np.float32(whole))
    (tmp_path / "killed").mkdir()
    for file in (tmp_path / "whole").glob("*.*"):
        shutil.copy(file, tmp_path / "killed")
    (tmp_path / "killed/previous_state.pth").replace(tmp_path / "killed/latest_state.pth")
    state = torch.load(tmp_path / "killed/latest_state.pth", weights_only=True)
    assert state["position"]["samples"] == 4
    assert state["position"]["epoch_loss"] == pytest.approx(sum(losses[:2]) / 3, rel=1e-6)
    assert train_in_two("killed", "--continue_train") == pytest.approx(whole, rel=1e-12, abs=0)
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")


def test_means_over_processes_keep_their_type():
    """A group of one process, which has its own values for means."""
    group = DistributedProcessGroup(dist.HashStore(), 0, 1, "gloo")
    try:
        for kind in (torch.float32, torch.float64):
            values = {"G": torch.tensor(1 / 3, dtype=kind), "D_A": torch.tensor(1e-9, dtype=kind)}
            means = group.average(values)
            assert {name: (mean.dtype, float(mean)) for name, mean in means.items()} == {
                name: (kind, float(value)) for name, value in values.items()
            }
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("state", [None, "latest_state.pth", "previous_state.pth", "next_latest_state.pth"])
def test_a_slurm_job_resumes_where_its_run_has_a_state_and_meets_at_its_own_port(tmp_path, joint, state):
    """With the cluster's commands replaced by ones that note their arguments."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", 'printf "%s\n" "$@" > arguments'), ("scontrol", "printf 'node1\nnode2\n'")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    options = ["--name", "a run", "--seed", "3", "--checkpoints_dir", "my models"]
    if joint:
        options = ["--name=a run", "--seed=3", "--checkpoints_dir=my models"]
    if state:
        (tmp_path / "my models/a run").mkdir(parents=True)
        (tmp_path / "my models/a run" / state).touch()
    ports = set()
    for job in (10_007, 10_008, 49_999):
        slurm = {"SLURM_SUBMIT_DIR": tmp_path, "SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "node[1-2]",
                 "SLURM_JOB_NUM_NODES": 2, "SLURM_GPUS_ON_NODE": 4}  # fmt: skip
        environment = {name: str(value) for name, value in slurm.items()}
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        script = ["bash", str(ROOT / "scripts/slurm_train.sbatch"), *options]
        subprocess.run(script, env=os.environ | environment | {"PATH": path}, check=True, cwd=tmp_path)
        arguments = (tmp_path / "arguments").read_text().splitlines()
        resumes = ["--continue_train"] if state in ("latest_state.pth", "previous_state.pth") else []
        assert arguments[arguments.index("train.py") :] == ["train.py", *options, *resumes]
        assert {"--nnodes=2", "--nproc_per_node=4"} < set(arguments)
        (meeting,) = (word for word in arguments if word.startswith("--rdzv_endpoint="))
        host, port = meeting.removeprefix("--rdzv_endpoint=").split(":")
        assert host == "node1" and 1024 < int(port) < 32_768  # the least that Linux gives out by itself
        ports.add(port)
    assert len(ports) == 3


@pytest.mark.parametrize(
    "words, text",
    [(["--config", "run.yaml"], "name: r\n"), (["--config=run.yaml", "--name", "r"], "checkpoints_dir: there\n")],
)
def test_a_slurm_job_needs_the_place_of_its_run_on_the_command_line(tmp_path, words, text):  # fmt: skip
    """By a file's alone it would not find its run when it starts again."""
    (tmp_path / "run.yaml").write_text(text)
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node1\n")
    (tmp_path / "scontrol").chmod(0o755)
    script = ["bash", str(ROOT / "scripts/slurm_train.sbatch"), *words]
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "node1"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(script, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "error: --config run.yaml: give --name, and --checkpoints_dir" in done.stderr


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [0, 1])
def test_a_process_that_dies_ends_the_job_in_sight_or_is_restarted(dataroot, tmp_path, restarts):  # noqa: F811
    where = ["--dataroot", dataroot, "--checkpoints_dir", tmp_path]
    long = [*TINY, *SHORT, "--n_epochs", "16", "--save_epoch_freq", "1000"]
    launcher = ("--standalone", "--nproc_per_node=2", f"--max-restarts={restarts}")
    job = torchrun("train.py", *where, "--name", "dies", *long, launcher=launcher)
    state = tmp_path / "dies/latest_state.pth"
    deadline = time.monotonic() + 200
    while not state.exists():
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.02)
    os.kill(children(job.pid)[-1], signal.SIGKILL)
    code, output = finished(job)
    if not restarts:
        assert code != 0 and "exitcode  : -9" in output, output
        return
    assert code == 0 and output.count("trained: ") == 1, output
    code, output = finished(torchrun("train.py", *where, "--name", "whole", *long))
    assert code == 0, output
    assert_same_weights(tmp_path / "dies", tmp_path / "whole")
    assert final_weights(tmp_path / "whole").keys() == {"G_A", "G_B", "D_A", "D_B"}


def test_an_error_before_the_first_step_is_said_once_and_ends_all(tmp_path):
    where = ["--dataroot", tmp_path / "missing", "--name", "x", "--checkpoints_dir", tmp_path]
    code, output = finished(torchrun("train.py", *where, *TINY))
    assert code != 0 and output.count("error: ") == 1 and "missing" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--val"], "testA/t.npy: cannot be read"),
     (["--seconds", "60", "--lr_policy", "warmup_cosine"], "--seconds: 2 processes train together")],
)  # fmt: skip
def test_what_only_the_first_process_finds_out_ends_all(tmp_path, words, message):
    cases = [write_case(tmp_path / "set", f"{d}0", d, "train", f"{d}0") for d in "AB"]
    cases += [write_case(tmp_path / "set", "t", domain, "test", "t") for domain in "AB"]
    Manifest(SIZE, MM, None, tuple(cases), {}).write(tmp_path / "set")
    if words == ["--val"]:
        (tmp_path / "set/testA/t.npy").write_bytes(b"")
    where = ["--dataroot", tmp_path / "set", "--name", "x", "--checkpoints_dir", tmp_path]
    code, output = finished(torchrun("train.py", *where, *TINY, *(words if "--seconds" in words else SHORT), *words))
    assert code != 0 and output.count("error: ") == 1 and message in output, output
    assert not (tmp_path / "x").exists()


WAITS = """
import sys, time
from datetime import timedelta
from training.distributed import open_process_group
with open_process_group(patience=timedelta(seconds=int(sys.argv[1]))) as group:
    made = group.share(lambda: time.sleep(int(sys.argv[2])) or 7)
    print("rank", group.rank, "has", group.share(lambda: made + 1))
"""


@pytest.mark.slow
def test_processes_wait_for_the_first_longer_than_for_each_other(tmp_path):
    """As for a validation, which may take hours."""
    (tmp_path / "waits.py").write_text(WAITS)
    code, output = finished(torchrun(tmp_path / "waits.py", 15, 25))
    assert code == 0, output
    assert sorted(re.findall(r"rank \d has \d", output)) == ["rank 0 has 8", "rank 1 has 8"]


@pytest.mark.slow
def test_a_validation_is_made_once_for_all_processes_and_ended_by_any_s_signal(tmp_path):
    cases = [write_case(tmp_path / "set", f"{d}{k}", d, "train", f"{d}{k}") for d in "AB" for k in range(4)]
    Manifest(SIZE, MM, None, tuple(cases), {}).write(tmp_path / "set")
    where = ["--dataroot", tmp_path / "set", "--checkpoints_dir", tmp_path, *TINY, "--val", "--val_freq", "1"]
    length = ["--n_epochs", "2", "--n_epochs_decay", "0", "--max_dataset_size", "4", "--print_freq", "1"]
    code, output = finished(torchrun("train.py", *where, *length, "--name", "x"))
    assert code == 0 and output.count("  validation  ") == 2, output
    assert output.count("best validation: epoch") == 1
    signalled = tmp_path / "signalled.py"
    signalled.write_text(SIGNALLED)
    code, output = finished(torchrun(signalled, *where, *length, "--name", "y"))
    position = torch.load(tmp_path / "y/latest_state.pth", weights_only=True)["position"]
    assert (position["epoch"], position["samples"], position["validated"]) == (1, 4, False), output
    assert code != 0 and "  validation  " not in output, output
    code, output = finished(torchrun("train.py", *where, *length, "--name", "y", "--continue_train"))
    assert code == 0 and output.count("  validation  ") == 2, output
    assert_same_weights(tmp_path / "x", tmp_path / "y")


# The second process gets a signal while the first validates.
SIGNALLED = """
import os, signal, sys
import train
from training.distributed import DistributedProcessGroup
from training.selection import Selection
validate = Selection.validate
def signalled(self, *args):
    if self.group.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return validate(self, *args)
Selection.validate = signalled
sys.exit(train.main(sys.argv[1:]))
"""


def test_each_process_of_a_machine_takes_its_gpu_unless_one_is_named(monkeypatch):
    group = DistributedProcessGroup.__new__(DistributedProcessGroup)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert [str(ProcessGroup().device(torch.device(name))) for name in ("cuda", "cuda:0", "cpu")] == [
        "cuda:1",
        "cuda:0",
        "cpu",
    ]
    found = []
    for rank in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        found.append(str(group.device(torch.device("cuda"))))
    assert found == ["cuda:0", "cuda:1", "cuda:0"]
    assert [str(group.device(torch.device(name))) for name in ("cuda:1", "cpu")] == ["cuda:1", "cpu"]
