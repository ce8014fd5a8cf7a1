"""Models that cannot be used, from every command that uses one: refused, nothing of them run, nothing lost."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import test_adapt
import test_pipeline
from data.errors import InputError
from data.volumes.volume import read_volume, same_grid, write_volume
from models.inference_settings import FILE_NAME, read_inference_settings
from models.networks import Architecture, build_generator
from models.state_dicts import save_network_weights
from models.test_model import TestModel
from tests.cohort_data import NAME, SETTINGS, patient_mr, write_model, write_patients
from tests.faults.commands import adapt, assert_one_clear_error, assert_refused, pipeline, run, snapshot


class Trap:
    """Unpickled without care, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def weights(site: Path) -> Path:
    return site / "checkpoints" / NAME / "latest_net_G_A.pth"


def truncate(site):
    weights(site).write_bytes(weights(site).read_bytes()[:-500])


def trap_by_pickle(site):
    weights(site).write_bytes(pickle.dumps({"model.1.weight": Trap(site / "marker")}))


def trap_by_torch(site):
    torch.save({"model.1.weight": Trap(site / "marker")}, weights(site))


def other_width(site):
    save_network_weights(build_generator(Architecture("resnet_6blocks", ngf=4, upsample="resize")), weights(site))


def other_network(site):
    save_network_weights(build_generator(Architecture("unet_128", ngf=2)), weights(site))


def not_finite(site):
    net = build_generator(Architecture("resnet_6blocks", ngf=2, upsample="resize"))
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    save_network_weights(net, weights(site))


def damaged(change):
    """Change the bytes of the greatest weights, which torch by itself would read as other numbers."""

    def apply(site):
        data, values = bytearray(weights(site).read_bytes()), torch.load(weights(site), weights_only=True).values()
        greatest = max(values, key=torch.Tensor.numel).numpy().tobytes()
        at = data.find(greatest)
        assert at > 0 and len(greatest) > 64
        change(data, at)
        weights(site).write_bytes(data)
        torch.load(weights(site), weights_only=True)

    return apply


def flip(data, at):
    data[at + 2] ^= 64


def blank(data, at):
    data[at : at + 48] = bytes(48)


def exchange(data, at):
    data[at : at + 16], data[at + 16 : at + 32] = data[at + 16 : at + 32], data[at : at + 16]


def write_text(text):
    return lambda site: (site / "checkpoints" / NAME / FILE_NAME).write_text(text)


def no_weights(site):
    weights(site).unlink()


def set_generator(**changes):
    def change(site):
        path = site / "checkpoints" / NAME / FILE_NAME
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"generator": content["generator"] | changes}))

    return change


def set_to(**changes):
    def change(site):
        path = site / "checkpoints" / NAME / FILE_NAME
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def truncate_text(site):
    path = site / "checkpoints" / NAME / FILE_NAME
    path.write_text(path.read_text()[:-40])


