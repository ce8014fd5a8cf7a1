"""MetaImage, NRRD and GIPL headers: what SimpleITK reads of sound ones is read here, and what harms it is refused."""

import bz2
import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from data.errors import InputError
from data.volumes.volume import Volume, from_sitk, read_volume, same_grid
from tests.test_volume import OBLIQUE

VOXELS = np.arange(24, dtype="<i2")
RAW = VOXELS.tobytes()
TEXT = b" ".join(b"%d" % voxel for voxel in VOXELS) + b" "
META = "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\n{}ElementType = MET_SHORT\nElementDataFile = {}\n"
SPACING = "ElementSpacing = 1 2 3\n"
NRRD = "NRRD0005\ntype: short\ndimension: 3\nsizes: 2 3 4\n{}endian: little\nencoding: {}\n{}\n"
SPACE = "space: LPS\n"
DIRECTIONS = "space directions: (0,1,0) (-2,0,0) (0,0,3)\nspace origin: (1,2,3)\n"


def slices(folder: Path) -> None:
    """Write the voxels as four files of a slice each, and as one with four bytes before them."""
    for k in range(4):
        (folder / f"s{k:02d}.raw").write_bytes(RAW[12 * k : 12 * k + 12])
    (folder / "one.raw").write_bytes(b"head" + RAW)


def meta(folder: Path, extra: str = SPACING, data: str = "LOCAL", body: bytes = RAW) -> Path:
    slices(folder)
    (folder / "a.mha").write_bytes(META.format(extra, data).encode() + body)
    return folder / "a.mha"


def nrrd(folder: Path, extra: str, encoding: str = "raw", data_file: str = "", body: bytes = RAW) -> Path:
    slices(folder)
    path = folder / ("a.nhdr" if data_file else "a.nrrd")
    header = NRRD.format(extra, encoding, data_file)
    path.write_bytes((header.rstrip("\n") + "\n" if "LIST" in data_file else header).encode() + body)
    return path


def assert_as_simpleitk(path: Path) -> None:
    ours, itk = read_volume(path), sitk.ReadImage(str(path))
    theirs = from_sitk(itk if itk.GetDimension() == 3 else itk[:, :, :, 0])
    assert same_grid(ours, theirs, 1e-6) and ours.array.dtype == theirs.array.dtype
    np.testing.assert_array_equal(ours.array, theirs.array)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr", ".gipl", ".gipl.gz"])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_type_that_simpleitk_writes(tmp_path, suffix, dtype):
    if "gipl" in suffix and dtype in ("i4", "u4", "i8", "u8"):
        pytest.skip("not of the format's writer")
    array = (np.arange(24).reshape(4, 3, 2) * 5).astype(dtype)
    volume = Volume(array, (0.7, 0.8, 3.5), (-12.5, 30.25, 100.125), OBLIQUE)
    for compressed in (False, True):
        sitk.WriteImage(volume.to_sitk(), str(tmp_path / f"a{suffix}"), useCompression=compressed)
        assert_as_simpleitk(tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    ("extra", "data", "body"),
    [
        (SPACING, "LOCAL", RAW),
        ("ElementSize = 2 2 2\n", "LOCAL", RAW),
        (SPACING + "ElementSize = 2 2 2\n", "LOCAL", RAW),
        (SPACING + "ElementByteOrderMSB = True\n", "LOCAL", RAW),
        (SPACING + "BinaryDataByteOrderMSB = True\n", "LOCAL", RAW),
        (SPACING + "Position = 4 5 6\nRotation = 0 1 0 -1 0 0 0 0 1\n", "LOCAL", RAW),
        (SPACING + "Origin = 4 5 6\nOrientation = 0 1 0 -1 0 0 0 0 1\n", "LOCAL", RAW),
        (SPACING + "Offset = 4 5 6\nTransformMatrix = 0 1 0 0 0 1 1 0 0\nCenterOfRotation = 5 5 5\n", "LOCAL", RAW),
        (SPACING + "BinaryData = False\n", "LOCAL", TEXT),
        (SPACING.replace("\n", "\r\n"), "LOCAL", RAW),
        (SPACING, "s%02d.raw 0 3 1", b""),
        (SPACING, "LIST", b"s00.raw\ns01.raw\ns02.raw\ns03.raw\n"),
        (SPACING + "HeaderSize = 4\n", "one.raw", b""),
        (SPACING + "HeaderSize = -1\n", "one.raw", b""),
    ],
)
def test_metaimage_keys(tmp_path, extra, data, body):
    assert_as_simpleitk(meta(tmp_path, extra, data, body))


