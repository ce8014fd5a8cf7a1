"""Training of the shape extractor: loss, scores, resumption, what is saved."""

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from ct_segmentation import train
from ct_segmentation.scoring import dice_by_class, format_scores, mean_by_class
from data.errors import InputError
from data.prepared.manifest import read_manifest
from data.prepared.splits import split_by_patient
from data.values.intensity import IntensityMap
from models.finite_losses import NonFiniteLossError
from models.shape_extractor import FILE_NAME, ExtractorSettings, load_extractor
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
    assert float(train.segmentation_loss(logits, targets)) == pytest.approx(expected, rel=1e-6)
    sure = (targets * 2 - 1) * 50
    assert float(train.segmentation_loss(sure, targets)) == pytest.approx(0, abs=1e-6)
    assert float(train.segmentation_loss(-sure, targets)) > 50


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
    state = load_checkpoint(path)
    adam = {f"{k}.{name}": v for k, part in state["optimiser"]["state"].items() for name, v in part.items()}
    return state["extractor"] | adam


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
    scores = train.validate(extractor, trained / "data", held_out)
    assert scores == json.loads((trained / "run/validation.json").read_text())["dice"]
    assert load_checkpoint(trained / "run" / FILE_NAME)["validation"]["dice"] == scores


def test_validation_leaves_the_extractor_in_its_mode(trained):
    extractor = train.ShapeExtractor(load_extractor(trained / "run").settings).train()
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    train.validate(extractor, trained / "data", cases_of(trained / "data")[:1])
    assert extractor.training
    assert all(torch.equal(value, before[name]) for name, value in extractor.state_dict().items())


def test_validation_scores_all_slices_of_a_case_together(dataroot, monkeypatch):
    cases = cases_of(dataroot)[:2]
    reference = np.load(dataroot / cases[0].mask_file)
    found = reference.copy()
    found[1] = 0
    seen = []
    monkeypatch.setattr(train, "segment_slices", lambda extractor, slices: seen.append(np.array(slices)) or found)
    extractor = train.ShapeExtractor(ExtractorSettings(2, 1, CT_MAP, SIZE, 4.0))
    scores = train.validate(extractor, dataroot, cases)
    assert list(scores) == [case.name for case in cases]
    assert all(np.array_equal(s, np.load(dataroot / c.image_file)) for s, c in zip(seen, cases, strict=True))
    assert scores[cases[0].name] == {"body": 2 * found.sum() / (found.sum() + reference.sum())}


def test_an_epoch_trains_in_training_mode():
    extractor = train.ShapeExtractor(ExtractorSettings(2, 1, CT_MAP, SIZE, 4.0)).eval()
    statistics = extractor.net.inc.conv.conv[1]
    batches = [(torch.rand(2, 1, 32, 32), torch.ones(2, 1, 32, 32))] * 3
    train.train_epoch(extractor, torch.optim.SGD(extractor.parameters(), 0.1), batches)
    assert int(statistics.num_batches_tracked) == 3
    assert float(statistics.running_mean.abs().sum()) > 0


def test_learning_rate_falls_as_a_cosine(dataroot, tmp_path, monkeypatch):
    rates = []
    monkeypatch.setattr(
        train, "train_epoch", lambda _, optimiser, loader: rates.append(optimiser.param_groups[0]["lr"])
    )
    monkeypatch.setattr(train, "validate", lambda *_: {"a": {"body": 0.5}})
    monkeypatch.setattr(train.log, "info", lambda *_: None)
    train.main(options(dataroot, tmp_path / "run", "--epochs", "4", "--lr", "0.1"))
    assert rates == pytest.approx([0.1, 0.1 * (1 + 0.5**0.5) / 2, 0.05, 0.1 * (1 - 0.5**0.5) / 2])


