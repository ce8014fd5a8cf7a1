"""The model's step: its losses are those of the method, and each optimiser moves its own networks only."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from data.loading.channels import with_channels
from models.averages import WarmedUpAverage
from models.cycle_gan_model import CycleGANModel, CycleGANSettings
from models.finite_losses import NonFiniteLossError
from models.losses import correlation_loss, gan_loss, local_correlation_loss
from models.networks import Architecture, build_generator

CPU = torch.device("cpu")
NO_SHAPE = {"lambda_shape": 0.0, "lambda_shape_gan": 0.0}
TINY = {"netG": "resnet_6blocks", "ngf": 4, "ndf": 4, "init_gain": 0.2, **NO_SHAPE}


def batch(size=32, samples=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = (torch.rand((2, samples, 1, size, size), generator=generator) * 2 - 1).unbind()
    return {"A": images[0], "B": images[1], "origin_A": ["m:1"] * samples, "origin_B": ["c:2"] * samples}


def weights(model, *names):
    return {
        f"{name}.{key}": value.clone() for name in names for key, value in model.networks[name].state_dict().items()
    }


def assert_losses_of_the_method(model: CycleGANModel, data: dict) -> None:
    """Take a step, whose losses must be those of the published equations for the networks as they were before it."""
    nets = copy.deepcopy(model.networks)
    losses = model.step(data)
    a, b = (data["A"], data["B"]) if model.settings.direction == "AtoB" else (data["B"], data["A"])
    fake_b, fake_a = nets["G_A"](a), nets["G_B"](b)
    assert (fake_a.shape, fake_b.shape) == (a.shape, b.shape)  # `G_B` gives all contrasts back
    of_b, of_a = with_channels(b, a.shape[1]), with_channels(a, b.shape[1])
    expected = {
        "gan_A": gan_loss(nets["D_A"](fake_b), True),
        "gan_B": gan_loss(nets["D_B"](fake_a), True),
        "cycle_A": 10 * F.l1_loss(nets["G_B"](fake_b), a),
        "cycle_B": 10 * F.l1_loss(nets["G_A"](fake_a), b),
        "idt_A": 5 * F.l1_loss(nets["G_A"](of_b), b),
        "idt_B": 5 * F.l1_loss(nets["G_B"](of_a), a),
        "correlation_A": 2 * correlation_loss(fake_b, a),
        "correlation_B": 2 * correlation_loss(fake_a, b),
    }
    expected["G"] = sum(expected.values())
    expected["D_A"] = (gan_loss(nets["D_A"](b), True) + gan_loss(nets["D_A"](fake_b), False)) / 2
    expected["D_B"] = (gan_loss(nets["D_B"](a), True) + gan_loss(nets["D_B"](fake_a), False)) / 2
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value.detach(), rtol=1e-5, atol=1e-6)
        assert not losses[name].requires_grad


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_the_losses_are_those_of_the_method(direction):
    assert_losses_of_the_method(CycleGANModel(CycleGANSettings(**TINY, direction=direction), CPU), batch(samples=2))


def test_every_loss_has_its_own_weight():
    """The same networks and images, once with the published weights and once with others that all differ."""
    other = {"lambda_gan": 0.5, "lambda_A": 3, "lambda_B": 7, "lambda_identity": 0.25}
    other |= {"lambda_correlation_A": 1.5, "lambda_correlation_B": 4}
    published, weighted = (CycleGANModel(CycleGANSettings(**TINY, **w), CPU).step(batch()) for w in ({}, other))
    ratios = {
        "gan_A": 0.5, "gan_B": 0.5, "cycle_A": 3 / 10, "cycle_B": 7 / 10, "idt_A": 0.25 * 7 / 5, "idt_B": 0.25 * 3 / 5,
        "correlation_A": 1.5 / 2, "correlation_B": 4 / 2, "D_A": 1, "D_B": 1,
    }  # fmt: skip
    assert published.keys() == weighted.keys() == {"G", *ratios}
    for name, ratio in ratios.items():
        assert float(weighted[name] / published[name]) == pytest.approx(ratio, rel=1e-4), name


@pytest.mark.parametrize("identity", [0.0, 0.5])
def test_batch_norm_remembers_real_images_alone(identity):
    """In use a generator never gets what another one made: neither cycles nor identity change its statistics."""
    options = TINY | {"norm": "batch", "lambda_identity": identity, "lambda_simulated": 10.0}
    model = CycleGANModel(CycleGANSettings(**options), CPU)
    data, pairs = batch(samples=2), batch(samples=2, seed=7)
    data |= {"simulated_A": pairs["A"], "simulated_B": pairs["B"]}
    expected = copy.deepcopy(model.networks)
    model.step(data)
    for letter in "AB":
        for given in (data[letter], data[f"simulated_{letter}"]):
            expected[f"G_{letter}"](given)
        found = dict(model.networks[f"G_{letter}"].named_buffers())
        means = {name: value for name, value in expected[f"G_{letter}"].named_buffers() if "running" in name}
        assert len(means) > 10
        for name, value in means.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
        norms = [part for part in model.networks[f"G_{letter}"].modules() if isinstance(part, torch.nn.BatchNorm2d)]
        assert {norm.momentum for norm in norms} == {0.1}


def test_terms_of_weight_zero_are_left_out():
    settings = CycleGANSettings(**TINY, lambda_identity=0, lambda_correlation_A=0, lambda_correlation_B=0)
    assert set(CycleGANModel(settings, CPU).step(batch())) == {
        "G", "gan_A", "gan_B", "cycle_A", "cycle_B", "D_A", "D_B",
    }  # fmt: skip


def test_without_adversarial_losses_there_are_no_discriminators_and_the_rest_is_the_same():
    model = CycleGANModel(CycleGANSettings(**TINY, lambda_gan=0), CPU)
    with_d = CycleGANModel(CycleGANSettings(**TINY), CPU)
    assert set(model.networks) == {"G_A", "G_B"} and set(model.optimisers) == {"G"} and not model.pools
    assert equal(weights(model, "G_A", "G_B"), weights(with_d, "G_A", "G_B"))
    here, there = model.step(batch()), with_d.step(batch())
    terms = {"cycle_A", "cycle_B", "idt_A", "idt_B", "correlation_A", "correlation_B"}
    assert here.keys() == {"G", *terms}
    for name in terms:
        torch.testing.assert_close(here[name], there[name])
    torch.testing.assert_close(here["G"], sum(here[name] for name in terms))


def test_each_optimiser_moves_its_own_networks(monkeypatch):
    """The generators' update leaves the discriminators alone and gives them no gradient, and the other way round."""
    model = CycleGANModel(CycleGANSettings(**TINY), CPU)
    update, seen = model._update, {}

    def watch(name, losses, data):
        before = {net: weights(model, net) for net in model.networks}
        total = update(name, losses, data)
        moved = {net for net in model.networks if not equal(before[net], weights(model, net))}
        graded = {net for net, module in model.networks.items() if any(p.grad is not None for p in module.parameters())}
        seen[name] = (moved, graded)
        for module in model.networks.values():
            module.zero_grad(set_to_none=True)
        return total

    monkeypatch.setattr(model, "_update", watch)
    model.step(batch())
    assert seen == {"G": ({"G_A", "G_B"}, {"G_A", "G_B"}), "D": ({"D_A", "D_B"}, {"D_A", "D_B"})}


