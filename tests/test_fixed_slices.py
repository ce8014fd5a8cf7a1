"""Pictures of the same slices all through a training: the slices stay, what the networks make of them changes."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from data.loading.whole_slices import centred
from data.prepared.manifest import read_manifest
from data.simulation.simulation_set import open_simulation_set
from data.values.intensity import CT_TRANSFERS, IntensityMap
from models import cycle_gan_model
from models.base_model import BaseModel, Place
from models.cycle_gan_model import CycleGANModel
from models.simulated_pairs_model import SimulatedPairsModel
from options import train_options
from tests.test_datasets import dataroot, open_plain  # noqa: F401
from tests.test_simulated_pairs import OPTIONS
from tests.test_simulated_pairs import dataroot as ct_dataroot  # noqa: F401
from tests.test_train import SHORT, TINY, assert_same_weights

# With all that random numbers or batches could make differ.
CYCLE_GAN = [*TINY, *SHORT, "--n_epochs", "1", "--use_dropout", "--norm", "batch", "--preprocess", "crop",
             "--crop_size", "12"]  # fmt: skip
PAIRS = ["--model", "simulated_pairs", *OPTIONS[:-1], "--steps_per_epoch", "4", "--n_epochs", "2",
         "--mr_window", "0", "600"]  # fmt: skip


@pytest.fixture(params=["cycle_gan", "simulated_pairs"])
def method(request):
    """Return a method, a command line of it, and the images that are its input."""
    if request.param == "cycle_gan":
        return CycleGANModel, [*CYCLE_GAN, "--dataroot", str(request.getfixturevalue("dataroot"))], ("real_A", "real_B")
    root = request.getfixturevalue("ct_dataroot")
    return SimulatedPairsModel, [*PAIRS, "--dataroot", str(root)], (
        "real_A", "simulated_A", "simulated_B",
    )  # fmt: skip


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


@pytest.mark.parametrize("multiple", [1, 16])
def test_a_body_comes_into_the_middle_whole(multiple):
    image = torch.arange(40.0 * 30).reshape(1, 40, 30)
    body = torch.zeros(40, 30, dtype=torch.bool)
    body[3:9, 20:30] = True  # at an edge
    shown = centred(image, body, multiple, outside=-7.0)
    height, width = (22, 26) if multiple == 1 else (32, 32)  # 6 + 2 * 8, 10 + 2 * 8
    assert shown.shape == (1, height, width)
    top, left = (3 + 9 - height) // 2, (20 + 30 - width) // 2
    for y in range(height):
        for x in range(width):
            inside = 0 <= top + y < 40 and 0 <= left + x < 30
            assert shown[0, y, x] == (image[0, top + y, left + x] if inside else -7)
    nothing = centred(image, torch.zeros_like(body), multiple, outside=-7.0)
    assert nothing.shape[1] >= 40 and int((nothing != -7).sum()) == 40 * 30


class Slices:
    """So many slices, each as bright as its number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, with_mask: bool) -> SimpleNamespace:
        return SimpleNamespace(image=np.full((1, 2, 2), index))


class Noted(SimpleNamespace):
    """A data set whose whole slices are their numbers."""

    def whole(self, source: Slices, index: int, multiple: int) -> torch.Tensor:
        assert multiple == 4
        return torch.tensor([index])


def test_the_seed_chooses_slices_of_both_domains_that_show_much():
    dataset = Noted(a=Slices(1000), b=Slices(50))
    samples = [cycle_gan_model._fixed_sample(dataset, seed, 4) for seed in (*range(40), 0)]
    of_a, of_b = ([int(sample[domain]) for sample in samples] for domain in "AB")
    assert (of_a[0], of_b[0]) == (of_a[-1], of_b[-1]) and len(set(of_a)) > 30
    # The largest of eight random numbers lies at 8/9 on average, with a standard deviation of 0.1; of 40 such: 0.016.
    assert np.mean(of_a) / 1000 == pytest.approx(8 / 9, abs=0.06)
    assert np.mean(of_b) / 50 == pytest.approx(8 / 9, abs=0.07)


