"""The benchmark: its reference step does what the model's does, its arithmetic holds, and its command runs."""

import json
import statistics
from argparse import Namespace

import numpy as np
import pytest
import torch

from benchmarks import machine
from benchmarks.data_sets import link_volumes, rate, simulate_data_set
from benchmarks.machine import MatrixProducts, peak_memory_mib, share_of_peak, speed_ratio, take_turns
from benchmarks.networks import compare, difference
from benchmarks.reference import PlainPool, ReferenceStep
from benchmarks.settings import BenchmarkSettings
from data.errors import InputError
from data.loading.slices import PreparedSlices
from data.prepared.manifest import read_manifest
from data.values.intensity import CT_WINDOW_HU, IntensityMap
from models.cycle_gan_model import CycleGANModel, CycleGANSettings
from models.image_pool import ImagePool
from models.shape_extractor import ExtractorSettings, ShapeExtractor
from models.simulated_pairs_model import SimulatedPairsModel
from tests.shape_data import write_prepared
from tests.test_cycle_gan_model import NO_SHAPE
from tools import benchmark

CPU = torch.device("cpu")
FULL = {"lambda_shape": 10.0, "lambda_shape_gan": 1.0}
TINY = {"netG": "resnet_6blocks", "ngf": 4, "ndf": 4, "init_gain": 0.2, "pool_size": 3, **NO_SHAPE}
LOSSES = set("G gan_A gan_B cycle_A cycle_B idt_A idt_B correlation_A correlation_B shape gan_S D_A D_B D_S".split())


def extractor():
    torch.manual_seed(3)
    return ShapeExtractor(ExtractorSettings(4, 1, IntensityMap.window(*CT_WINDOW_HU), 32, 1.0)).freeze()


def batch(samples, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand((2, samples, 1, 32, 32), generator=generator) * 2 - 1
    mask = (torch.rand((samples, 1, 32, 32), generator=generator) < 0.5).to(torch.uint8)
    return {"A": a, "B": b, "mask_A": mask}


def trained_model(samples, **settings):
    """A model of the full method in mid-training: its pools are full, its optimisers have moments."""
    model = CycleGANModel(CycleGANSettings(**TINY | FULL | settings), CPU, extractor())
    for seed in range(4):
        model.step(batch(samples, seed))
    return model


def gradient_norms(networks) -> dict[str, float]:
    """Return the Euclidean norm of every network's gradients, as its last update left them."""
    grads = {name: [p.grad for p in net.parameters() if p.grad is not None] for name, net in networks.items()}
    return {name: float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gs]))) for name, gs in grads.items()}


def differences(model, samples):
    """Relative differences of one further step of the model and of the reference: losses and gradient norms."""
    reference = ReferenceStep(model)
    found, expected = (way.step(batch(samples, 9)) for way in (model, reference))
    norms = [gradient_norms(nets) for nets in (model.networks, reference.networks)]
    assert found.keys() == expected.keys() == LOSSES
    assert norms[0].keys() == {"G_A", "G_B", "D_A", "D_B", "D_S"}
    assert min(norms[1].values()) > 1e-3
    pairs = {name: (float(found[name]), float(expected[name])) for name in found}
    pairs |= {f"gradient of {name}": (norms[0][name], norms[1][name]) for name in norms[0]}
    return {name: abs(a - b) / abs(b) for name, (a, b) in pairs.items()}


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
@pytest.mark.parametrize("samples", [1, 2])
def test_the_reference_step_agrees_in_every_loss_and_gradient(samples, direction):
    for name, apart in differences(trained_model(samples, direction=direction), samples).items():
        assert apart < 1e-5, name


def test_both_steps_leave_the_same_pools_and_weights():
    model = trained_model(2)
    reference = ReferenceStep(model)
    for seed in (9, 10):
        model.step(batch(2, seed))
        reference.step(batch(2, seed))
    for name, pool in model.pools.items():
        torch.testing.assert_close(torch.cat(reference.pools[name].images), pool.images, rtol=1e-3, atol=1e-4)
    for name, net in model.networks.items():
        for a, b in zip(net.parameters(), reference.networks[name].parameters(), strict=True):
            assert (a - b).norm() < 0.01 * 2e-4 * a.numel() ** 0.5 or a.dim() == 1  # biases before a norm are noise


def broken_cycle(self, images):
    losses = WHOLE["_generator_losses"](self, images)
    return losses | {"cycle_A": losses["cycle_A"] * 1.001}


def broken_correlation(self, fake, real):
    return WHOLE["_correlation"](self, fake, real.flip(0) if len(real) > 1 else real * 0.9 + fake.detach() * 1e-3)


def broken_discriminator(self, net, real, fake):
    return WHOLE["_discriminator_loss"](self, net, real, fake.roll(1, dims=3))


def broken_translation(self, data):
    images = WHOLE["_translate"](self, data)
    return images | {"idt_A": images["fake_B"]}


