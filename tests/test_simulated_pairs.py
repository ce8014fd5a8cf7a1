"""Training on simulated pairs: slabs cut on the device, limbs beside trunks, exact resume, the command."""

import copy
import json
import logging
import math
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train
import training.run
from data.errors import InputError
from data.loading.paired import open_paired_set
from data.loading.settings import DataSettings
from data.prepared.manifest import Manifest, read_manifest
from data.prepared.preparation import prepare_dataset
from data.prepared.sources import Source
from data.prepared.training_statistics import training_statistics
from data.prepared.volume_jobs import Failure
from data.simulation.draws import Draws
from data.simulation.pasted_limbs import paste_limbs
from data.simulation.simulation_set import SimulationSet, open_simulation_set
from data.simulation.slab_stock import Crop, SlabStock
from data.values.curve import curve, inverse
from data.values.intensity import CT_TRANSFERS, IntensityMap
from data.volumes.volume import Volume, write_volume
from models.base_model import Place
from models.inference_settings import read_inference_settings
from models.paired_model import PairedModel
from models.run_folder import load_state
from models.schedules import warmup_cosine_factor
from models.simulated_pairs_model import SimulatedPairsModel, SimulatedPairsSettings
from models.synthesis import load_synthesiser, synthesize_volume
from options import train_options

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
    back = curve(torch.from_numpy(there), inverse(CT_MAP.knots)).numpy()
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


MANIFEST = Manifest(32, 2.0, 3.0, (), {})


def simulation_set() -> SimulationSet:
    return SimulationSet({"trunk": disc(14), "leg": disc(9), "leg2": disc(8)}, 3.0, MANIFEST)


DATA = DataSettings(
    **SimulatedPairsModel.shared_defaults(DataSettings)
    | {"dataroot": "-", "slab": 3, "crop_size": 16, "batch_size": 4, "flip": "xy"}
)


def model(limbs: str = "", ema: float = 0.9, rank: int = 0, **more) -> SimulatedPairsModel:
    settings = SimulatedPairsSettings(ngf=4, lr=5e-3, limbs=limbs, ema=ema, **more)
    return SimulatedPairsModel(settings, DATA, simulation_set(), Place(CPU, rank))


def test_the_same_seed_gives_the_same_training_and_a_resumed_one_ends_with_the_same_weights():
    whole, again = (model("leg") for _ in "ab")
    losses = [whole.step({}) for _ in range(6)]
    for k in range(3):
        assert again.step({}) == losses[k]
    resumed = model("leg", seed=7)
    resumed.load_state_dict(again.state_dict())
    resumed.load_process_state(again.process_state())
    assert [resumed.step({}) for _ in range(3, 6)] == losses[3:]
    for name, value in whole.kept_networks["G_A"].state_dict().items():
        assert torch.equal(value, resumed.kept_networks["G_A"].state_dict()[name]), name


def test_no_network_is_built_that_is_not_trained():
    assert list(model().networks) == ["G_A"]
    both = model(lambda_reverse=2.0)
    assert list(both.networks) == ["G_A", "G_B"]
    weights = [parameter.clone() for parameter in both.networks["G_B"].parameters()]
    losses = both.step({})
    back, mr = both.visuals["from_simulated_B"], both.visuals["simulated_A"]
    assert float(losses["reverse"]) == pytest.approx(2 * float((back - mr).abs().mean()), rel=1e-6)
    assert any(not torch.equal(old, new) for old, new in zip(weights, both.networks["G_B"].parameters(), strict=True))


def test_processes_draw_different_slabs_with_the_same_weights():
    first, second = model(), model(rank=1)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.networks["G_A"].parameters(), second.networks["G_A"].parameters(), strict=True)
    )
    assert not torch.equal(first.draw()[0], second.draw()[0])


def test_no_two_streams_of_random_numbers_are_alike():
    """Not of the device and the host, nor of this seed's next process and the next seed's first."""
    models = [model(), model(rank=1), model(seed=1), model(seed=1, rank=1)]
    drawn = [tuple(torch.rand(4, generator=g).tolist()) for m in models for g in m.generators.values()]
    assert len(set(drawn)) == 8


