"""`tools.mean_weights`: one network out of several."""

from dataclasses import replace

import pytest
import torch

from data.errors import InputError
from models.inference_settings import read_inference_settings
from models.run_folder import weights_path
from models.state_dicts import load_checkpoint, save_atomically
from tests.cohort_data import NAME, SETTINGS, write_model
from tools import mean_weights


def models(tmp_path, *settings):
    """Write models a, b, ... of these settings and different weights; return the options that name them."""
    folder = tmp_path / "models"
    folder.mkdir()
    for seed, (name, of) in enumerate(zip("abc", settings, strict=False)):
        (write_model(tmp_path / name, seed, of) / NAME).rename(folder / name)
    names = [path.name for path in sorted(folder.iterdir())]
    return ["--name", *names, "--checkpoints_dir", str(folder), "--out", str(tmp_path / "mean")]


def test_the_mean_is_that_of_all_weights_and_keeps_the_first_one_s_settings(tmp_path):
    first = replace(SETTINGS, steps=30, caution="of the first")
    mean_weights.main(models(tmp_path, first, SETTINGS, SETTINGS))
    folders = [tmp_path / name for name in ("models/a", "models/b", "models/c", "mean")]
    a, b, c, mean = (load_checkpoint(weights_path(folder, "latest", "G_A")) for folder in folders)
    assert mean.keys() == a.keys() and any(not torch.equal(a[key], b[key]) for key in a)
    for key, value in mean.items():
        torch.testing.assert_close(value, (a[key] + b[key] + c[key]) / 3 if value.is_floating_point() else a[key])
    assert read_inference_settings(tmp_path / "mean") == replace(first, steps=None)


def test_whole_numbers_are_those_of_the_first():
    states = [{"w": torch.full((2,), float(k)), "num_batches_tracked": torch.tensor(k)} for k in (4, 8)]
    mean = mean_weights.mean_state(states)
    assert mean["w"].tolist() == [6.0, 6.0] and mean["num_batches_tracked"].item() == 4


def test_models_that_cannot_be_averaged_and_results_in_the_way_are_refused(tmp_path):
    words = models(tmp_path, SETTINGS, replace(SETTINGS, mr_window=(0.0, 9.0), view="coronal"))
    message = r"models/b: other settings than .*models/a \(view: axial there, coronal here; mr_window: "
    with pytest.raises(InputError, match=message):
        mean_weights.main(words)
    with pytest.raises(InputError, match="--name a a: expected two or more different models"):
        mean_weights.main(["--name", "a", "a", *words[3:]])
    SETTINGS.write(tmp_path / "models/b")
    broken = load_checkpoint(weights_path(tmp_path / "models/b", "latest", "G_A"))
    save_atomically({key: value * torch.nan for key, value in broken.items()}, tmp_path / "models/b/latest_net_G_A.pth")
    with pytest.raises(InputError, match="weights that are not finite"):
        mean_weights.main(words)
    assert not (tmp_path / "mean").exists()
    save_atomically(broken, tmp_path / "models/b/latest_net_G_A.pth")
    mean_weights.main(words)
    with pytest.raises(InputError, match="exists"):
        mean_weights.main(words)
