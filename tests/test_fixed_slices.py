"""Pictures of the same slices all through a training: the slices stay, what the networks make of them changes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from data.loading.unaligned_dataset import Draw
from models import cycle_gan_model
from models.base_model import BaseModel, Place
from models.cycle_gan_model import CycleGANModel
from models.simulated_pairs_model import SimulatedPairsModel
from options import train_options
from tests.test_datasets import dataroot  # noqa: F401
from tests.test_simulated_pairs import OPTIONS
from tests.test_simulated_pairs import dataroot as ct_dataroot  # noqa: F401
from tests.test_train import SHORT, TINY, assert_same_weights

# With all that random numbers or batches could make differ.
CYCLE_GAN = [*TINY, *SHORT, "--n_epochs", "1", "--use_dropout", "--norm", "batch", "--preprocess", "crop",
             "--crop_size", "12"]  # fmt: skip
PAIRS = ["--model", "simulated_pairs", *OPTIONS[:-1], "--steps_per_epoch", "4", "--n_epochs", "2"]


@pytest.fixture(params=["cycle_gan", "simulated_pairs"])
def method(request):
    """Return a method, a command line of it, and the images that are its input."""
    if request.param == "cycle_gan":
        return CycleGANModel, [*CYCLE_GAN, "--dataroot", str(request.getfixturevalue("dataroot"))], ("real_A", "real_B")
    root = request.getfixturevalue("ct_dataroot")
    return SimulatedPairsModel, [*PAIRS, "--dataroot", str(root)], ("simulated_A", "simulated_B")


def run(words: list[str], folder, name: str, *more: str):
    assert train.main([*words, "--checkpoints_dir", str(folder), "--name", name, *more]) == 0
    return folder / name


def weights_of(folder) -> dict:
    return {path.name: torch.load(path, weights_only=True) for path in folder.glob("latest_net_*.pth")}


def test_the_slices_stay_through_a_training_and_its_resumption(method, tmp_path, monkeypatch):
    cls, words, given = method
    shown, fixed_visuals = [], cls.fixed_visuals

    def watched(self):
        mode = {name: [module.training for module in net.modules()] for name, net in self.networks.items()}
        shown.append(fixed_visuals(self))
        assert {name: [module.training for module in net.modules()] for name, net in self.networks.items()} == mode
        return shown[-1]

    monkeypatch.setattr(cls, "fixed_visuals", watched)
    folder = run(words, tmp_path, "shown", "--display_freq", "2")
    run(["--continue_train"], tmp_path, "shown", "--n_epochs", "3", "--lr", "1e-2")
    assert len(shown) >= 4
    for name, first in shown[0].items():
        assert first.shape[0] == 1 and first.isfinite().all()
        later = [torch.equal(first, one[name]) for one in shown[1:]]
        assert all(later) if name in given else not any(later), name
    assert (folder / "web/images").exists()


def test_showing_them_changes_no_weight(method, tmp_path, monkeypatch):
    """Neither batch statistics, nor dropout, nor the order of what is drawn."""
    cls, words, _ = method
    shown = run(words, tmp_path, "shown", "--display_freq", "1")
    monkeypatch.setattr(cls, "fixed_visuals", BaseModel.fixed_visuals)
    plain = run(words, tmp_path, "plain", "--no_html")
    if cls is CycleGANModel:
        assert_same_weights(shown, plain)
    for name, weights in weights_of(plain).items():
        for key, value in weights_of(shown)[name].items():
            assert torch.equal(value, weights[key]), f"{name} {key}"


class Slices:
    """So many slices, each as bright as its number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, with_mask: bool) -> SimpleNamespace:
        return SimpleNamespace(image=np.full((1, 2, 2), index))


class Drawn(SimpleNamespace):
    def __getitem__(self, draw: Draw) -> dict:
        return {"draw": draw}


def test_the_seed_chooses_slices_of_both_domains_that_show_much():
    dataset = Drawn(a=Slices(1000), b=Slices(50))
    draws = [cycle_gan_model._fixed_sample(dataset, seed)["draw"][0] for seed in (*range(40), 0)]
    assert draws[0] == draws[-1] and len({draw.index_A for draw in draws}) > 30
    assert {draw.epoch for draw in draws} == {0}
    # The largest of eight random numbers lies at 8/9 on average, with a standard deviation of 0.1; of 40 such: 0.016.
    assert np.mean([draw.index_A / 1000 for draw in draws]) == pytest.approx(8 / 9, abs=0.06)
    assert np.mean([draw.index_B / 50 for draw in draws]) == pytest.approx(8 / 9, abs=0.07)


def test_the_pair_is_that_with_most_bone_of_a_batch_of_the_seed(ct_dataroot, tmp_path, monkeypatch):  # noqa: F811
    drawn, draw, pairs = [], SimulatedPairsModel.draw, {}

    def watched(self, count=None):
        drawn.append(draw(self, count))
        return drawn[-1]

    monkeypatch.setattr(SimulatedPairsModel, "draw", watched)
    for name, seed, batch_size in (("a", 1, 6), ("b", 1, 2), ("c", 2, 6)):
        words = [
            "--dataroot",
            str(ct_dataroot),
            "--checkpoints_dir",
            str(tmp_path),
            "--name",
            name,
            "--seed",
            str(seed),
        ]
        settings = train_options.parse([*PAIRS, *words, "--batch_size", str(batch_size)])
        ct = SimulatedPairsModel.open_data(settings.model, settings.data)
        model = SimulatedPairsModel.from_data(settings.model, settings.data, ct, Place(torch.device("cpu")))
        pairs[name] = model._fixed_pair
        mr, hu, _ = drawn[-1]
        bone = [int((one > 150).sum()) for one in hu]
        assert torch.equal(pairs[name][0][0], mr[bone.index(max(bone))]) and max(bone) > min(bone)
    assert torch.equal(pairs["a"][0], pairs["b"][0]) and not torch.equal(pairs["a"][0], pairs["c"][0])


def test_slices_that_cannot_be_read_cost_the_pictures_alone(method, tmp_path, monkeypatch, caplog):
    cls, words, _ = method

    def fails(self):
        raise OSError("the disk is gone")

    monkeypatch.setattr(cls, "fixed_visuals", fails)
    folder = run(words, tmp_path, "run", "--display_freq", "1")
    assert caplog.text.count("the disk is gone; training continues without it") == 1
    assert (folder / "latest_net_G_A.pth").exists()
