#!/usr/bin/env bash
# Use a GPU for a fixed time: check it, then run several trainings at once for the rest.
#   bash scripts/gpu_run.sh DATASET... OUT     the recommended recipe on each prepared data set, named after its folder
#   bash scripts/gpu_run.sh RUNS OUT           trainings of any kind, from a text file
# RUNS has a training a line: its name, then options of train.py; {seconds} in them becomes the seconds that are left:
#   limbs_1  --model simulated_pairs --dataroot datasets/limbs --seed 1 --seconds {seconds}
#   arms     --dataroot datasets/arms --lambda_shape 0 --batch_size 8
# Words with spaces are quoted. Paths are relative to the folder of train.py. Empty lines and lines that begin with # are
# skipped. A training without {seconds} is stopped when the time is over, and has saved its state then.
# First runs scripts.gpu_check, which writes OUT/gpu_check.json. The trainings are in OUT/checkpoints/NAME. Logs are
# OUT/gpu_check.log and OUT/train_NAME.log; another start appends to them. If one part fails, the others go on and the
# exit code is 1. Ctrl-C and SIGTERM let the trainings save and end. Start it again to resume them; a training that is
# done ends at once.
# Variables of the environment, and their defaults:
#   SECONDS_TOTAL    approximate duration of everything (540)
#   CHECK_SECONDS    how much of it the check takes; 0: no check (a third)
#   DEVICE           cuda:0
#   PYTHON           .venv/bin/python
#   OMP_NUM_THREADS  threads of each training (the cores, divided among the trainings)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.bash"
usage="usage: bash scripts/gpu_run.sh DATASET... OUT, or bash scripts/gpu_run.sh RUNS OUT"
refuse() {
    echo "error: $*; $usage" >&2
    exit 2
}

[ $# -ge 2 ] || refuse "too few paths; expected at least one prepared data set or a file of trainings, and the folder for results"
out=${*: -1}
[ ! -e "$out/manifest.json" ] || refuse "$out is a prepared data set; expected the folder for results at the end"
[ ! -f "$out" ] || refuse "$out is a file; expected the folder for results at the end"
total=${SECONDS_TOTAL:-540}
[[ $total =~ ^[1-9][0-9]*$ ]] || refuse "SECONDS_TOTAL=$total; expected a whole number of seconds"
check=${CHECK_SECONDS:-$((total / 3 > 0 ? total / 3 : 1))}
[[ $check =~ ^(0|[1-9][0-9]*)$ ]] || refuse "CHECK_SECONDS=$check; expected a whole number of seconds, 0 for no check"
names=() runs=()
add_run() { # name, options, one a line
    local other
    for other in ${names[@]+"${names[@]}"}; do
        [ "$other" != "$1" ] || refuse "two trainings are called $1, and would be in one folder; rename one"
    done
    names+=("$1") runs+=("$2")
}
if [ $# = 2 ] && [ -f "$1" ]; then
    while read -r name options || [ -n "$name" ]; do
        case $name in
            "" | \#*) continue ;;
            -* | */*) refuse "$1: a line begins with $name; expected the training's name" ;;
        esac
        [[ ! " $options " =~ \ --(name|checkpoints_dir|device|continue_train)[\ =] ]] ||
            refuse "$1: $name: --${BASH_REMATCH[1]} is set by this script; leave it out"
        [ -n "$options" ] || refuse "$1: $name: no options; expected those of train.py"
        # The dot keeps an empty word at the end.
        words=$(xargs -n1 printf '%s\n' <<<"$options .") || refuse "$1: $name: its quotes do not match"
        add_run "$name" "${words%$'\n'.}"
    done <"$1"
    [ ${#names[@]} -gt 0 ] || refuse "$1 holds no training"
else
    for dataset in "${@:1:$#-1}"; do
        [ -e "$dataset/manifest.json" ] || refuse "$dataset has no manifest.json; expected a prepared data set, or one file of trainings"
        dataset=$(realpath "$dataset")
        add_run "$(basename "$dataset")" \
            "$(printf '%s\n' --model simulated_pairs --dataroot "$dataset" --seconds "{seconds}" --precision auto)"
    done
fi
mkdir -p "$out"
out=$(realpath "$out")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(project_python)
device=${DEVICE:-cuda:0} models=$out/checkpoints

jobs=() stopped=false
trap 'stopped=true; kill -TERM ${jobs[@]+"${jobs[@]}"} 2>/dev/null || true' INT TERM HUP
failed=()
finish() { # job, what it is, its log, the training's folder if it is stopped when the time is over
    local status=0
    wait "$1" || status=$?
    while kill -0 "$1" 2>/dev/null; do # a signal ends `wait`, not the job
        status=0
        wait "$1" || status=$?
    done
    if [ "$status" = 143 ] && ! "$stopped" && [ -n "${4:-}" ] && has_state "$4"; then
        echo "$2: saved when the time was over; the same command resumes it; $3"
    elif [ "$status" != 0 ]; then
        failed+=("$2")
        echo "$2: failed with exit code $status; the end of $3:"
        tail -n 5 "$3"
    else
        echo "$2: done; $3"
    fi
}

if [ "$check" != 0 ]; then
    "$python" -m scripts.gpu_check --out "$out" --seconds "$check" --device "$device" >>"$out/gpu_check.log" 2>&1 &
    jobs=($!)
    finish "$!" "check of the GPU" "$out/gpu_check.log"
fi

rest=$((total - SECONDS)) jobs=() limited=()
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
    limit=() folder=""
    if [[ ${runs[$k]} != *"{seconds}"* ]]; then limit=(timeout --preserve-status "$rest") folder=$models/$name; fi
    mapfile -t options <<<"${runs[$k]//\{seconds\}/$rest}"
    options+=(--name "$name" --checkpoints_dir "$models" --device "$device")
    if has_state "$models/$name"; then options+=(--continue_train); fi
    ${limit[@]+"${limit[@]}"} "$python" train.py "${options[@]}" >>"$out/train_$name.log" 2>&1 &
    jobs+=($!) limited+=("$folder")
done
for k in "${!jobs[@]}"; do
    finish "${jobs[$k]}" "training ${names[$k]}" "$out/train_${names[$k]}.log" "${limited[$k]}"
done
[ ${#failed[@]} = 0 ]
