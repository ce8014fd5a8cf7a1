"""docs/public_data.md: its commands, read from the page itself, on generated folders of the layouts that it names."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cohort.inputs import find_cohort, read_list
from data.errors import InputError
from data.phantom.patients import PhantomSettings, make_patient
from data.prepared.manifest import Manifest, read_manifest
from data.prepared.sources import find_sources
from data.volumes.volume import read_volume, write_volume
from evaluation.case_folders import CaseVolumes
from evaluation.cases import find_cases
from options import pipeline_options
from scripts import evaluate, prepare_dataset, prepare_sts
from tests.test_prepare_sts import write_source

PAGE = Path(__file__).parents[1] / "docs" / "public_data.md"
SUBJECTS = 10


def commands(section: str) -> list[str]:
    """Return the shell commands of a section of the page, continued lines and loops as one each."""
    (text,) = re.findall(rf"^## {section}.*?$(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    lines = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    ")).replace("\\\n", "")
    return re.findall(r"^for [\s\S]*?^done$|^.+$", lines, re.MULTILINE)


def command(section: str, program: str) -> str:
    """Return the first command of a section that begins so."""
    return next(line for line in commands(section) if line.startswith(program))


def arguments(section: str, program: str) -> list[str]:
    """Return what a shell makes of a command's arguments in the present folder."""
    words = command(section, program).removeprefix(program)
    shell = ["bash", "-c", f"printf '%s\\0' {words}"]
    return subprocess.run(shell, check=True, capture_output=True, text=True).stdout.split("\0")[:-1]


@pytest.fixture(scope="module")
def patients():
    """Ten small patients with MR and CT on one grid, -1024 HU outside the body as in SynthRAD."""
    settings = PhantomSettings(matrix=48, slices=8, spacing_mm=11.0, slice_mm=100.0)
    made = [make_patient(3, index, "test", settings) for index in range(SUBJECTS)]
    bodies = [patient.labels.array > 0 for patient in made]
    cts = [p.ct.with_array(np.where(b, p.ct.array, -1024).astype(np.int16)) for p, b in zip(made, bodies, strict=True)]
    masks = [p.mr.with_array(body.astype(np.uint8)) for p, body in zip(made, bodies, strict=True)]
    return [(patient.mr, ct, mask) for patient, ct, mask in zip(made, cts, masks, strict=True)]


def prepare(section: str) -> Manifest:
    """Run the section's preparation in the present folder, and check what holds for all of them."""
    words = arguments(section, "python -m scripts.prepare_dataset")
    assert prepare_dataset.main([*words, "--size", "48", "--workers", "1"]) == 0
    root = Path(words[words.index("--out") + 1])
    manifest = read_manifest(root)
    mr, ct = ([case.patient[-1] for case in manifest.select("train", domain)] for domain in "AB")
    assert (mr, ct) == (["1", "3", "5", "7"], ["2", "4", "6", "8"])
    for case in manifest.cases:
        slices, body = np.load(root / case.image_file), np.load(root / case.mask_file) > 0
        assert body.any()
        assert case.lost_voxels == 0
        if case.domain == "A":
            assert slices.min() >= 0
            assert slices[body].mean() > 10 * slices[~body].mean()
        else:
            assert slices.min() >= -1024
            assert np.mean(slices[~body] > -500) < 0.01  # air outside
            assert -150 < np.median(slices[body]) < 150
            assert slices.max() > 400  # bone keeps its HU
    return manifest


def convert(cases, results: Path) -> None:
    """Write as results what a perfect model that is 10 HU off would, under the names that test_pipeline.py gives."""
    for case in cases:
        subject = case.path.parent
        ct = read_volume(next(subject.glob("ct.*")))
        write_volume(ct.with_array((ct.array + 10).astype(np.int16)), results / f"{case.name}.nii.gz")


def check_scores(section: str, capsys) -> None:
    evaluate.main(arguments(section, "python -m scripts.evaluate"))
    table = capsys.readouterr().out
    maes = dict(re.findall(r"^\| (\S+) +\| +([\d.]+|-) ", table, re.MULTILINE))
    assert [maes.pop(row) for row in ("mean", "std")] == ["10.0", "-"]  # of two cases
    assert {case[-1]: mae for case, mae in maes.items()} == {"0": "10.0", "9": "10.0"}