def test_a_state_of_another_kind_of_device_gives_other_random_numbers_and_says_so(caplog):
    """What a run on a GPU saved continues on a CPU; twice the same way."""
    learner = model()
    learner.step({})
    state = learner.process_state()
    assert state["kind"] == "cpu"
    elsewhere = {**state, "kind": "cuda", "device": torch.zeros(16, dtype=torch.uint8)}
    with caplog.at_level(logging.WARNING):
        drawn = []
        for _ in range(2):
            resumed = model()
            resumed.load_process_state(elsewhere)
            drawn.append(resumed.draw()[0])
    assert "saved on cuda and continues on cpu" in caplog.text
    assert torch.equal(*drawn)
    learner.load_process_state(state)
    assert not torch.equal(drawn[0], learner.draw()[0])
    assert not torch.equal(drawn[0], model().draw()[0])


def test_a_batch_holds_trunks_and_limbs_by_share():
    mixed = model("leg")
    assert mixed.parts == [2, 2]
    mr, hu, counted = mixed.draw()
    assert mr.shape == hu.shape == counted.shape == (4, 3, 16, 16)
    assert mr.min() >= -1
    assert mr.max() <= 1
    assert (counted == 1).all()
    assert model().parts == [4]


def test_a_batch_is_the_same_from_one_thread_and_from_two_and_its_parts_differ():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        (alone, _, _), (next_alone, _, _) = (drawn := model()).draw(), drawn.draw()
        torch.set_num_threads(2)
        (shared, _, _), (next_shared, _, _) = (drawn := model()).draw(), drawn.draw()
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, shared)
    assert torch.equal(next_alone, next_shared)
    slabs = [*alone, *next_alone]
    assert not any(torch.equal(a, b) for k, a in enumerate(slabs) for b in slabs[:k])


@pytest.mark.parametrize(("share", "parts"), [(0.0, [4, 0]), (1.0, [0, 4])])
def test_a_batch_may_be_of_trunks_or_of_limbs_alone(share, parts):
    mixed = model("leg", limbs_share=share)
    assert mixed.parts == parts
    assert mixed.draw()[0].shape == (4, 3, 16, 16)


def test_the_generator_learns():
    learner = model()
    losses = [float(learner.step({})["pairs"]) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])


@pytest.mark.parametrize("bone_weight", [1.0, 3.0])
def test_the_losses_are_mean_errors_where_bone_counts_as_often_as_asked(bone_weight):
    learner = model(bone_weight=bone_weight)
    before, weights = learner.process_state(), copy.deepcopy(learner.networks["G_A"])
    losses = learner.step({})
    learner.load_process_state(before)
    with torch.no_grad():
        mr, hu, _ = learner.draw()
        output = weights(mr)
    hu, times = hu.numpy(), np.where(hu.numpy() > 150, bone_weight, 1)
    assert (hu > 150).any()
    in_hu = np.abs(CT_MAP.to_physical(output.numpy()) - hu.clip(-1000, 1400)) / 1000
    assert float(losses["hu"]) == pytest.approx((in_hu * times).mean(), rel=1e-4)
    error = np.abs(output.numpy() - CT_MAP.to_network(hu))
    assert float(losses["pairs"]) == pytest.approx((error * times).mean(), rel=1e-4)
    assert float(losses["G"]) == pytest.approx(float(losses["pairs"] + losses["hu"]), rel=1e-6)


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
    # On the first CT's grid, and with other voxels.
    for name, values in (("mr", np.where(disc(11, slices=6)["hu"] > -500, mr, 0)), ("mr2", mr)):
        write_volume(Volume(values.astype(np.int16), spacing, (0.0, 0.0, 0.0)), folder / f"{name}.nii.gz")
    groups = {("train", "A"): [Source("mr", "mr", folder / "mr.nii.gz")], ("train", "B"): sources}
    prepare_dataset(folder / "data", groups, 32, 2.0)
    return folder / "data"


