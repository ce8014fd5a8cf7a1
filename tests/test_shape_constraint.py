"""The shape terms of the model: their values, who gets gradients, and what must never change."""

import copy
import logging
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import train
from data.errors import InputError
from data.loading.slices import PreparedSlices
from data.prepared.manifest import read_manifest
from data.values.intensity import IntensityMap, parse_ct_transfer
from models.cycle_gan_model import CycleGANModel, CycleGANSettings
from models.losses import SHAPE_LOSSES, gan_loss, shape_loss, shape_with_edges
from models.shape_extractor import ExtractorSettings, ShapeExtractor, save_extractor
from tests.test_cycle_gan_model import CPU, TINY, batch, equal, weights
from tests.test_datasets import dataroot  # noqa: F401

LINEAR = IntensityMap.window(-1000, 1400)
SHAPE = {"lambda_shape": 10.0, "lambda_shape_gan": 0.5}


def extractor(n_classes=1, ct_map=LINEAR) -> ShapeExtractor:
    torch.manual_seed(0)
    settings = ExtractorSettings(width=8, n_classes=n_classes, ct=LINEAR, size=32, spacing_mm=1.0)
    net = ShapeExtractor(settings, ct_map)
    net.train()
    with torch.no_grad():
        for _ in range(20):  # batch norm gets statistics of its own
            net.net(torch.rand(4, 1, 32, 32) * 2 - 1)
        net.net.outc.conv.weight *= 30  # untrained, but not indifferent
    return net.freeze()


def masked_batch(samples=1, labels=1, **kwargs):
    data = batch(samples=samples, **kwargs)
    mask = torch.zeros(samples, 1, 32, 32, dtype=torch.uint8)
    for k in range(samples):
        mask[k, 0, 4 + 6 * k : 20 + 6 * k, 6:22] = 1
        mask[k, 0, 8 + 6 * k : 12 + 6 * k, 8:12] = labels
    return data | {"mask_A": mask}


def build(n_classes=1, mask_labels=1, **changes) -> CycleGANModel:
    return CycleGANModel(CycleGANSettings(**(TINY | SHAPE | changes)), CPU, extractor(n_classes), mask_labels)


@pytest.mark.parametrize("mode", SHAPE_LOSSES)
def test_shape_losses_are_zero_for_the_right_shape_and_one_way_for_a_wrong_one(mode):
    mask = (torch.rand(2, 1, 8, 8) > 0.5).float()
    sure = (mask * 2 - 1) * 50
    assert float(shape_loss(sure, mask, mode)) == pytest.approx(0, abs=1e-6)
    assert float(shape_loss(-sure, mask, mode)) > 0.9
    assert float(shape_loss(torch.zeros_like(mask), mask, mode)) == pytest.approx(
        {"l1": 0.5, "bce": 0.6931472, "dice": half_dice(mask)}[mode], rel=1e-5
    )


def half_dice(mask):
    counts = mask.sum(dim=(1, 2, 3))
    return float((1 - (counts + 1) / (counts + 32 + 1)).mean())


def test_gradients_of_shape_losses_at_a_confident_error():
    """L1 has hardly a gradient where the extractor is sure; BCE has p - m."""
    logits, mask = torch.full((1, 1, 1, 1), 12.0, requires_grad=True), torch.zeros(1, 1, 1, 1)
    gradients = {mode: torch.autograd.grad(shape_loss(logits, mask, mode), logits)[0].item() for mode in ("l1", "bce")}
    p = torch.sigmoid(torch.tensor(12.0)).item()
    assert gradients["bce"] == pytest.approx(p)
    assert gradients["l1"] == pytest.approx(p * (1 - p), rel=1e-2)
    assert gradients["l1"] < 1e-5


def test_shape_losses_refuse_a_mask_that_would_be_broadcast():
    with pytest.raises(ValueError, match="expected one shape"):
        shape_loss(torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4))