def equal(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_every_parameter_gets_a_gradient():
    model = CycleGANModel(CycleGANSettings(**TINY), CPU)
    model.step(batch())
    for net in ("D_A", "D_B", "G_A", "G_B"):
        for name, parameter in model.networks[net].named_parameters():
            if name.endswith("weight"):
                assert parameter.grad.abs().max() > 0, f"{net}.{name}"


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    runs = []
    for seed in (1, 1, 2):
        model = CycleGANModel(CycleGANSettings(**TINY, seed=seed, pool_size=1), CPU)
        for step in range(3):
            model.step(batch(seed=step))
        runs.append(weights(model, *model.networks))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


@pytest.mark.parametrize("lambda_gan", [1.0, 0.0])
def test_a_restored_model_resumes_bit_for_bit(lambda_gan):
    settings = CycleGANSettings(**TINY, pool_size=2, lambda_gan=lambda_gan)
    model = CycleGANModel(settings, CPU)
    for step in range(4):
        model.step(batch(seed=step))
    state, pools = copy.deepcopy((model.state_dict(), model.process_state()))
    resumed = CycleGANModel(replace(settings, seed=99), CPU)
    resumed.load_state_dict(state)
    resumed.load_process_state(pools)
    for step in range(4, 8):
        model.step(batch(seed=step))
        resumed.step(batch(seed=step))
    assert equal(weights(model, *model.networks), weights(resumed, *resumed.networks))


def test_a_non_finite_loss_stops_before_the_update():
    model = CycleGANModel(CycleGANSettings(**TINY), CPU)
    before = weights(model, *model.networks)
    data = batch()
    data["A"][0, 0, 3, 3] = float("nan")
    with pytest.raises(NonFiniteLossError, match=r"gan_A.*on slices m:1, c:2"):
        model.step(data)
    assert equal(before, weights(model, *model.networks))


def test_bf16_computes_losses_in_float32_near_those_of_fp32():
    losses = {}
    for precision in ("fp32", "bf16"):
        losses[precision] = CycleGANModel(CycleGANSettings(**TINY, precision=precision), CPU).step(batch())
    for name, value in losses["fp32"].items():
        assert losses["bf16"][name].dtype == torch.float32
        torch.testing.assert_close(losses["bf16"][name], value, rtol=0.1, atol=0.02)


def test_the_pools_show_the_discriminators_earlier_fakes():
    model = CycleGANModel(CycleGANSettings(**TINY, pool_size=3), CPU)
    for step in range(3):
        model.step(batch(seed=step))
    assert len(model.pools["A"].images) == len(model.pools["B"].images) == 3
    assert torch.equal(model.pools["B"].images[2], model.visuals["fake_B"][0])
    assert torch.equal(model.pools["A"].images[2], model.visuals["fake_A"][0])


def with_pairs(**kwargs):
    data, pairs = batch(**kwargs), batch(**kwargs | {"seed": 7})
    return data | {"simulated_A": pairs["A"], "simulated_B": pairs["B"]}


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_simulated_pairs_are_losses_of_both_generators(direction):
    settings = CycleGANSettings(**TINY, direction=direction, lambda_simulated=3, lambda_gan=0.1, lcc_window=5)
    model = CycleGANModel(settings, CPU)
    nets, data = copy.deepcopy(model.networks), with_pairs(samples=2)
    a, b = (data["simulated_A"], data["simulated_B"])[:: 1 if direction == "AtoB" else -1]
    real_a, real_b = (data["A"], data["B"])[:: 1 if direction == "AtoB" else -1]
    losses = model.step(data)
    expected = {
        "simulated_A": 3 * F.l1_loss(nets["G_A"](a), b),
        "simulated_B": 3 * F.l1_loss(nets["G_B"](b), a),
        "gan_A": 0.1 * gan_loss(nets["D_A"](nets["G_A"](real_a)), True),
        "gan_B": 0.1 * gan_loss(nets["D_B"](nets["G_B"](real_b)), True),
        "correlation_A": 2 * local_correlation_loss(nets["G_A"](real_a), real_a, window=5),
    }
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value.detach(), rtol=1e-5, atol=1e-6)
    terms = [loss for name, loss in losses.items() if name != "G" and not name.startswith("D_")]
    torch.testing.assert_close(losses["G"], sum(terms))