def test_what_the_simulation_needs_is_computed_once(dataroot, monkeypatch):
    first = open_simulation_set(dataroot)
    assert sorted(first.volumes) == ["ct0", "ct1"]
    assert (first.slice_mm, first.pixel_mm, first.manifest.size) == (3.0, 2.0, 32)
    monkeypatch.setattr("data.simulation.simulation_set.simulation_volume", None)  # nothing is left to compute
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
        open_simulation_set(dataroot)
    assert path.read_bytes() != own


def read_only_copy(dataroot: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy a data set to `root`, without the simulation's maps, where they cannot be written either."""
    shutil.copytree(dataroot, root, copy_function=shutil.copy2)
    shutil.rmtree(root / "simulation")

    @contextmanager
    def read_only(path):
        raise InputError(f"{path}: cannot be written: read-only")
        yield

    monkeypatch.setattr("data.simulation.simulation_set.whole_file", read_only)
    return root


def test_a_data_set_that_may_only_be_read_is_prepared_in_memory(dataroot, tmp_path, monkeypatch, caplog):
    kept = open_simulation_set(dataroot)
    root = read_only_copy(dataroot, tmp_path / "set", monkeypatch)
    caplog.set_level(logging.INFO)
    caplog.clear()
    here = open_simulation_set(root)
    begins, unkept = caplog.messages
    assert begins == "preparing CT for the simulation of MR, once: 2 volumes"
    assert "cannot be stored, so every start computes them again" in unkept
    for name, maps in kept.volumes.items():
        for key, values in maps.items():
            np.testing.assert_array_equal(here.volumes[name][key], values)


def test_slices_of_different_spacing_are_refused(dataroot, monkeypatch):
    manifest = read_manifest(dataroot)
    case = manifest.select("train", "B")[0]
    case.frame["source_spacing"] = (2.0, 2.0, 5.0)
    monkeypatch.setattr("data.simulation.simulation_set.read_manifest", lambda root: manifest)
    with pytest.raises(
        InputError, match=r"ct1 lie 3 mm apart, those of ct0 5 mm; the simulation of MR needs one spacing.*--slice_mm"
    ):
        open_simulation_set(dataroot)
    assert open_simulation_set(dataroot, leave_out_ct="ct0").slice_mm == 3.0


def test_test_mr_say_whether_a_data_set_is_corrected_for_bias_fields(dataroot, monkeypatch):
    """They may be all the MR there is."""
    manifest = read_manifest(dataroot)
    cases = [
        replace(case, split="test", bias_corrected=True) if case.domain == "A" else case for case in manifest.cases
    ]
    with_tests = replace(manifest, cases=tuple(cases))
    monkeypatch.setattr("data.simulation.simulation_set.read_manifest", lambda root: with_tests)
    opened = open_simulation_set(dataroot, leave_out_ct="ct0").manifest
    assert opened.bias_corrected and [case.name for case in opened.select("train", "B")] == ["ct1"]


@pytest.mark.parametrize(("left_out", "kept"), [("ct0", 13), ("ct1", 11), ("nothing", None)])
def test_what_a_model_is_checked_against_is_what_it_was_trained_on(dataroot, tmp_path, left_out, kept):
    """Without a CT its larger or smaller body is unknown to the model."""
    run(dataroot, tmp_path, "--name", "x", "--leave_out", left_out, "--n_epochs", "1", "--steps_per_epoch", "1")
    training = read_inference_settings(tmp_path / "x").training
    low, high = (kept, kept) if kept else (11, 13)
    assert training.section_cm2 == pytest.approx((math.pi * (low / 5) ** 2, math.pi * (high / 5) ** 2), rel=0.03)
    manifest = read_manifest(dataroot)
    assert training.mr_high == training_statistics(manifest).mr_high  # of the MR beside them, all


def test_a_ct_that_ends_its_process_is_named_with_a_way_out(dataroot, tmp_path, monkeypatch):
    root = read_only_copy(dataroot, tmp_path / "set", monkeypatch)

    def dies(work, jobs, workers, title, way_out):
        return [], [Failure(jobs[1].source, f"{jobs[1].source.path}: the process ended abruptly; {way_out}")]

    monkeypatch.setattr("data.simulation.simulation_set.run_jobs", dies)
    with pytest.raises(InputError, match=r"trainB/ct1\.npy: the process ended abruptly; free memory.*--leave_out"):
        open_simulation_set(root, workers=2)


@pytest.mark.parametrize("folder", ["trainB", "maskB"])
def test_a_damaged_ct_is_named_with_a_way_out(dataroot, tmp_path, monkeypatch, folder):
    root = read_only_copy(dataroot, tmp_path / "set", monkeypatch)
    path = root / folder / "ct1.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{folder}/ct1\.npy: cannot be read .*; prepare the data set again"):
        open_simulation_set(root)