@pytest.mark.parametrize(
    ("extra", "encoding", "data_file", "body"),
    [
        *((f"space: {space}\n" + DIRECTIONS, "raw", "", RAW) for space in (
            "left-posterior-superior", "LPS", "right-anterior-superior", "RAS", "left-anterior-superior", "LAS",
            "scanner-xyz", "3D-right-handed",
        )),
        ("space dimension: 3\n" + DIRECTIONS, "raw", "", RAW),
        ("spacings: 1 2 3\n", "raw", "", RAW),
        ("spacings: 1 2 3\naxis mins: 4 5 6\n", "raw", "", RAW),
        ("spacings: 1 2 3\naxis mins: 4 5 6\ncenters: cell cell cell\n", "raw", "", RAW),
        ("spacings: 1 2 3\naxismins: 4 5 6\ncenterings: node node node\n", "raw", "", RAW),
        (SPACE + DIRECTIONS + "# a comment\nkey:=a: value\nkinds: domain domain domain\n", "raw", "", RAW),
        (SPACE + DIRECTIONS, "gzip", "", gzip.compress(RAW, mtime=0)),
        (SPACE + DIRECTIONS, "ascii", "", TEXT),
        (SPACE + DIRECTIONS + "byte skip: 4\n", "gz", "", gzip.compress(b"head" + RAW, mtime=0)),
        (SPACE + DIRECTIONS + "byte skip: 4\n", "raw", "data file: one.raw\n", b""),
        (SPACE + DIRECTIONS + "byteskip: -1\n", "raw", "datafile: one.raw\n", b""),
        (SPACE + DIRECTIONS, "raw", "data file: s%02d.raw 0 3 1 2\n", b""),
        (SPACE + DIRECTIONS, "raw", "data file: LIST\n", b"s00.raw\ns01.raw\ns02.raw\ns03.raw\n"),
    ],
)  # fmt: skip
def test_nrrd_fields(tmp_path, extra, encoding, data_file, body):
    assert_as_simpleitk(nrrd(tmp_path, extra, encoding, data_file, body))


def test_what_simpleitk_does_not_read_or_reads_wrongly(tmp_path):
    """Bzip2 it refuses; units other than mm it passes over."""
    expected = np.reshape(VOXELS, (4, 3, 2))
    volume = read_volume(nrrd(tmp_path, SPACE + DIRECTIONS, "bzip2", "", bz2.compress(RAW)))
    np.testing.assert_array_equal(volume.array, expected)
    volume = read_volume(nrrd(tmp_path, SPACE + 'space units: "cm" "cm" "cm"\n' + DIRECTIONS))
    assert (volume.spacing, volume.origin) == ((10, 20, 30), (10, 20, 30))
    volume = read_volume(nrrd(tmp_path, 'spacings: 1 2 3\nunits: "cm" "cm" "cm"\n'))
    assert volume.spacing == (10, 20, 30)
    volume = read_volume(meta(tmp_path, SPACING + "Offset = 4 5 6\nDistanceUnits = cm\n"))
    assert (volume.spacing, volume.origin) == ((10, 20, 30), (40, 50, 60))


def plain(folder: Path, old: str = "", new: str = "") -> Path:
    """Write an NRRD without space in which one text gives way to another."""
    return changed(nrrd(folder, "spacings: 1 2 3\n"), old, new)


def named(folder: Path, files: str) -> Path:
    """Write an NRRD header that names its data files."""
    return nrrd(folder, SPACE + DIRECTIONS, data_file=f"data file: {files}\n")


def first_line(folder: Path) -> Path:
    """Write an NRRD that ends behind its first line."""
    (folder / "a.nrrd").write_bytes(b"NRRD0004\n")
    return folder / "a.nrrd"


