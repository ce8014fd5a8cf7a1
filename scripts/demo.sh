#!/usr/bin/env bash
# Try everything on generated patients: generate, prepare, train a small model for minutes, synthesise, score.
#   bash scripts/demo.sh
# Another run reuses the files. To start over, delete datasets/phantom*, checkpoints/recommended_phantom* and results/demo.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.bash"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
python=.venv/bin/python

raw=datasets/phantom_raw data=datasets/phantom
"$python" -m scripts.make_phantom --out "$raw" --patients 6 --test_patients 2 --seed 1 --workers 2
"$python" -m scripts.prepare_dataset --mr "$raw/train/mr/*.nii.gz" --ct "$raw/train/ct/*.nii.gz" --out "$data" --size 128

# The recommended recipe for under 4 minutes on two cores; started again, it resumes, or ends at once if it is done. Small crops, many of them,
# and weight on bone: docs/results.md.
name=recommended_$(basename "$data")
PYTHON=$python bash scripts/train_recommended.sh "$data" --n_epochs 20 --steps_per_epoch 50 --batch_size 8 --ngf 16 --slab 3 \
    --crop_size 64 --flip x --rotate 10 --field_of_view 0 --skin_mm 0 --lr 4e-3 --ema 0.99 --bone_weight 4

patient=$(find "$raw/test" -mindepth 1 -maxdepth 1 -type d | sort | head -n 1)
for model in "$name" phantom; do # phantom: shipped, trained longer on other generated patients
    "$python" test_adapt.py --name "$model" --input "$patient/mr.nii.gz" --reference "$patient/ct.nii.gz" \
        --output "results/demo/$model/$(basename "$patient").nii.gz"
done
cat <<END

generated patients   $raw
prepared slices      $data
model                checkpoints/$name
synthetic CT         results/demo/$name  (volume in HU on the MR's grid, picture, scores, a page to look through it)
                     results/demo/phantom  (the same by a shipped model)

Minutes of training show that the chain works, not what the method can do: docs/results.md.
END