WHOLE = {name: getattr(CycleGANModel, name) for name in
         ("_generator_losses", "_correlation", "_discriminator_loss", "_translate")}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "broken", "seen"),
    [
        ("_generator_losses", broken_cycle, "cycle_A"),
        ("_correlation", broken_correlation, "correlation_A"),
        ("_discriminator_loss", broken_discriminator, "D_B"),
        ("_translate", broken_translation, "idt_A"),
    ],
)
def test_a_model_that_does_otherwise_is_seen(monkeypatch, name, broken, seen):
    model = trained_model(2)
    monkeypatch.setattr(CycleGANModel, name, broken)
    assert differences(model, 2)[seen] > 1e-4


def test_a_wrong_gradient_is_seen_though_all_losses_agree():
    model = trained_model(1)
    model.netG_A.model[1].weight.register_hook(lambda grad: 1.01 * grad)
    found = differences(model, 1)
    assert found["gradient of G_A"] > 1e-5
    assert all(found[name] < 1e-5 for name in LOSSES)


def test_the_reference_refuses_losses_that_it_does_not_know():
    model = CycleGANModel(CycleGANSettings(**TINY, gan_mode="vanilla"), CPU)
    with pytest.raises(ValueError, match="gan_mode"):
        ReferenceStep(model)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_the_plain_pool_answers_as_the_pool_does(size):
    pool = ImagePool(size, torch.Generator().manual_seed(1))
    plain = PlainPool(pool)
    for k in range(12):
        images = torch.full((2, 1, 1, 1), float(k)) + torch.arange(2)[:, None, None, None] / 2
        assert torch.equal(pool.query(images), plain.query(images))


def test_ratio_and_shares_are_those_of_known_numbers():
    assert speed_ratio([4.0, 9.0, 100.0], [2.0, 3.0, 50.0]) == 2.0
    assert share_of_peak(flop=3e12, seconds=2.0, peak_flops=2e12) == 0.75
    assert rate(100, [1.0, 4.0, 2.0]) == 50
    assert difference(np.array([1.0, 2.0]), np.array([1.5, 1.0])) == {"mean": 0.75, "greatest": 1.0}
    products = {name: Namespace(peak_flops=peak) for name, peak in (("fp32", 100e9), ("bf16", 200e9))}
    seconds = {"reference": [2.0, 2.0, 4.0], "ours": [1.0, 0.5, 1.0]}
    report = compare(seconds, 100e9, 3, products, "bf16")
    assert report["ratio"] == 4.0  # of 2, 4 and 4
    assert report["slices_per_second"] == {"reference": 1.5, "ours": 3.0}
    assert report["gflops"] == {"reference": 50.0, "ours": 100.0}
    assert report["share_of_peak"] == {"reference": 0.5, "ours": 0.5}


def test_ways_take_turns():
    order = []
    seconds = take_turns({name: lambda name=name: order.append(name) for name in "ab"}, 2, CPU)
    assert order == list("ababab")
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_the_peak_is_kept():
    products = MatrixProducts("fp32", CPU, sides=[64])
    products.measure()
    first = products.peak_flops
    assert first > 0
    products.measure()
    assert products.peak_flops >= first


def test_a_slow_product_is_neither_repeated_nor_enlarged(monkeypatch):
    """As in bfloat16 on a CPU without it, where the larger ones take minutes."""
    done = []
    monkeypatch.setattr(machine, "timed", lambda work, device: done.append(work) or 1.5)
    products = MatrixProducts("fp32", CPU, sides=[8, 16])
    products.measure()
    assert len(done) == 1
    assert products.peak_flops == pytest.approx(2 * 8**3 / 1.5)


def allocate(mib):
    np.ones(mib * 2**20, np.uint8)


@pytest.mark.slow
def test_peak_memory_is_that_of_the_work():
    low, high = (peak_memory_mib(allocate, CPU, mib) for mib in (1, 301))
    assert high - low == pytest.approx(300, abs=40)


def test_a_simulated_data_set_passes_all_checks_and_takes_no_room(tmp_path):
    root = simulate_data_set(BenchmarkSettings(work=tmp_path, size=64, case_slices=100), 6)
    manifest = read_manifest(root)
    cases = manifest.select("train", "A")
    windows = [(IntensityMap.window(0, 1000),)] * len(cases)
    source = PreparedSlices(root, cases, windows)
    assert len(source) == 300
    assert source.read(299, with_mask=True).image.shape == (1, 64, 64)
    files = list(root.rglob("*.npy"))
    assert len(files) == 12
    assert sum(file.stat().st_size for file in files) > 6 * 100 * 64 * 64 * 3
    assert sum(file.stat().st_blocks * 512 for file in files) < 2**20


