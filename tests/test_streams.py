"""Damaged streams of every format are refused, never read as other voxels; so are data shorter or longer than said."""

import bz2
import gzip
import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from data.errors import InputError
from data.volumes.paths import hash_source
from data.volumes.volume import read_volume, volume_files, write_volume
from tests.test_volume import example_volume

VOLUME = example_volume(shape=(6, 20, 22))
RAW = VOLUME.array.astype("<i2").tobytes()
NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nsizes: 22 20 6\nspacings: 1 1 1\nendian: little\nencoding: {}\n{}\n"
)  # fmt: skip
META = "NDims = 3\nDimSize = 22 20 6\nElementSpacing = 1 1 1\nElementType = MET_SHORT\n{}ElementDataFile = {}\n"
ZLIB = "CompressedData = True\n"


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:999]) + gzip.compress(data[999:])


def rewritten_gzip(path: Path, compress) -> Path:
    path.write_bytes(compress(gzip.decompress(path.read_bytes())))
    return path


def text_and_data(path: Path, header: str, data: bytes, data_file: str = "") -> Path:
    path.write_bytes(header.encode() + (b"" if data_file else data))
    if data_file:
        path.with_name(data_file).write_bytes(data)
    return path


def itk(path: Path, compressed: bool = True) -> Path:
    sitk.WriteImage(VOLUME.to_sitk(), str(path), useCompression=compressed)
    return path


# Whole files; the stream of the voxels is in the file that has the last name.
COMPRESSED = {
    "nii.gz": lambda p: write_volume(VOLUME, p / "a.nii.gz"),
    "nii.gz of two members": lambda p: rewritten_gzip(write_volume(VOLUME, p / "a.nii.gz"), two_members),
    "img.gz": lambda p: itk(p / "a.img.gz"),
    "mha, zlib": lambda p: itk(p / "a.mha"),
    "mhd, zlib in a file of its own": lambda p: itk(p / "a.mhd"),
    "mha, gzip": lambda p: text_and_data(p / "a.mha", META.format(ZLIB, "LOCAL"), gzip.compress(RAW, mtime=0)),
    "nrrd, gzip": lambda p: itk(p / "a.nrrd"),
    "nhdr, gzip in a file of its own": lambda p: itk(p / "a.nhdr"),
    "nrrd, bzip2": lambda p: text_and_data(p / "a.nrrd", NRRD.format("bzip2", ""), bz2.compress(RAW)),
    "nhdr, bzip2 of two streams": lambda p: text_and_data(
        p / "a.nhdr", NRRD.format("bz2", "data file: b\n"), bz2.compress(RAW[:999]) + bz2.compress(RAW[999:]), "b"
    ),
    "gipl.gz": lambda p: itk(p / "a.gipl.gz"),
}  # fmt: skip
PLAIN = {
    "nii": lambda p: write_volume(VOLUME, p / "a.nii"),
    "hdr and img": lambda p: itk(p / "a.hdr", False),
    "mha": lambda p: itk(p / "a.mha", False),
    "mhd": lambda p: itk(p / "a.mhd", False),
    "nrrd": lambda p: itk(p / "a.nrrd", False),
    "nhdr": lambda p: itk(p / "a.nhdr", False),
    "gipl": lambda p: itk(p / "a.gipl", False),
}


def stream_of(path: Path) -> Path:
    """Return the file that holds a volume's voxels."""
    return volume_files(path)[-1]


def assert_refused_or_same(path: Path) -> bool:
    """Read a volume; return whether it was refused."""
    try:
        np.testing.assert_array_equal(read_volume(path).array, VOLUME.array)
    except InputError as error:
        assert "\n" not in str(error) and "0x" not in str(error)
        return True
    return False


@pytest.mark.parametrize("kind", [*COMPRESSED, *PLAIN])
def test_whole_files_are_read(tmp_path, kind):
    np.testing.assert_array_equal(read_volume((COMPRESSED | PLAIN)[kind](tmp_path)).array, VOLUME.array)


@pytest.mark.parametrize("kind", COMPRESSED)
def test_no_flipped_bit_is_read_as_another_voxel(tmp_path, kind):
    path = COMPRESSED[kind](tmp_path)
    stream = stream_of(path)
    whole, rng, refused = stream.read_bytes(), random.Random(1), 0
    # The header is small and plain; the stream is the rest.
    for place in rng.sample(range(len(whole) // 4, len(whole)), 60):
        data = bytearray(whole)
        data[place] ^= 1 << rng.randrange(8)
        stream.write_bytes(data)
        refused += assert_refused_or_same(path)
    assert refused > 50


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data[:-8],
        lambda data: data + b"garbage",
        lambda data: data[:-1000] + bytes(1000),
        lambda data: data[:1500] + bytes(512) + data[2012:],
        lambda data: data[:1500] + data[1501:],
        lambda data: data[:1500] + data[2000:2500] + data[1500:2000] + data[2500:],
    ],
    ids=[
        "half",
        "last byte",
        "last 8",
        "garbage after it",
        "zeroed tail",
        "zeroed block",
        "byte lost",
        "blocks swapped",
    ],
)
def test_a_damaged_stream_is_refused(tmp_path, kind, damage):
    path = COMPRESSED[kind](tmp_path)
    stream = stream_of(path)
    stream.write_bytes(damage(stream.read_bytes()))
    with pytest.raises(InputError, match=r"stream\.?|cannot be read as a volume"):
        read_volume(path)


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize(("change", "words"), [
    (lambda data: data[:-2], "truncated"),
    (lambda data: data[: len(data) // 2], "truncated"),
    (lambda data: data + bytes(2), "does not belong to these voxels"),
    (lambda data: data + data, "does not belong to these voxels"),
])  # fmt: skip
def test_data_of_another_length_than_the_header_says_are_refused(tmp_path, kind, change, words):
    path = PLAIN[kind](tmp_path)
    stream = stream_of(path)
    stream.write_bytes(change(stream.read_bytes()))
    with pytest.raises(InputError, match=rf"{stream.name}: cannot be read as a volume: \d+ bytes .*{words}"):
        read_volume(path)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, zlib.compress])
