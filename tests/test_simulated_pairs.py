"""Training on simulated pairs: slabs cut on the device, limbs beside trunks, exact resume, the command."""

import builtins
import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.errors import InputError
from data.prepared.manifest import read_manifest
from data.prepared.preparation import prepare_dataset
from data.prepared.sources import Source
from data.simulation.pasted_limbs import paste_limbs
from data.simulation.simulated_mr import Draws
from data.simulation.simulation_set import SimulationSet, open_simulation_set
from data.simulation.slab_stock import Crop, SlabStock
from data.values.intensity import CT_TRANSFERS, IntensityMap
from data.volumes.volume import Volume, write_volume
from models.inference_settings import read_inference_settings
from models.synthesis import load_synthesiser, synthesize_volume
from scripts import train_simulated
from training.simulated_pairs import SimulatedPairsSettings, SimulatedPairsTraining, curve

CPU = torch.device("cpu")
CT_MAP = IntensityMap(CT_TRANSFERS["soft_tissue"])
OUTSIDE = {"hu": -1000.0, "depth": 0.0}


def draws(batch: int, seed: int = 0) -> Draws:
    return Draws(batch, torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed))


def disc(radius: int, size: int = 32, slices: int = 4, hu: float = 40.0) -> dict[str, np.ndarray]:
    """A cylinder with a bone of a quarter of its radius in its axis; the HU of its slices differ by 1."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    r = np.hypot(y, x)
    plane = np.where(r < radius, hu, -1000.0)
    plane[r < radius / 4] = 900.0
    volume = np.stack([np.where(plane > -500, plane + k, plane) for k in range(slices)])
    return {"hu": volume.astype(np.int16), "depth": np.where(volume > 500, 8, 0).astype(np.uint8)}


def test_the_curve_is_the_intensity_map_both_ways():
    hu = np.linspace(-1200, 1600, 300).astype(np.float32)
    there = curve(torch.from_numpy(hu), CT_MAP.knots).numpy()
    np.testing.assert_allclose(there, CT_MAP.to_network(hu), atol=2e-6)
    back = curve(torch.from_numpy(there), tuple((y, x) for x, y in CT_MAP.knots)).numpy()
    np.testing.assert_allclose(back, hu.clip(-1000, 1400), atol=5e-3)


def test_a_slab_that_is_not_turned_is_the_volume_s_own_voxels():
    a, b = disc(10), disc(12, slices=3)
    stock = SlabStock([a, b], OUTSIDE, "hu", CPU)
    crop = Crop(3, 16)
    centre = torch.tensor([1, 4, 6])  # of a, and b's first and last
    at = (torch.full((3,), 15.5), torch.full((3,), 17.5))
    cut = stock.cut(centre, at, torch.ones(3, 1, 1, 1), crop, draws(3))
    rows, columns = slice(10, 26), slice(8, 24)
    expected = np.stack([a["hu"][0:3], b["hu"][[0, 0, 1]], b["hu"][[1, 2, 2]]])[:, :, rows, columns]
    np.testing.assert_allclose(cut["hu"].numpy(), expected, atol=1e-2)
    np.testing.assert_allclose(cut["depth"][0].numpy(), a["depth"][0:3, rows, columns], atol=1e-4)


def test_beyond_the_slices_is_air():
    stock = SlabStock([disc(10)], OUTSIDE, "hu", CPU)
    at = (torch.tensor([0.0]), torch.tensor([0.0]))
    cut = stock.cut(torch.tensor([1]), at, torch.ones(1, 1, 1, 1), Crop(1, 16), draws(1))
    assert (cut["hu"][0, 0, :7, :7] == -1000).all()


def test_zoom_makes_a_body_as_much_larger():
    stock = SlabStock([disc(10, 64)], OUTSIDE, "hu", CPU)
    at, crop = (torch.full((1,), 31.5), torch.full((1,), 31.5)), Crop(1, 64)
    areas = [
        (stock.cut(torch.tensor([1]), at, torch.full((1, 1, 1, 1), zoom), crop, draws(1))["hu"] > -480).sum().item()
        for zoom in (1.0, 2.0)
    ]
    assert areas[1] / areas[0] == pytest.approx(4, rel=0.05)


def test_mirroring_is_by_the_axis_that_was_asked_for():
    half = disc(12)
    half["hu"][:, :, :16] = -1000  # only the right half of the columns is body
    stock = SlabStock([half], OUTSIDE, "hu", CPU)
    centre, at = torch.ones(64, dtype=torch.long), (torch.full((64,), 15.5), torch.full((64,), 15.5))
    sides = stock.cut(centre, at, torch.ones(64, 1, 1, 1), Crop(1, 32, flip_x=True), draws(64))["hu"][:, 0]
    left = (sides[:, :, :16] > -500).flatten(1).any(1)
    assert 16 < left.sum() < 48
    assert torch.equal(sides[left][0].flip(1), sides[~left][0])
    kept = stock.cut(centre, at, torch.ones(64, 1, 1, 1), Crop(1, 32), draws(64))["hu"][:, 0]
    assert not (kept[:, :, :16] > -500).any()


def test_limbs_lie_beside_the_trunk_and_leave_it_as_it_was():
    trunks = SlabStock([disc(12, 96)], OUTSIDE, "hu", CPU)
    limbs = SlabStock([disc(14, 96, hu=70)], OUTSIDE, "hu", CPU)
    crop = Crop(1, 96)
    n = 40
    at = (torch.full((n,), 47.5), torch.full((n,), 47.5))
    before = trunks.cut(torch.ones(n, dtype=torch.long), at, torch.ones(n, 1, 1, 1), crop, draws(n))
    trunk = {**before, "zoom": torch.ones(n, 1, 1, 1)}
    paste_limbs(trunk, limbs, crop, 4.0, draws(n, 1))
    body = before["hu"] > -500
    assert torch.equal(trunk["hu"][body], before["hu"][body])
    added = (trunk["hu"] > -500) & ~body
    sides = torch.stack([added[..., :48].flatten(1).any(1), added[..., 48:].flatten(1).any(1)])
    assert 0.4 < sides.float().mean().item() < 0.8  # six of ten
    bone = trunk["depth"].sum((1, 2, 3)) > before["depth"].sum((1, 2, 3))
    assert torch.equal(bone, sides.any(0))


def simulation_set() -> SimulationSet:
    return SimulationSet({"trunk": disc(14), "leg": disc(9), "leg2": disc(8)}, 3.0, 2.0, 32)


TINY = SimulatedPairsSettings(slab=3, crop_size=16, batch_size=4, ngf=4, lr=5e-3)


def test_the_same_seed_gives_the_same_training_and_a_resumed_one_ends_with_the_same_weights():
    whole, again = (SimulatedPairsTraining(TINY, simulation_set(), ["leg", "leg2"], CT_MAP, CPU) for _ in "ab")
    losses = [whole.step(k / 6) for k in range(6)]
    for k in range(3):
        assert again.step(k / 6) == losses[k]
    state = again.state_dict()
    resumed = SimulatedPairsTraining(TINY, simulation_set(), ["leg", "leg2"], CT_MAP, CPU)
    resumed.load_state_dict(state)
    assert [resumed.step(k / 6) for k in range(3, 6)] == losses[3:]
    for name, value in whole.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[name]), name


def test_a_batch_holds_trunks_and_limbs_by_share():
    training = SimulatedPairsTraining(TINY, simulation_set(), ["leg", "leg2"], CT_MAP, CPU)
    assert training.parts == [2, 2]
    mr, hu = training.draw()
    assert mr.shape == hu.shape == (4, 3, 16, 16)
    assert mr.min() >= -1
    assert mr.max() <= 1
    assert SimulatedPairsTraining(TINY, simulation_set(), [], CT_MAP, CPU).parts == [4]


def test_the_generator_learns():
    training = SimulatedPairsTraining(TINY, simulation_set(), [], CT_MAP, CPU)
    losses = [float(training.step(k / 60)["simulated"]) for k in range(60)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])


def test_the_hu_term_is_the_mean_error_in_hu():
    training = SimulatedPairsTraining(TINY, simulation_set(), [], CT_MAP, CPU)
    generators = {name: generator.get_state() for name, generator in training.generators.items()}
    weights = {name: value.clone() for name, value in training.net.state_dict().items()}
    loss = training.step(0.0)
    for name, generator in training.generators.items():
        generator.set_state(generators[name])
    training.net.load_state_dict(weights)
    with torch.no_grad():
        mr, hu = training.draw()
        output = training.net(mr)
    error = np.abs(CT_MAP.to_physical(output.numpy()) - hu.numpy().clip(-1000, 1400)).mean() / 1000
    assert float(loss["hu"]) == pytest.approx(error, rel=1e-4)


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    """Two CT and an MR of cylinders of 32 x 32 pixels of 2 mm."""
    folder = tmp_path_factory.mktemp("cylinders")
    spacing = (2.0, 2.0, 3.0)
    sources = []
    for k, radius in enumerate((11, 13)):
        array = disc(radius, slices=6)["hu"]
        write_volume(Volume(array, spacing, (0.0, 0.0, 9.0 * k)), folder / f"ct{k}.nii.gz")
        sources.append(Source(f"ct{k}", f"ct{k}", folder / f"ct{k}.nii.gz"))
    rng = np.random.default_rng(0)
    mr = np.where(array > -500, 500, 0) + rng.integers(0, 40, array.shape)
    write_volume(Volume(mr.astype(np.int16), spacing, (0.0, 0.0, 0.0)), folder / "mr.nii.gz")
    groups = {("train", "A"): [Source("mr", "mr", folder / "mr.nii.gz")], ("train", "B"): sources}
    prepare_dataset(folder / "data", groups, 32, 2.0)
    return folder / "data"


def test_what_the_simulation_needs_is_computed_once(dataroot, monkeypatch):
    first = open_simulation_set(dataroot)
    assert sorted(first.volumes) == ["ct0", "ct1"]
    assert (first.slice_mm, first.pixel_mm, first.size) == (3.0, 2.0, 32)
    monkeypatch.setattr("data.simulation.simulation_set.ProcessPoolExecutor", None)  # nothing is left to compute
    again = open_simulation_set(dataroot)
    np.testing.assert_array_equal(again.volumes["ct1"]["depth"], first.volumes["ct1"]["depth"])
    assert first.volumes["ct0"]["hu"].max() > 800


@pytest.mark.parametrize("content", [b"of somebody else", b"", "archive", "array"])
def test_files_of_others_where_the_simulation_keeps_its_own_stay(dataroot, monkeypatch, content):
    open_simulation_set(dataroot)
    path = dataroot / "simulation/ct1.npz"
    own = path.read_bytes()
    with path.open("wb") as file:
        if content == "archive":
            np.savez(file, hu=np.zeros(3))
        elif content == "array":
            np.save(file, np.zeros(3))
        else:
            file.write(content)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"ct1.npz: exists already.*; choose another --dataroot, or move it away"):
        open_simulation_set(dataroot)
    assert path.read_bytes() == before
    path.write_bytes(own)
    with monkeypatch.context() as patch:  # of another method: its own, and renewed
        patch.setattr("data.simulation.simulation_set.METHOD_VERSION", -1)
        patch.setattr("data.simulation.simulation_set.ProcessPoolExecutor", lambda *_: nullcontext(builtins))
        open_simulation_set(dataroot)
    assert path.read_bytes() != own


def test_slices_of_different_spacing_are_refused(dataroot, monkeypatch):
    manifest = read_manifest(dataroot)
    case = manifest.select("train", "B")[0]
    case.frame["source_spacing"] = (2.0, 2.0, 5.0)
    monkeypatch.setattr("data.simulation.simulation_set.read_manifest", lambda root: manifest)
    with pytest.raises(InputError, match=r"ct1 lie 3 mm apart, those of ct0 5 mm.*--slice_mm"):
        open_simulation_set(dataroot)


OPTIONS = "--slab 3 --crop_size 16 --batch_size 2 --ngf 2 --device cpu --print_freq 2".split()


def run(dataroot, checkpoints, *options) -> int:
    arguments = ["--dataroot", str(dataroot), "--checkpoints_dir", str(checkpoints), *OPTIONS, *options]
    return train_simulated.main(arguments)


def test_the_command_trains_resumes_and_its_model_converts(dataroot, tmp_path, monkeypatch):
    assert run(dataroot, tmp_path, "--name", "whole", "--steps", "6", "--mr_window", "0", "600") == 0
    # The same, stopped by a signal after three steps.
    step, steps = SimulatedPairsTraining.step, []

    class Stopped(train_simulated.Interruption):
        received = property(lambda self: 15 if len(steps) == 3 else 0, lambda self, value: None)

    def counted(training, progress):
        steps.append(progress)
        return step(training, progress)

    monkeypatch.setattr(SimulatedPairsTraining, "step", counted)
    length = ["--name", "parts", "--steps", "6", "--mr_window", "0", "600"]
    with monkeypatch.context() as patch:
        patch.setattr(train_simulated, "Interruption", Stopped)
        assert run(dataroot, tmp_path, *length) == 128 + 15
    assert run(dataroot, tmp_path, *length, "--continue_train") == 0
    assert steps == [k / 6 for k in range(6)]
    whole, parts = (
        torch.load(tmp_path / name / "latest_net_G_A.pth", weights_only=True) for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    settings = json.loads((tmp_path / "whole/inference.json").read_text())
    assert (settings["slab"], settings["mr_window"], settings["spacing_mm"]) == (3, [0.0, 600.0], 2.0)
    synthesiser = load_synthesiser(tmp_path / "whole", "latest", CPU)
    body = disc(12, slices=5)["hu"] > -500
    mr = np.where(body, np.random.default_rng(0).integers(300, 600, body.shape), 0).astype(np.int16)
    ct = synthesize_volume(Volume(mr, (2.0, 2.0, 3.0)), synthesiser, body=body)
    assert ct.array.shape == mr.shape
    assert ct.array.dtype == np.int16


@pytest.mark.parametrize("corrected", [False, True])
def test_in_use_mr_is_corrected_for_its_bias_field_where_the_data_set_s_was(dataroot, tmp_path, monkeypatch, corrected):
    manifest = read_manifest(dataroot)
    cases = tuple(replace(case, bias_corrected=corrected and case.domain == "A") for case in manifest.cases)
    monkeypatch.setattr("scripts.train_simulated.read_manifest", lambda root: replace(manifest, cases=cases))
    run(dataroot, tmp_path, "--name", "x", "--steps", "1")
    assert read_inference_settings(tmp_path / "x").bias_correction is corrected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "x", "--limbs", "STS"], "no CT has that in its name"),
        (["--name", "x", "--leave_out", "ct"], "leaves out every CT"),
        (["--name", "x", "--crop_size", "64"], "slices of .* have 32 pixels"),
        (["--name", "x", "--continue_train"], "nothing to continue"),
    ],
)
def test_what_cannot_be_trained_is_refused(dataroot, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        run(dataroot, tmp_path, *options)
    assert not (tmp_path / "x").exists()


def test_other_options_are_refused_on_resume(dataroot, tmp_path):
    run(dataroot, tmp_path, "--name", "x", "--steps", "1")
    with pytest.raises(InputError, match=r"lr: was 0\.001, now 0\.5"):
        run(dataroot, tmp_path, "--name", "x", "--steps", "2", "--lr", "0.5", "--continue_train")
    with pytest.raises(InputError, match="x"):
        run(dataroot, tmp_path, "--name", "x", "--steps", "2")


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--slab", "2"], "expected an odd number"), (["--crop_size", "20"], "multiple of 16"),
     (["--mr_window", "5", "1"], "LO below HI"), (["--steps", "3", "--seconds", "4"], "not allowed with")],
)  # fmt: skip
def test_options_that_cannot_be_are_named(dataroot, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        run(dataroot, tmp_path, "--name", "x", *options)
    assert message in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_last_state(dataroot, tmp_path, monkeypatch):
    run(dataroot, tmp_path, "--name", "x", "--steps", "2")
    before = (tmp_path / "x/latest_state.pth").read_bytes()
    draw = SimulatedPairsTraining.draw

    def torn(training):
        mr, hu = draw(training)
        hu[0, 0, 0, 0] = float("nan")
        return mr, hu

    monkeypatch.setattr(SimulatedPairsTraining, "draw", torn)
    with pytest.raises(InputError, match=r"loss not finite: .*'hu': nan.*; no weight was changed by it: lower --lr"):
        run(dataroot, tmp_path, "--name", "x", "--steps", "4", "--continue_train")
    assert (tmp_path / "x/latest_state.pth").read_bytes() == before


def test_no_weight_is_changed_by_a_loss_that_is_not_finite(monkeypatch):
    training = SimulatedPairsTraining(TINY, simulation_set(), [], CT_MAP, CPU)
    training.step(0.0)
    before = {name: value.clone() for name, value in training.average.state_dict().items()}
    weights = [parameter.clone() for parameter in training.net.parameters()]
    monkeypatch.setattr("training.simulated_pairs.curve", lambda values, knots: values * float("nan"))
    with pytest.raises(InputError, match="loss not finite"):
        training.step(0.5)
    assert all(torch.equal(old, new) for old, new in zip(weights, training.net.parameters(), strict=True))
    assert all(torch.equal(value, training.average.state_dict()[name]) for name, value in before.items())
