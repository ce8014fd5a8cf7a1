"""The image for one subject: its entry point on a folder laid out as BIC-MAC's, and what the Dockerfile says."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import test_adapt
from container import convert_subject
from data.errors import run_command
from data.volumes.volume import read_volume, same_grid, write_volume
from tests.cohort_data import NAME, SETTINGS, patient_mr, write_dicom_patient, write_model
from tests.test_contrast_preparation import fat_volume

ROOT = Path(__file__).resolve().parents[1]
IN, OUT = "sub-07_DIXONbodyIN_T1w.nii.gz", "sub-07_DIXONbodyOUT_T1w.nii.gz"
TWO = replace(SETTINGS, contrasts=("in_phase", "fat"), generator=replace(SETTINGS.generator, input_nc=2))


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A subject as BIC-MAC has it, of which one volume is wanted, and a model; the options that are always the same."""
    folder = tmp_path / "input"
    write_volume(patient_mr(), folder / IN)
    write_volume(fat_volume(0), folder / OUT)
    for name in ("bodyIN_chunk-1", "bodyIN_chunk-2", "bodyOUT_chunk-1", "headIN", "headOUT"):
        write_volume(patient_mr(30.0), folder / f"sub-07_DIXON{name}_T1w.nii.gz")
    write_volume(patient_mr(50.0), folder / "sub-07_nacpet.nii.gz")
    (folder / "metadata.json").write_text("{}")
    write_model(tmp_path)
    monkeypatch.setenv("CONVERT_OPTIONS", f"--name {NAME} --checkpoints_dir '{tmp_path}/checkpoints' --device cpu")
    return tmp_path


def convert(site: Path, *more: object) -> int:
    where = ["--input_dir", site / "input", "--output_dir", site / "output", "--precision", "fp32"]
    return convert_subject.main([*map(str, where), *map(str, more)])


def adapted(site: Path, *inputs: str, **more: str) -> np.ndarray:
    """Return what `test_adapt.py` makes of the same."""
    words = [word for one in inputs for word in ("--input", one)]
    words += [word for name, value in more.items() for word in (f"--{name}", value)]
    where = ["--name", NAME, "--checkpoints_dir", f"{site}/checkpoints", "--device", "cpu", "--precision", "fp32"]
    assert test_adapt.main([*where, *words, "--output", f"{site}/expected.nii.gz"]) == 0
    return read_volume(site / "expected.nii.gz").array


def refusal(site: Path, capsys, *more: object) -> str:
    """Return the one line with which a conversion ends, and see that it has made nothing."""
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: convert(site, *more))
    assert ended.value.code == 2 and not list(site.glob("output/*"))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    return line


def test_the_output_is_the_ct_of_the_in_phase_volume_and_nothing_else(site):
    before = {path: path.stat().st_mtime_ns for path in (site / "input").iterdir()}
    assert convert(site) == 0
    assert [path.name for path in (site / "output").iterdir()] == ["sct.nii.gz"]
    found = read_volume(site / "output/sct.nii.gz")
    assert same_grid(found, read_volume(site / "input" / IN), tolerance=1e-6)
    assert found.array.dtype == np.int16 and found.array.std() > 0
    np.testing.assert_array_equal(found.array, adapted(site, f"{site}/input/{IN}"))
    assert {path: path.stat().st_mtime_ns for path in (site / "input").iterdir()} == before


def test_names_can_be_chosen_by_options_and_by_the_environment_and_options_win(site, monkeypatch):
    said = f"--name {NAME} --checkpoints_dir {site}/checkpoints --device cpu --output_name 'a b.nii' --pattern 'x*'"
    monkeypatch.setenv("CONVERT_OPTIONS", said)
    assert convert(site, "--pattern", "*bodyOUT_T1w*", "--with_page") == 0
    names = {path.name for path in (site / "output").iterdir()}
    assert names == {"a b.nii", "a b.png", "a b_page", "a b.json"}
    found = read_volume(site / "output/a b.nii").array
    np.testing.assert_array_equal(found, adapted(site, f"{site}/input/{OUT}"))


def test_other_options_are_those_of_test_adapt(site):
    assert convert(site, "--mu_map", site / "output/mu.nii.gz", "--kvp", 140) == 0
    assert {path.name for path in (site / "output").iterdir()} == {"sct.nii.gz", "mu.nii.gz"}


