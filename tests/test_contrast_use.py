"""The commands on models of several contrasts: inputs by name, for one patient and for a cohort."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import test_adapt
import test_pipeline
from data.errors import InputError
from data.volumes.volume import read_volume, write_volume
from models.networks import build_generator
from models.state_dicts import save_network_weights
from models.synthesis import load_synthesiser, synthesize_volume
from scripts import export_model
from tests.cohort_data import NAME, SETTINGS, patient_mr, write_dicom_patient
from tests.test_contrast_preparation import fat_volume
from visualization.panels import VisualsStyle

NAMES = ("in_phase", "fat")
TWO = replace(SETTINGS, contrasts=NAMES, slab=3, generator=replace(SETTINGS.generator, input_nc=6, output_nc=3))


def write_model(root: Path, settings=TWO) -> None:
    torch.manual_seed(0)
    folder = root / "checkpoints" / NAME
    settings.write(folder)
    save_network_weights(build_generator(settings.generator), folder / "latest_net_G_A.pth")


@pytest.fixture
def site(tmp_path) -> Path:
    """Two patients of two contrasts, and a model."""
    write_model(tmp_path)
    for k in range(2):
        write_volume(patient_mr(36.0 + 2 * k), tmp_path / f"in/p{k}/in_phase.nii.gz")
        write_volume(fat_volume(k), tmp_path / f"in/p{k}/fat.nii.gz")
    return tmp_path


def expected(site: Path, first: Path, fat: Path, **how) -> np.ndarray:
    synthesiser = load_synthesiser(site / "checkpoints" / NAME, "latest", torch.device("cpu"))
    return synthesize_volume(read_volume(first), synthesiser, further=[read_volume(fat)], **how).array


def adapt(site: Path, *arguments: str) -> None:
    where = ["--checkpoints_dir", f"{site}/checkpoints", "--results_dir", f"{site}/out", "--device", "cpu"]
    test_adapt.main(["--name", NAME, "--precision", "fp32", *where, *arguments])


def inputs(site: Path, *names: str, patient="p0") -> list[str]:
    return [word for name in names for word in ("--input", f"{name}={site}/in/{patient}/{name}.nii.gz")]


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1]])
def test_one_patient_by_name_in_any_order(site, order):
    adapt(site, *inputs(site, *order))
    found = read_volume(site / f"out/{NAME}/p0.nii.gz")
    patient = site / "in/p0"
    np.testing.assert_array_equal(found.array, expected(site, patient / "in_phase.nii.gz", patient / "fat.nii.gz"))
    report = json.loads((site / f"out/{NAME}/p0.json").read_text())
    assert report["input"] == ", ".join(f"{name}={(patient / name).resolve()}.nii.gz" for name in NAMES)
    assert "MR (in_phase)" in (site / f"out/{NAME}/p0_page/index.html").read_text()
    adapt(site, *inputs(site, *order[::-1]))  # its own result, renewed


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["in_phase"], "--input: no fat; expected in_phase, fat"),
        (["fat"], "--input: no in_phase"),
        (["in_phase", "fat", "fat"], "--input fat=...: given 2 times"),
        (["in_phase", "fat", "water"], "--input water=...: no such contrast"),
    ],
)
def test_a_contrast_that_is_missing_twice_or_unknown_is_named(site, names, message):
    with pytest.raises(InputError) as error:
        adapt(site, *inputs(site, *names))
    assert message in str(error.value)
    assert not (site / "out").exists()


def test_an_input_without_a_name_is_refused_where_there_are_several(site):
    with pytest.raises(
        InputError, match=r"in_phase\.nii\.gz: does not say which contrast it is; expected in_phase, fat"
    ):
        adapt(site, "--input", f"{site}/in/p0/in_phase.nii.gz")


def test_a_contrast_on_another_grid_is_named(site):
    write_volume(replace(fat_volume(), spacing=(2.0, 2.0, 5.0)), site / "in/p0/fat.nii.gz")
    with pytest.raises(InputError, match=r"contrast fat: .*not on the grid of in_phase: spacing .*, expected "):
        adapt(site, *inputs(site, *NAMES))


def write_dixon(folder: Path) -> None:
    """Write both contrasts as one DICOM series, which ImageType tells apart."""
    for number, (word, change) in enumerate({"IN_PHASE": 1, "FAT": 2}.items()):

        def tell(k, header, word=word, change=change):
            header.ImageType = ["DERIVED", "PRIMARY", "DIXON", word]
            array = np.frombuffer(header.PixelData, np.uint16)
            header.PixelData = (array if change == 1 else 900 - np.minimum(array, 900)).astype(np.uint16).tobytes()

        scratch = folder / f"{number}"
        write_dicom_patient(scratch, uid="1.2.3.4444", change=tell)
        for file in scratch.glob("*.dcm"):
            file.rename(folder / f"{number}{file.name}")


def test_contrasts_of_one_dicom_series_are_used_by_name(site):
    write_dixon(site / "dicom/p7")
    folder = site / "dicom/p7"
    adapt(site, "--input", f"fat={folder}", "--input", f"in_phase={folder}")
    found = read_volume(site / f"out/{NAME}/p7.nii.gz").array
    images = [read_volume(folder, contrast=name) for name in NAMES]
    synthesiser = load_synthesiser(site / "checkpoints" / NAME, "latest", torch.device("cpu"))
    np.testing.assert_array_equal(found, synthesize_volume(images[0], synthesiser, further=images[1:]).array)
    patterns = [f"{name}=p*" for name in NAMES]
    code, cases = pipeline(site, "--input_dir", str(site / "dicom"), "--pattern", *patterns)
    assert (code, list(cases)) == (0, ["p7"])
    np.testing.assert_array_equal(read_volume(site / f"all/{NAME}/p7.nii.gz").array, found)


def test_a_model_of_one_named_contrast_finds_it_in_a_series_of_several(site):
    write_model(site, replace(SETTINGS, contrasts=("fat",)))
    write_dixon(site / "dicom/p7")
    adapt(site, "--input", str(site / "dicom/p7"), "--output", str(site / "a.nii.gz"))
    adapt(site, "--input", f"fat={site}/dicom/p7", "--output", str(site / "b.nii.gz"))
    assert (site / "a.nii.gz").read_bytes() == (site / "b.nii.gz").read_bytes()
    code, cases = pipeline(site, "--input_dir", str(site / "dicom"))
    assert (code, list(cases)) == (0, ["p7"])


def pipeline(site: Path, *arguments: str) -> tuple[int, dict[str, dict]]:
    where = ["--checkpoints_dir", f"{site}/checkpoints", "--results_dir", f"{site}/all", "--device", "cpu"]
    code = test_pipeline.main(["--name", NAME, "--precision", "fp32", "--no_html", *where, *arguments])
    summary = json.loads((site / f"all/{NAME}/summary.json").read_text())
    return code, {case["case"]: case for case in summary["cases"]}


PATTERNS = ["--pattern", "fat=**/fat*", "in_phase=*/in_phase.nii.gz"]


def test_a_cohort_by_a_pattern_for_each_contrast(site, caplog):
    code, cases = pipeline(site, "--input_dir", f"{site}/in", *PATTERNS)
    assert (code, list(cases)) == (0, ["p0", "p1"])
    for name in cases:
        paths = (site / f"in/{name}/in_phase.nii.gz", site / f"in/{name}/fat.nii.gz")
        np.testing.assert_array_equal(read_volume(site / f"all/{NAME}/{name}.nii.gz").array, expected(site, *paths))
    write_volume(fat_volume(8), site / "in/p1/fat.nii.gz")
    caplog.set_level("INFO")
    pipeline(site, "--input_dir", f"{site}/in", *PATTERNS)
    assert "2 cases: 1 up to date, 1 to do" in caplog.text


def test_a_case_that_lacks_a_contrast_or_has_it_twice_fails_by_name_and_alone(site):
    (site / "in/p0/fat.nii.gz").unlink()
    write_volume(patient_mr(), site / "in/p2/in_phase.nii.gz")
    for end in ("nii.gz", "mha"):
        write_volume(fat_volume(), site / f"in/p2/fat.{end}")
    code, cases = pipeline(site, "--input_dir", f"{site}/in", *PATTERNS)
    assert (code, cases["p1"]["status"]) == (1, "done")
    assert "the case p0 has no fat; expected in_phase, fat, each once" in cases["p0"]["reason"]
    assert "the case p2 has fat twice (" in cases["p2"]["reason"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--pattern: no in_phase, no fat; expected in_phase, fat"),
        (["--pattern", "in_phase=*"], "--pattern: no fat"),
        (["--pattern", "*.nii.gz"], "--pattern *.nii.gz: does not say which contrast it is"),
        (["--pattern", "fat=x*", "in_phase=y*"], "no volume file or DICOM folder that matches fat=x* or in_phase=y*"),
        ([*PATTERNS, "--series_description", "x"], "--series_description: contrasts are distinguished by name"),
    ],
)
def test_a_cohort_needs_a_pattern_for_each_contrast(site, arguments, message):
    with pytest.raises(InputError) as error:
        pipeline(site, "--input_dir", f"{site}/in", *arguments)
    assert message in str(error.value)


def write_list(site: Path, *lines: str) -> list[str]:
    (site / "list.csv").write_text("\n".join(lines) + "\n")
    return ["--list", f"{site}/list.csv"]


def test_a_table_with_a_column_for_each_contrast(site):
    table = write_list(
        site, "fat,id,in_phase", "in/p0/fat.nii.gz,a,in/p0/in_phase.nii.gz", ",b,in/p1/in_phase.nii.gz",
        "in/p1/gone.nii.gz,c,in/p1/in_phase.nii.gz",
    )  # fmt: skip
    code, cases = pipeline(site, *table)
    assert (code, cases["a"]["status"]) == (1, "done")
    found = read_volume(site / f"all/{NAME}/a.nii.gz").array
    patient = site / "in/p0"
    np.testing.assert_array_equal(found, expected(site, patient / "in_phase.nii.gz", patient / "fat.nii.gz"))
    assert "line 3: no fat of b" in cases["b"]["reason"]
    assert "gone.nii.gz: no such file or folder (fat of c)" in cases["c"]["reason"]


def test_a_table_without_a_contrasts_column_is_refused(site):
    with pytest.raises(InputError, match="columns id, path; expected id, in_phase, fat and optionally reference"):
        pipeline(site, *write_list(site, "id,path", "a,in/p0/fat.nii.gz"))


def test_an_exported_model_keeps_its_contrasts(site):
    export_model.main(
        ["--name", NAME, "--checkpoints_dir", f"{site}/checkpoints", "--out", f"{site}/checkpoints/small"]
    )
    synthesisers = [
        load_synthesiser(site / "checkpoints" / name, "latest", torch.device("cpu")) for name in (NAME, "small")
    ]
    assert synthesisers[1].settings == synthesisers[0].settings
    mr, fat = patient_mr(), fat_volume()
    whole, small = (synthesize_volume(mr, one, further=[fat]).array.astype(int) for one in synthesisers)
    assert np.abs(whole - small).max() < 12  # half precision


def test_pictures_of_a_training_show_the_middle_slice_of_the_first_contrast():
    style = VisualsStyle(SETTINGS.ct, slab=3, contrast="in_phase")
    images = torch.arange(6.0)[None, :, None, None].expand(2, 6, 4, 4)
    assert style.plane("real_A", images)[0, 0] == 1
    np.testing.assert_allclose(style.plane("fake_B", images[:, :3]), SETTINGS.ct.to_physical(np.ones((4, 4))))
    assert style.plane("mask", images)[0, 0] == 2  # two classes a slice: the middle one's first
    assert style.title("real_A") == "real MR (in_phase)"
    assert style.title("fake_B") == "CT made from it"
    assert VisualsStyle(SETTINGS.ct).title("real_A") == "real MR"
