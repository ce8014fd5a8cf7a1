#!/usr/bin/env bash
# The published variant `cycle_Lcc`: correlation-coefficient loss, no shape constraint.
#   bash scripts/train_cycle_lcc.sh datasets/NAME [further options of train.py]     makes checkpoints/cycle_Lcc_NAME
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.bash"
[ $# -gt 0 ] || { echo "usage: bash scripts/train_cycle_lcc.sh DATAROOT [options of train.py]" >&2 && exit 2; }
dataroot=$(data_set_path "$1")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(project_python)
exec "$python" train.py --dataroot "$dataroot" --name "cycle_Lcc_$(basename "$dataroot")" \
    --lambda_co_A 2 --lambda_co_B 2 --lambda_shape 0 --lambda_shape_gan 0 "$@"
