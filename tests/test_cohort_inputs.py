"""Which volumes a cohort holds, and that their names are unique and stay."""

import re

import pytest

import test_pipeline
from cohort.inputs import CohortCase, find_cohort, read_list
from data.errors import InputError
from data.prepared.case_names import short_hash
from data.volumes.volume import write_volume
from tests.cohort_data import NAME, patient_mr, write_dicom_patient, write_model
from tests.test_volume import write_series


def names(cohort) -> list[str]:
    return [case.name for case in cohort.cases]


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def test_volume_files_dicom_folders_and_empty_folders_are_found(tmp_path):
    touch(tmp_path, "a.nii.gz", "p 1/mr.mha", "p 1/report.pdf", "p2/x.nrrd", ".hidden/b.nii", "p2/.c.nii", "raw.img")
    write_series(tmp_path / "p3/T1", uid="1.2.3")
    (tmp_path / "p4/T1").mkdir(parents=True)
    cohort = find_cohort(tmp_path)
    assert names(cohort) == ["a", "p2__x", "p3", "p4", "p_1"]
    by_name = {case.name: case for case in cohort.cases}
    assert by_name["p3"].series_uid == "1.2.3" and len(by_name["p3"].files) == 6
    assert "empty" in by_name["p4"].problem
    assert all(case.problem is None for name, case in by_name.items() if name != "p4")


def test_patterns_choose_files_and_folders(tmp_path):
    touch(tmp_path, "p1/p1_MR.nii.gz", "p1/p1_CT.nii.gz", "deep/er/p2_MR.nii.gz")
    write_series(tmp_path / "p3/MR_T1")
    assert names(find_cohort(tmp_path, ["**/*MR*.nii.gz"])) == ["deep__er__p2_MR", "p1_MR"]
    assert names(find_cohort(tmp_path, ["**/*MR*"])) == ["deep__er__p2_MR", "p1_MR", "p3"]
    assert names(find_cohort(tmp_path, ["*/p1_MR*", "p1/*"])) == ["p1_CT", "p1_MR"]


@pytest.mark.parametrize(
    ("modality", "files", "proposed"),
    [
        ("MR", ["1/1_CT", "1/1_MR", "2/2_CT", "2/2_MR"], "; --pattern '*/*_MR.nii.gz' would match 2 volume files"),
        ("CT", ["1/1_CT", "1/1_MR", "2/2_CT", "2/2_MR"], "; --pattern '*/*_CT.nii.gz' would match 2 volume files"),
        ("MR", ["p1/CT", "p1/vibe", "p2/CT", "p2/vibe"], "; --pattern '*/vibe.nii.gz' would match 2 volume files"),
        ("MR", ["p1/p1_CT", "p1/p1_MR"], "; it holds p1/p1_MR.nii.gz: --pattern '*/p1_MR.nii.gz' would match that"),
        ("MR", ["p1/p1_CT", "p1/p1_mask", "p1_sCT"], ""),
    ],
)  # fmt: skip
def test_a_pattern_that_matches_nothing_is_answered_by_one_that_takes_the_mr(tmp_path, modality, files, proposed):
    touch(tmp_path, *(f"{file}.nii.gz" for file in files))
    with pytest.raises(InputError, match=re.escape(f"images that matches */x*{proposed}") + "$"):
        find_cohort(tmp_path, ["*/x*"], modality=modality)


def test_a_dicom_folder_may_be_searched_itself(tmp_path):
    for folder, name in (("exported/T1", "T1"), ("P07/T1", "P07")):
        write_series(tmp_path / folder)
        assert names(find_cohort(tmp_path / folder)) == [name]


