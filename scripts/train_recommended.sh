#!/usr/bin/env bash
# The recommended recipe (docs/results.md): a U-Net trained on pairs that are simulated from the CT alone, in two stages
# with a falling learning rate; no MR is paired with a CT of the same patient. Start it again after a stop.
#   bash scripts/train_recommended.sh datasets/NAME [further options of train.py]
# It keeps checkpoints/recommended_start_NAME and, the result, checkpoints/recommended_NAME.
# EPOCHS: of the first stage (24); half as many follow.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.bash"
dataroot=${1:?usage: bash scripts/train_recommended.sh DATAROOT [options of train.py]}
dataroot=$(realpath "$dataroot")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
epochs=${EPOCHS:-24} set_name=$(basename "$dataroot")
checkpoints=checkpoints previous=""
for option in "$@"; do
    case "${option%%=*}" in
        --dataroot | --name | --n_epochs_warm | --warm_lr | --init_from | --continue_train)
            echo "error: scripts/train_recommended.sh: ${option%%=*}: the recipe sets it for each of its two stages;" \
                "leave it out (EPOCHS sets their epochs, --checkpoints_dir where they are kept), or use train.py" >&2
            exit 2
            ;;
    esac
    if [ "$previous" = --checkpoints_dir ]; then checkpoints=$option; fi
    if [[ $option == --checkpoints_dir=* ]]; then checkpoints=${option#*=}; fi
    previous=$option
done

stage() { # name, epochs, and options that only its start takes
    local name=$1 last=$2
    shift 2
    # A run that is done ends at once.
    if [ -e "$checkpoints/$name/latest_state.pth" ] || [ -e "$checkpoints/$name/previous_state.pth" ]; then
        set -- --continue_train
    fi
    "${PYTHON:-.venv/bin/python}" train.py --dataroot "$dataroot" --name "$name" --netG unet --ngf 24 --norm batch \
        --upsample resize --ct_transfer soft_tissue --preprocess body_crop --crop_size 112 --rotate 30 --zoom 0.2 \
        --batch_size 4 --warm_start simulated_mr --n_epochs_warm "$last" --n_epochs 0 --n_epochs_decay 0 --ema 0.998 \
        --lambda_identity 0 --lambda_shape 0 --lambda_shape_gan 0 --netD n_layers --n_layers_D 2 --ndf 32 \
        --precision auto "${options[@]}" "$@"
}
options=(--warm_lr 7e-4 "$@")
stage "recommended_start_$set_name" "$epochs"
options=(--warm_lr 2.5e-4 "$@")
stage "recommended_$set_name" "$(((epochs + 1) / 2))" --init_from "recommended_start_$set_name"