def test_the_warm_step_trains_the_generators_on_simulated_pairs_alone():
    model = CycleGANModel(CycleGANSettings(**TINY, lr=1e-3), CPU)
    nets, data = copy.deepcopy(model.networks), with_pairs()
    before = weights(model, "D_A", "D_B")
    losses = model.warm_step(data)
    assert losses.keys() == {"G", "simulated_A", "simulated_B"}
    expected = F.l1_loss(nets["G_A"](data["simulated_A"]), data["simulated_B"])
    torch.testing.assert_close(losses["simulated_A"], expected.detach())
    assert equal(before, weights(model, "D_A", "D_B"))
    for _ in range(20):
        later = model.warm_step(data)
    assert later["G"] < 0.7 * losses["G"]


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_average_of_the_generators_is_exponential(norm):
    """Statistics of batch norm are averaged with the weights that they belong to; the decay rises to what was asked."""
    model = CycleGANModel(CycleGANSettings(**TINY, ema=0.2, norm=norm), CPU)
    assert set(model.averages) == {"G_A", "G_B"}
    assert model.kept_networks["D_A"] is model.networks["D_A"]
    expected = None
    for decay in (0, 2 / 11, 0.2, 0.2):  # 3 / 12 would be next
        model.step(batch())
        now = weights(model, "G_A")
        expected = {key: decay * (expected or now)[key] + (1 - decay) * now[key] for key in now}
    kept = model.kept_networks["G_A"].state_dict()
    for key, value in kept.items():
        if value.is_floating_point():  # all but the count of batches
            torch.testing.assert_close(value, expected[f"G_A.{key}"])
    assert not equal(weights(model, "G_A"), {f"G_A.{key}": value for key, value in kept.items()})


def test_an_average_asks_its_device_for_nothing():
    """On the meta device there is nothing to ask: any number that the host wanted of it would be an error."""
    net = build_generator(Architecture("resnet_6blocks", ngf=2, norm="batch")).to("meta")
    average = WarmedUpAverage(net, 0.9)
    for _ in range(3):
        average.update_parameters(net)
    assert average.n_averaged.device == CPU and int(average.n_averaged) == 3
    with pytest.raises((RuntimeError, NotImplementedError)):
        next(net.parameters()).sum().item()


def test_averages_are_part_of_the_state():
    a, b = (CycleGANModel(CycleGANSettings(**TINY, ema=0.9, seed=seed), CPU) for seed in (0, 1))
    for seed in range(2):
        a.step(batch(seed=seed))
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    for model in (a, b):
        model.step(batch(seed=2))
    for key, value in a.kept_networks["G_B"].state_dict().items():
        assert torch.equal(value, b.kept_networks["G_B"].state_dict()[key])