def test_the_edge_map_is_the_outline():
    mask = torch.zeros(1, 1, 7, 7)
    mask[..., 2:5, 2:5] = 1
    shape = shape_with_edges(mask)
    assert torch.equal(shape[:, :1], mask)
    expected = torch.zeros(1, 1, 7, 7)
    expected[..., 1:6, 1:6] = 1
    expected[..., 3, 3] = 0
    assert torch.equal(shape[:, 1:], expected)


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_the_shape_terms_are_those_of_the_method(direction):
    model = build(direction=direction)
    data = masked_batch(samples=2)
    discriminator = {key: value.clone() for key, value in model.netD_S.state_dict().items()}
    losses = model.step(data)
    fake_ct = model.visuals["fake_B" if direction == "AtoB" else "fake_A"]
    soft = torch.sigmoid(model.netE(fake_ct))
    mask = data["mask_A"].float()
    torch.testing.assert_close(losses["shape"], 10 * (soft - mask).abs().mean())
    model.netD_S.load_state_dict(discriminator)
    fake_scores, real_scores = model.netD_S(shape_with_edges(soft)), model.netD_S(shape_with_edges(mask))
    torch.testing.assert_close(losses["gan_S"], 0.5 * gan_loss(fake_scores, True))
    torch.testing.assert_close(losses["D_S"], (gan_loss(real_scores, True) + gan_loss(fake_scores, False)) / 2)
    terms = [value for name, value in losses.items() if name != "G" and not name.startswith("D_")]
    torch.testing.assert_close(losses["G"], sum(terms))


def test_every_sample_has_its_own_mask():
    losses = []
    for order in ([0, 1], [1, 0]):
        data = masked_batch(samples=2)
        data["mask_A"] = data["mask_A"][order]
        losses.append(float(build(lambda_shape_gan=0).step(data)["shape"]))
    assert abs(losses[0] - losses[1]) > 1e-4
    data = masked_batch(samples=2)
    both = float(build(lambda_shape_gan=0).step(data)["shape"])
    single = []
    for k in range(2):
        one = {name: value[k : k + 1] for name, value in data.items()}
        single.append(float(build(lambda_shape_gan=0).step(one)["shape"]))
    assert both == pytest.approx(sum(single) / 2, rel=1e-5)


def test_the_extractor_is_frozen_and_lets_gradients_through():
    model = build(lambda_A=0, lambda_B=0, lambda_identity=0, lambda_correlation_A=0, lambda_correlation_B=0)
    before = {key: value.clone() for key, value in model.netE.state_dict().items()}
    assert any("running_mean" in key for key in before)
    for name in ("G_A", "G_B"):
        model.networks[name].train()
    model.netE.train()  # as a framework would
    for step in range(3):
        model.step(masked_batch(seed=step))
    assert not model.netE.training
    assert not any(module.training for module in model.netE.modules())
    for key, value in model.netE.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(parameter.grad is None for parameter in model.netE.parameters())


def test_shape_alone_moves_the_generator_that_makes_ct():
    for direction, moved in (("AtoB", "G_A"), ("BtoA", "G_B")):
        model = build(lambda_shape_gan=0, direction=direction)
        images = model._translate(masked_batch())
        losses = model._shape_losses(images, masked_batch()["mask_A"])
        losses["shape"].backward()
        for name in ("G_A", "G_B"):
            gradients = [p.grad for p in model.networks[name].parameters()]
            assert all(g is None for g in gradients) == (name != moved)
            if name == moved:
                assert max(float(g.abs().max()) for g in gradients) > 0


def test_the_intensity_range_of_the_extractor_is_kept():
    """A generator on a curve and one on the window that make the same HU have the same shape loss."""
    curve = parse_ct_transfer("soft_tissue")
    hu = torch.linspace(-900, 1300, 32 * 32).reshape(1, 1, 32, 32)
    logits = [extractor(ct_map=ct_map)(torch.from_numpy(ct_map.to_network(hu.numpy()))) for ct_map in (LINEAR, curve)]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)
    wrong = extractor(ct_map=LINEAR)(torch.from_numpy(curve.to_network(hu.numpy())))
    assert (wrong - logits[0]).abs().max() > 0.01


def test_each_optimiser_moves_its_own_networks(monkeypatch):
    model = build()
    update, moved = model._update, {}

    def watch(name, losses, data):
        before = {net: weights(model, net) for net in model.networks}
        total = update(name, losses, data)
        moved[name] = {net for net in model.networks if not equal(before[net], weights(model, net))}
        return total

    monkeypatch.setattr(model, "_update", watch)
    model.step(masked_batch())
    assert moved == {"G": {"G_A", "G_B"}, "D": {"D_A", "D_B"}, "D_S": {"D_S"}}


