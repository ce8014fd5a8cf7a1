"""Data sets that cannot be trained on, and volumes that cannot become one."""

import json
from pathlib import Path

import numpy as np
import pytest

import train
from data.errors import InputError
from data.prepared.manifest import read_manifest
from scripts import prepare_dataset
from tests.faults.commands import assert_one_clear_error, prepare, run, snapshot
from tools.fuzz_samples import write_data_set


def training(root: Path) -> list[str]:
    where = ["--dataroot", root / "set", "--name", "x", "--checkpoints_dir", root / "checkpoints"]
    small = "--ngf 2 --ndf 2 --netG resnet_6blocks --preprocess none --lambda_shape 0 --lambda_shape_gan 0 --device cpu"
    return [*map(str, where), *small.split(), "--no_html", "--num_threads", "0"]


def edit(change):
    """Return a fault that edits the manifest's JSON."""

    def fault(root):
        path = root / "manifest.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return fault


def set_case(**changes):
    return edit(lambda data: data["cases"][0].update(changes))


def remove_domain(data):
    data["cases"] = [case for case in data["cases"] if case["domain"] == "A"]


def leak(data):
    data["cases"].append(data["cases"][0] | {"name": "again", "split": "test"})


def rename_folder(root):
    root.rename(root.with_name("elsewhere"))


def other_array(root):
    np.save(root / "trainA/caseA.npy", np.ones((4, 12, 12), np.float32))


def pickled_array(root):
    np.save(root / "trainA/caseA.npy", np.array([{}] * 4), allow_pickle=True)


def cut_array(root):
    path = root / "trainA/caseA.npy"
    path.write_bytes(path.read_bytes()[:-10])


def drop_array(root):
    (root / "maskA/caseA.npy").unlink()


FAULTS = {
    "missing": (rename_folder, "set: no such folder. Data sets: "),
    "empty domain": (edit(remove_domain), "domain B (CT) has no slice to train on"),
    "another version": (edit(lambda data: data.update(format_version=7)), "format version 7, expected 1"),
    "nested without end": (lambda root: (root / "manifest.json").write_text("[" * 100_000), "cannot be read as JSON"),
    "a list": (lambda root: (root / "manifest.json").write_text("[]"), "manifest.json: damaged, holds a list"),
    "no JSON": (lambda root: (root / "manifest.json").write_text("{]"), "cannot be read as JSON"),
    "patient in train and test": (edit(leak), "the same patient is in both train and test"),
    "field removed": (edit(lambda data: data["cases"][0].pop("slices")), "slices 0 of the case 'caseA'"),
    "field added": (set_case(colour="red"), "damaged (Case.__init__() got an unexpected keyword argument 'colour')"),
    "slices of text": (set_case(slices="four"), "slices 'four' of the case 'caseA'"),
    "more slices than there are": (set_case(body_slices=[0, 9]), "slices 4 of the case 'caseA'"),
    "percentiles of text": (set_case(percentiles=["a", "b"]), "percentiles ('a', 'b') of the case 'caseA'"),
    "percentiles gone": (set_case(percentiles=None), "percentiles None of the case 'caseA'"),
    "a name that leads out": (set_case(name="../../secret"), "name '../../secret' of the case"),
    "a domain that is none": (set_case(domain="C"), "domain 'C' of the case 'caseA'"),
    "size 0": (edit(lambda data: data.update(size=0)), "size 0"),
    "negative spacing": (edit(lambda data: data.update(spacing_mm=-2)), "spacing_mm -2"),
    "array of another frame": (other_array, "array of shape (4, 12, 12), the manifest says (4, 8, 8)"),
    "array of objects": (pickled_array, "caseA.npy: "),
    "array truncated": (cut_array, "caseA.npy: "),
    "mask missing for one patient": (drop_array, "maskA/caseA.npy: cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_training_does_not_start(tmp_path, fault):
    write_data_set(tmp_path / "set")
    change, words = FAULTS[fault]
    change(tmp_path / "set")
    before = snapshot(tmp_path)
    with pytest.raises(InputError) as error:
        train.main(training(tmp_path))
    assert words in str(error.value)
    assert snapshot(tmp_path) == before


def test_the_data_set_that_the_faults_damage_is_a_good_one(tmp_path):
    write_data_set(tmp_path / "set")
    assert len(read_manifest(tmp_path / "set").cases) == 2


@pytest.mark.parametrize("fault", ["patient in train and test", "slices of text"])
def test_exit_code_and_line(tmp_path, fault):
    write_data_set(tmp_path / "set")
    change, words = FAULTS[fault]
    change(tmp_path / "set")
    before = snapshot(tmp_path)
    assert_one_clear_error(run("train.py", *training(tmp_path)), words)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--ct", "nowhere/*"], "nowhere/*: no such folder: nowhere"),
        (["--test_mr", "{raw}/mr/p0.nii.gz"], "the same patient is in both train and test: p0"),
    ],
)
def test_preparation_stops_before_anything_is_touched(raw, more, words):
    (raw / "masks").mkdir()
    (raw / "masks/p0.nii.gz").write_bytes((raw / "mr/p0.nii.gz").read_bytes())
    prepare_dataset.main(prepare(raw))
    before = snapshot(raw)
    command = [*prepare(raw), *(part.format(raw=raw) for part in more)]
    assert_one_clear_error(run("-m", "scripts.prepare_dataset", *command), words)
    assert snapshot(raw) == before


def test_a_changed_source_is_prepared_again_and_the_others_are_not_touched(raw):
    prepare_dataset.main(prepare(raw))
    before = snapshot(raw / "set")
    (raw / "mr/p0.nii.gz").write_bytes((raw / "mr/p1.nii.gz").read_bytes())
    prepare_dataset.main(prepare(raw))
    changed = {path.name for path, data in snapshot(raw / "set").items() if before[path] != data}
    assert "p0.npy" in changed and not {"p1.npy", "q0.npy", "q1.npy"} & changed
