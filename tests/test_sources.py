"""Finding volumes and naming cases and patients."""

import errno
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from data.errors import InputError
from data.prepared.manifest import read_manifest
from data.prepared.sources import Source, find_sources, find_volumes
from data.prepared.volume_jobs import run_jobs
from data.volumes.volume import write_volume
from scripts import prepare_dataset
from tests.test_preparation import ct_volume, mr_volume
from tests.test_volume import write_series


def touch(root: Path, *names: str) -> list[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return [root / name for name in names]


def test_a_glob_a_folder_and_a_file_name_volumes(tmp_path):
    a, b, _ = touch(tmp_path, "in/a.nii.gz", "in/b.mha", "in/notes.txt")
    assert find_volumes(str(tmp_path / "in/*")) == [a, b]
    assert find_volumes(str(tmp_path / "in")) == [a, b]
    assert find_volumes(str(a)) == [a]
    touch(tmp_path, "dicom/P1/MR/1.dcm", "dicom/P2/MR/1.dcm")
    series = find_volumes(str(tmp_path / "dicom/*/MR"))
    assert [source.name for source in find_sources([str(tmp_path / "dicom/*/MR")], (), None)] == ["P1", "P2"]
    assert series == [tmp_path / "dicom/P1/MR", tmp_path / "dicom/P2/MR"]


MISSING = {
    "nowhere/*.nii": "no such folder: {}/nowhere",
    "patient/*/ct.nii": "no such folder: {}/patient; did you mean patients?",
    "patients/p1/x/*": "no such folder: {}/patients/p1/x",
    "patients/p1/CT.nii": "no such file or folder; did you mean ct.nii?",
    "patients/*/mr.nii": "nothing in {}/patients matches; it holds p1, p2, p3, p4, p5 and 1 more; in p1: ct.nii",
    "patients/p1/{{mr,ct}}*": "nothing in {}/patients/p1 matches; it holds ct.nii; braces are no wildcards: use ",
    "{{patients,other}}/*/ct.nii": "no such folder: {}/{{patients,other}}; braces are no wildcards: use ",
    "patients/p1/{{mr,ct}}.nii": "no such file or folder; braces are no wildcards: use ",
    "notes*": "matches 1 path {}/notes.txt, but no volume file and no folder of DICOM slices; volumes end in .nii.gz ",
    "n[12]": "matches 2 paths, such as {}/n1, but no volume file and no folder of DICOM slices; ",
}


@pytest.mark.parametrize("pattern", MISSING)
def test_a_glob_without_a_volume_says_what_is_there_instead(pattern, tmp_path):
    touch(tmp_path, *(f"patients/p{k}/ct.nii" for k in range(1, 7)), "notes.txt", "n1/x.txt", "n2/x.txt")
    with pytest.raises(InputError) as error:
        find_volumes(f"{tmp_path}/{pattern.format()}")
    assert str(error.value).startswith(f"{tmp_path}/{pattern.format()}: {MISSING[pattern].format(tmp_path)}")


def test_a_home_in_quotes_is_explained():
    with pytest.raises(InputError) as error:
        find_volumes("~/no such folder/*.nii")
    said = "no such folder: ~; in quotes, ~ and $NAME stay as they are: write the path out"
    assert str(error.value) == f"~/no such folder/*.nii: {said}"


def test_several_globs_are_one_set(tmp_path):
    files = touch(tmp_path, "siteA/P07/ct.nii", "siteA/P08/ct.nii", "more/c3.nii", "siteA/notes.txt")
    globs = [f"{tmp_path}/siteA/**/*.nii", f"{tmp_path}/more/*"]
    sources = find_sources(globs, (), None)
    assert [(source.name, source.path) for source in sources] == list(
        zip(["c3", "P07", "P08"], [files[2], *files[:2]], strict=True)
    )
    with pytest.raises(InputError, match=r"^.*/less/\*: no such folder: .*/less$"):
        find_sources([*globs, f"{tmp_path}/less/*"], (), None)


def test_a_glob_without_quotes_gives_the_same_names(tmp_path):
    touch(tmp_path, "raw/A/P1/mr.nii", "raw/B/P1/mr.nii", "raw/B/P2/mr.nii", "raw/B/readme.txt")
    masks = touch(tmp_path, "m/A__P1_mask.nii", "m/B__P1_mask.nii", "m/B__P2_mask.nii")
    quoted = find_sources([f"{tmp_path}/raw/*/*/*"], [f"{tmp_path}/m/*"], None)
    shells = [str(path) for path in (*tmp_path.glob("raw/*/*/*"), tmp_path / "raw/B/readme.txt")]
    assert find_sources(shells, list(map(str, masks)), None) == quoted
    flat = touch(tmp_path, "ct/STS_1_CT.nii", "ct/STS_2_CT.nii", "ct2/STS_3_CT.nii")
    quoted_flat = find_sources([f"{tmp_path}/ct/*", f"{tmp_path}/ct2/*"], (), None)
    assert find_sources([str(path) for path in flat], (), None) == quoted_flat
    assert [source.name for source in quoted_flat] == ["STS_1_CT", "STS_2_CT", "STS_3_CT"]
    assert [(source.name, source.mask) for source in quoted] == list(
        zip(["A__P1", "B__P1", "B__P2"], masks, strict=True)
    )


@pytest.mark.parametrize(
    ("volumes", "masks", "patterns"),
    [
        (["p1/mr.nii", "p2/mr.nii"], ["p1/mask.nii", "p2/mask.nii"], ("*/mr.nii", "*/mask.nii")),
        (["mr/mr_p1.nii", "mr/mr_p2.nii"], ["m/mrmask_p1.nii", "m/mrmask_p2.nii"], ("mr/*", "m/*")),
        (["mr/p1.nii", "mr/p2.nii"], ["m/p2_mask.mha", "m/p1_mask.mha"], ("mr/*", "m/*")),
    ],
)
def test_masks_are_matched_by_folder_or_name(tmp_path, volumes, masks, patterns):
    touch(tmp_path, *volumes, *masks)
    for source in find_sources(*([str(tmp_path / pattern)] for pattern in patterns), None):
        patient = "p1" if "p1" in str(source.path) else "p2"
        assert patient in str(source.mask.relative_to(tmp_path))


def test_a_volume_without_its_mask_is_an_error(tmp_path):
    touch(tmp_path, "mr/p1.nii", "mr/p2.nii", "m/p1_mask.nii", "m/p3_mask.nii")
    with pytest.raises(InputError, match=r"p2\.nii: no mask of .* has the name of this case, 'p2', and .*p3_mask"):
        find_sources([str(tmp_path / "mr/*")], [str(tmp_path / "m/*")], None)


def test_patients_come_from_the_name_by_the_given_pattern(tmp_path):
    touch(tmp_path, "p01_in.nii", "p01_opp.nii", "p02_in.nii")
    sources = find_sources([str(tmp_path / "*.nii")], (), r"(p\d+)_")
    assert [source.patient for source in sources] == ["p01", "p01", "p02"]
    for regex, reason in (
        (r"q\d+", "does not match the case name"),
        (r"p01|(q)", "its group matches nothing in the case name 'p01_in'"),
        (r"(p", "not a regular expression"),
    ):
        with pytest.raises(InputError, match=reason):
            find_sources([str(tmp_path / "*.nii")], (), regex)


@pytest.mark.parametrize(
    ("volumes", "mask", "patterns"),
    [
        (["p0.nii", "p1.nii", "p2.nii"], "p1_mask.nii.gz", ("p?.nii", "*_mask.nii.gz")),
        (["p0/mr.nii", "p1/mr.nii", "p2/mr.nii"], "p1/mask.nii", ("*/mr.nii", "*/mask.nii")),
        (["mr/p0.nii", "mr/p1.nii", "mr/p2.nii"], "corrected/p1.nii", ("mr/*", "corrected/*")),
    ],
)
def test_one_mask_among_many_volumes_is_that_volume_s_alone(tmp_path, volumes, mask, patterns, caplog):
    caplog.set_level("INFO")
    touch(tmp_path, *volumes, mask)
    sources = find_sources(*([str(tmp_path / pattern)] for pattern in patterns), None)
    assert [source.mask for source in sources] == [None, tmp_path / mask, None]
    assert "masks for 1 of 3 volumes; computed for the others: p0, p2" in caplog.text


def test_two_masks_of_one_volume_are_an_error(tmp_path):
    touch(tmp_path, "mr/p0.nii", "mr/p1.nii", "m/p1_mask.nii", "m/mrmask_p1.nii")
    with pytest.raises(InputError, match=r"p1\.nii: 2 masks"):
        find_sources([str(tmp_path / "mr/*")], [str(tmp_path / "m/*")], None)


def test_a_wildcard_takes_no_folder_without_dicom(tmp_path):
    volume, _, _ = touch(tmp_path, "p1/scan/mr.nii", "p2/notes/readme.txt", "p3/pictures/a.png")
    dicom = tmp_path / "p3/series"
    dicom.mkdir()
    (dicom / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    assert find_volumes(str(tmp_path / "**")) == [volume, dicom]
    assert find_volumes(str(tmp_path / "p2/notes")) == [tmp_path / "p2/notes"]  # named: its reader says what is wrong


def test_the_series_that_is_named_is_found_in_its_folder(tmp_path):
    for folder, uids in (("p1", ["1.2.3.1111", "1.2.3.2222"]), ("p2", ["1.2.3.3333"])):
        for uid in uids:
            write_series(tmp_path / folder, uid=uid)

    def chosen(*uids):
        return [source.series_uid for source in find_sources([str(tmp_path / "p?")], (), None, uids)]

    assert chosen() == [None, None]
    assert chosen("1.2.3.2222") == ["1.2.3.2222", None]
    assert chosen("1.2.3.3333", "1.2.3.1111") == ["1.2.3.1111", "1.2.3.3333"]
    with pytest.raises(InputError, match="names 2 series of this folder"):
        chosen("1.2.3.1111", "1.2.3.2222")


BESIDE = ["body.nii.gz", "seg.nrrd", "converted.mha"]


@pytest.mark.parametrize("name", BESIDE)
def test_a_volume_file_beside_dicom_slices_is_not_taken_for_the_series(tmp_path, caplog, name):
    folder = tmp_path / "p1/MR"
    write_series(folder)
    (file,) = touch(folder, name)
    for pattern in ("p1/MR", "p[1]/MR", "*/*", "p1/**"):
        assert find_volumes(str(tmp_path / pattern)) == [folder], pattern
        assert f"{folder}: the DICOM series is used; {name} beside it is skipped" in caplog.text
        caplog.clear()
    assert find_volumes(str(tmp_path / f"*/MR/*{file.suffix}")) == [file]  # named itself, it is meant
    for slices in folder.glob("*.dcm"):  # a series whose copy failed is no reason to take the mask
        slices.write_bytes(b"")
    assert find_volumes(str(folder)) == [folder]


def test_dicom_that_is_no_image_leaves_volumes_beside_it(tmp_path):
    write_series(tmp_path / "p", change=without_image)
    (file,) = touch(tmp_path / "p", "mr.nii.gz")
    assert find_volumes(str(tmp_path / "p")) == [file]


def without_image(k, header):
    """Make an RT structure set of a slice."""
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    for tag in ("Rows", "Columns", "PixelData"):
        delattr(header, tag)


@pytest.mark.parametrize("pattern", ["p1/MR/*.dcm", "p1/MR/*", "p*/MR/*.dcm"])
def test_slices_without_their_folder_are_refused(tmp_path, pattern):
    write_series(tmp_path / "p1/MR")
    touch(tmp_path, "p1/MR/mask.nii.gz")
    parent = Path(pattern).parent
    with pytest.raises(
        InputError, match=f"names DICOM slices .*name the folder that holds them, .*/{re.escape(str(parent))}$"
    ):
        find_volumes(str(tmp_path / pattern))


def test_hidden_files_of_a_folder_are_no_volumes(tmp_path):
    """MacOS leaves `._NAME` beside every file that it copies to another disk."""
    for name in ("p1.nii.gz", "._p1.nii.gz", ".p2.mha", "._p1.mhd"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    for pattern in (tmp_path, f"{tmp_path}/*", f"{tmp_path}/**"):
        assert find_volumes(str(pattern)) == [tmp_path / "p1.nii.gz"]


# What the system says of a path: of the path itself, of what lies in it, and where that is asked for.
BLOCKS = {
    "may not be listed": (errno.EACCES, True, False, ("os.listdir", "os.scandir", "io.open")),
    "may not be entered": (errno.EACCES, False, True, ("os.stat", "io.open")),
    "too long": (errno.ENAMETOOLONG, True, True, ("os.listdir", "os.scandir", "os.stat", "io.open")),
}


@pytest.fixture
def forbid(monkeypatch) -> Callable[[Path, str], None]:
    """Have a path raise one of `BLOCKS` where it is looked at: as root, permissions bind nobody."""

    def forbid(path: Path, block: str) -> None:
        number, itself, inside, functions = BLOCKS[block]
        for function in functions:
            module, name = function.split(".")
            real = getattr(sys.modules[module], name)

            def guarded(other=".", *given, real=real, **named):
                asked = Path(other) if isinstance(other, str | Path) else Path()
                if (itself and asked == path) or (inside and path in asked.parents):
                    raise OSError(number, "not to be looked at")
                return real(other, *given, **named)

            monkeypatch.setattr(sys.modules[module], name, guarded)

    return forbid


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", ["series", "folder of volumes", "volume"])
@pytest.mark.parametrize("pattern", ["*", "**"])
def test_what_cannot_be_looked_at_fails_alone_and_by_name(tmp_path, forbid, caplog, block, kind, pattern):
    for k in range(2):
        write_volume(mr_volume(scale=1 + k), tmp_path / f"mr/p{k}.nii.gz")
        write_volume(ct_volume(), tmp_path / f"ct/q{k}.mha")
    path = tmp_path / "mr" / ("p9.nii.gz" if kind == "volume" else "p9")
    if kind == "volume":
        if block == "may not be entered":
            pytest.skip("of folders")
        write_volume(mr_volume(), path)
    elif kind == "series":
        write_series(path)
    else:
        write_volume(mr_volume(), path / "mr.nii.gz")
    forbid(path, block)
    sources = ["--mr", f"{tmp_path}/mr/{pattern}", "--ct", f"{tmp_path}/ct/*", "--out", str(tmp_path / "set")]
    code = prepare_dataset.main([*sources, "--size", "64", "--workers", "1"])
    cases = read_manifest(tmp_path / "set").select("train", "A")
    assert [Path(case.source).name for case in cases] == ["p0.nii.gz", "p1.nii.gz"]
    failed = re.findall(rf"{path}[^ ]*: cannot be read: .*not to be looked at", caplog.text)
    assert code == 1 and len(failed) == 1


def test_an_error_of_the_system_costs_its_volume_alone(tmp_path):
    def work(job):
        if job.source.name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", "b.nii")
        return job.source.name

    jobs = [SimpleNamespace(source=Source(name, name, tmp_path / name)) for name in "abc"]
    done, failures = run_jobs(work, jobs, 1, "test")
    assert done == ["a", "c"]
    assert [failure.reason for failure in failures] == [
        f"{tmp_path}/b: cannot be read: [Errno 13] Permission denied: 'b.nii'"
    ]


def test_an_unreadable_file_beside_slices_hides_none(tmp_path, forbid):
    write_series(tmp_path / "p1")
    (tmp_path / "p1/notes").write_text("x")
    forbid(tmp_path / "p1/notes", "may not be listed")
    assert find_volumes(f"{tmp_path}/*") == [tmp_path / "p1"]