@pytest.mark.parametrize(("section", "suffix"), [("SynthRAD2023", "nii.gz"), ("SynthRAD2025", "mha")])
def test_synthrad_folders(section, suffix, patients, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    region = Path(section, "Task1", "pelvis" if section == "SynthRAD2023" else "REGION")
    for index, volumes in enumerate(patients):
        for name, volume in zip(("mr", "ct", "mask"), volumes, strict=True):
            write_volume(volume, region / f"1XY{index:03d}" / f"{name}.{suffix}")
    manifest = prepare(section)
    assert {case.mask_source_sha256 is None for case in manifest.cases} == {False}  # the masks were taken
    opt = pipeline_options.parse(arguments(section, "python test_pipeline.py"))
    cohort = find_cohort(opt.input_dir, opt.pattern)
    assert [case.name for case in cohort.cases] == ["1XY000", "1XY009"]
    convert(cohort.cases, opt.results_dir / "+".join(opt.name))
    check_scores(section, capsys)


@pytest.mark.parametrize("prefix", ["", "sub-{:03d}_"])
def test_bic_mac_folders(prefix, patients, tmp_path, monkeypatch, capsys):
    """One in-phase volume a subject is taken, whatever stands before DIXON in its name; chunks and heads are not."""
    monkeypatch.chdir(tmp_path)
    other = "bodyOUT", "headIN", "headOUT", *(f"body{phase}_chunk-{k}" for phase in ("IN", "OUT") for k in range(1, 5))
    for index, (mr, ct, _) in enumerate(patients):
        subject = Path("BIC-MAC", f"sub-{index:03d}")
        start = prefix.format(index)
        write_volume(mr, subject / f"{start}DIXONbodyIN_T1w.nii.gz")
        write_volume(ct, subject / "ct.nii.gz")
        for name in other:
            (subject / f"{start}DIXON{name}_T1w.nii.gz").write_bytes(b"not to be read")
        (subject / "metadata.json").write_text("{}")
    manifest = prepare("BIC-MAC")
    assert [case.name for case in manifest.select("train", "A")] == [f"sub-00{k}" for k in (1, 3, 5, 7)]
    for line in commands("BIC-MAC"):
        if line.startswith(("echo", "for")):
            subprocess.run(["bash", "-c", line], check=True)
    opt = pipeline_options.parse(arguments("BIC-MAC", "python test_pipeline.py"))
    cohort = read_list(opt.list)
    assert [(case.name, case.problem) for case in cohort.cases] == [("sub-000", None), ("sub-009", None)]
    assert all(case.path.name.endswith("DIXONbodyIN_T1w.nii.gz") and case.reference.exists() for case in cohort.cases)
    convert(cohort.cases, opt.results_dir / "+".join(opt.name))
    check_scores("BIC-MAC", capsys)
    words = arguments("BIC-MAC", "python -m scripts.prepare_dataset")
    wider = [word.replace("*DIXONbodyIN_T1w", "*IN*_T1w") for word in words]
    with pytest.raises(InputError, match=r"would both be called sub-001"):
        prepare_dataset.main(wider)


def test_a_patient_s_mr_and_ct_are_one_patient_s(patients, tmp_path, monkeypatch):
    """Without --case_regex the file's name would hide that a subject is in both train and test."""
    monkeypatch.chdir(tmp_path)
    for index, (mr, ct, _) in enumerate(patients[:4]):
        write_volume(mr, Path("BIC-MAC", f"s{index}", f"s{index}_mr.nii.gz"))
        write_volume(ct, Path("BIC-MAC", f"s{index}", "ct.nii.gz"))
    common = ["--mr", "BIC-MAC/s[12]/*_mr.nii.gz", "--ct", "BIC-MAC/s[03]/ct.nii.gz"]
    test = ["--test_mr", "BIC-MAC/s[03]/*_mr.nii.gz", "--case_regex", "BIC-MAC/([^/]+)", "--out", "set"]
    with pytest.raises(InputError, match="the same patient is in both train and test: s0"):
        prepare_dataset.main([*common, *test])


@pytest.mark.parametrize(
    ("regex", "reason"),
    [
        ("q[0-9]", "does not match the path"),
        ("BIC-MAC/(x)?", "its group matches nothing in the path"),
        ("(", "not a regular expression"),
        ("BIC-MAC", "s0/mr.mha and BIC-MAC/s1/mr.mha would both be called BIC-MAC"),
    ],
)
def test_a_case_regex_that_names_nothing_or_two_alike_is_refused(regex, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for subject in ("s0", "s1"):
        Path("BIC-MAC", subject).mkdir(parents=True)
        Path("BIC-MAC", subject, "mr.mha").touch()
    with pytest.raises(InputError, match=f"--case_regex {re.escape(repr(regex))}: .*{re.escape(reason)}"):
        find_sources(["BIC-MAC/*/mr.mha"], (), None, case_regex=regex)


def test_masks_in_another_folder_are_matched_by_the_case_regex(tmp_path):
    for name in ("s0/a/x.mha", "s1/a/x.mha", "m/s1_x/y.mha", "m/s0_x/y.mha"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    found = find_sources(
        [f"{tmp_path}/s?/a/x.mha"], [f"{tmp_path}/m/*/y.mha"], None, case_regex=r"/(s\d)[^/]*/[^/]*/?[^/]*$"
    )
    assert [(source.name, source.patient, source.mask.parent.name) for source in found] == [
        ("s0", "s0", "s0_x"),
        ("s1", "s1", "s1_x"),
    ]


def test_sts_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = arguments("Soft-tissue sarcoma", "python -m scripts.prepare_sts")
    source = Path(words[words.index("--source") + 1])
    clone, sparse, checkout = (line for line in commands("Soft-tissue sarcoma") if line.startswith("git "))
    assert clone.rsplit("/", 1)[1] == source.parent.name == sparse.split()[2] == checkout.split()[2]
    assert sparse.split()[-1] == source.name
    for modality, numbers in (("MR_T1", prepare_sts.TRAIN_MR), ("CT", prepare_sts.TRAIN_CT)):
        for number in (*numbers, *prepare_sts.DEV["dev"], *prepare_sts.DEV["dev_more"]):
            write_source(source, number, modality, nested=True)
    prepare_sts.main(words)
    out = Path(words[words.index("--out") + 1])
    assert f"reproduce_sts.sh {out}" in command("Soft-tissue sarcoma", "bash scripts/reproduce_sts.sh")
    results = Path("results/NAME")
    for case in (out / "dev").iterdir():
        mr = read_volume(case / f"{case.name}_MR_T1.nii.gz")
        write_volume(mr.with_array(np.full_like(mr.array, 40)), results / f"{case.name}.nii.gz")
    options = evaluate.parse_arguments(arguments("Soft-tissue sarcoma", "python -m scripts.evaluate"))
    found = [
        CaseVolumes(f"--{name}", getattr(options, name), getattr(options, f"{name}_pattern"))
        for name in ("pred", "ref", "mr")
    ]
    assert [case.name for case in find_cases(*found)] == [f"STS_{number:03d}" for number in prepare_sts.DEV["dev"]]


@pytest.mark.parametrize("section", ["SynthRAD2023", "SynthRAD2025", "BIC-MAC"])
def test_the_steps_of_a_recipe_fit_together(section):
    """One name from the prepared data set to the model that is used, and the extractor where the arm looks for it."""
    prepared = re.search(r"--out (datasets/\w+)", command(section, "python -m scripts.prepare_dataset"))[1]
    name = prepared.split("/")[1]
    assert command(section, "python -m ct_segmentation") == f"python -m ct_segmentation.train --dataroot {prepared}"
    for arm in ("cycle_lcc", "self_lcc"):
        assert command(section, f"bash scripts/train_{arm}.sh") == f"bash scripts/train_{arm}.sh {prepared}"
    assert f"--name Self+Lcc_finetune_{name} " in command(section, "python test_pipeline.py")
    assert f"--pred results/Self+Lcc_finetune_{name} " in command(section, "python -m scripts.evaluate")
