#!/usr/bin/env bash
# The published variant `Self+Lcc_finetune`: correlation and shape constraint, started from the weights of `cycle_Lcc_NAME`. It has the
# shape discriminator, which the published code lacks: --lambda_shape_gan 0 switches it off.
# It needs a shape extractor of the same anatomy. Train one with: python -m ct_segmentation.train --dataroot datasets/NAME
# Or name one with --shape_extractor.
#   bash scripts/train_self_lcc.sh datasets/NAME [further options of train.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.bash"
[ $# -gt 0 ] || { echo "usage: bash scripts/train_self_lcc.sh DATAROOT [options of train.py]" >&2 && exit 2; }
dataroot=$(data_set_path "$1")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
set_name=$(basename "$dataroot")
start=(--init_from "cycle_Lcc_$set_name")
for option in "$@"; do
    if [ "$option" = --continue_train ]; then
        start=() # the run has its own state by now
    fi
done
python=$(project_python)
exec "$python" train.py --dataroot "$dataroot" --name "Self+Lcc_finetune_$set_name" \
    ${start[@]+"${start[@]}"} \
    --lambda_co_A 2 --lambda_co_B 2 --lambda_shape 10 --lambda_shape_gan 1 "$@"