@pytest.mark.parametrize("lambda_gan", [1.0, 0.0])
def test_the_shape_discriminator_has_a_pool_and_is_restored(lambda_gan):
    model = build(pool_size=2, lambda_gan=lambda_gan)
    images = {"A", "B"} if lambda_gan else set()
    assert set(model.pools) == {"S", *images}
    assert set(model.networks) == {"G_A", "G_B", "D_S", *(f"D_{name}" for name in images)}
    for step in range(4):
        model.step(masked_batch(seed=step))
    assert len(model.pools["S"].images) == 2
    resumed = build(pool_size=2, seed=9, lambda_gan=lambda_gan)
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed.load_process_state(copy.deepcopy(model.process_state()))
    for step in range(4, 7):
        model.step(masked_batch(seed=step))
        resumed.step(masked_batch(seed=step))
    assert equal(weights(model, *model.networks), weights(resumed, *resumed.networks))


def test_without_shape_weights_nothing_of_it_exists():
    model = CycleGANModel(CycleGANSettings(**TINY), CPU)
    assert set(model.networks) == {"G_A", "G_B", "D_A", "D_B"}
    assert not hasattr(model, "netE")
    model.step(batch())  # no mask
    with pytest.raises(ValueError, match="expected a shape extractor"):
        CycleGANModel(CycleGANSettings(**TINY | {"lambda_shape": 1}), CPU)


def test_labels_count_where_masks_and_extractor_both_have_them():
    data = masked_batch(labels=2)
    for n_classes, mask_labels, used in ((2, 1, 1), (1, 2, 1), (2, 2, 2)):
        model = build(n_classes=n_classes, mask_labels=mask_labels)
        losses = model.step(data)
        mask = torch.cat([data["mask_A"] > 0, data["mask_A"] == 2], 1)[:, :used].float()
        soft = torch.sigmoid(model.netE(model.visuals["fake_B"]))[:, :used]
        torch.testing.assert_close(losses["shape"], 10 * F.l1_loss(soft, mask))
        assert model.netD_S.model[0].in_channels == 2 * used


OPTIONS = (
    "--netG resnet_6blocks --netD pixel --ngf 2 --ndf 2 --num_threads 0 --device cpu --n_epochs 1 --n_epochs_decay 0"
)


def run(dataroot, folder, name, *arguments):  # noqa: F811
    where = ["--dataroot", str(dataroot), "--name", name, "--checkpoints_dir", str(folder)]
    train.main([*where, *OPTIONS.split(), *arguments])
    return {net: torch.load(folder / name / f"latest_net_{net}.pth", weights_only=True) for net in ("G_A", "D_A")}


def test_a_full_run_starts_from_another_runs_weights(dataroot, tmp_path, monkeypatch, caplog):  # noqa: F811
    caplog.set_level(logging.INFO)
    save_extractor(extractor(), tmp_path / "extractor.pth")
    shape = ["--shape_extractor", str(tmp_path / "extractor.pth")]
    off = ["--lambda_shape", "0", "--lambda_shape_gan", "0"]
    masks_read = []
    read = PreparedSlices.read

    def watch(self, index, with_mask):
        masks_read.append(with_mask)
        return read(self, index, with_mask)

    monkeypatch.setattr(PreparedSlices, "read", watch)
    first = run(dataroot, tmp_path, "cycle_Lcc", *off)
    assert sum(masks_read) == 2 < len(masks_read)  # those of the two slices in its pictures
    masks_read.clear()
    built = []
    note_models(monkeypatch, built)
    second = run(dataroot, tmp_path, "Self", *shape, "--init_from", "cycle_Lcc", "--lr", "1e-12")
    assert built[0].netE.ct_map == IntensityMap.window(-1000, 1400)
    assert sum(masks_read) > 2
    for net in ("G_A", "D_A"):
        for key, value in first[net].items():
            torch.testing.assert_close(second[net][key], value, rtol=0, atol=1e-9)
    assert (tmp_path / "Self/latest_net_D_S.pth").exists()
    assert "G_A, G_B, D_A, D_B loaded (latest); missing, so started from random weights: D_S" in caplog.text


def note_models(monkeypatch, built: list) -> None:
    """Note every model that a training builds."""
    make = CycleGANModel.from_data.__func__

    def noting(cls, *args):
        built.append(make(cls, *args))
        return built[-1]

    monkeypatch.setattr(CycleGANModel, "from_data", classmethod(noting))


def named_in(caplog) -> str:
    return "\n".join(entry.getMessage() for entry in caplog.records if "trained on" in entry.getMessage())