def test_every_mr_series_of_a_folder_is_a_case_and_others_are_passed_over(tmp_path):
    write_series(tmp_path / "p1", uid="1.1", description="T1 VIBE in-phase")
    write_series(tmp_path / "p1", uid="1.2", description="T2 HASTE")
    write_series(tmp_path / "p1", uid="1.3", change=lambda k, h: setattr(h, "Modality", "CT"))
    write_series(
        tmp_path / "p1", uid="1.4", change=lambda k, h: setattr(h, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"])
    )
    cohort = find_cohort(tmp_path)
    assert sorted(names(cohort)) == sorted(f"p1__{short_hash(uid)}" for uid in ("1.1", "1.2"))
    assert {case.series_uid: len(case.files) for case in cohort.cases} == {"1.1": 6, "1.2": 6}
    assert len({case.hash() for case in cohort.cases}) == 2
    assert [re.search(r": ([^:]*)$", text).group(1) for text in cohort.passed_over] == ["not MR", "a localiser"]
    only = find_cohort(tmp_path, series_description=re.compile("vibe", re.IGNORECASE))
    assert names(only) == ["p1"] and only.cases[0].series_uid == "1.1"
    with pytest.raises(InputError, match="passed over: 4 others"):
        find_cohort(tmp_path, series_description=re.compile("DIXON"))


def test_damaged_dicom_is_a_case_that_fails(tmp_path):
    touch(tmp_path, "p1/1.dcm", "p2/a.nii")
    assert "no image that can be read" in find_cohort(tmp_path).cases[0].problem


def test_a_series_keeps_its_name_when_another_joins_its_folder(tmp_path):
    write_model(tmp_path)
    write_dicom_patient(tmp_path / "in/p1", uid="1.1")
    command = f"--name {NAME} --device cpu --precision fp32 --checkpoints_dir {tmp_path}/checkpoints"
    command += f" --input_dir {tmp_path}/in --results_dir {tmp_path}/out"
    assert test_pipeline.main(command.split()) == 0
    before = (tmp_path / "out" / NAME / "p1.nii.gz").stat().st_mtime_ns
    write_dicom_patient(tmp_path / "in/p1", uid="1.2")
    assert test_pipeline.main(command.split()) == 0
    volumes = {path.name for path in (tmp_path / "out" / NAME).glob("*.nii.gz")}
    assert volumes == {"p1.nii.gz", f"p1__{short_hash('1.2')}.nii.gz"}
    assert (tmp_path / "out" / NAME / "p1.nii.gz").stat().st_mtime_ns == before


def test_paths_that_would_share_a_name_are_both_reported(tmp_path):
    touch(tmp_path, "a/b.nii.gz", "a/b.mha", "a__b.nii", "c.nii")
    cases = find_cohort(tmp_path).cases
    assert len({case.name for case in cases}) == 4
    assert [case.name for case in cases if not case.problem] == ["c"]
    assert all("would be called a__b like" in case.problem for case in cases if case.problem)


def test_further_patients_rename_none(tmp_path):
    touch(tmp_path, "p1/mr.nii.gz")
    before = names(find_cohort(tmp_path))
    touch(tmp_path, "p2/mr.nii.gz", "p1/second/mr.nii.gz", "other/p1/mr.nii.gz", "p1_mr.nii.gz")
    assert set(before) < set(names(find_cohort(tmp_path))) and before == ["p1"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_list_names_cases(tmp_path, encoding, delimiter):
    touch(tmp_path, "x/a b.nii", "c.nii")
    rows = [
        ["id", "path", "reference"],
        ["p-1", "x/a b.nii", "ct.nii"],
        ["", "", ""],
        ["p.2", str(tmp_path / "c.nii"), ""],
    ]
    text = "\r\n".join(delimiter.join(row) for row in rows) + "\r\n"
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    first = CohortCase("p-1", tmp_path / "x/a b.nii", reference=tmp_path / "ct.nii")
    assert read_list(tmp_path / "list.csv").cases == (first, CohortCase("p.2", tmp_path / "c.nii"))


def test_a_listed_dicom_folder_is_one_series(tmp_path):
    write_series(tmp_path / "p1", uid="1.1")
    write_series(tmp_path / "p2", uid="1.1")
    write_series(tmp_path / "p2", uid="1.2")
    write_series(tmp_path / "p3", uid="1.1")
    write_series(tmp_path / "p3", uid="1.3", change=lambda k, h: setattr(h, "Modality", "CT"))
    (tmp_path / "l.csv").write_text("id,path,series_uid\na,p1,\nb,p2,1.2\nc,p2,\nd,p3,\ne,p3,7\n")
    a, b, c, d, e = read_list(tmp_path / "l.csv").cases
    assert [case.series_uid for case in (a, b, d)] == ["1.1", "1.2", "1.1"]
    assert not a.problem and not b.problem and not d.problem
    assert "1.1" in c.problem and "1.2" in c.problem and "series_uid" in c.problem
    assert "expected one" in e.problem


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "columns none"),
        ("id,file\na,b\n", "columns id, file; expected id, path"),
        ("id,path,path\n", "each once"),
        ("id,path\n", "no case"),
        ("id,path\na,x.nii\nA,y.nii\n", "ids more than once: a"),
        ("id,path\n../a,x.nii\n", "line 2: id '../a'; expected letters"),
        ("id,path\n.a,x.nii\n", "expected letters"),
        ("id,path\na,\n", "line 2: no path"),
        ("id,path\na,x,y\n", "line 2: more values than columns"),
    ],
)
def test_a_bad_list_is_one_clear_error(tmp_path, text, message):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        read_list(tmp_path / "l.csv")


