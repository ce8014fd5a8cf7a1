"""Training of the shape extractor: loss, scores, resumption, what is saved."""

import copy
import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch

import train as train_command
from ct_segmentation import method, train
from ct_segmentation.method import ShapeExtractorModel
from ct_segmentation.scoring import dice_by_class, format_scores, mean_by_class
from data.errors import InputError
from data.prepared.arrays import read_case
from data.prepared.manifest import read_manifest
from data.prepared.splits import split_by_patient
from data.values.intensity import IntensityMap
from models import run_folder
from models.base_model import Place
from models.finite_losses import NonFiniteLossError
from models.run_folder import STATE_NAME
from models.shape_extractor import FILE_NAME, ExtractorSettings, ShapeExtractor, load_extractor
from models.state_dicts import load_checkpoint
from tests.shape_data import SIZE, write_prepared

CT_MAP = IntensityMap.window(-1000, 1400)
PATIENTS = [f"p{k}" for k in range(5)]
TRAINED = ("--width", "8", "--epochs", "6", "--batch_size", "4", "--lr", "1e-2", "--ct_window", "-1000", "1000")


@pytest.fixture
def dataroot(tmp_path):
    write_prepared(tmp_path / "data", PATIENTS, cases_each=2)
    return tmp_path / "data"


def cases_of(dataroot):
    return read_manifest(dataroot).select("train", "B")


def test_loss_in_closed_form():
    # Probabilities 1/2 everywhere: cross entropy log 2. Of 8 pixels, class 0 has 4 and class 1 none.
    logits = torch.zeros(2, 2, 2, 2)
    targets = torch.zeros(2, 2, 2, 2)
    targets[0, 0] = 1
    dice = [(2 * 2 + 1) / (4 + 4 + 1), 1 / (4 + 0 + 1)]
    expected = np.log(2) + 1 - np.mean(dice)
    assert float(method.segmentation_loss(logits, targets)) == pytest.approx(expected, rel=1e-6)
    sure = (targets * 2 - 1) * 50
    assert float(method.segmentation_loss(sure, targets)) == pytest.approx(0, abs=1e-6)
    assert float(method.segmentation_loss(-sure, targets)) > 50


def test_dice_is_of_the_whole_volume_and_not_a_mean_of_slices():
    labels, reference = np.zeros((2, 10, 10), np.uint8), np.zeros((2, 10, 10), np.uint8)
    reference[0, :9], labels[0, :9] = 1, 1  # 90 voxels, all found
    reference[1, 0, :5], labels[1, 0, 5:] = 1, 1  # 5 voxels, none found: a slice's Dice of 0
    assert dice_by_class(labels, reference, ["body"]) == {"body": 2 * 90 / (95 + 95)}


def test_dice_by_class_and_its_mean():
    labels = np.array([[[0, 1, 2, 2]]], np.uint8)
    reference = np.array([[[1, 1, 1, 2]]], np.uint8)
    first = dice_by_class(labels, reference, ["body", "bone", "label3"])
    assert first["body"] == pytest.approx(2 * 3 / (3 + 4))
    assert first["bone"] == pytest.approx(2 / 3)
    assert np.isnan(first["label3"])
    rows = {"a": first, "b": {"body": 1.0, "bone": float("nan"), "label3": float("nan")}}
    assert mean_by_class(rows)["bone"] == pytest.approx(2 / 3)  # where it is defined
    assert format_scores(rows).splitlines() == [
        "| case | Dice body | Dice bone | Dice label3 |",
        "| ---- | --------: | --------: | ----------: |",
        "| a    |    0.8571 |    0.6667 |           - |",
        "| b    |    1.0000 |         - |           - |",
        "| mean |    0.9286 |    0.6667 |           - |",
    ]


def options(dataroot, out, *more: str) -> list[str]:
    words = ["--dataroot", str(dataroot), "--out", str(out), "--width", "4", "--num_threads", "0", "--device", "cpu"]
    return [*words, "--val_share", "0.4", *more]


