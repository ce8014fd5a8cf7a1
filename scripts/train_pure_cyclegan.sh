#!/usr/bin/env bash
# The published variant `pure_cyclegan`: no correlation, no shape constraint.
#   bash scripts/train_pure_cyclegan.sh datasets/NAME [further options of train.py]     makes checkpoints/pure_cyclegan_NAME
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.bash"
[ $# -gt 0 ] || { echo "usage: bash scripts/train_pure_cyclegan.sh DATAROOT [options of train.py]" >&2 && exit 2; }
dataroot=$(data_set_path "$1")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(project_python)
exec "$python" train.py --dataroot "$dataroot" --name "pure_cyclegan_$(basename "$dataroot")" \
    --lambda_co_A 0 --lambda_co_B 0 --lambda_shape 0 --lambda_shape_gan 0 "$@"