FAULTS = {
    "truncated": (truncate, "latest_net_G_A.pth: cannot be read"),
    "pickle with code": (trap_by_pickle, "latest_net_G_A.pth: cannot be read"),
    "torch file with code": (trap_by_torch, "latest_net_G_A.pth: cannot be read"),
    "a flipped bit": (damaged(flip), "latest_net_G_A.pth: cannot be read: it is damaged: its part"),
    "a blank block": (damaged(blank), "latest_net_G_A.pth: cannot be read: it is damaged: its part"),
    "exchanged blocks": (damaged(exchange), "latest_net_G_A.pth: cannot be read: it is damaged: its part"),
    "other width": (other_width, "does not fit ResnetGenerator: of another shape"),
    "other network": (other_network, "does not fit ResnetGenerator: missing"),
    "weights missing": (
        no_weights,
        "latest_net_G_A.pth: no such file; expected the weights of a model; there are none",
    ),
    "settings truncated": (truncate_text, "inference.json: damaged"),
    "settings nested without end": (write_text('{"ct": ' * 100_000), "inference.json: damaged"),
    "settings of a list": (write_text("[]"), "inference.json: damaged, holds a list"),
    "settings empty": (write_text(""), "inference.json: damaged"),
    "width of True": (set_generator(ngf=True), "software (generator: ngf True is not a possible value)"),
    "size of True": (set_to(size=True), "software (size: True is not a possible value)"),
    "width of a fraction": (set_generator(ngf=2.0), "software (generator: ngf 2.0 is not a possible value)"),
    "window the wrong way round": (set_to(mr_window=[400, 0]), "mr_window: (400, 0) is not a possible value"),
    "training of a list": (set_to(training=[1]), "inference.json: damaged"),
    "training without figures": (set_to(training={"mr_high": 1}), "inference.json: damaged"),
    "settings of another version": (
        set_to(format_version=99),
        "format version 99, expected 1 or 2; update the software",
    ),
    "size of text": (set_to(size="large"), "software (size: 'large' is not a possible value)"),
    "size of all memory": (set_to(size=3_000_000), "software (size: 3000000 is not a possible value)"),
    "width of all memory": (set_generator(ngf=30_000_000), "software (ngf: 30000000 is not a possible value)"),
    "negative spacing": (set_to(spacing_mm=-1.0), "spacing_mm: -1.0 is not a possible value"),
    "window of text": (set_to(mr_window=["a", "b"]), "mr_window: ('a', 'b') is not a possible value"),
    "unknown direction": (set_to(direction="AtoC"), "direction: 'AtoC' is not a possible value"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_patient(site, fault):
    change, words = FAULTS[fault]
    change(site)
    before = snapshot(site)
    with pytest.raises(InputError) as error:
        test_adapt.main(adapt(site, site / "good.nii.gz"))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert snapshot(site) == before and not (site / "marker").exists()


def test_the_trap_is_one(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "fault", ["truncated", "a flipped bit", "torch file with code", "other width", "size of all memory"]
)
def test_a_cohort_stops_before_anything_is_touched(site, fault):
    write_patients(site / "in", 1)
    assert test_pipeline.main(pipeline(site, site / "in", "--no_html")) == 0
    change, words = FAULTS[fault]
    change(site)
    write_patients(site / "in", 2)
    before = snapshot(site)
    assert_one_clear_error(run("test_pipeline.py", *pipeline(site, site / "in", "--no_html")), words)
    assert snapshot(site) == before and not (site / "marker").exists()


def test_exit_code_and_line(site):
    trap_by_torch(site)
    before = snapshot(site)
    assert_one_clear_error(run("test_adapt.py", *adapt(site, site / "good.nii.gz")), "cannot be read", "tensors")
    assert snapshot(site) == before and not (site / "marker").exists()


def test_weights_that_are_taken_over_are_not_run_either(tmp_path):
    torch.save({"model.1.weight": Trap(tmp_path / "marker")}, tmp_path / "foreign.pth")
    parts = ["--weights", tmp_path / "foreign.pth", "--name", "x", "--checkpoints_dir", tmp_path / "checkpoints"]
    more = "--netG resnet_6blocks --ngf 2 --size 32 --spacing_mm 2 --mr_window 0 400".split()
    result = run("-m", "scripts.import_generator", *parts, *more)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert not (tmp_path / "marker").exists() and not (tmp_path / "checkpoints").exists()


def test_weights_of_nan_make_no_volume(site):
    """Finite weights were saved; a disk or a copy made them NaN: the earlier volume stays."""
    not_finite(site)
    before = snapshot(site / "out")
    result = run("test_adapt.py", *adapt(site, site / "good.nii.gz"))
    assert result.returncode != 0 and "not finite" in result.stderr
    assert snapshot(site / "out") == before


def test_memory_that_ends_makes_no_volume(site, monkeypatch, capsys):
    """Torch's allocator itself refuses what no address space holds."""
    monkeypatch.setattr(TestModel, "_run", lambda self, batch: torch.empty(2**60, dtype=torch.uint8).numpy())
    before = snapshot(site)
    words = ("cpu: out of memory with one slice at a time (", "GiB more requested", "GiB free)", "--device")
    assert_refused(capsys, lambda: test_adapt.main(adapt(site, site / "good.nii.gz")), *words)
    assert snapshot(site) == before


def test_a_body_beyond_the_slices_of_the_training_is_converted_whole(tmp_path, caplog):
    """And that is said."""
    write_model(tmp_path, settings=replace(SETTINGS, size=16))
    path = write_volume(patient_mr(), tmp_path / "good.nii.gz")
    test_adapt.main(adapt(tmp_path, path))
    assert "mm are used; the model was trained on 64 mm" in caplog.text
    made = read_volume(tmp_path / "out" / NAME / "good.nii.gz")
    assert same_grid(made, patient_mr())
    assert np.mean(made.array[patient_mr().array > 100] == -1000) < 0.01


def test_good_settings_pass(tmp_path):
    for changes in ({}, {"slice_mm": 2.5}, {"spacing_mm": None}, {"mr_window": (0.0, 400.0)}, {"direction": "BtoA"}):
        settings = replace(SETTINGS, **changes)
        settings.write(tmp_path)
        assert read_inference_settings(tmp_path) == settings
