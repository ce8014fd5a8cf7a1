#!/usr/bin/env bash
# Repeat the results on real limbs (docs/results.md): prepare, shape extractor, three arms, the recommended model, scores,
# figure. Start it again after a stop: what is done is left as it is.
#   bash scripts/reproduce_sts.sh DATA_DIR [OUT_DIR]
# DATA_DIR: the folder ibsi_validation of github.com/theibsi/data_sets (with dicom/ or nifti/), or what
# scripts.prepare_sts makes of it (with train/ and dev/). OUT_DIR: results/sts. DEVICE: auto.
set -euo pipefail
data=${1:?usage: bash scripts/reproduce_sts.sh DATA_DIR [OUT_DIR]}
data=$(realpath "$data")
out=$(realpath -m "${2:-$(dirname "${BASH_SOURCE[0]}")/../results/sts}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -x .venv/bin/python ] || bash scripts/setup.sh
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
if [ ! -f "$models/shape_extractor/extractor.pth" ]; then
    "$python" -m ct_segmentation.train --dataroot "$out/arms" --out "$models/shape_extractor" --width 16 --epochs 4 \
        "${device[@]}"
fi

arm() { # script, name, options; a run that is done ends at once
    local script=$1 name=$2
    shift 2
    if compgen -G "$models/${name}_arms/*_state.pth" >/dev/null; then set -- "$@" --continue_train; fi
    bash "scripts/$script.sh" "$out/arms" --checkpoints_dir "$models" --netG resnet_6blocks --ngf 24 --ndf 32 --flip \
        --precision auto --seed 1 "${device[@]}" "$@"
}
arm train_pure_cyclegan pure_cyclegan --n_epochs 1 --n_epochs_decay 1
arm train_cycle_lcc cycle_Lcc --n_epochs 1 --n_epochs_decay 1
arm train_self_lcc Self+Lcc_finetune --n_epochs 0 --n_epochs_decay 1 --shape_extractor "$models/shape_extractor"
bash scripts/train_recommended.sh "$out/native" --checkpoints_dir "$models" --mr_window 0 1200 --flip --seed 0 "${device[@]}"

cohort=$out/dev.csv
echo "id,path,reference" >"$cohort"
for patient in "$data"/dev/*/; do
    case=$(basename "$patient")
    echo "$case,$patient${case}_MR_T1.nii.gz,$patient${case}_CT_on_MR_grid.nii.gz" >>"$cohort"
done
mr=(--mr "$data/dev" --mr_pattern '{case}/{case}_MR_T1.nii.gz')
"$python" -m scripts.trivial_predictors "${mr[@]}" --out "$out/trivial"
arms=(pure_cyclegan_arms cycle_Lcc_arms Self+Lcc_finetune_arms recommended_native)
for name in "${arms[@]}"; do
    "$python" test_pipeline.py --name "$name" --checkpoints_dir "$models" --list "$cohort" --results_dir "$out/synthetic" \
        "${device[@]}"
done
mkdir -p "$out/scores"
for predictions in "$out/trivial/constant" "$out/trivial/threshold" "${arms[@]/#/$out/synthetic/}"; do
    echo "== $(basename "$predictions")"
    "$python" -m scripts.evaluate --pred "$predictions" "${mr[@]}" --ref "$data/dev" \
        --ref_pattern '{case}/{case}_CT_on_MR_grid.nii.gz' --json "$out/scores/$(basename "$predictions").json"
done
for patient in "$data"/dev/*/; do
    case=$(basename "$patient")
    "$python" -m scripts.figure --mr "$patient${case}_MR_T1.nii.gz" --labels MR "${arms[@]%_*}" CT \
        --ct $(printf "$out/synthetic/%s/$case.nii.gz " "${arms[@]}") \
        --reference "$patient${case}_CT_on_MR_grid.nii.gz" --out "$out/figures/$case.png"
done
echo "scores: $out/scores, figures: $out/figures, results pages: $out/synthetic/*/index.html"
