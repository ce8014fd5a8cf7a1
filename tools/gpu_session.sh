#!/usr/bin/env bash
# All that is still to be trained on a GPU, in one call of ten minutes: data, check, trainings, scores and a pack of results.
#   bash tools/gpu_session.sh LIMBS_CT OUT
# LIMBS_CT: CT of limbs, as files or as small copies of them (tools.shrink_volumes). The generated patients are made here.
# 1. Prepares both data sets and trains the extractor of generated bodies, in OUT/data.
# 2. Checks the GPU and trains for the time that is left, all at once: the three variants on generated patients, and the second
#    seed of `recommended` (scripts/gpu_run.sh with OUT/runs.txt).
# 3. Scores the variants (scripts.compare_arms, OUT/arms/scores.json).
# 4. Packs weights, losses, logs and scores into OUT/results.tar.xz, in parts of 15 MB (results.tar.xz.00, ...): to unpack
#    them, cat results.tar.xz.* | tar xJ.
# Variables of the environment, and their defaults:
#   SECONDS_TOTAL    approximate duration of everything (540)
#   CHECK_SECONDS    how much of it the check takes (60)
#   DEVICE           cuda:0
#   PYTHON           .venv/bin/python
#   PATIENTS         number of generated patients to train on (30)
#   ARMS, LIMBS      further options of the variants and of `recommended`; of the same option twice the last counts
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/help.bash"
[ $# = 2 ] || { echo "usage: bash tools/gpu_session.sh LIMBS_CT OUT" >&2 && exit 2; }
ct=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(project_python)
total=${SECONDS_TOTAL:-540} device=${DEVICE:-cuda:0} data=$out/data
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=1

limbs() {
    "$python" -m scripts.prepare_dataset --ct "$ct/*" --out "$data/limbs" --size 256 --spacing_mm 0.9765625 --workers "$cores"
}
bodies() {
    "$python" -m scripts.make_phantom --out "$data/phantom" --patients "${PATIENTS:-30}" --test_patients 4 --seed 1 \
        --workers "$cores" &&
        "$python" -m scripts.prepare_dataset --mr "$data/phantom/train/mr/*" --ct "$data/phantom/train/ct/*" \
            --out "$data/bodies" --size 128 --spacing_mm 4 --workers "$cores" &&
        if [ ! -e "$data/bodies/shape_extractor/extractor.pth" ]; then
            "$python" -m ct_segmentation.train --dataroot "$data/bodies" --width 16 --epochs 2 --device "$device" \
                --precision auto
        fi
}
limbs >"$out/limbs.log" 2>&1 &
job=$!
bodies >"$out/bodies.log" 2>&1 || failed=$out/bodies.log
wait "$job" || failed=$out/limbs.log
[ -z "${failed:-}" ] || { tail -n 5 "$failed" && exit 1; }
echo "data and extractor: after $SECONDS s"

arms="--dataroot $(printf %q "$data/bodies") --netG resnet_6blocks --ngf 24 --ndf 32 --batch_size 8 --precision auto"
arms="$arms --lr_policy warmup_cosine --seconds {seconds} ${ARMS:-}"
cat >"$out/runs.txt" <<RUNS
pure_cyclegan $arms --lambda_shape 0 --lambda_shape_gan 0
cycle_Lcc $arms --lambda_co_A 2 --lambda_co_B 2 --lambda_shape 0 --lambda_shape_gan 0
Self+Lcc $arms --lambda_co_A 2 --lambda_co_B 2 --lambda_shape 10 --lambda_shape_gan 1
recommended_seed1 --model simulated_pairs --dataroot $(printf %q "$data/limbs") --ngf 24 --precision auto --seed 1 --seconds {seconds} ${LIMBS:-}
RUNS
status=0
SECONDS_TOTAL=$((total - SECONDS - 60 > 0 ? total - SECONDS - 60 : 1)) CHECK_SECONDS=${CHECK_SECONDS:-60} DEVICE=$device \
    OMP_NUM_THREADS=$((cores / 4 > 0 ? cores / 4 : 1)) bash scripts/gpu_run.sh "$out/runs.txt" "$out" || status=$?
"$python" -m scripts.compare_arms --phantom "$data/phantom" --checkpoints_dir "$out/checkpoints" --device "$device" \
    --names pure_cyclegan cycle_Lcc Self+Lcc --out "$out/arms" --overwrite || status=$?
cd "$out"
rm -f results.tar.xz.*
made=()
for path in *.log *.txt checkpoints arms gpu_check.json; do
    [ ! -e "$path" ] || made+=("$path")
done
tar c --exclude='*_state.pth' --exclude='*.nii.gz' --exclude='web/images' "${made[@]}" |
    xz -1 -T0 | split -b 15M -d - results.tar.xz.
ls -l results.tar.xz.*
echo "all: after $SECONDS s"
exit "$status"