def test_a_model_of_several_contrasts_takes_each_by_its_pattern(site):
    write_model(site, settings=TWO)
    assert convert(site, "--pattern", "fat=*bodyOUT_T1w.nii.gz", "in_phase=*bodyIN_T1w.nii.gz") == 0
    expected = adapted(site, f"in_phase={site}/input/{IN}", f"fat={site}/input/{OUT}")
    np.testing.assert_array_equal(read_volume(site / "output/sct.nii.gz").array, expected)


@pytest.mark.parametrize(("folder", "pattern"), [("input/images/t1", "images/*"), ("input", ".")])
def test_a_dicom_folder_is_an_image(tmp_path, site, monkeypatch, folder, pattern):
    for path in (site / "input").iterdir():
        path.unlink()
    write_dicom_patient(site / folder)
    assert convert(site, "--pattern", pattern) == 0
    expected = adapted(site, str(site / folder))
    np.testing.assert_array_equal(read_volume(site / "output/sct.nii.gz").array, expected)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--pattern", "*T2w.nii.gz"], rf"--pattern \*T2w.nii.gz: no volume file .*/input, which holds .*{IN}, .*name"),
        (["--pattern", "*bodyIN*"], r"3 images in .*/input: .*chunk-1_T1w.nii.gz, .*; expected one: narrow"),
        (["--pattern", "../*"], r"--pattern \.\./\*: expected a glob relative to --input_dir"),
        (["--pattern", "metadata.json"], "no volume file"),
        (["--pattern", "a=*IN_T1w*"], r"--pattern a=\.\.\.: no such contrast; the model takes one image"),
        (["--pattern", "*1w*", "*2w*"], "--pattern mr=.*given 2 times; the model takes one image"),
        (["--input_dir", "/nowhere/at/all"], "--input_dir /nowhere/at/all: no such folder"),
        (["--name", "no_such_model"], r"no_such_model: no such model\. Models in .*: tiny"),
        (["--output_name", "sct"], "expected a file ending in"),
        (["--output_name", "../sct.nii.gz"], r"--output_name \.\./sct.nii.gz: expected the name of a file"),
        (["--input", "x.nii.gz"], "--input: use --pattern"),
        (["--output=x.nii.gz"], "--output=x.nii.gz: use --pattern"),
        (["--no_such_option"], "--no_such_option: no such option"),
        (["--reference", "ct.nii.gz"], "--volume_only and --reference: scores are in the report"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line_with_exit_code_2(site, capsys, more, said):
    assert re.search(said, refusal(site, capsys, *more))


def test_an_empty_folder_and_a_truncated_file_are_said(site, capsys):
    path = site / "input" / IN
    path.write_bytes(path.read_bytes()[:200])
    assert re.search(f"{IN}: .*cannot be read", refusal(site, capsys))
    for file in (site / "input").iterdir():
        file.unlink()
    assert "which holds no file; name the subject's MR by --pattern" in refusal(site, capsys)


def test_options_of_the_environment_that_cannot_be_split_are_said(site, capsys, monkeypatch):
    monkeypatch.setenv("CONVERT_OPTIONS", "--pattern 'x")
    assert "CONVERT_OPTIONS=--pattern 'x: No closing quotation; expected options" in refusal(site, capsys)


def test_a_ct_that_is_there_is_kept_unless_said_otherwise(site, capsys):
    (site / "output").mkdir()
    (site / "output/sct.nii.gz").write_bytes(b"another")
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: convert(site))
    assert ended.value.code == 2 and (site / "output/sct.nii.gz").read_bytes() == b"another"
    said = capsys.readouterr().err
    assert "sct.nii.gz: exists already; choose another --output, or replace it with --overwrite" in said
    assert convert(site, "--overwrite") == 0
    assert read_volume(site / "output/sct.nii.gz").size == patient_mr().size


def test_the_dockerfile_stands_on_the_other_one_and_starts_the_entry_point():
    text = (ROOT / "container/Dockerfile").read_text()
    base = re.search(r"^ARG BASE=(\S+)$", text, re.MULTILINE)[1]
    assert f"docker build -t {base} ." in text and f"docker build -t {base} ." in (ROOT / "Dockerfile").read_text()
    (module,) = re.findall(r'^ENTRYPOINT \["python", "-m", "([\w.]+)"\]$', text, re.MULTILINE)
    assert (ROOT / f"{module.replace('.', '/')}.py").exists()
    assert f"ENV {convert_subject.VARIABLE}=" in text and not re.search("^(COPY|RUN)", text, re.MULTILINE)
    assert "container" not in (ROOT / ".dockerignore").read_text()