@pytest.mark.parametrize("change", [lambda raw: raw[:-2], lambda raw: raw + raw[:2]])
def test_a_sound_stream_of_another_length_is_refused(tmp_path, compress, change):
    data = compress(change(RAW))
    if compress is zlib.compress:
        path = text_and_data(tmp_path / "a.mha", META.format(ZLIB, "LOCAL"), data)
    else:
        path = text_and_data(tmp_path / "a.nrrd", NRRD.format(compress.__module__, ""), data)
    with pytest.raises(InputError, match=r"(5278|more than 5280) bytes of voxels and header; expected 5280"):
        read_volume(path)


def test_zeros_after_a_gzip_stream_are_its_padding(tmp_path):
    path = write_volume(VOLUME, tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes() + bytes(512))
    np.testing.assert_array_equal(read_volume(path).array, VOLUME.array)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RAW[:0], "0 numbers"),
        (b" ".join(b"%d" % k for k in range(2639)), "2639 numbers; its header says 2640"),
        (b"70000 " * 2640, "which int16 cannot hold"),
        (b"1.5 " * 2640, "are not numbers"),
        (b"1 " * 2639 + b"x", "are not numbers"),
    ],
)
def test_numbers_in_text_are_counted_and_fit(tmp_path, text, words):
    for path in (
        text_and_data(tmp_path / "a.nrrd", NRRD.format("ascii", ""), text),
        text_and_data(tmp_path / "a.mha", META.format("BinaryData = False\n", "LOCAL"), text),
    ):
        with pytest.raises(InputError, match=words):
            read_volume(path)


SPECIAL = {
    "mhd": ("a.mhd", META.format("", "data")),
    "mhd, text": ("a.mhd", META.format("BinaryData = False\n", "data")),
    "mhd, list": ("a.mhd", META.format("", "LIST\ndata")),
    "nhdr": ("a.nhdr", NRRD.format("raw", "data file: data\n")),
    "nhdr, text": ("a.nhdr", NRRD.format("ascii", "data file: data\n")),
    "nhdr, gzip": ("a.nhdr", NRRD.format("gzip", "data file: data\n")),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("special", ["named pipe", "device", "folder", "missing"])
def test_a_data_file_that_is_none_is_refused_at_once(tmp_path, kind, special):
    name, header = SPECIAL[kind]
    make_special(tmp_path / "data", special)
    path = text_and_data(tmp_path / name, header, b"")
    with pytest.raises(InputError, match=rf"data.* {special}"):
        read_volume(path)


def make_special(path: Path, kind: str) -> None:
    match kind:
        case "named pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.mhd", "a.nhdr", "a.gipl", "a.gipl.gz", "a.hdr", "a.dcm", "a"])
@pytest.mark.parametrize("special", ["named pipe", "device"])
def test_a_path_that_is_no_file_is_refused_at_once(tmp_path, name, special):
    make_special(tmp_path / name, special)
    for read in (read_volume, hash_source):
        with pytest.raises(InputError, match=f"a {special}; expected a file"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.nii", gzip.compress(RAW, mtime=0), "named .nii, but is a gzip-compressed file"),
        ("a.nii.gz", b"\x5c\x01\0\0" + bytes(400), "named .nii.gz, but is a NIfTI or Analyze file"),
        ("a.mgz", gzip.compress(RAW, mtime=0), "a gzip-compressed file; supported are .nii.gz .nii .mha"),
        ("a.mgh", b"\0\0\0\x01\0\0\0\x10", "a FreeSurfer .mgh file; supported are"),
        ("a.nrrd", b"ObjectType = Image\n", "named .nrrd, but is a MetaImage"),
        ("a.nii.gz", b"<!DOCTYPE html>", "is a web page, as after a failed download"),
        ("._a.nii.gz", b"\0\5\x16\7" + bytes(200), "AppleDouble"),
        ("IM0001", bytes(128) + b"DICM", "a single DICOM file; name the folder"),
        ("a.tif", b"II*\0" + bytes(20), "a TIFF image; supported are"),
    ],
)
def test_what_a_file_is_and_what_is_read_is_said(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_volume(tmp_path / name)
