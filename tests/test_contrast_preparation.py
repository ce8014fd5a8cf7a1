"""Preparing MR of several contrasts: joined by case, recorded with names and order, laid out beside the first."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from data.prepared.contrast_sources import find_contrasts
from data.prepared.manifest import read_manifest
from data.values.bias_field import log_bias_field
from data.values.mr_scale import fat_level
from data.volumes.volume import Volume, read_volume, write_volume
from scripts import prepare_dataset
from tests.faults.commands import snapshot
from tests.test_contrasts import write_contrasts
from tests.test_preparation import ct_volume, cylinder, mr_volume, prepare

NAMES = ("in_phase", "fat")


def fat_volume(k: int = 0) -> Volume:
    """Another contrast of `mr_volume`'s cylinder."""
    inside = cylinder(40.0)
    noise = np.random.default_rng(10 + k).rayleigh(8, inside.shape)
    return mr_volume().with_array(
        (np.where(inside < 0.8, 150, np.where(inside < 1, 900, 0)) + noise).astype(np.float32)
    )


@pytest.fixture
def raw(tmp_path) -> Path:
    for k in range(2):
        write_volume(mr_volume(scale=1 + k), tmp_path / f"mr/p{k}_in_phase.nii.gz")
        write_volume(fat_volume(k), tmp_path / f"mr/p{k}_fat.nii.gz")
        write_volume(ct_volume(), tmp_path / f"ct/q{k}.mha")
    return tmp_path


def contrasts(raw: Path, names=NAMES, folder="mr", option="--mr") -> list[str]:
    return [word for name in names for word in (option, f"{name}={raw}/{folder}/*_{name}.nii.gz")]


def test_every_contrast_is_kept_in_its_units_with_names_and_order(raw):
    code, manifest = prepare(raw, *contrasts(raw))
    assert (code, manifest.contrasts) == (0, NAMES)
    cases = manifest.select("train", "A")
    assert [(case.name, case.contrasts) for case in cases] == [("p0", NAMES), ("p1", NAMES)]
    for k, case in enumerate(cases):
        assert case.image_files == (f"trainA/p{k}.npy", f"trainA/fat/p{k}.npy")
        volumes = (mr_volume(scale=1 + k), fat_volume(k))
        for file, volume in zip(case.image_files, volumes, strict=True):
            np.testing.assert_array_equal(np.load(raw / "set" / file)[:, 2:62, 2:62], volume.array)
        body = read_volume(raw / f"set/bodies/trainA/{case.name}.nii.gz").array > 0
        (fat,) = case.further
        assert fat.percentiles == pytest.approx(np.percentile(volumes[1].array[body], (0.5, 99.5)))
        assert (fat.mr_median, fat.fat_level) == (np.median(volumes[1].array[body]), fat_level(volumes[1].array, body))
        assert fat.source == f"{raw}/mr/p{k}_fat.nii.gz"
    assert manifest.select("train", "B")[0].image_files == ("trainB/q0.npy",)


def test_the_first_contrast_alone_lies_on_disk_as_ever(raw):
    prepare(raw, "--mr", f"{raw}/mr/*_in_phase.nii.gz", "--case_regex", r"(\w\d)[^/]*$", out="plain")
    _, manifest = prepare(raw, *contrasts(raw), out="several")
    plain = read_manifest(raw / "plain")
    assert plain.contrasts == ("mr",)
    for file in (raw / "plain").rglob("*.npy"):
        assert file.read_bytes() == (raw / "several" / file.relative_to(raw / "plain")).read_bytes()
    for one, other in zip(plain.cases, manifest.cases, strict=True):
        assert replace(other, contrast=None, further=()) == one


def test_manifests_of_before_contrasts_are_of_one(raw):
    prepare(raw, "--mr", f"{raw}/mr/*_in_phase.nii.gz")
    path = raw / "set/manifest.json"
    manifest, data = read_manifest(raw / "set"), json.loads(path.read_text())
    for case in data["cases"]:
        assert (case.pop("contrast"), case.pop("further")) == (None, [])
    path.write_text(json.dumps(data))
    assert read_manifest(raw / "set") == manifest


def test_preparing_again_touches_nothing_and_another_contrast_is_prepared_anew(raw):
    prepare(raw, *contrasts(raw))
    before = snapshot(raw / "set")
    prepare(raw, *contrasts(raw))
    assert snapshot(raw / "set") == before
    write_volume(fat_volume(7), raw / "mr/p1_fat.nii.gz")
    prepare(raw, *contrasts(raw))
    np.testing.assert_array_equal(np.load(raw / "set/trainA/fat/p1.npy")[:, 2:62, 2:62], fat_volume(7).array)
    _, manifest = prepare(raw, *contrasts(raw, NAMES[::-1]))
    assert manifest.contrasts == ("fat", "in_phase")
    np.testing.assert_array_equal(np.load(raw / "set/trainA/p0.npy")[:, 2:62, 2:62], fat_volume(0).array)