def test_unpaired_slices_are_shown_before_any_random_transform(dataroot):  # noqa: F811
    augmentation = {"preprocess": "crop", "crop_size": 4, "flip": "xy", "rotate_deg": 30.0}
    dataset = open_plain(dataroot, **augmentation)
    body = torch.zeros(16, 16, dtype=torch.bool)
    body[:, 0] = True  # the mask of every slice
    for domain, number in (("a", 2), ("b", 3)):
        source = getattr(dataset, domain)
        image = torch.from_numpy(source.read(number, with_mask=False).image)
        assert torch.equal(dataset.whole(source, number, 4), centred(image, body, 4, outside=-1.0))


def pairs_model(root, folder, *more: str) -> SimulatedPairsModel:
    words = ["--dataroot", str(root), "--checkpoints_dir", str(folder), "--name", "x", *more]
    settings = train_options.parse([*PAIRS, *words])
    ct = SimulatedPairsModel.open_data(settings.model, settings.data)
    return SimulatedPairsModel.from_data(settings.model, settings.data, ct, Place(torch.device("cpu")))


def test_a_simulated_pair_is_a_whole_slab_of_a_ct_that_the_seed_chooses(ct_dataroot, tmp_path):  # noqa: F811
    volumes = open_simulation_set(ct_dataroot).volumes.values()
    shown = {seed: pairs_model(ct_dataroot, tmp_path, "--seed", str(seed)).fixed_visuals() for seed in (1, 1, 2)}
    again = pairs_model(ct_dataroot, tmp_path, "--seed", "1").fixed_visuals()
    for name in ("simulated_A", "simulated_B"):
        assert torch.equal(shown[1][name], again[name])
    assert not torch.equal(shown[1]["simulated_A"], shown[2]["simulated_A"])
    ct_map = IntensityMap(CT_TRANSFERS["soft_tissue"])
    for images in shown.values():
        middle = images["simulated_B"][0, 1].numpy()
        slices = [np.asarray(ct_map.to_network(plane)) for volume in volumes for plane in volume["hu"]]
        bodies = [plane[np.ix_(*(np.flatnonzero((plane > -0.9).any(k)) for k in (1, 0)))] for plane in slices]
        box = middle[np.ix_(*(np.flatnonzero((middle > -0.9).any(k)) for k in (1, 0)))]
        assert any(box.shape == body.shape and np.allclose(box, body, atol=1e-5) for body in bodies)
        assert images["simulated_A"].shape == images["simulated_B"].shape == images["from_simulated_A"].shape


def test_real_mr_is_shown_as_it_is_in_use_though_none_is_read_in_training(ct_dataroot, tmp_path):  # noqa: F811
    model = pairs_model(ct_dataroot, tmp_path)
    shown = model.fixed_visuals()
    mr = np.load(ct_dataroot / "trainA/mr.npy")
    window = IntensityMap.window(0, 600)
    (height, width), slab = shown["real_A"].shape[2:], shown["real_A"][0].numpy()
    top, left = (mr.shape[1] - height) // 2, (mr.shape[2] - width) // 2  # a cylinder in the middle of the slices
    padded = np.pad(mr, ((0, 0), *[(max(-start, 0), max(-start, 0)) for start in (top, left)]))
    rows, columns = (slice(max(start, 0), max(start, 0) + extent) for start, extent in ((top, height), (left, width)))
    np.testing.assert_allclose(slab, window.to_network(padded[2:5, rows, columns]), atol=1e-5)
    assert torch.equal(shown["fake_B"], model._run_in_use("G_A", shown["real_A"]))


def test_without_mr_that_the_model_could_take_the_pair_is_shown_alone(ct_dataroot, tmp_path):  # noqa: F811
    several = pairs_model(ct_dataroot, tmp_path, "--simulated_contrasts", "in_phase", "fat").fixed_visuals()
    root = tmp_path / "ct_alone"
    shutil.copytree(ct_dataroot, root)
    manifest = read_manifest(root)
    replace(manifest, cases=tuple(case for case in manifest.cases if case.domain == "B")).write(root)
    for shown in (several, pairs_model(root, tmp_path).fixed_visuals()):
        assert shown.keys() == {"simulated_A", "simulated_B", "from_simulated_A"}


def test_slices_that_cannot_be_read_cost_the_pictures_alone(method, tmp_path, monkeypatch, caplog):
    cls, words, _ = method

    def fails(self):
        raise OSError("the disk is gone")

    monkeypatch.setattr(cls, "fixed_visuals", fails)
    folder = run(words, tmp_path, "run", "--display_freq", "1")
    assert caplog.text.count("the disk is gone; training continues without it") == 1
    assert (folder / "latest_net_G_A.pth").exists()
