#!/usr/bin/env bash
# The recommended recipe (docs/results.md): a U-Net of slabs, trained on MR simulated from the CT. It reads no MR.
#   bash scripts/train_recommended.sh datasets/NAME [--solid_body] [--bias_correction] [options of train.py --model simulated_pairs]
# The run is checkpoints/recommended_NAME. Start the command again after a stop: it resumes. A finished run ends at once.
# At the end a small model for use is written to checkpoints/recommended_NAME_small, in half precision.
# --solid_body: that model replaces air inside the body by tissue. For limbs only.
# --bias_correction: that model corrects the bias field of each MR.
# The shipped `recommended` does both.
# For whole bodies add: --flip x --rotate 12 --field_of_view 0.4 --bias 0.25
# If some of the CT are limbs, add --limbs TEXT, where TEXT is a part of their names that no other CT has.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.bash"
[ $# -gt 0 ] || { echo "usage: bash scripts/train_recommended.sh DATAROOT [options of train.py --model simulated_pairs]" >&2 && exit 2; }
dataroot=$(data_set_path "$1")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=recommended_$(basename "$dataroot") checkpoints=checkpoints previous="" options=() exported=()
for option in "$@"; do
    case "${option%%=*}" in
        --model | --dataroot | --name | --continue_train)
            echo "error: scripts/train_recommended.sh: ${option%%=*}: the recipe sets it; leave it out, or use" \
                "python train.py --model simulated_pairs" >&2
            exit 2
            ;;
    esac
    if [ "$previous" = --checkpoints_dir ]; then checkpoints=$option; fi
    if [[ $option == --checkpoints_dir=* ]]; then checkpoints=${option#*=}; fi
    previous=$option
    case "$option" in
        --solid_body | --bias_correction) exported+=("$option") ;;
        *) options+=("$option") ;;
    esac
done
if has_state "$checkpoints/$name"; then
    options+=(--continue_train)
else
    options=(--precision auto ${options[@]+"${options[@]}"}) # a run that resumes keeps its own
fi
small=$checkpoints/${name}_small
if has_state "$small"; then
    echo "error: $small: a training's own folder, where the model for use would go; rename the data set, or move it away" >&2
    exit 2
fi
python=$(project_python)
job="" status=0 received=""
for signal in INT TERM HUP USR1; do
    trap 'received='$signal'; kill -s '$signal' "$job" 2>/dev/null || true' $signal
done
set -m # else bash starts jobs with SIGINT ignored, and Ctrl-C would do nothing while the training starts
command=$(printf '%q ' bash scripts/train_recommended.sh "$dataroot" "$@")
RESUME_COMMAND=${command% } "$python" train.py --model simulated_pairs --dataroot "$dataroot" --name "$name" \
    ${options[@]+"${options[@]}"} &
job=$!
set +m
if [ -n "$received" ]; then kill -s "$received" "$job" 2>/dev/null || true; fi # it came before there was a job to tell
wait "$job" || status=$?
while kill -0 "$job" 2>/dev/null; do # a signal ends `wait`, not the training, which saves first
    status=0
    wait "$job" || status=$?
done
if [ "$status" != 0 ]; then exit "$status"; fi
epoch=latest
if [ -e "$checkpoints/$name/best_net_G_A.pth" ]; then epoch=best; fi # with --val
"$python" -m scripts.export_model --name "$name" --checkpoints_dir "$checkpoints" --epoch "$epoch" --out "$small" \
    ${exported[@]+"${exported[@]}"} --overwrite
