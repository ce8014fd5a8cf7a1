#!/usr/bin/env bash
# The whole chain on generated patients: generate, prepare, train a small model for minutes, synthesise, score.
# The next run reuses what is there; delete datasets/phantom*, checkpoints/demo* and results/demo to start over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
python=.venv/bin/python

raw=datasets/phantom_raw data=datasets/phantom name=demo
"$python" -m scripts.make_phantom --out "$raw" --patients 6 --test_patients 2 --seed 1 --workers 2
"$python" -m scripts.prepare_dataset --mr "$raw/train/mr/*.nii.gz" --ct "$raw/train/ct/*.nii.gz" --out "$data" --size 128

extractor=checkpoints/demo_shape_extractor
if [ ! -f "$extractor/extractor.pth" ]; then
    "$python" -m ct_segmentation.train --dataroot "$data" --out "$extractor" --width 8 --epochs 2
fi
train=("$python" train.py --dataroot "$data" --name "$name" --shape_extractor "$extractor" --netG resnet_6blocks
    --ngf 16 --netD n_layers --n_layers_D 2 --ndf 32 --upsample resize --n_epochs 2 --n_epochs_decay 1
    --max_dataset_size 320 --print_freq 40 --num_threads 1)
if [ ! -f "checkpoints/$name/latest_state.pth" ]; then
    "${train[@]}"
elif [ ! -f "checkpoints/$name/3_net_G_A.pth" ]; then
    "${train[@]}" --continue_train
fi

patient=$(find "$raw/test" -mindepth 1 -maxdepth 1 -type d | sort | head -n 1)
"$python" test_adapt.py --name "$name" --input "$patient/mr.nii.gz" --reference "$patient/ct.nii.gz" \
    --output "results/$name/$(basename "$patient").nii.gz"
cat <<END

generated patients   $raw
prepared slices      $data
model                checkpoints/$name  (losses and pictures: web/index.html)
synthetic CT         results/$name  (volume in HU on the MR's grid, picture, scores, a page to look through it)

Minutes of training show that the chain works, not what the method can do: docs/results.md.
END