def test_the_shading_is_the_first_contrasts(raw):
    prepare(raw, *contrasts(raw), "--bias_correction")
    mr = mr_volume()
    body = read_volume(raw / "set/bodies/trainA/p0.nii.gz").array > 0
    field = np.exp(-log_bias_field(mr, body))
    for file, volume in (("p0", mr), ("fat/p0", fat_volume())):
        found = np.load(raw / f"set/trainA/{file}.npy")[:, 2:62, 2:62]
        np.testing.assert_allclose(found, volume.array * field, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: (raw / "mr/p1_fat.nii.gz").unlink(), "--mr: p1 has no fat"),
        (lambda raw: write_volume(fat_volume(), raw / "mr/p9_fat.nii.gz"), "--mr: p9 has no in_phase"),
        (lambda raw: write_volume(fat_volume(), raw / "mr/fat_p1_fat.nii.gz"), "fat=...: the case p1 has it twice"),
    ],
)
def test_a_contrast_that_is_missing_or_twice_names_case_and_contrast(raw, change, message):
    change(raw)
    with pytest.raises(InputError) as error:
        prepare(raw, *contrasts(raw))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ["in_phase=mr/*", "mr/*"],
            "--mr mr/*: has no name beside others; for several contrasts of each MR write --mr NAME=GLOB for each; for "
            "more patients, give all globs after one --mr",
        ),
        (
            ["mr/*", "t2/*"],
            "--mr mr/*: has no name beside others; for several contrasts of each MR write --mr NAME=GLOB for each; for "
            "more patients, give all globs after one --mr",
        ),
        (["fat=mr/*", "fat=mr/*"], "--mr fat=...: given 2 times"),
    ],
)
def test_patterns_must_be_told_apart(patterns, message):
    with pytest.raises(InputError) as error:
        find_contrasts("--mr", [[pattern] for pattern in patterns], (), None)
    assert message in str(error.value)


def test_another_grid_or_the_same_image_fails_its_case_by_name(raw, caplog):
    write_volume(replace(fat_volume(), origin=(5.0, -7.0, 12.0)), raw / "mr/p0_fat.nii.gz")
    code, manifest = prepare(raw, *contrasts(raw))
    assert (code, [case.name for case in manifest.select("train", "A")]) == (1, ["p1"])
    assert "p0 (patient p0): contrast fat: " in caplog.text
    write_volume(mr_volume(), raw / "mr/p0_fat.nii.gz")
    assert prepare(raw, *contrasts(raw))[0] == 1
    assert "p0 (patient p0): contrasts in_phase and fat: the same image" in caplog.text


def test_test_patients_have_the_contrasts_of_training_in_its_order(raw):
    for name in NAMES:
        (raw / f"mr/p1_{name}.nii.gz").rename(raw / f"test_p1_{name}.nii.gz")
    more = contrasts(raw)
    test = ["--test_mr", f"fat={raw}/*_fat.nii.gz"]
    with pytest.raises(InputError, match="--test_mr: no in_phase; expected in_phase, fat"):
        prepare(raw, *more, *test)
    _, manifest = prepare(raw, *more, *test, "--test_mr", f"in_phase={raw}/*_in_phase.nii.gz")
    assert [case.contrasts for case in manifest.select("test", "A")] == [NAMES]


def test_one_patient_is_called_by_its_folder(raw):
    for name in NAMES:
        (raw / f"mr/p0_{name}.nii.gz").rename(raw / f"{name}.nii.gz")
    sources = find_contrasts("--mr", [[f"{name}={raw}/{name}.nii.gz"] for name in NAMES], (), None)
    assert [(source.name, len(source.further)) for source in sources] == [(raw.name, 1)]


def test_contrasts_of_one_dicom_series_are_prepared_by_name(raw):
    def tell(header, number):
        header.ImageType = ["DERIVED", "PRIMARY", "DIXON", ("IN_PHASE", "FAT")[number]]

    for k in range(2):
        (raw / f"dicom/p{k}").mkdir(parents=True)
        images = write_contrasts(raw / f"dicom/p{k}", tell, NAMES)
    masks = raw / "masks"
    for k in range(2):
        grid = read_volume(raw / f"dicom/p{k}", contrast="fat")
        write_volume(grid.with_array(np.ones((6, 8, 10), np.uint8)), masks / f"p{k}.nii.gz")
    patterns = [word for name in NAMES for word in ("--mr", f"{name}={raw}/dicom/*")]
    more = [*patterns, "--mr_mask", f"{masks}/*", "--spacing_mm", "0.7"]
    code = prepare_dataset.main(["--ct", f"{raw}/ct/*", "--out", f"{raw}/set", "--workers", "1", "--size", "16", *more])
    manifest = read_manifest(raw / "set")
    assert (code, manifest.contrasts) == (0, NAMES)
    case = manifest.select("train", "A")[0]
    for recorded, name in zip((case, *case.further), NAMES, strict=True):
        assert recorded.percentiles == pytest.approx(np.percentile(images[name], (0.5, 99.5)))


def edited(raw: Path, **changes) -> None:
    path = raw / "set/manifest.json"
    data = json.loads(path.read_text())
    case = next(case for case in data["cases"] if case["domain"] == "A")
    case["further"][0] |= changes
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "changes",
    [{"name": "../fat"}, {"name": "in_phase"}, {"percentiles": [1]}, {"percentiles": 3}, {"mr_median": "x"},
     {"fat_level": -1}, {"source_sha256": 4}, {"name": "water"}],
)  # fmt: skip
def test_a_manifest_with_impossible_contrasts_is_refused(raw, changes):
    prepare(raw, *contrasts(raw))
    edited(raw, **changes)
    with pytest.raises(InputError, match=r"manifest\.json: damaged"):
        read_manifest(raw / "set")
