"""Where files lie and how the machine is set up: names, links, locales and clocks change no result."""

import glob
import os
import time
from pathlib import Path

import pytest

import test_adapt
import test_pipeline
from cohort.inputs import find_cohort
from data.prepared.sources import find_volumes
from data.volumes.paths import find_paths
from data.volumes.volume import read_volume, same_grid, write_volume
from scripts import prepare_dataset
from tests.cohort_data import NAME, patient_mr, write_dicom_patient, write_patients
from tests.faults.commands import adapt, assert_one_clear_error, pipeline, prepare, run, run_in, snapshot
from tests.test_preparation import ct_volume

NAMES = [
    "with space",
    "Jürgen_Łódź_東京",
    "quote'and\"double",
    "semi;colon&and$dollar",
    "-starts-with-minus",
    "x" * 120,
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_and_folders(site, name):
    path = write_volume(patient_mr(), site / name / f"{name}.nii.gz")
    expected = (site / "out" / NAME / "good.nii.gz").read_bytes()
    output = site / "results" / name / "ct.nii.gz"
    test_adapt.main(adapt(site, path, "--output", output))
    assert output.read_bytes() == expected
    assert (output.parent / "ct_page/index.html").exists()


@pytest.mark.parametrize("name", ["with space", "Jürgen_東京"])
def test_names_in_a_cohort_and_of_dicom_folders(site, name):
    write_dicom_patient(site / "in" / name)
    assert test_pipeline.main(pipeline(site, site / "in", "--no_html")) == 0
    assert len(list((site / "out" / NAME).glob("*.nii.gz"))) == 2


def test_a_path_that_is_too_long_is_one_clear_error(site):
    before = snapshot(site)
    long = site / ("y" * 300) / "mr.nii.gz"
    assert_one_clear_error(run("test_adapt.py", *adapt(site, long)), "y" * 300)
    output = ["--output", site / ("z" * 300) / "ct.nii.gz"]
    assert_one_clear_error(run("test_adapt.py", *adapt(site, site / "good.nii.gz", *output)), "File name too long")
    assert snapshot(site) == before


def loops(root: Path) -> None:
    """Two links into the folder that they lie in: 2^40 paths for one who follows them."""
    for name in ("p0", "p1"):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "loop").symlink_to("..")
    (root / "itself").symlink_to("itself")
    (root / "nowhere").symlink_to("missing")


def test_links_that_go_in_circles(site):
    write_patients(site / "in", 2)
    loops(site / "in")
    started = time.monotonic()
    assert [case.name for case in find_cohort(site / "in").cases] == ["p0", "p1"]
    assert [case.name for case in find_cohort(site / "in", ["**/mr.nii.gz"]).cases] == ["p0", "p1"]
    assert len(find_volumes(f"{site}/in/**/*.nii.gz")) == 2
    assert time.monotonic() - started < 10
    assert_one_clear_error(run("test_adapt.py", *adapt(site, site / "in/itself")), "itself")


def test_links_that_go_in_circles_in_a_data_set(raw):
    loops(raw / "mr")
    assert prepare_dataset.main(prepare(raw, mr="mr/**/*.nii.gz")) == 0


def test_paths_are_found_as_glob_finds_them(tmp_path):
    for name in ("a/b/x.nii", "a/x.nii", "x.nii", ".hidden/x.nii", "a/.y.nii", "[odd]/x.nii", "other/z.mha"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    for pattern in ("**", "**/*.nii", "a/**/x.nii", "*/**", "**/b/*", "*/x.nii", "**/b/**/x.nii"):
        wanted = {Path(path) for path in glob.glob(f"{tmp_path}/{pattern}", recursive=True)}
        assert set(find_paths(f"{tmp_path}/{pattern}")) == wanted, pattern


def test_a_folder_that_is_linked_is_searched(site):
    write_patients(site / "elsewhere", 1)
    (site / "in").mkdir()
    (site / "in/linked").symlink_to(site / "elsewhere")
    assert [case.name for case in find_cohort(site / "in").cases] == ["linked__p0"]


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"LC_ALL": "C"}, marks=pytest.mark.slow),
        pytest.param({"LC_ALL": "POSIX"}, marks=pytest.mark.slow),
        pytest.param({"LC_ALL": "de_DE.UTF-8"}, marks=pytest.mark.slow),
        {"LC_NUMERIC": "fr_FR.UTF-8", "LANG": "fr_FR.UTF-8", "TZ": "Pacific/Kiritimati"},
    ],
    ids=lambda environment: " ".join(f"{key}={value}" for key, value in environment.items()),
)
def test_locale_and_zone_change_no_voxel_and_no_number(site, environment):
    """Commas and ASCII come from the environment; where a locale is not installed C takes its place."""
    path = write_volume(patient_mr(), site / "Zoë mr.nii.gz")
    expected = (site / "out" / NAME / "good.nii.gz").read_bytes()
    output = site / "results/ct.nii.gz"
    result = run_in(environment, "test_adapt.py", *adapt(site, path, "--output", output))
    assert result.returncode == 0, result.stderr
    assert output.read_bytes() == expected
    report = (site / "results/ct.json").read_text(encoding="utf-8")
    assert "Zo" in report and (site / "results/ct_page/index.html").read_bytes().decode("utf-8")


def test_a_name_that_the_locale_cannot_say_is_one_clear_error(site):
    """Python's own way out of the C locale switched off: file names are ASCII then."""
    path = write_volume(patient_mr(), site / "Zoë mr.nii.gz")
    strict = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert_one_clear_error(run_in(strict, "test_adapt.py", *adapt(site, path)), "the name is not UTF-8 text")


def test_a_clock_that_goes_back_makes_nothing_again(site):
    """What is done is told by hashes: files from the future, or from 1970, are neither old nor new."""
    write_patients(site / "in", 1)
    assert test_pipeline.main(pipeline(site, site / "in", "--no_html")) == 0
    made = site / "out" / NAME / "p0.nii.gz"
    for when in (0, 4_000_000_000):
        for path in [*(site / "in").rglob("*"), *(site / "out").rglob("*")]:
            os.utime(path, (when, when))
        assert test_pipeline.main(pipeline(site, site / "in", "--no_html")) == 0
        assert made.stat().st_mtime == when


def test_metaimage_and_nrrd_numbers_keep_their_points(tmp_path):
    """As a library that follows a comma locale would not."""
    code = (
        "import locale, sys\n"
        "try: locale.setlocale(locale.LC_ALL, '')\n"
        "except locale.Error: pass\n"
        "from pathlib import Path\nfrom data.volumes.volume import read_volume, write_volume\n"
        "volume = read_volume(sys.argv[1])\n"
        "[write_volume(volume, Path(sys.argv[2]) / f'a{s}') for s in ('.nii.gz', '.nii', '.mha', '.nrrd')]"
    )
    write_volume(ct_volume(), tmp_path / "ct.nii.gz")
    result = run_in({"LC_ALL": "de_DE.UTF-8"}, "-c", code, tmp_path / "ct.nii.gz", tmp_path)
    assert result.returncode == 0, result.stderr
    for suffix in (".nii.gz", ".nii", ".mha", ".nrrd"):
        assert same_grid(read_volume(tmp_path / f"a{suffix}"), ct_volume())
