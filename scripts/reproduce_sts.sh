#!/usr/bin/env bash
# Repeat the trainings on real limbs (docs/trials.md): prepare, shape extractor, three variants, the first stage of the recommended model, scores
# on the six patients of dev, figures. Start it again after a stop: it continues with what is missing.
#   bash scripts/reproduce_sts.sh DATA_DIR [OUT_DIR [further options of train.py, for the three variants]]
# DATA_DIR: the folder ibsi_validation of github.com/theibsi/data_sets (with dicom/ or nifti/), or the output of
# scripts.prepare_sts (with train/ and dev/): docs/public_data.md. OUT_DIR: results/sts.
# DEVICE: auto. EPOCHS: epochs of the recommended model (24, of 250 steps). EXTRACTOR_EPOCHS: 4.
# To try everything quickly, in its own OUT_DIR, because a finished run is not trained further:
#   DEVICE=cpu EPOCHS=1 EXTRACTOR_EPOCHS=1 bash scripts/reproduce_sts.sh DATA_DIR /tmp/trial --max_dataset_size 8
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.bash"
usage="usage: bash scripts/reproduce_sts.sh DATA_DIR [OUT_DIR [options of train.py, for the three variants]]"
data=${1:?$usage}
data=$(realpath "$data")
out=${2:-$(dirname "${BASH_SOURCE[0]}")/../results/sts}
case $out in -*) echo "error: OUT_DIR $out: expected a folder; $usage" >&2 && exit 2 ;; esac
mkdir -p "$out"
out=$(realpath "$out")
further=("${@:3}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ] && [ ! -x .venv/bin/python ]; then bash scripts/setup.sh; fi
python=${PYTHON:-.venv/bin/python}
models=$out/checkpoints
device=(--device "${DEVICE:-auto}")

if [ ! -d "$data/train" ]; then
    "$python" -m scripts.prepare_sts --source "$data" --out "$out/sts"
    data=$out/sts
fi
inputs=(--mr "$data/train/MR/*" --ct "$data/train/CT/*")
"$python" -m scripts.prepare_dataset "${inputs[@]}" --out "$out/arms" --size 128
"$python" -m scripts.prepare_dataset "${inputs[@]}" --out "$out/native" --size 256 --spacing_mm 0.9765625

extractor=("$python" -m ct_segmentation.train --dataroot "$out/arms" --out "$models/shape_extractor" --width 16
    --epochs "${EXTRACTOR_EPOCHS:-4}" "${device[@]}")
if compgen -G "$models/shape_extractor/*_state.pth" >/dev/null; then extractor+=(--continue_train); fi
"${extractor[@]}"

arm() { # script, name, options; a run that is done ends at once
    local script=$1 name=$2
    shift 2
    if compgen -G "$models/${name}_arms/*_state.pth" >/dev/null; then set -- "$@" --continue_train; fi
    bash "scripts/$script.sh" "$out/arms" --checkpoints_dir "$models" --netG resnet_6blocks --ngf 24 --ndf 32 --flip \
        --precision auto --seed 1 "${device[@]}" "$@" ${further[@]+"${further[@]}"}
}
arm train_pure_cyclegan pure_cyclegan --n_epochs 1 --n_epochs_decay 1
arm train_cycle_lcc cycle_Lcc --n_epochs 1 --n_epochs_decay 1
arm train_self_lcc Self+Lcc_finetune --n_epochs 0 --n_epochs_decay 1 --shape_extractor "$models/shape_extractor"
bash scripts/train_recommended.sh "$out/native" --checkpoints_dir "$models" --n_epochs "${EPOCHS:-24}" "${device[@]}"

is_newer() { # file, others: whether it is there and newer than all of them
    local file=$1 other
    for other in "${@:2}"; do [ "$file" -nt "$other" ] || return 1; done
}
if ! is_newer "$models/recommended/latest_net_G_A.pth" "$models/recommended_native/latest_net_G_A.pth"; then
    rm -rf "$models/recommended" "$models/.recommended"
    "$python" -m scripts.export_model --name recommended_native --checkpoints_dir "$models" --out "$models/.recommended" \
        --solid_body --bias_correction
    mv "$models/.recommended" "$models/recommended"
fi

cohort=$out/dev.csv
echo "id,path,reference" >"$cohort"
for patient in "$data"/dev/*/; do
    case=$(basename "$patient")
    echo "$case,\"$patient${case}_MR_T1.nii.gz\",\"$patient${case}_CT_on_MR_grid.nii.gz\"" >>"$cohort"
done
arms=(pure_cyclegan_arms cycle_Lcc_arms Self+Lcc_finetune_arms recommended)
for name in "${arms[@]}"; do
    "$python" test_pipeline.py --name "$name" --checkpoints_dir "$models" --list "$cohort" --results_dir "$out/synthetic" \
        "${device[@]}"
done

mr=(--mr "$data/dev" --mr_pattern '{case}/{case}_MR_T1.nii.gz')
if ! is_newer "$out/trivial/done" "$data"/dev/*/*_MR_T1.nii.gz; then
    "$python" -m scripts.trivial_predictors "${mr[@]}" --out "$out/trivial" --overwrite
    touch "$out/trivial/done"
fi
mkdir -p "$out/scores"
for predictions in "$out/trivial/constant" "$out/trivial/threshold" "${arms[@]/#/$out/synthetic/}"; do
    scores=$out/scores/$(basename "$predictions")
    if ! is_newer "$scores.json" "$predictions"/*.nii.gz; then
        "$python" -m scripts.evaluate --pred "$predictions" "${mr[@]}" --ref "$data/dev" \
            --ref_pattern '{case}/{case}_CT_on_MR_grid.nii.gz' --json "$scores.json" --overwrite >"$scores.txt"
    fi
    echo "== $(basename "$predictions")"
    cat "$scores.txt"
done
for patient in "$data"/dev/*/; do
    case=$(basename "$patient")
    synthetic=()
    for name in "${arms[@]}"; do synthetic+=("$out/synthetic/$name/$case.nii.gz"); done
    if ! is_newer "$out/figures/$case.png" "${synthetic[@]}"; then
        "$python" -m scripts.figure --mr "$patient${case}_MR_T1.nii.gz" --labels MR "${arms[@]%_*}" CT \
            --ct "${synthetic[@]}" --reference "$patient${case}_CT_on_MR_grid.nii.gz" --out "$out/figures/$case.png" --overwrite
    fi
done
echo "scores: $out/scores, figures: $out/figures, results pages: $out/synthetic/*/index.html"
