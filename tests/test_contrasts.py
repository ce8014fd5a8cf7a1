"""Contrasts by name: in options and cases, their order, their grids, and DICOM series that hold several."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from data.volumes.contrasts import check_together, in_order, split_name, without_name
from data.volumes.volume import Volume, read_volume
from tests.test_volume import SLICES, write_series


def test_a_name_stands_before_the_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_name("fat=p1/fat.nii.gz") == ("fat", "p1/fat.nii.gz")
    assert split_name("in_phase=raw/*=1/a.nii") == ("in_phase", "raw/*=1/a.nii")
    for text in ("p1/fat.nii.gz", "p1/a=b.nii", "1st=a.nii", "=a.nii", "fat="):
        assert split_name(text) == (None, text)
    Path("run=1").mkdir()
    Path("run=1/a.nii").touch()
    assert split_name("run=1/a.nii") == (None, "run=1/a.nii")
    assert split_name("run=1/*.nii") == (None, "run=1/*.nii")


@pytest.mark.parametrize(
    ("case", "contrast", "left"),
    [
        ("mr000_in_phase", "in_phase", "mr000"), ("in_phase_p1", "in_phase", "p1"), ("p1__fat__a", "fat", "p1__a"),
        ("p1.fat", "fat", "p1"), ("fatima", "fat", "fatima"), ("p1_fatty", "fat", "p1_fatty"), ("fat", "fat", ""),
    ],
)  # fmt: skip
def test_a_case_is_called_without_the_contrast(case, contrast, left):
    assert without_name(case, contrast) == left


def test_the_order_given_does_not_matter():
    given = [("fat", "f"), ("in_phase", "i"), ("water", "w")]
    assert in_order("--input", given, ["in_phase", "water", "fat"]) == ["i", "w", "f"]
    assert in_order("--input", [(None, "m")], ["mr"]) == in_order("--input", [("mr", "m")], ["mr"]) == ["m"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([("in_phase", "i")], "--input: no fat; expected in_phase, fat, each once, as --input NAME=..."),
        ([], "no in_phase, no fat"),
        ([("in_phase", "i"), ("fat", "f"), ("fat", "g")], "--input fat=...: given 2 times"),
        ([("in_phase", "i"), ("fat", "f"), ("water", "w")], "--input water=...: no such contrast"),
        ([(None, "x.nii"), ("fat", "f")], "--input x.nii: does not say which contrast it is"),
    ],
)
def test_a_contrast_that_is_missing_twice_or_unknown_is_named(given, message):
    with pytest.raises(InputError) as error:
        in_order("--input", given, ["in_phase", "fat"])
    assert message in str(error.value)


def test_contrasts_on_other_grids_and_one_image_twice_are_refused():
    mr = Volume(np.arange(24.0).reshape(2, 3, 4))
    other = mr.with_array(mr.array + 1)
    check_together({"in_phase": mr, "fat": other})
    with pytest.raises(
        InputError, match=r"contrast fat: not on the grid of in_phase: .*spacing \(1, 1, 2\) mm, expected "
    ):
        check_together({"in_phase": mr, "fat": replace(other, spacing=(1.0, 1.0, 2.0))})
    with pytest.raises(InputError, match="contrasts in_phase and fat: the same image"):
        check_together({"in_phase": mr, "fat": mr})


def write_contrasts(folder: Path, tell, names, uid: str | None = "1.2.840.9999") -> dict[str, np.ndarray]:
    """Write one series (or, with no UID, one each) of several contrasts, told apart by `tell(header, number)`."""
    images = {}
    for number, name in enumerate(names):

        def change(k, header, number=number, name=name):
            array = np.frombuffer(header.PixelData, np.uint16) + 1000 * number
            images.setdefault(name, []).append(array.reshape(8, 10))
            header.PixelData = array.astype(np.uint16).tobytes()
            tell(header, number)

        scratch = folder / f"scratch{number}"
        write_series(scratch, uid, change)
        for file in scratch.glob("*.dcm"):
            file.rename(folder / f"{number}_{file.name}")
    return {name: np.stack(planes) for name, planes in images.items()}


DIXON = ("in_phase", "opposed_phase", "water", "fat")
VENDORS = {
    "Siemens": ("IN_PHASE", "OPP_PHASE", "WATER", "FAT"),
    "GE": ("IN_PHASE", "OUT_PHASE", "WATER", "FAT"),
    "Philips": ("IP", "OP", "W", "F"),
}


@pytest.mark.parametrize("words", VENDORS.values(), ids=VENDORS)
@pytest.mark.parametrize("uid", ["1.2.840.9999", None])
def test_contrasts_of_a_folder_are_read_by_name(tmp_path, words, uid):
    def tell(header, number):
        header.ImageType = ["DERIVED", "PRIMARY", "DIXON", words[number]]

    images = write_contrasts(tmp_path, tell, DIXON, uid)
    for name in DIXON:
        np.testing.assert_array_equal(read_volume(tmp_path, contrast=name).array, images[name])
    with pytest.raises(InputError, match="no t2 in it; its DICOM images are fat, in_phase, opposed_phase, water"):
        read_volume(tmp_path, contrast="t2")
    with pytest.raises(
        InputError, match="4 images at one place.*choose one with --contrast NAME" if uid else "4 DICOM series"
    ):
        read_volume(tmp_path)


# At 3 T fat and water meet every 2.30 ms, at 1.5 T every 4.61 ms.
@pytest.mark.parametrize(
    ("tesla", "times", "names"),
    [
        (3.0, (1.23, 2.46), ("opposed_phase", "in_phase")),
        (1.5, (2.38, 4.77), ("opposed_phase", "in_phase")),
        (1.5, (4.6, 2.3), ("in_phase", "opposed_phase")),
    ],
)
def test_echoes_are_told_by_their_times(tmp_path, tesla, times, names):
    def tell(header, number):
        header.EchoTime, header.MagneticFieldStrength = times[number], tesla

    images = write_contrasts(tmp_path, tell, names)
    for name in names:
        np.testing.assert_array_equal(read_volume(tmp_path, contrast=name).array, images[name])
    by_time = [name for _, name in sorted(zip(times, names, strict=True))]
    for number, name in enumerate(by_time, start=1):
        np.testing.assert_array_equal(read_volume(tmp_path, contrast=f"echo{number}").array, images[name])


def test_echoes_without_a_field_strength_have_numbers_alone(tmp_path):
    images = write_contrasts(tmp_path, lambda header, number: setattr(header, "EchoTime", 2.3 + number), ("a", "b"))
    np.testing.assert_array_equal(read_volume(tmp_path, contrast="echo2").array, images["b"])
    with pytest.raises(InputError, match="no in_phase in it; its DICOM images are echo1, echo2"):
        read_volume(tmp_path, contrast="in_phase")


def test_an_echo_that_could_be_two_is_not_guessed(tmp_path):
    def tell(header, number):
        header.EchoTime, header.MagneticFieldStrength = 2.3 * (number + 1), 3.0

    write_contrasts(tmp_path, tell, ("a", "b"))
    with pytest.raises(InputError, match="in_phase may be echo1, echo2"):
        read_volume(tmp_path, contrast="in_phase")


def test_a_series_that_says_nothing_is_what_it_is_called(tmp_path):
    array = write_series(tmp_path)
    assert len(array) == SLICES
    np.testing.assert_array_equal(read_volume(tmp_path, contrast="fat").array, array)


def test_a_series_of_another_contrast_is_refused(tmp_path):
    write_series(tmp_path, change=lambda k, header: setattr(header, "ImageType", ["DERIVED", "PRIMARY", "WATER"]))
    with pytest.raises(InputError, match="no fat in it; its DICOM images are water"):
        read_volume(tmp_path, contrast="fat")
    assert read_volume(tmp_path, contrast="my_own").size == read_volume(tmp_path, contrast="water").size