HARMFUL = {
    # The first four end ITK's process, or never come back.
    "pattern of step 0": (lambda p: meta(p, data="x%d.raw 1 5 0"), "ElementDataFile 'x%d.raw 1 5 0'"),
    "wide pattern": (lambda p: named(p, "x%0300d.raw 1 4 1 2"), "NRRD data file"),
    "endless pattern": (lambda p: meta(p, data="x%d.raw 1 999999999999 1"), "ElementDataFile"),
    "two formats": (lambda p: named(p, "x%d%s%n.raw 1 4 1"), "NRRD data file"),
    "the first line alone": (first_line, "NRRD dimension missing"),
    "an empty list": (lambda p: meta(p, data="LIST", body=b"\n"), "ElementDataFile 'LIST'; expected a file name, LIST"),
    "a long name in a list": (
        lambda p: nrrd(p, SPACE + DIRECTIONS, data_file="data file: LIST\n", body=b"s00.raw\n" + b"a" * 300),
        "NRRD data file 'LIST'",
    ),
    "four numbers in MetaImage": (lambda p: meta(p, data="s%02d.raw 0 3 1 2"), "ElementDataFile 's%02d.raw 0 3 1 2'"),
    "15 dimensions": (lambda p: plain(p, "dimension: 3", "dimension: 15"), "NRRD sizes '2 3 4'"),
    "more sizes": (lambda p: plain(p, "2 3 4", "2 3 4 1 1 1 1 1"), "expected 3 numbers"),
    "a negative size": (lambda p: plain(p, "2 3 4", "2 3 -4"), "NRRD sizes '2 3 -4'"),
    "an unknown field": (lambda p: nrrd(p, "spacings: 1 2 3\nspacing: 1\n"), "NRRD line 'spacing: 1'"),
    "a field twice": (lambda p: nrrd(p, "spacings: 1 2 3\nspacings: 1 1 1\n"), "each field once"),
    "a type of no numbers": (lambda p: plain(p, "type: short", "type: block"), "NRRD type 'block'"),
    "no byte order": (lambda p: plain(p, "endian: little\n", ""), "NRRD endian missing"),
    "no spacing, NRRD": (lambda p: nrrd(p, ""), "NRRD spacings missing; expected 3 finite numbers of mm"),
    "NaN spacing, NRRD": (lambda p: nrrd(p, "spacings: nan nan nan\n"), "NRRD spacings 'nan nan nan'"),
    "NaN direction, NRRD": (lambda p: nrrd(p, SPACE + DIRECTIONS.replace("-2", "nan")), "NRRD space directions"),
    "units of each axis": (lambda p: nrrd(p, SPACE + 'space units: "mm" "mm" "cm"\n' + DIRECTIONS), "one unit for all"),
    "unknown unit": (lambda p: nrrd(p, SPACE + 'space units: "ly" "ly" "ly"\n' + DIRECTIONS), "NRRD units 'ly'"),
    "no spacing": (lambda p: meta(p, ""), "MetaImage ElementSpacing missing"),
    "NaN spacing": (lambda p: meta(p, "ElementSpacing = nan 1 1\n"), "MetaImage ElementSpacing 'nan 1 1'"),
    "two origins": (lambda p: meta(p, SPACING + "Offset = 0 0 0\nOrigin = 1 1 1\n"), "either this or Offset"),
    "two byte orders": (
        lambda p: meta(p, SPACING + "ElementByteOrderMSB = True\nBinaryDataByteOrderMSB = False\n"),
        "the same as BinaryDataByteOrderMSB",
    ),
    "a slope": (lambda p: meta(p, SPACING + "ElementToIntensityFunctionSlope = 2\n"), "expected 1"),
    "an unknown type": (lambda p: changed(meta(p), "MET_SHORT", "MET_OTHER"), "ElementType 'MET_OTHER'"),
    "a missing data file": (lambda p: meta(p, data="gone.raw"), "gone.raw is missing; copy it along"),
    "a missing slice": (lambda p: meta(p, data="s%02d.raw 1 4 1"), "s04.raw is missing"),
    "three files for four slices": (lambda p: meta(p, data="s%02d.raw 0 2 1"), "s00.raw: .* 12 bytes .* expected 16"),
    "five files for four slices": (lambda p: meta(p, data="LIST", body=b"s00.raw\n" * 5), "24 voxels in 5 files"),
}  # fmt: skip


def changed(path: Path, old: str, new: str) -> Path:
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    return path


@pytest.mark.parametrize("fault", HARMFUL)
def test_a_harmful_header_is_refused(tmp_path, fault):
    make, words = HARMFUL[fault]
    with pytest.raises(InputError, match=words):
        read_volume(make(tmp_path))


def test_the_cost_of_a_header_does_not_grow_with_its_folder(tmp_path, monkeypatch):
    """A folder of 3000 `.mhd` was listed 3000 times."""
    path = meta(tmp_path, data="one.raw", extra=SPACING + "HeaderSize = 4\n", body=b"")
    monkeypatch.setattr(Path, "iterdir", lambda folder: pytest.fail("the folder is listed"))
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: pytest.fail("the folder is searched"))
    assert read_volume(path).size == (2, 3, 4)