def tensors_of(path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(path)["model"]
    adam = state["optimisers"]["G"]["state"]
    return state["networks"]["E"] | {f"{k}.{name}": v for k, part in adam.items() for name, v in part.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run on patients with bone, and its data set."""
    folder = tmp_path_factory.mktemp("trained")
    write_prepared(folder / "data", PATIENTS, cases_each=2, bone=True)
    train.main(options(folder / "data", folder / "run", *TRAINED))
    return folder


def test_trained_extractor_finds_body_and_bone_of_unseen_patients(trained):
    report = json.loads((trained / "run/validation.json").read_text())
    held_out = split_by_patient(cases_of(trained / "data"), 0.4, 0)[1]
    assert sorted(report["dice"]) == sorted(case.name for case in held_out)
    assert len(report["dice"]) == 4
    assert min(row["body"] for row in report["dice"].values()) > 0.9
    assert min(row["bone"] for row in report["dice"].values()) > 0.5


def test_saved_extractor_is_the_best_one_and_says_what_it_takes(trained):
    extractor = load_extractor(trained / "run")
    settings = extractor.settings
    assert (settings.width, settings.n_classes, settings.size, settings.spacing_mm) == (8, 2, SIZE, 4.0)
    assert settings.ct == IntensityMap.window(-1000, 1000)
    assert settings.input_range == (-1.0, 1.0)
    assert "torch" in settings.versions
    held_out = split_by_patient(cases_of(trained / "data"), 0.4, 0)[1]
    scores = method.validate(extractor, partial(read_case, trained / "data"), held_out)
    assert scores == json.loads((trained / "run/validation.json").read_text())["dice"]
    assert load_checkpoint(trained / "run" / FILE_NAME)["validation"]["dice"] == scores


def test_validation_leaves_the_extractor_in_its_mode(trained):
    extractor = ShapeExtractor(load_extractor(trained / "run").settings).train()
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    method.validate(extractor, partial(read_case, trained / "data"), cases_of(trained / "data")[:1])
    assert extractor.training
    assert all(torch.equal(value, before[name]) for name, value in extractor.state_dict().items())


def test_validation_scores_all_slices_of_a_case_together(dataroot, monkeypatch):
    cases = cases_of(dataroot)[:2]
    reference = np.load(dataroot / cases[0].mask_file)
    found = reference.copy()
    found[1] = 0
    seen = []
    monkeypatch.setattr(method, "segment_slices", lambda extractor, slices: seen.append(np.array(slices)) or found)
    extractor = ShapeExtractor(ExtractorSettings(2, 1, CT_MAP, SIZE, 4.0))
    scores = method.validate(extractor, partial(read_case, dataroot), cases)
    assert list(scores) == [case.name for case in cases]
    assert all(np.array_equal(s, np.load(dataroot / c.image_file)) for s, c in zip(seen, cases, strict=True))
    assert scores[cases[0].name] == {"body": 2 * found.sum() / (found.sum() + reference.sum())}


def build(dataroot, *more) -> ShapeExtractorModel:
    settings = train.parse(options(dataroot, "-", *more))
    data = ShapeExtractorModel.open_data(settings.model, settings.data)
    return ShapeExtractorModel.from_data(settings.model, settings.data, data, Place(torch.device("cpu")))


def batch(value: float = 0.5) -> dict:
    return {
        "image": torch.full((2, 1, 32, 32), value), "mask": torch.ones(2, 1, 32, 32, dtype=torch.uint8),
        "origin_B": ["a", "b"],
    }  # fmt: skip


def test_a_step_trains_in_training_mode_against_the_loss(dataroot):
    learner = build(dataroot)
    learner.extractor.eval()
    statistics = learner.extractor.net.inc.conv.conv[1]
    before = copy.deepcopy(learner.extractor).train()
    losses = [learner.step(batch()) for _ in range(3)]
    assert int(statistics.num_batches_tracked) == 3
    assert float(statistics.running_mean.abs().sum()) > 0
    expected = method.segmentation_loss(before(batch()["image"]), batch()["mask"].float())
    assert float(losses[0]["G"]) == pytest.approx(float(expected), rel=1e-5)
    assert losses[2]["G"] < losses[0]["G"]


def test_learning_rate_falls_as_a_cosine(dataroot, tmp_path):
    train.main(options(dataroot, tmp_path / "run", "--epochs", "4", "--lr", "0.1"))
    lines = (tmp_path / "run/losses.jsonl").read_text().splitlines()
    rates = {record["epoch"]: record["lr"] for record in map(json.loads, lines) if "lr" in record}
    assert list(rates.values()) == pytest.approx([0.1, 0.1 * (1 + 0.5**0.5) / 2, 0.05, 0.1 * (1 - 0.5**0.5) / 2])


@pytest.mark.parametrize("dies_at", [5, 9])
def test_resumed_training_equals_uninterrupted(dataroot, tmp_path, monkeypatch, dies_at):
    """States lie after two steps of an epoch, and after each epoch and its validation."""
    length = ["--epochs", "3", "--save_latest_freq", "2"]
    train.main(options(dataroot, tmp_path / "whole", *length))
    real, calls = ShapeExtractorModel.step, []

    def interrupted(self, samples):
        calls.append(1)
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        return real(self, samples)

    monkeypatch.setattr(ShapeExtractorModel, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(options(dataroot, tmp_path / "parts", *length))
    monkeypatch.setattr(ShapeExtractorModel, "step", real)
    torch.rand(7)  # the run depends on no global random state
    train.main(options(dataroot, tmp_path / "parts", *length, "--continue_train"))
    whole, parts = (tensors_of(tmp_path / name / STATE_NAME) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    best = [load_checkpoint(tmp_path / name / FILE_NAME) for name in ("whole", "parts")]
    assert best[0]["validation"] == best[1]["validation"]
    assert all(torch.equal(value, best[1]["weights"][name]) for name, value in best[0]["weights"].items())


def test_the_best_epoch_is_kept(dataroot, tmp_path, monkeypatch):
    # Four cases validate.
    rows = iter([(0.5, 0.7, 0.6, 0.6), (0.9, 0.7, 0.8, 0.8), (0.8, 0.7, 0.7, 0.8), (float("nan"), 0.8, 0.7, 0.8)])
    values = chain.from_iterable(rows)

    def given(extractor, root, cases):
        return {case.name: {"body": next(values)} for case in cases}

    monkeypatch.setattr(method, "validate", given)
    train.main(options(dataroot, tmp_path / "run", "--epochs", "4", "--save_epoch_freq", "1"))
    assert load_checkpoint(tmp_path / "run" / STATE_NAME)["best"] == {"score": pytest.approx(0.2), "epoch": 2}
    report = json.loads((tmp_path / "run/validation.json").read_text())
    assert [row["body"] for row in report["dice"].values()] == [0.9, 0.7, 0.8, 0.8]
    second, best = (load_checkpoint(tmp_path / "run" / f"{name}_net_E.pth") for name in ("2", "best"))
    assert all(torch.equal(value, best[name]) for name, value in second.items())
    kept = load_extractor(tmp_path / "run").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in second.items())


def test_a_run_is_neither_overwritten_nor_continued_otherwise(trained, tmp_path):
    data, run = trained / "data", trained / "run"
    with pytest.raises(InputError, match="already holds a run"):
        train.main(options(data, run, *TRAINED))
    before = (run / STATE_NAME).read_bytes()
    train.main(options(data, run, *TRAINED, "--continue_train"))  # nothing is left to do
    assert (run / STATE_NAME).read_bytes() == before
    for changed, word in (
        (("--width", "4"), "width"),
        (("--val_share", "0.2"), "patients to train on"),
        (("--ct_window", "-1000", "900"), "ct_map"),
    ):
        with pytest.raises(InputError, match=rf"with other options \(.*{word}"):
            train.main(options(data, run, *TRAINED, "--continue_train", *changed))
    with pytest.raises(InputError, match="nothing to continue"):
        train.main(options(data, tmp_path / "new", "--continue_train"))
    other = shutil.copytree(data, tmp_path / "other")
    manifest = read_manifest(other)
    replace(manifest, cases=tuple(case for case in manifest.cases if case.patient != "p4")).write(other)
    with pytest.raises(InputError, match="patients to "):
        train.main(options(other, run, *TRAINED, "--continue_train"))


def test_another_training_is_kept_out(trained, dataroot):
    with run_folder.lock(trained / "run"), pytest.raises(InputError, match="another training is writing to it"):
        train.main(options(dataroot, trained / "run", *TRAINED, "--continue_train"))


def test_it_is_the_method_of_the_training_command(dataroot, tmp_path):
    train.main(options(dataroot, tmp_path / "own", "--epochs", "2"))
    where = ["--dataroot", str(dataroot), "--checkpoints_dir", str(tmp_path), "--name", "same", "--device", "cpu"]
    more = ["--width", "4", "--num_threads", "0", "--val_share", "0.4", "--n_epochs", "2"]
    train_command.main(["--model", "shape_extractor", *where, *more])
    own, same = (tensors_of(tmp_path / name / STATE_NAME) for name in ("own", "same"))
    assert all(torch.equal(value, same[name]) for name, value in own.items())


def test_the_extractor_s_own_command_takes_the_name_or_the_folder(dataroot, tmp_path, capsys):
    where = ["--dataroot", str(dataroot), "--device", "cpu"]
    assert train.parse(where).run.folder == dataroot / "shape_extractor"
    assert train.parse([*where, "--out", str(tmp_path / "a/b")]).run.folder == tmp_path / "a/b"
    named = train.parse([*where, "--checkpoints_dir", str(tmp_path), "--name", "c", "--epochs", "3"])
    assert (named.run.folder, named.epochs) == (tmp_path / "c", 3)
    assert train.parse([*where, "--epochs", "3", "--n_epochs", "4"]).epochs == 4
    with pytest.raises(SystemExit, match="2"):
        train.parse([*where, "--out", "x", "--name", "y"])
    assert "--out and --name or --checkpoints_dir: expected one of them" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        train.parse([])
    said = "error: the following arguments are required: --dataroot\nhelp: python -m ct_segmentation.train --help\n"
    assert capsys.readouterr().err == said


def test_a_run_starts_from_an_extractor_that_knows_the_same_images(trained, tmp_path, caplog):
    source = shutil.copytree(trained / "run", tmp_path / "first")
    words = options(trained / "data", tmp_path / "second", *TRAINED, "--epochs", "1", "--init_from", source.name)
    with pytest.raises(
        InputError, match=r"--init_from first: its weights were trained with other settings \(ct: .* there, .* here"
    ):
        train.main([*words, "--ct_window", "-1000", "900"])
    with pytest.raises(InputError, match="trained with other settings \\(width: 8 there, 4 here"):
        train.main([*words, "--width", "4"])
    assert not (tmp_path / "second").exists()
    train.main([*words, "--lr", "1e-30"])  # which changes nothing
    before, after = (tensors_of(path / STATE_NAME) for path in (source, tmp_path / "second"))
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name.endswith("conv.weight"))


@pytest.mark.parametrize(
    "option", [["--flip"], ["--slab", "3"], ["--mr_window", "0", "9"], ["--zoom", "0.1"], ["--ema", "0.9"]]
)
def test_options_that_an_extractor_does_not_follow_are_refused(tmp_path, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.parse(options(tmp_path, tmp_path, *option))
    assert f"{option[0]} does nothing to the shape extractor" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_changes_no_weight(dataroot):
    learner = build(dataroot)
    before = {name: value.clone() for name, value in learner.extractor.named_parameters()}
    with pytest.raises(NonFiniteLossError, match=r"loss not finite: .*nan"):
        learner.step(batch(float("nan")))
    assert all(torch.equal(value, before[name]) for name, value in learner.extractor.named_parameters())


@pytest.mark.parametrize(
    "words", [("--val_share", "1"), ("--val_share", "0"), ("--ct_window", "5", "5"), ("--ct_transfer", "x"),
              ("--ct_window", "0", "9", "--ct_transfer", "soft_tissue"), ("--width", "0")]
)  # fmt: skip
def test_unusable_options_are_refused(tmp_path, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.parse(options(tmp_path, tmp_path, *words))
    assert words[0].strip("-").split("_")[0] in capsys.readouterr().err
