#!/usr/bin/env bash
# Use a GPU for a fixed time: check it, then train on several prepared data sets at once for the rest.
#   bash scripts/gpu_run.sh DATASET... OUT
# First runs scripts.gpu_check, which writes OUT/gpu_check.json. Then trains on all data sets at the same time with
# train.py --model simulated_pairs, in OUT/checkpoints/NAME (NAME: the data set's folder). Logs are OUT/gpu_check.log and
# OUT/train_NAME.log; another start appends to them. If one part fails, the others go on and the exit code is 1.
# Ctrl-C and SIGTERM let the trainings save and end. Start it again to resume them; a training that is done ends at once.
# Variables of the environment, and their defaults:
#   SECONDS_TOTAL    approximate duration of everything (540)
#   CHECK_SECONDS    how much of it the check takes (a third)
#   DEVICE           cuda:0
#   PYTHON           .venv/bin/python
#   OMP_NUM_THREADS  threads of each training (the cores, divided among the trainings)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.bash"
usage="usage: bash scripts/gpu_run.sh DATASET... OUT"
refuse() {
    echo "error: $*; $usage" >&2
    exit 2
}

[ $# -ge 2 ] || refuse "$# folders given; expected at least one prepared data set, and the folder for results"
out=${*: -1}
[ ! -e "$out/manifest.json" ] || refuse "$out is a prepared data set; expected the folder for results at the end"
total=${SECONDS_TOTAL:-540}
[[ $total =~ ^[1-9][0-9]*$ ]] || refuse "SECONDS_TOTAL=$total; expected a whole number of seconds"
check=${CHECK_SECONDS:-$((total / 3 > 0 ? total / 3 : 1))}
[[ $check =~ ^[1-9][0-9]*$ ]] || refuse "CHECK_SECONDS=$check; expected a whole number of seconds"
datasets=() names=()
for dataset in "${@:1:$#-1}"; do
    [ -e "$dataset/manifest.json" ] || refuse "$dataset has no manifest.json; expected what scripts.prepare_dataset makes"
    dataset=$(realpath "$dataset")
    name=$(basename "$dataset")
    for other in ${names[@]+"${names[@]}"}; do
        [ "$other" != "$name" ] || refuse "two data sets are called $name, and would train in one folder; rename one"
    done
    datasets+=("$dataset") names+=("$name")
done
mkdir -p "$out"
out=$(realpath "$out")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(project_python)
device=${DEVICE:-cuda:0} models=$out/checkpoints

jobs=() stopped=false
trap 'stopped=true; kill -TERM ${jobs[@]+"${jobs[@]}"} 2>/dev/null || true' INT TERM HUP
failed=()
finish() { # job, what it is, its log
    local status=0
    wait "$1" || status=$?
    while kill -0 "$1" 2>/dev/null; do # a signal ends `wait`, not the job
        status=0
        wait "$1" || status=$?
    done
    if [ "$status" != 0 ]; then
        failed+=("$2")
        echo "$2: failed with exit code $status; the end of $3:"
        tail -n 5 "$3"
    else
        echo "$2: done; $3"
    fi
}

"$python" -m scripts.gpu_check --out "$out" --seconds "$check" --device "$device" >>"$out/gpu_check.log" 2>&1 &
jobs=($!)
finish "$!" "check of the GPU" "$out/gpu_check.log"

rest=$((total - SECONDS)) jobs=()
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores / ${#names[@]} > 0 ? cores / ${#names[@]} : 1))}"
for k in "${!names[@]}"; do
    name=${names[$k]}
    if "$stopped" || [ "$rest" -le 0 ]; then
        failed+=("training $name")
        if "$stopped"; then why="stopped by a signal"; else why="no time is left; raise SECONDS_TOTAL"; fi
        echo "training $name: not started: $why"
        continue
    fi
    options=(--dataroot "${datasets[$k]}" --name "$name" --seconds "$rest" --checkpoints_dir "$models" --device "$device"
        --precision auto)
    if [ -e "$models/$name/latest_state.pth" ] || [ -e "$models/$name/previous_state.pth" ]; then
        options+=(--continue_train)
    fi
    "$python" train.py --model simulated_pairs "${options[@]}" >>"$out/train_$name.log" 2>&1 &
    jobs+=($!)
done
for k in "${!jobs[@]}"; do
    finish "${jobs[$k]}" "training ${names[$k]}" "$out/train_${names[$k]}.log"
done
[ ${#failed[@]} = 0 ]