def test_linked_volumes_are_the_prepared_ones(tmp_path):
    write_prepared(tmp_path / "set", ["p", "q"])
    link_volumes(tmp_path / "set", tmp_path / "linked", 3)
    cases = read_manifest(tmp_path / "linked").cases
    assert [case.name for case in cases] == [f"{p}_0_{k}" for p in "pq" for k in range(3)]
    files = [[root / case.image_file for case in read_manifest(root).cases[::step]]
             for root, step in ((tmp_path / "set", 1), (tmp_path / "linked", 3))]  # fmt: skip
    assert all(a.samefile(b) for a, b in zip(*files, strict=True))


@pytest.mark.slow
def test_the_command_reports_networks(tmp_path, capsys):
    tiny = "--size 32 --ngf 4 --ndf 4 --extractor_width 2 --netG resnet_6blocks --slices 3 --turns 1 --device cpu"
    file = tmp_path / "report.json"
    benchmark.main([*tiny.split(), "--what", "train", "synthesis", "--precision", "bf16", "--json", str(file)])
    report = json.loads(file.read_text())
    assert json.loads(capsys.readouterr().out) == report
    assert report.keys() == {"date", "settings", "hardware", "train", "synthesis"}
    assert {"cpu", "cores", "torch", "device", "threads"} <= report["hardware"].keys()
    assert report["settings"]["ngf"] == 4
    for name in ("train", "synthesis"):
        found = report[name]
        assert found["precision"] == "bf16"
        assert found["peak_gflops"].keys() == {"fp32", "bf16"}
        assert found["ratio"] > 0
        assert 0 < found["share_of_peak"]["ours"] < 1
    assert report["train"]["iterations_per_second"]["ours"] > 0
    assert report["train"]["peak_memory_mib"]["reference"] > 100
    assert report["synthesis"]["difference"]["mean"] < 0.1


def test_the_operations_are_counted(tmp_path):
    """A convolution of 3 x 3 from 4 to 4 features takes 2 * 9 * 16 operations a pixel, and so on."""
    found = benchmark.measure_synthesis(
        BenchmarkSettings(
            work=tmp_path, size=16, ngf=2, netG="resnet_6blocks", slices=2, turns=1, device=CPU, precision="fp32"
        )
    )
    macs = 2 * 49 * 256 * 2 + (2 * 4 * 9 * 64 + 4 * 8 * 9 * 16) * 2 + 12 * 8 * 8 * 9 * 16
    assert found["gflop"] == pytest.approx(2 * 2 * macs / 1e9, abs=2e-6)
    assert found["difference"]["greatest"] < 1e-5


@pytest.mark.slow
def test_the_command_reports_data(tmp_path):
    tiny = "--size 64 --patients 1 --volume_slices 20 --workers 1 --num_threads 0 1 --volumes 4 8 --case_slices 3"
    nets = "--ngf 2 --ndf 2 --extractor_width 2 --netG resnet_6blocks --device cpu --turns 1"
    what = ["--what", "prepare", "loader", "startup", "--work", str(tmp_path / "w")]
    file = tmp_path / "report.json"
    benchmark.main([*tiny.split(), *nets.split(), *what, "--json", str(file)])
    report = json.loads(file.read_text())
    assert report["prepare"]["slices_per_second"].keys() == {"1"}
    assert report["loader"]["pairs_per_second"].keys() == {"0", "1"}
    assert report["startup"]["slices"] == {"4": 12, "8": 24}
    assert min(report["startup"]["median_seconds"].values()) > 0
    assert abs(report["startup"]["memory_growth_mib"]) < 50


def test_the_command_reports_the_simulation(tmp_path, capsys, monkeypatch):
    drawn, draw = [], SimulatedPairsModel.draw

    def counted(self):
        pairs = draw(self)
        drawn.append(pairs[0].shape)
        return pairs

    monkeypatch.setattr(SimulatedPairsModel, "draw", counted)
    tiny = "--what simulation --simulation_size 32 --simulation_batch 2 --turns 3 --device cpu"
    benchmark.main([*tiny.split(), "--work", str(tmp_path)])
    found = json.loads(capsys.readouterr().out)["simulation"]
    assert (found["pixels"], found["pairs_a_batch"]) == (32, 2)
    # Two pairs a batch, four batches a turn; a turn of each for the warm-up.
    assert drawn == 4 * (4 * [(2, 1, 32, 32)] + 4 * [(2, 5, 32, 32)])
    for slab, pairs in found["pairs_per_second"].items():
        assert pairs == pytest.approx(8 / statistics.median(found["seconds"][slab]), rel=0.1)
    assert found["pairs_per_second"].keys() == {"1", "5"}


@pytest.mark.slow
def test_a_training_that_cannot_start_is_reported(tmp_path):
    settings = BenchmarkSettings(work=tmp_path, volumes=(1,), size=16, case_slices=2, device=CPU)
    with pytest.raises(InputError, match=r"domain B .* no slice"):  # one volume is an MR
        benchmark.measure_startup(settings)