def test_resumed_training_equals_uninterrupted(dataroot, tmp_path, monkeypatch):
    train.main(options(dataroot, tmp_path / "whole", "--epochs", "3"))
    real = train.train_epoch
    calls = []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(train, "train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(options(dataroot, tmp_path / "parts", "--epochs", "3"))
    monkeypatch.setattr(train, "train_epoch", real)
    torch.rand(7)  # the run depends on no global random state
    train.main(options(dataroot, tmp_path / "parts", "--epochs", "3", "--continue_train"))
    whole, parts = (tensors_of(tmp_path / name / train.STATE_NAME) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    best = [load_checkpoint(tmp_path / name / FILE_NAME) for name in ("whole", "parts")]
    assert best[0]["validation"] == best[1]["validation"]
    assert all(torch.equal(value, best[1]["weights"][name]) for name, value in best[0]["weights"].items())


def test_the_best_epoch_is_kept(tmp_path, trained):
    extractor = load_extractor(trained / "run")
    progress = {
        "epoch": 0,
        "best": -1.0,
        "best_epoch": 0,
        "scores": {},
        "patients": {"train": ["c"], "validation": ["a", "b"]},
    }
    for epoch, (first, second) in enumerate([(0.5, 0.7), (0.9, 0.7), (0.8, 0.7), (float("nan"), 0.8)], start=1):
        scores = {"a": {"body": first}, "b": {"body": second}}
        progress = train.record(tmp_path, extractor, progress, epoch, scores)
    assert (progress["epoch"], progress["best_epoch"], progress["best"]) == (4, 2, 0.8)
    expected = {"epoch": 2, "dice": {"a": {"body": 0.9}, "b": {"body": 0.7}}, "patients": progress["patients"]}
    assert json.loads((tmp_path / "validation.json").read_text()) == expected


def test_a_run_is_neither_overwritten_nor_continued_otherwise(trained, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data, run = trained / "data", trained / "run"
    with pytest.raises(InputError, match="holds a run already"):
        train.main(options(data, run, *TRAINED))
    before = (run / train.STATE_NAME).read_bytes()
    train.main(options(data, run, *TRAINED, "--continue_train"))  # nothing is left to do
    assert (run / train.STATE_NAME).read_bytes() == before
    assert "| mean" in caplog.text
    for changed, word in (
        (("--seed", "1"), "seed"),
        (("--batch_size", "3"), "batch_size"),
        (("--width", "4"), "width"),
    ):
        with pytest.raises(InputError, match=rf"begun otherwise \(.*{word}"):
            train.main(options(data, run, *TRAINED, "--continue_train", *changed))
    with pytest.raises(InputError, match=r"begun otherwise .*settings"):
        train.main(options(data, run, *TRAINED, "--ct_window", "-1000", "900", "--continue_train"))
    with pytest.raises(InputError, match="nothing to continue"):
        train.main(options(data, tmp_path / "new", "--continue_train"))
    other = shutil.copytree(data, tmp_path / "other")
    manifest = read_manifest(other)
    replace(manifest, cases=tuple(case for case in manifest.cases if case.patient != "p4")).write(other)
    with pytest.raises(InputError, match="was begun with other patients"):
        train.main(options(other, run, *TRAINED, "--continue_train"))


def test_a_loss_that_is_not_finite_changes_no_weight(trained):
    extractor = train.ShapeExtractor(load_extractor(trained / "run").settings)
    before = {name: value.clone() for name, value in extractor.named_parameters()}
    batch = [(torch.full((2, 1, 32, 32), float("nan")), torch.ones(2, 1, 32, 32))]
    with pytest.raises(NonFiniteLossError, match=r"loss not finite: nan.*lower --lr in another --out"):
        train.train_epoch(extractor, torch.optim.SGD(extractor.parameters(), 1.0), batch)
    assert all(torch.equal(value, before[name]) for name, value in extractor.named_parameters())


@pytest.mark.parametrize(
    "words", [("--val_share", "1"), ("--val_share", "0"), ("--ct_window", "5", "5"), ("--ct_transfer", "x"),
              ("--ct_window", "0", "9", "--ct_transfer", "soft_tissue"), ("--width", "0")]
)  # fmt: skip
def test_unusable_options_are_refused(tmp_path, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.parse(options(tmp_path, tmp_path, *words))
    assert words[0].strip("-").split("_")[0] in capsys.readouterr().err
