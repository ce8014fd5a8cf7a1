"""`tools/gpu_session.sh` with a Python that writes down what it is called with."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "gpu_session.sh"
# Appends its arguments to $CALLS in one line, makes what the pack takes along, and fails where $FAILING occurs in them.
STUB = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
mkdir -p "$OUT/checkpoints/cycle_Lcc"
echo weights >"$OUT/checkpoints/cycle_Lcc/latest_net_G_A.pth"
echo state >"$OUT/checkpoints/cycle_Lcc/latest_state.pth"
if [[ $* == *gpu_check* ]]; then echo '{}' >"$OUT/gpu_check.json"; fi
if [[ $* == *compare_arms* ]]; then mkdir -p "$OUT/arms"; echo '{}' >"$OUT/arms/scores.json"; fi
if [ -n "$FAILING" ] && [[ "$*" == *"$FAILING"* ]]; then echo "cannot"; exit 3; fi
"""


def run(folder, failing="", **more):
    (folder / "ct").mkdir()
    (folder / "python").write_text(STUB)
    (folder / "python").chmod(0o755)
    settings = {"PYTHON": str(folder / "python"), "CALLS": str(folder / "calls"), "OUT": str(folder / "out")}
    return subprocess.run(
        ["bash", str(SCRIPT), "ct", "out"], cwd=folder, text=True, capture_output=True, timeout=60,
        env=os.environ | settings | {"FAILING": failing, "ARMS": "--seed 5"} | more,
    )  # fmt: skip


def test_all_parts_run_and_what_they_made_is_packed_without_states(tmp_path):
    done = run(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    calls = (tmp_path / "calls").read_text()
    for part in ("scripts.make_phantom", "ct_segmentation.train", "scripts.gpu_check", "scripts.compare_arms"):
        assert calls.count(part) == 1
    assert calls.count("scripts.prepare_dataset") == 2
    trained = sorted(line for line in calls.splitlines() if line.startswith("train.py"))
    names = [line.split("--name ")[1].split()[0] for line in trained]
    assert sorted(names) == ["Self+Lcc", "cycle_Lcc", "pure_cyclegan", "recommended_seed1"]
    assert sum("--seed 5" in line for line in trained) == 3
    assert all("{seconds}" not in line for line in trained)
    parts = sorted((tmp_path / "out").glob("results.tar.xz.*"))
    packed = subprocess.run(["tar", "tJ"], input=b"".join(map(Path.read_bytes, parts)), capture_output=True, check=True)
    assert {
        "checkpoints/cycle_Lcc/latest_net_G_A.pth",
        "gpu_check.json",
        "train_cycle_Lcc.log",
        "arms/scores.json",
    } <= set(packed.stdout.decode().split())
    assert b"state" not in packed.stdout


def test_what_was_made_is_packed_without_a_check_and_scores(tmp_path):
    done = run(tmp_path, failing="scripts.compare_arms", CHECK_SECONDS="0")
    assert done.returncode == 3
    assert "all: after" in done.stdout
    assert len(list((tmp_path / "out").glob("results.tar.xz.*"))) == 1


def test_without_data_nothing_is_trained(tmp_path):
    done = run(tmp_path, failing="scripts.make_phantom")
    assert done.returncode == 1
    assert done.stdout.endswith("cannot\n")
    assert "train.py" not in (tmp_path / "calls").read_text()