def test_the_hash_is_that_of_the_series_alone(tmp_path):
    write_series(tmp_path / "p1", uid="1.1")
    (before,) = find_cohort(tmp_path).cases
    write_series(tmp_path / "p1", uid="1.2")
    after = {case.series_uid: case for case in find_cohort(tmp_path).cases}["1.1"]
    assert (unchanged := before.hash()) == after.hash()
    after.files[0].write_bytes(after.files[0].read_bytes() + b"x")
    assert after.hash() != unchanged
    file = write_volume(patient_mr(), tmp_path / "v.nii.gz")
    assert CohortCase("v", file).hash() != unchanged


def modality(name: str, **tags):
    """Return what makes a series one of another modality."""

    def change(k, header):
        header.Modality = name
        for tag, value in tags.items():
            setattr(header, tag, value)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (modality("CT"), "not MR"),
        (modality("SC"), "not MR"),
        (modality("MR", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "a localiser"),
        (modality("MR", SeriesDescription="T2"), "description without 'T1'"),
    ],
)
def test_slices_that_are_no_case_hide_no_volume_beside_them(tmp_path, change, reason):
    """A stray CT slice, a screenshot, a localiser: the MR volumes of that folder are converted all the same."""
    write_series(tmp_path / "in", change=change)
    for k in range(2):
        write_volume(patient_mr(), tmp_path / f"in/p{k}.nii.gz")
    cohort = find_cohort(tmp_path / "in", series_description=re.compile("T1"))
    assert names(cohort) == ["p0", "p1"]
    assert len(cohort.passed_over) == 1 and reason in cohort.passed_over[0]


def test_slices_that_cannot_be_read_are_the_case_and_volumes_beside_them_are_passed_over(tmp_path):
    touch(tmp_path, "p1/1.dcm")
    write_volume(patient_mr(), tmp_path / "p1/body.nii.gz")
    cohort = find_cohort(tmp_path)
    assert names(cohort) == ["p1"] and "no image that can be read" in cohort.cases[0].problem
    assert len(cohort.passed_over) == 1 and "body.nii.gz: beside DICOM slices" in cohort.passed_over[0]


@pytest.mark.parametrize("name", ["body.nii.gz", "converted.mha"])
def test_a_volume_file_beside_dicom_slices_is_passed_over_unless_it_is_named(tmp_path, name):
    """As preparation and test_adapt.py take the folder."""
    write_dicom_patient(tmp_path / "p1/MR")
    write_volume(patient_mr(), tmp_path / "p1/MR" / name)
    write_volume(patient_mr(), tmp_path / "p2" / name)
    cohort = find_cohort(tmp_path)
    assert [case.path for case in cohort.cases] == [tmp_path / "p1/MR", tmp_path / "p2" / name]
    (text,) = cohort.passed_over
    assert f"{tmp_path}/p1/MR/{name}: beside DICOM slices; to convert it, name it with --pattern" in text
    named = find_cohort(tmp_path, [f"**/{name}"])
    assert [case.path for case in named.cases] == [tmp_path / "p1/MR" / name, tmp_path / "p2" / name]
