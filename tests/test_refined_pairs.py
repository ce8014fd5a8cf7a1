"""Training on simulated pairs whose MR is refined by real MR of other patients."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import train
from data.errors import InputError
from models.base_model import Place
from models.inference_settings import read_inference_settings
from models.refined_pairs_model import RefinedPairsModel, RefinedPairsSettings, RefinementSet
from options import train_options
from tests.test_simulated_pairs import CPU, DATA, OPTIONS, dataroot, disc, simulation_set  # noqa: F401

SHORT = "--n_epochs 1 --steps_per_epoch 2 --batch_size 4".split()


def real_mr(level: float) -> dict[str, np.ndarray]:
    """A cylinder's MR, of one level in [-1, 1] inside."""
    inside = disc(12)["hu"] > -500
    return {
        "mr": np.where(inside, level, -1).astype(np.float16),
        "body": np.where(inside, 0, -1000).astype(np.int16),
    }


def model(level: float = 0.5, data=DATA, **settings) -> RefinedPairsModel:
    chosen = RefinedPairsSettings(**{"ngf": 4, "ndf": 4, "n_layers_D": 1, "lr": 5e-3, "ema": 0.9} | settings)
    return RefinedPairsModel(chosen, data, RefinementSet(simulation_set(), {"mr": real_mr(level)}), Place(CPU))


def test_the_refiner_begins_by_changing_nothing():
    built = model()
    mr = 2 * torch.rand(3, 1, 16, 16) - 1
    torch.testing.assert_close(built.refine(mr), mr, atol=0, rtol=0)


def test_a_share_of_each_batch_is_refined_and_its_ct_stays(monkeypatch):
    built = model(refined_share=0.5)
    drawn, learnt = built.draw(), []
    monkeypatch.setattr(built, "draw", lambda: drawn)
    monkeypatch.setattr(built, "refine", lambda mr: mr * built.networks["R"](mr).mean().detach().mul(0).add(0.5))
    monkeypatch.setattr(built, "_update", lambda *_: None)
    monkeypatch.setattr(built, "learn", lambda *pairs: learnt.extend(pairs) or {})
    built.step({})
    mr, hu, counted = learnt
    torch.testing.assert_close(mr[[0, 3]], drawn[0][[0, 3]] * 0.5)
    torch.testing.assert_close(mr[1:3], drawn[0][1:3], atol=0, rtol=0)
    assert hu is drawn[1] and counted is drawn[2]
    assert not mr.requires_grad  # nothing of the generator's losses reaches R


def test_each_network_follows_its_own_losses():
    built = model(lambda_keep=3.0)
    before = {name: [p.clone() for p in net.parameters()] for name, net in built.networks.items()}
    losses = built.step({})
    assert sorted(losses) == ["D_R_real", "D_R_refined", "G", "gan_R", "hu", "keep_R", "pairs"]
    assert float(losses["keep_R"]) == 0  # of a refiner that changes nothing
    assert float(losses["G"]) == pytest.approx(float(losses["pairs"] + losses["hu"]), rel=1e-6)
    for name, net in built.networks.items():
        assert any(not torch.equal(a, b) for a, b in zip(before[name], net.parameters(), strict=True)), name
    assert list(built.kept_networks) == ["G_A", "R", "D_R"]
    assert list(built.averages) == ["G_A"]


def test_refiner_and_discriminator_learn_at_a_fifth_of_the_rate():
    built = model(lr=1e-3)
    rates = {name: optimiser.param_groups[0]["lr"] for name, optimiser in built.optimisers.items()}
    assert rates == pytest.approx({"G": 1e-3, "R": 2e-4, "D_R": 2e-4})


@pytest.mark.parametrize("level", [-0.6, 0.9])
def test_refined_mr_moves_towards_real_mr(level):
    """Real MR is darker, or brighter, than any that is simulated: so is what is refined, once D tells them apart."""
    built = model(level, lr=2e-2, lambda_keep=0.1)
    for _ in range(60):
        built.step({})
    with torch.no_grad():
        mr = built.draw()[0][:, 1:2]
        body = mr > -0.8
        moved = (built.refine(mr) - mr)[body].mean().item()
    assert moved * np.sign(level) > 0.05


def test_much_weight_on_keeping_leaves_mr_as_it_was():
    built = model(0.9, lr=2e-2, lambda_keep=1000.0)
    for _ in range(60):
        built.step({})
    with torch.no_grad():
        mr = built.draw()[0][:, 1:2]
        assert (built.refine(mr) - mr).abs().mean().item() < 0.05


def test_a_resumed_training_ends_with_the_same_losses():
    whole, again = model(), model()
    losses = [whole.step({}) for _ in range(4)]
    for _ in range(2):
        again.step({})
    resumed = model(seed=5)
    resumed.load_state_dict(again.state_dict())
    resumed.load_process_state(again.process_state())
    assert [resumed.step({}) for _ in range(2)] == losses[2:]


def test_real_mr_are_cut_as_simulated_ones_are_and_vary_in_scale():
    built = model(0.0, field_of_view=0.0)
    slices = torch.cat([built.draw_real() for _ in range(40)])
    assert slices.shape == (80, 1, 16, 16)
    assert slices.min() >= -1
    levels = torch.stack([image[image > -0.9].median() + 1 for image in slices[:, 0]])
    assert levels.median().item() == pytest.approx(1.0, abs=0.08)
    assert levels.log().std().item() == pytest.approx(0.15, abs=0.05)


def test_the_command_trains_and_its_model_is_that_of_simulated_pairs(dataroot, tmp_path):  # noqa: F811
    def run(method: str, *options: str) -> int:
        where = ["--dataroot", str(dataroot), "--name", method, "--checkpoints_dir", str(tmp_path)]
        return train.main(["--model", method, *where, *OPTIONS, *SHORT, *options])

    assert run("simulated_pairs") == 0
    assert run("refined_pairs", "--ndf", "4", "--n_layers_D", "1", "--init_from", "simulated_pairs") == 0
    plain, refined = (read_inference_settings(tmp_path / name) for name in ("simulated_pairs", "refined_pairs"))
    assert refined == replace(plain, steps=2 * plain.steps)  # those of its first weights, and as many
    assert (tmp_path / "refined_pairs" / "latest_net_R.pth").is_file()


def test_what_cannot_be_refined_is_refused(dataroot, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match=r"--refined_share 0\.1: no MR of a batch of 4 would be refined"):
        RefinedPairsModel.check(RefinedPairsSettings(refined_share=0.1), DATA)
    assert list(model(netD="pixel", n_layers_D=2).networks) == ["G_A", "R", "D_R"]
    with pytest.raises(SystemExit):
        train_options.parse("--model refined_pairs --dataroot d --name x --netD basic --n_layers_D 2".split())
    leave_out = {"mr"}
    with pytest.raises(InputError, match="no MR to refine with: none shows enough body, or all validate"):
        RefinedPairsModel.open_data(RefinedPairsSettings(), replace(DATA, dataroot=dataroot), leave_out)