def test_small_slices_are_used_from_the_share_of_body_that_preparation_asks_for():
    small = disc(5, 48)  # 80 pixels of 2304
    assert np.count_nonzero(small["hu"][0] > -500) < 100
    assert SlabStock([small], OUTSIDE, "hu", CPU).used.tolist() == list(range(len(small["hu"])))
    tiny = {name: values * 0 - (1000 if name == "hu" else 0) for name, values in small.items()}
    with pytest.raises(InputError, match=r"the body covers 0\.5% of no slice of the 1 volumes .*finer pixels"):
        SlabStock([tiny], OUTSIDE, "hu", CPU)


OPTIONS = "--slab 3 --crop_size 16 --batch_size 2 --ngf 2 --device cpu --print_freq 2 --no_html".split()


def run(dataroot, checkpoints, *options) -> int:
    arguments = ["--model", "simulated_pairs", "--dataroot", str(dataroot), "--checkpoints_dir", str(checkpoints)]
    return train.main([*arguments, *OPTIONS, *options])


def test_the_command_trains_resumes_and_its_model_converts(dataroot, tmp_path, monkeypatch):
    length = ["--n_epochs", "2", "--steps_per_epoch", "3", "--mr_window", "0", "600"]
    assert run(dataroot, tmp_path, "--name", "whole", *length) == 0
    # The same, stopped by a signal after two steps of the first epoch.
    step, rates = SimulatedPairsModel.step, []

    class Stopped(training.run.Interruption):
        received = property(lambda self: 15 if len(rates) == 2 else 0, lambda self, value: None)

    def counted(self, batch):
        rates.append(self.optimisers["G"].param_groups[0]["lr"])
        return step(self, batch)

    monkeypatch.setattr(SimulatedPairsModel, "step", counted)
    with monkeypatch.context() as patch:
        patch.setattr(training.run, "Interruption", Stopped)
        assert run(dataroot, tmp_path, "--name", "parts", *length) == 128 + 15
    assert run(dataroot, tmp_path, "--name", "parts", *length, "--continue_train") == 0
    assert rates == pytest.approx([1e-3 * warmup_cosine_factor(k / 6) for k in range(6)])
    whole, parts = (
        torch.load(tmp_path / name / "latest_net_G_A.pth", weights_only=True) for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert [path.name for path in (tmp_path / "whole").glob("latest_net_*")] == ["latest_net_G_A.pth"]
    settings = json.loads((tmp_path / "whole/inference.json").read_text())
    assert (settings["slab"], settings["mr_window"], settings["spacing_mm"]) == (3, [0.0, 600.0], 2.0)
    synthesiser = load_synthesiser(tmp_path / "whole", "latest", CPU)
    body = disc(12, slices=5)["hu"] > -500
    mr = np.where(body, np.random.default_rng(0).integers(300, 600, body.shape), 0).astype(np.int16)
    ct = synthesize_volume(Volume(mr, (2.0, 2.0, 3.0)), synthesiser, body=body)
    assert ct.array.shape == mr.shape
    assert ct.array.dtype == np.int16


def test_the_frame_in_use_is_one_that_the_generator_takes(dataroot, tmp_path):
    """A data set may have slices of any size, a U-Net takes multiples of 16; earlier versions recorded the former."""
    root, inference = tmp_path / "data", tmp_path / "x/inference.json"
    prepare_dataset(root, {("train", "B"): [Source("ct0", "ct0", dataroot.parent / "ct0.nii.gz")]}, 40, 2.0)
    words = ["--name", "x", "--netG", "unet", "--steps_per_epoch", "1", "--mr_window", "0", "600"]
    assert run(root, tmp_path, *words, "--n_epochs", "1") == 0
    written = json.loads(inference.read_text())
    assert written["size"] == 48
    inference.write_text(json.dumps(written | {"size": 40}))
    assert run(root, tmp_path, *words, "--n_epochs", "2", "--continue_train") == 0
    inference.write_text(json.dumps(written | {"size": 32}))
    with pytest.raises(InputError, match="size: 32 there, 48 here"):
        run(root, tmp_path, *words, "--n_epochs", "3", "--continue_train")


def test_an_epoch_resumes_where_it_was_with_another_batch_size(dataroot, tmp_path, monkeypatch):
    step, batches = SimulatedPairsModel.step, []

    class Stopped(training.run.Interruption):
        received = property(lambda self: 15 if len(batches) == 2 else 0, lambda self, value: None)

    def counted(self, batch):
        losses = step(self, batch)
        batches.append(len(self.visuals["simulated_A"]))
        return losses

    monkeypatch.setattr(SimulatedPairsModel, "step", counted)
    length = ["--name", "x", "--n_epochs", "1", "--steps_per_epoch", "5"]
    with monkeypatch.context() as patch:
        patch.setattr(training.run, "Interruption", Stopped)
        assert run(dataroot, tmp_path, *length) == 128 + 15
    assert run(dataroot, tmp_path, *length, "--batch_size", "4", "--continue_train") == 0
    assert batches == [2, 2, 4, 4, 4]


def changed(dataroot: Path, target: Path, **values) -> Path:
    """Return a copy of a data set whose first MR, or CT with the figures of one, has other values in the manifest."""
    domain = "B" if "hu_histogram" in values else "A"
    shutil.copytree(dataroot, target)
    manifest = read_manifest(target)
    first = next(case for case in manifest.cases if case.domain == domain)
    cases = tuple(replace(case, **values) if case is first else case for case in manifest.cases)
    replace(manifest, cases=cases).write(target)
    return target


def test_other_mr_say_nothing_on_resume_to_a_training_on_ct_alone(dataroot, tmp_path, caplog):
    """As after a corrected mask of the MR; those of CT do."""
    length = ["--name", "x", "--steps_per_epoch", "1", "--n_epochs"]
    assert run(dataroot, tmp_path, *length, "1") == 0
    other_mr = changed(dataroot, tmp_path / "mr", percentiles=(0.0, 80.0))
    assert run(other_mr, tmp_path, *length, "2", "--continue_train") == 0
    assert "other intensities" not in caplog.text
    counts = list(next(case for case in read_manifest(dataroot).cases if case.domain == "B").hu_histogram)
    counts[40] += 10
    assert run(changed(dataroot, tmp_path / "ct", hu_histogram=tuple(counts)), tmp_path, *length, "3",
               "--continue_train") == 0  # fmt: skip
    assert "other intensities" in caplog.text


def test_a_training_by_the_clock_ends_with_it_and_resumes_with_the_time_that_is_left(dataroot, tmp_path, monkeypatch):
    open_simulation_set(dataroot)  # its processes wait by the clock that is put aside below
    now, taken, step = [0.0], [], SimulatedPairsModel.step

    def slow(self, batch):
        now[0] += 10.0
        taken.append(self.optimisers["G"].param_groups[0]["lr"] / 1e-3)
        return step(self, batch)

    monkeypatch.setattr(training.run.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(SimulatedPairsModel, "step", slow)
    length = ["--name", "x", "--seconds", "50", "--steps_per_epoch", "4"]
    assert run(dataroot, tmp_path, *length) == 0
    assert taken == pytest.approx([warmup_cosine_factor(k / 5) for k in range(5)])
    assert load_state(tmp_path / "x")["spent"] == 50.0
    assert run(dataroot, tmp_path, *length, "--continue_train") == 0
    assert len(taken) == 5
    assert run(dataroot, tmp_path, *length[:3], "70", *length[4:], "--continue_train") == 0
    assert taken[5:] == pytest.approx([warmup_cosine_factor(k / 7) for k in (5, 6)])


def test_a_training_by_the_clock_is_of_one_process(dataroot):
    settings = train_options.parse(
        ["--model", "simulated_pairs", "--dataroot", str(dataroot), "--name", "x", "--seconds", "5", *OPTIONS]
    )
    group = training.run.ProcessGroup()
    group.size = 2
    with pytest.raises(InputError, match=r"--seconds: 2 processes train together"):
        training.run.TrainingRun(SimulatedPairsModel, settings, group)


def test_a_cycle_gan_starts_from_it(dataroot, tmp_path):
    run(dataroot, tmp_path, "--name", "pairs", "--n_epochs", "1", "--steps_per_epoch", "2", "--slab", "1")
    where = ["--dataroot", str(dataroot), "--checkpoints_dir", str(tmp_path), "--name", "gan", "--init_from", "pairs"]
    network = (
        "--netG unet --ngf 2 --norm batch --upsample resize --netD pixel --ndf 2 --ct_transfer soft_tissue".split()
    )
    more = "--mr_window tissue --lambda_shape 0 --lambda_shape_gan 0 --device cpu --no_html --lr 1e-9".split()
    train.main([*where, *network, *more, "--n_epochs", "1", "--n_epochs_decay", "0"])
    pairs, gan = (torch.load(tmp_path / name / "latest_net_G_A.pth", weights_only=True) for name in ("pairs", "gan"))
    trained = {key for key, value in pairs.items() if value.is_floating_point() and "running" not in key}
    for key in trained:
        torch.testing.assert_close(pairs[key], gan[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize("corrected", [False, True])
def test_in_use_mr_is_corrected_for_its_bias_field_where_the_data_set_s_was(dataroot, tmp_path, monkeypatch, corrected):
    manifest = read_manifest(dataroot)
    cases = tuple(replace(case, bias_corrected=corrected and case.domain == "A") for case in manifest.cases)
    monkeypatch.setattr("data.simulation.simulation_set.read_manifest", lambda root: replace(manifest, cases=cases))
    run(dataroot, tmp_path, "--name", "x", "--n_epochs", "1", "--steps_per_epoch", "1")
    assert read_inference_settings(tmp_path / "x").bias_correction is corrected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "x", "--limbs", "STS"], "no CT has that in its name"),
        (["--name", "x", "--limbs", "ct"], "--limbs ct: every CT that is trained on has that in its name"),
        (["--name", "x", "--limbs", "ct1", "--leave_out", "ct0"], "every CT that is trained on has that"),
        (["--name", "x", "--leave_out", "ct"], "leaves out every CT"),
        (["--name", "x", "--crop_size", "64"], "slices of .* have 32 pixels"),
        (["--name", "x", "--crop_size", "20"], "multiple of 16"),
        (["--name", "x", "--continue_train"], "nothing to continue"),
    ],
)
def test_what_cannot_be_trained_is_refused(dataroot, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        run(dataroot, tmp_path, *options)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch_size", "1"], "--limbs_share 0.4: a batch of 1 would never show limbs alone"),
        (["--limbs_share", "0.9"], "--limbs_share 0.9: a batch of 2 would never show trunks"),
    ],
)
def test_a_share_of_limbs_that_no_batch_can_show_is_refused(dataroot, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as end:
        run(dataroot, tmp_path, "--name", "x", "--limbs", "ct1", *options)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_other_networks_are_refused_on_resume(dataroot, tmp_path):
    short = ["--name", "x", "--n_epochs", "1", "--steps_per_epoch", "1"]
    run(dataroot, tmp_path, *short)
    for option in (["--ngf", "4"], ["--slab", "5"], ["--norm", "instance"]):
        with pytest.raises(InputError, match=f"{option[0][2:]}: was .*, now {option[1]}"):
            run(dataroot, tmp_path, *short, *option, "--continue_train")
    with pytest.raises(InputError, match="already holds a run"):
        run(dataroot, tmp_path, *short)


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--slab", "2"], "expected an odd number"), (["--preprocess", "crop"], "--preprocess crop"),
     (["--mr_window", "5", "1"], "LO below HI"), (["--max_dataset_size", "3"], "--max_dataset_size does nothing"),
     (["--lr_policy", "linear", "--seconds", "4"], "--seconds needs --lr_policy warmup_cosine")],
)  # fmt: skip
def test_options_that_cannot_be_are_named(dataroot, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        run(dataroot, tmp_path, "--name", "x", *options)
    assert message in capsys.readouterr().err


def test_a_window_takes_the_place_of_the_method_s_own_curve():
    words = ["--model", "simulated_pairs", "--dataroot", "d", "--name", "x"]
    assert train_options.parse(words).data.ct_map == CT_MAP
    assert train_options.parse([*words, "--ct_window", "-500", "900"]).data.ct_map == IntensityMap.window(-500, 900)


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_last_state(dataroot, tmp_path, monkeypatch):
    length = ["--name", "x", "--steps_per_epoch", "2", "--n_epochs"]
    run(dataroot, tmp_path, *length, "1")
    before = (tmp_path / "x/latest_state.pth").read_bytes()
    draw = SimulatedPairsModel.draw

    def torn(self):
        mr, hu, counted = draw(self)
        hu[0, 0, 0, 0] = float("nan")
        return mr, hu, counted

    monkeypatch.setattr(SimulatedPairsModel, "draw", torn)
    with pytest.raises(InputError, match=r"loss not finite: .*'hu': nan.*; no weight was changed by it: lower --lr"):
        run(dataroot, tmp_path, *length, "2", "--continue_train")
    assert (tmp_path / "x/latest_state.pth").read_bytes() == before


def test_no_weight_is_changed_by_a_loss_that_is_not_finite(monkeypatch):
    learner = model()
    learner.step({})
    before = copy.deepcopy(learner.kept_networks["G_A"].state_dict())
    weights = [parameter.clone() for parameter in learner.networks["G_A"].parameters()]
    monkeypatch.setattr("models.slab_model.curve", lambda values, knots: values * float("nan"))
    with pytest.raises(InputError, match="loss not finite"):
        learner.step({})
    assert all(torch.equal(old, new) for old, new in zip(weights, learner.networks["G_A"].parameters(), strict=True))
    assert all(torch.equal(value, learner.kept_networks["G_A"].state_dict()[name]) for name, value in before.items())


@pytest.fixture(scope="module")
def pairs(dataroot, tmp_path_factory):
    """The MR and a CT of one patient on one grid, and another MR without CT."""
    root = tmp_path_factory.mktemp("pairs")
    there = dataroot.parent
    cases = {
        ("train", "A"): [Source("mr", "p", there / "mr.nii.gz"), Source("alone", "q", there / "mr2.nii.gz")],
        ("train", "B"): [Source("ct", "p", there / "ct0.nii.gz"), Source("other", "r", there / "ct1.nii.gz")],
    }
    prepare_dataset(root / "data", cases, 32, 2.0)
    return root / "data"


def test_pairs_are_of_one_patient_on_one_grid(pairs, caplog):
    caplog.set_level(logging.INFO)
    opened = open_paired_set(pairs, (0, 600), CT_MAP)
    assert "1 of 2 MR have no CT on their grid" in caplog.text
    (name,) = opened.volumes
    maps = opened.volumes[name]
    assert (name, opened.manifest.size, opened.pixel_mm, opened.slice_mm) == ("mr", 32, 2.0, 3.0)
    assert len(opened.manifest.cases) == 2  # neither the other MR nor its CT
    body = maps["hu"] > -500
    assert maps["counted"][~body].all()  # air counts wherever it is
    assert maps["counted"][body].mean() > 0.9
    assert (maps["mr"][~body] < -0.8).all()
    assert (maps["mr"][body].astype(float) > 0.6).mean() > 0.95


def test_a_training_on_pairs_is_validated_by_the_true_error():
    words = ["--dataroot", "x", "--name", "x", "--val"]
    for model, criterion in (("paired", "mae"), ("simulated_pairs", "simulated_mae")):
        assert train_options.parse([*words, "--model", model]).validation.val_criterion == criterion


def test_a_data_set_without_pairs_says_how_they_are_made(dataroot):
    said = (
        r"no patient has both MR and CT\. MR of mr; CT of ct0, ct1\. If these are the same patients, .*--patient_regex"
    )
    with pytest.raises(InputError, match=said):
        open_paired_set(dataroot, (0, 600), CT_MAP)


def test_pairs_on_different_grids_say_which(dataroot, tmp_path):
    there = dataroot.parent
    cases = {
        ("train", "A"): [Source("mr", "p", there / "mr.nii.gz")],
        ("train", "B"): [Source("ct", "p", there / "ct1.nii.gz")],  # which begins 9 mm higher
    }
    prepare_dataset(tmp_path / "data", cases, 32, 2.0)
    with pytest.raises(InputError, match=r"MR and CT of p lie on different grids; register the CT to the MR, resample"):
        open_paired_set(tmp_path / "data", (0, 600), CT_MAP)


def test_the_paired_method_trains_and_leaves_out_what_the_mr_does_not_see(pairs, tmp_path):
    words = "--model paired --n_epochs 1 --steps_per_epoch 60 --lr 2e-2 --ngf 4 --batch_size 4".split()
    words += "--mr_window 0 600 --ema 0.9".split()
    assert run(pairs, tmp_path, "--name", "x", "--print_freq", "1", *words) == 0
    records = [json.loads(line)["losses"]["pairs"] for line in (tmp_path / "x/losses.jsonl").read_text().splitlines()]
    assert np.mean(records[-5:]) < 0.7 * np.mean(records[:5])
    settings = train_options.parse([*words, "--dataroot", str(pairs), "--name", "y", *OPTIONS])
    opened = PairedModel.open_data(settings.model, settings.data)
    opened.volumes["mr"]["counted"][:] = 0
    learner = PairedModel.from_data(settings.model, settings.data, opened, Place(CPU))
    losses = learner.step({})
    seen = learner.draw()[2]
    assert (seen[:, :, 4:-4, 4:-4] == 0).all()
    assert float(losses["pairs"]) < 0.2


@pytest.mark.parametrize(
    ("slab", "slice_mm", "margin", "mr_slice_mm"),
    [(5, 2.0, 3, 6.0), (5, 3.27, 3, 9.0), (5, 5.0, 2, 9.0), (5, 20.0, 1, 9.0), (1, 3.0, 1, 9.0), (3, 0.344, 3, 1.032)],
)
def test_thick_slices_are_drawn_up_to_three_slices_of_the_data_set(slab, slice_mm, margin, mr_slice_mm):
    data = DataSettings(dataroot=Path(), slab=slab, crop_size=16, batch_size=2, preprocess="crop")
    ct = SimulationSet({"a": disc(8, slices=12)}, slice_mm, MANIFEST)
    model = SimulatedPairsModel(SimulatedPairsSettings(ngf=1), data, ct, Place(torch.device("cpu")))
    assert (model.margin, model.simulation.mr_slice_mm) == (margin, pytest.approx(mr_slice_mm))
    mr, hu, _ = model.draw()
    assert mr.shape == hu.shape == (2, slab, 16, 16)