def test_without_a_name_the_extractor_of_the_data_set_is_taken_and_never_a_shipped_one(dataroot, tmp_path, caplog):  # noqa: F811
    caplog.set_level(logging.INFO)
    with pytest.raises(InputError) as error:
        run(dataroot, tmp_path, "x")
    place = dataroot / "shape_extractor"
    words = (
        f"{place}/extractor.pth: no such file",
        f"ct_segmentation.train --dataroot {dataroot}",
        "--shape_extractor",
        "--lambda_shape 0",
    )
    assert all(word in str(error.value) for word in words) and not (tmp_path / "x").exists()
    for name in ("typo.pth", "run.v2/typo.pth"):
        with pytest.raises(InputError, match=rf"^{tmp_path}/{name}: no such file: the shape constraint"):
            run(dataroot, tmp_path, "x", "--shape_extractor", str(tmp_path / name))
    sources = [case.source_sha256 for case in read_manifest(dataroot).select("train", "B")]
    training = {"dataset": "mine", "ct": 5, "patients": 4, "slices": 60, "sources": [sources[0], "other"]}
    known = extractor()
    known.settings = replace(known.settings, training=training)
    save_extractor(known, place / "extractor.pth")
    run(dataroot, tmp_path, "x")
    assert f"shape extractor: {place}, trained on 5 CT of 4 patients (mine)" in named_in(caplog)
    assert "warning" not in named_in(caplog)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (None, "does not record what it was trained on; it must have been the anatomy of"),
        (
            {"dataset": "limbs", "ct": 13, "patients": 13},
            "was trained on 13 CT of 13 patients (limbs), and does not record whether these are in",
        ),
        (
            {"dataset": "data elsewhere (weights u.pth)"},
            "trained on data elsewhere (weights u.pth), and does not record whether",
        ),
        ({"dataset": "hip", "ct": 2, "patients": 2, "sources": ["a"]}, "2 CT of 2 patients (hip), none of them in"),
    ],
)
def test_an_extractor_of_other_patients_is_warned_of(dataroot, tmp_path, caplog, training, said):  # noqa: F811
    known = extractor()
    known.settings = replace(known.settings, training=training)
    save_extractor(known, tmp_path / "extractor.pth")
    run(dataroot, tmp_path, "x", "--shape_extractor", str(tmp_path / "extractor.pth"))
    assert f"warning: {tmp_path / 'extractor.pth'}: " in named_in(caplog) and said in named_in(caplog)


def test_a_run_that_resumes_with_another_extractor_says_so(dataroot, tmp_path, caplog):  # noqa: F811
    a, b = extractor(), extractor()
    b.net.outc.conv.bias.data += 0.1
    for name, net in (("a", a), ("b", b)):
        save_extractor(net, tmp_path / f"{name}.pth")
    run(dataroot, tmp_path, "x", "--shape_extractor", str(tmp_path / "a.pth"))
    run(dataroot, tmp_path, "x", "--shape_extractor", str(tmp_path / "a.pth"), "--continue_train")
    assert "shape extractor: was" not in caplog.text
    run(dataroot, tmp_path, "x", "--shape_extractor", str(tmp_path / "b.pth"), "--continue_train")
    assert "resumes with another option, which changes its result: shape extractor: was " in caplog.text


def test_a_missing_extractor_is_explained(dataroot, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match=r"nowhere.*ct_segmentation\.train.*--lambda_shape 0"):
        run(dataroot, tmp_path, "x", "--shape_extractor", str(tmp_path / "nowhere"))


def test_the_extractor_gets_the_runs_intensity_map_and_every_optimiser_its_schedule(dataroot, tmp_path, monkeypatch):  # noqa: F811
    save_extractor(extractor(), tmp_path / "extractor.pth")
    built = []
    note_models(monkeypatch, built)
    decay = ["--n_epochs", "0", "--n_epochs_decay", "1", "--ct_transfer", "soft_tissue"]
    run(dataroot, tmp_path, "x", "--shape_extractor", str(tmp_path / "extractor.pth"), *decay)
    assert built[0].netE.ct_map == parse_ct_transfer("soft_tissue")
    rates = {name: optimiser.param_groups[0]["lr"] for name, optimiser in built[0].optimisers.items()}
    assert rates == {"G": 1e-4, "D": 1e-4, "D_S": 1e-4}
