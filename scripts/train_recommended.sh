#!/usr/bin/env bash
# The recommended recipe (docs/results.md): a U-Net of slabs, trained on MR simulated from the CT alone; no MR is read.
# Start it again after a stop: it resumes from its last state, and a run that is done ends at once.
#   bash scripts/train_recommended.sh datasets/NAME [options of train.py --model simulated_pairs]
# It keeps checkpoints/recommended_NAME. For whole bodies add: --flip x --rotate 12 --field_of_view 0.4 --bias 0.25
# and, where some of the CT are limbs, --limbs TEXT with what their names have in common.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.bash"
dataroot=${1:?usage: bash scripts/train_recommended.sh DATAROOT [options of train.py --model simulated_pairs]}
dataroot=$(realpath "$dataroot")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name=recommended_$(basename "$dataroot") checkpoints=checkpoints previous=""
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
done
if [ -e "$checkpoints/$name/latest_state.pth" ] || [ -e "$checkpoints/$name/previous_state.pth" ]; then
    set -- "$@" --continue_train
fi
exec "${PYTHON:-.venv/bin/python}" train.py --model simulated_pairs --dataroot "$dataroot" --name "$name" "$@"
