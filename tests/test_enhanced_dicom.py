"""Multi-frame DICOM, and several volumes in one series: the voxels and the grid of the single-frame series, by name."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, get_frame
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

import test_adapt
import test_pipeline
from data.errors import InputError
from data.volumes.dicom import list_series
from data.volumes.volume import Volume, read_volume, same_grid, write_volume
from scripts import resample
from tests.cohort_data import NAME, patient_mr, write_dicom_patient, write_model
from tests.faults.commands import adapt, pipeline
from tests.test_volume import OBLIQUE, example_volume, write_series

SHARED = Path(__file__).resolve().parents[1].parent / "shared/data/sts"
Tell = Callable[[Dataset, int], None]


def set_group(groups: Dataset, sequence: str, **values) -> None:
    """Set values in a functional group of a frame, or of all."""
    item = getattr(groups, sequence)[0] if sequence in groups else Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    setattr(groups, sequence, [item])


def frame_of(array: np.ndarray, volume: Volume, k: int) -> tuple[Dataset, np.ndarray]:
    matrix = np.reshape(volume.direction, (3, 3))
    groups = Dataset()
    position = volume.origin + matrix[:, 2] * volume.spacing[2] * k
    set_group(groups, "PlanePositionSequence", ImagePositionPatient=[f"{v:.9f}" for v in position])
    axes = [f"{v:.12f}" for v in (*matrix[:, 0], *matrix[:, 1])]
    set_group(groups, "PlaneOrientationSequence", ImageOrientationPatient=axes)
    set_group(groups, "PixelMeasuresSequence", PixelSpacing=[volume.spacing[1], volume.spacing[0]])
    return groups, array


def write_enhanced(
    path: Path, frames: Iterable[tuple[Dataset, np.ndarray]], shared: Dataset | None = None, **header_values
) -> None:
    """Write an Enhanced MR image of frames: functional groups and pixels of each."""
    frames = list(frames)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = header_values.pop("syntax", ExplicitVRLittleEndian)
    header = Dataset()
    header.file_meta = meta
    values = {"SOPClassUID": EnhancedMRImageStorage, "SOPInstanceUID": generate_uid(), "Modality": "MR",
              "SeriesInstanceUID": "1.2.3.7777", "StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.4",
              "PatientID": "id-4711", "PatientName": "Doe^Jane", "SeriesDescription": "vibe dixon",
              "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
              "ImageType": ["ORIGINAL", "PRIMARY"]}  # fmt: skip
    for name, value in (values | header_values).items():
        setattr(header, name, value)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    arrays = np.stack([array for _, array in frames])
    header.NumberOfFrames, header.Rows, header.Columns = arrays.shape
    header.BitsAllocated = header.BitsStored = arrays.dtype.itemsize * 8
    header.HighBit, header.PixelRepresentation = header.BitsStored - 1, int(arrays.dtype.kind == "i")
    header.SharedFunctionalGroupsSequence = [shared or Dataset()]
    header.PerFrameFunctionalGroupsSequence = [groups for groups, _ in frames]
    if meta.TransferSyntaxUID == RLELossless:
        header.PixelData = encapsulate([pydicom.pixels.encoders.RLELosslessEncoder.encode(
            array.tobytes(), rows=header.Rows, columns=header.Columns, samples_per_pixel=1, number_of_frames=1,
            bits_allocated=header.BitsAllocated, bits_stored=header.BitsStored,
            photometric_interpretation="MONOCHROME2", pixel_representation=header.PixelRepresentation,
        ) for array in arrays])  # fmt: skip
    else:
        order = ">" if meta.TransferSyntaxUID == ExplicitVRBigEndian else "<"
        header.PixelData = arrays.astype(arrays.dtype.newbyteorder(order)).tobytes()
    header["PixelData"].VR = "OB" if meta.TransferSyntaxUID == RLELossless or header.BitsAllocated == 8 else "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)


def mr_of(dtype=np.uint16, shape=(6, 8, 10)) -> Volume:
    volume = example_volume(shape=shape)
    return volume.with_array(np.random.default_rng(5).integers(0, 250, shape).astype(dtype))


def scrambled(volume: Volume, tell: Tell = lambda groups, k: None) -> list[tuple[Dataset, np.ndarray]]:
    """Return the frames of a volume in another order than that of their positions."""
    frames = [frame_of(array, volume, k) for k, array in enumerate(volume.array)]
    for k, (groups, _) in enumerate(frames):
        tell(groups, k)
    return [frames[k] for k in np.random.default_rng(7).permutation(len(frames))]


@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless],
    ids=lambda syntax: syntax.name,
)
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint8])
def test_frames_are_put_in_order_whatever_they_are_stored_as(tmp_path, syntax, dtype):
    mr = mr_of(dtype)
    write_enhanced(tmp_path / "mr/im.dcm", scrambled(mr), syntax=syntax)
    for place in ("mr", "mr/im.dcm"):  # the folder, or the file itself
        back = read_volume(tmp_path / place)
        np.testing.assert_array_equal(back.array, mr.array)
        assert same_grid(back, mr, tolerance=1e-6)


@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm"])
@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_compressed_frames_are_read_where_they_lie(tmp_path, name, table):
    """Frames of pydicom's samples, with the tables of where frames lie that a file may have."""
    image, plain = pydicom.dcmread(get_testdata_file(name)), pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    pixels = plain.pixel_array.astype(np.int16)
    grid = Volume(np.stack([pixels] * 4), (1.0, 1.0, 3.0), (0.0, 0.0, 0.0))
    write_enhanced(tmp_path / "im.dcm", scrambled(grid))
    header = pydicom.dcmread(tmp_path / "im.dcm")
    header.file_meta.TransferSyntaxUID = image.file_meta.TransferSyntaxUID
    frames = [get_frame(image.PixelData, 0, number_of_frames=1)] * 4
    if table == "extended":
        header.PixelData, header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    else:
        header.PixelData = encapsulate(frames, has_bot=table == "basic")
    header["PixelData"].VR = "OB"
    header.BitsStored, header.HighBit = image.BitsStored, image.HighBit
    header.save_as(tmp_path / "im.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array, grid.array)


def test_values_are_rescaled_frame_by_frame_or_all_alike(tmp_path):
    mr = mr_of()

    def rescale(groups, k):
        values = {"RescaleSlope": 0.5 + k, "RescaleIntercept": -k, "RescaleType": "US"}
        set_group(groups, "PixelValueTransformationSequence", **values)

    write_enhanced(tmp_path / "a/im.dcm", scrambled(mr, rescale))
    k = np.arange(6)[:, None, None]
    np.testing.assert_allclose(read_volume(tmp_path / "a").array, mr.array * (0.5 + k) - k)
    shared = Dataset()
    set_group(shared, "PixelValueTransformationSequence", RescaleSlope=0.25, RescaleIntercept=3, RescaleType="US")
    write_enhanced(tmp_path / "b/im.dcm", scrambled(mr), shared)
    np.testing.assert_allclose(read_volume(tmp_path / "b").array, mr.array * 0.25 + 3)


def test_what_all_frames_share_is_said_once(tmp_path):
    mr = mr_of()
    frames, shared = scrambled(mr), Dataset()
    for sequence in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        setattr(shared, sequence, getattr(frames[0][0], sequence))
        for groups, _ in frames:
            delattr(groups, sequence)
    write_enhanced(tmp_path / "im.dcm", frames, shared, PhotometricInterpretation="MONOCHROME1")
    back = read_volume(tmp_path)
    np.testing.assert_array_equal(back.array, mr.array)  # MONOCHROME1 is of the display, and inverts nothing
    assert same_grid(back, mr, tolerance=1e-6)


def test_an_enhanced_ct_is_in_hu(tmp_path):
    ct = mr_of(np.int16)
    shared = Dataset()
    set_group(shared, "PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    more = {"SOPClassUID": EnhancedCTImageStorage, "Modality": "CT"}
    write_enhanced(tmp_path / "ct/im.dcm", scrambled(ct), shared, **more)
    np.testing.assert_array_equal(read_volume(tmp_path / "ct").array, ct.array.astype(int) - 1024)
    write_enhanced(tmp_path / "raw/im.dcm", scrambled(ct), **more)
    with pytest.raises(InputError, match=r"im\.dcm: DICOM tag RescaleSlope is missing or empty"):
        read_volume(tmp_path / "raw")
    set_group(shared, "PixelValueTransformationSequence", RescaleType="Z_EFF")
    write_enhanced(tmp_path / "z/im.dcm", scrambled(ct), shared, **more)
    with pytest.raises(InputError, match="RescaleType Z_EFF; expected HU"):
        read_volume(tmp_path / "z")


def test_a_volume_in_several_objects_of_one_series(tmp_path):
    mr = mr_of()
    frames = scrambled(mr)
    write_enhanced(tmp_path / "1.dcm", frames[:2])
    write_enhanced(tmp_path / "2.dcm", frames[2:])
    np.testing.assert_array_equal(read_volume(tmp_path).array, mr.array)
    (series,) = list_series(tmp_path)
    assert series.describe() == "1.2.3.7777  MR  'vibe dixon'  6 frames"


def several(tell_each: list[Tell]) -> tuple[list[Volume], list[tuple[Dataset, np.ndarray]]]:
    """Return volumes of one grid, and the frames of all, each told by its own function."""
    volumes, frames = [], []
    for number, tell in enumerate(tell_each):
        mr = mr_of()
        volumes.append(mr.with_array(mr.array + 1000 * number))
        frames += scrambled(volumes[-1], tell)
    order = np.random.default_rng(9).permutation(len(frames))
    return volumes, [frames[k] for k in order]


def dixon(word: str) -> Tell:
    return lambda groups, k: set_group(
        groups, "MRImageFrameTypeSequence", FrameType=["DERIVED", "PRIMARY", "DIXON", word]
    )


def echo(ms: float) -> Tell:
    return lambda groups, k: set_group(groups, "MREchoSequence", EffectiveEchoTime=ms)


def component(name: str) -> Tell:
    return lambda groups, k: set_group(groups, "MRImageFrameTypeSequence", ComplexImageComponent=name)


def time(number: int) -> Tell:
    return lambda groups, k: set_group(groups, "FrameContentSequence", TemporalPositionIndex=number)


def b_value(value: float) -> Tell:
    return lambda groups, k: set_group(groups, "MRDiffusionSequence", DiffusionBValue=value)


def both(*tells: Tell) -> Tell:
    def tell(groups, k):
        for one in tells:
            one(groups, k)

    return tell


CASES = {
    "dixon": {"in_phase": dixon("IN_PHASE"), "opposed_phase": dixon("OUT_PHASE"), "water": dixon("WATER")},
    "echoes": {"echo1": echo(2.3), "echo2": echo(4.6), "echo3": echo(6.9)},
    "components": {"magnitude": component("MAGNITUDE"), "phase": component("PHASE")},
    "times": {"time1": time(3), "time2": time(8)},
    "b-values": {"b0": b_value(0), "b800": b_value(800)},
    "echoes and components": {
        "echo1+magnitude": both(echo(2), component("MAGNITUDE")), "echo1+phase": both(echo(2), component("PHASE")),
        "echo2+magnitude": both(echo(5), component("MAGNITUDE")), "echo2+phase": both(echo(5), component("PHASE")),
    },
    "dixon of several times": {
        "water+time1": both(dixon("WATER"), time(1)), "water+time2": both(dixon("WATER"), time(2)),
        "fat+time1": both(dixon("FAT"), time(1)), "fat+time2": both(dixon("FAT"), time(2)),
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_several_volumes_of_one_object_are_read_by_name_and_never_guessed(tmp_path, case):
    volumes, frames = several(list(case.values()))
    write_enhanced(tmp_path / "im.dcm", frames)
    for name, volume in zip(case, volumes, strict=True):
        for back in (read_volume(tmp_path, contrast=name), read_volume(tmp_path, chosen=name.split("+"))):
            np.testing.assert_array_equal(back.array, volume.array)
            assert same_grid(back, volume, tolerance=1e-6)
    with pytest.raises(InputError) as error:
        read_volume(tmp_path)
    assert f"{len(case)} images at one place" in str(error.value)
    assert all(f"{name} (6 slices)" in str(error.value) for name in case) and "--contrast NAME" in str(error.value)
    with pytest.raises(InputError, match="no t2 in it; its DICOM images are"):
        read_volume(tmp_path, chosen=["t2"])
    parts = {part for name in case for part in name.split("+")}
    for part in parts - set(case):
        with pytest.raises(InputError, match=rf"{part} may be .*{part}.*; use one of these names"):
            read_volume(tmp_path, chosen=[part])


def test_images_at_one_place_that_nothing_tells_apart_are_refused(tmp_path):
    _, frames = several([lambda groups, k: None] * 2)
    write_enhanced(tmp_path / "im.dcm", frames)
    with pytest.raises(InputError, match=r"two slices at one position \(im\.dcm, frame \d+\), and nothing in their"):
        read_volume(tmp_path)


def test_an_attribute_that_varies_within_one_volume_makes_no_contrasts(tmp_path):
    mr = mr_of()
    frames = scrambled(mr, lambda groups, k: both(time(k % 2), component("MAGNITUDE"))(groups, k))
    write_enhanced(tmp_path / "im.dcm", frames)
    np.testing.assert_array_equal(read_volume(tmp_path).array, mr.array)


def test_stacks_are_called_by_their_planes_or_numbers(tmp_path):
    axial = replace(mr_of(), direction=(1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    sagittal = replace(axial, array=axial.array + 300, direction=(0, 0, 1.0, 1.0, 0, 0, 0, 1.0, 0))
    write_enhanced(tmp_path / "planes/im.dcm", [*scrambled(axial), *scrambled(sagittal)])
    for name, volume in (("axial", axial), ("sagittal", sagittal)):
        back = read_volume(tmp_path / "planes", chosen=[name])
        np.testing.assert_array_equal(back.array, volume.array)
        assert same_grid(back, volume, tolerance=1e-6)
    with pytest.raises(InputError, match=r"different orientation .*axial \(6 slices\), sagittal \(6 slices\)"):
        read_volume(tmp_path / "planes")

    def stack(name: str) -> Tell:
        return lambda groups, k: set_group(groups, "FrameContentSequence", StackID=name)

    other = replace(axial, array=axial.array + 500, origin=(-12.5, 30.25, 190.0))
    write_enhanced(tmp_path / "slabs/im.dcm", [*scrambled(axial, stack("A")), *scrambled(other, stack("B"))])
    np.testing.assert_array_equal(read_volume(tmp_path / "slabs", chosen=["stack2"]).array, other.array)
    with pytest.raises(InputError, match=r"unevenly spaced .*it holds stack1 \(6 slices\), stack2 \(6 slices\)"):
        read_volume(tmp_path / "slabs")


@pytest.mark.parametrize(
    ("tag", "values", "names"),
    [
        ("TemporalPositionIdentifier", (1, 2), ("time1", "time2")),
        ("AcquisitionNumber", (4, 7), ("acquisition1", "acquisition2")),
        ("FlipAngle", (5, 15), ("flip1", "flip2")),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), ("magnitude", "phase")),
        ("ImageType", (["DERIVED", "PRIMARY", "W"], ["DERIVED", "PRIMARY", "F"]), ("water", "fat")),
        ("EchoTime", (2.3, 4.6), ("echo1", "echo2")),
    ],
)
def test_single_frame_series_of_several_volumes_likewise(tmp_path, tag, values, names):
    arrays = []
    for number, value in enumerate(values):

        def change(k, header, number=number, value=value):
            setattr(header, tag, value)
            header.PixelData = (np.frombuffer(header.PixelData, np.uint16) + 1000 * number).astype(np.uint16).tobytes()

        arrays.append(write_series(tmp_path / str(number), "1.2.3.8888", change) + 1000 * number)
        for file in (tmp_path / str(number)).glob("*.dcm"):
            file.rename(tmp_path / f"{number}{file.name}")
    for name, array in zip(names, arrays, strict=True):
        np.testing.assert_array_equal(read_volume(tmp_path, chosen=[name]).array, array)
    with pytest.raises(InputError, match=rf"2 images at one place.*(?=.*{names[0]} \(6)(?=.*{names[1]} \(6)"):
        read_volume(tmp_path)


def test_a_choice_that_means_nothing_is_refused(tmp_path):
    write_series(tmp_path / "mr", description="T1 vibe")
    with pytest.raises(InputError, match="no echo2 in it; its DICOM images are of one contrast, as far as"):
        read_volume(tmp_path / "mr", chosen=["echo2"])
    write_volume(mr_of(), tmp_path / "mr.nii.gz")
    with pytest.raises(InputError, match=r"mr\.nii\.gz: a file, but --contrast, --echo or --series_description"):
        read_volume(tmp_path / "mr.nii.gz", chosen=["water"])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda h: setattr(h, "NumberOfFrames", 7),
            "Enhanced MR Image Storage whose frames are not described one by one",
        ),
        (lambda h: delattr(h, "PerFrameFunctionalGroupsSequence"), "whose frames are not described one by one"),
        (
            lambda h: setattr(h, "PixelData", h.PixelData[:-160]),
            r"800 bytes of pixels; its header says 8 x 10 x 6 of 16",
        ),
        (
            lambda h: delattr(h.PerFrameFunctionalGroupsSequence[2], "PlanePositionSequence"),
            "DICOM tag ImagePositionPatient is missing",
        ),
        (lambda h: setattr(h, "SamplesPerPixel", 3), "a colour image"),
        (lambda h: delattr(h, "PixelData"), "cannot be read"),
    ],
)
def test_damaged_objects_are_refused_by_name(tmp_path, damage, said):
    write_enhanced(tmp_path / "im.dcm", scrambled(mr_of()))
    header = pydicom.dcmread(tmp_path / "im.dcm")
    damage(header)
    header.save_as(tmp_path / "im.dcm")
    with pytest.raises(InputError, match=rf"im\.dcm: .*{said}"):
        read_volume(tmp_path)


def test_from_an_enhanced_object_to_a_series_that_names_its_frames(tmp_path, capsys):
    write_model(tmp_path)
    mr = replace(patient_mr(), direction=OBLIQUE)
    mr = mr.with_array(np.rint(mr.array).astype(np.uint16))
    frames = [*scrambled(mr, echo(2.3)), *scrambled(mr.with_array(mr.array // 2), echo(4.6))]
    write_enhanced(tmp_path / "in/p1/im.dcm", frames)
    write_volume(mr, tmp_path / "mr.nii.gz")
    arguments = ["--echo", "1", "--output", tmp_path / "a.nii.gz", "--dicom", tmp_path / "ct"]
    exact = ["--precision", "fp32"]
    assert test_adapt.main(adapt(tmp_path, tmp_path / "in/p1", *arguments, *exact)) == 0
    assert test_adapt.main(adapt(tmp_path, tmp_path / "mr.nii.gz", "--output", tmp_path / "b.nii.gz", *exact)) == 0
    found, expected = read_volume(tmp_path / "a.nii.gz"), read_volume(tmp_path / "b.nii.gz")
    np.testing.assert_allclose(found.array, expected.array, atol=1)
    assert same_grid(found, expected)
    image = pydicom.dcmread(tmp_path / "in/p1/im.dcm")
    for file in sorted((tmp_path / "ct").iterdir()):
        header = pydicom.dcmread(file)
        (reference,) = header.SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == image.SOPInstanceUID
        frame = image.PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1]
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(header.ImagePositionPatient, position, atol=1e-4)
        assert frame.MREchoSequence[0].EffectiveEchoTime == 2.3
        assert (header.PatientID, header.StudyInstanceUID) == ("id-4711", "1.2.3")

    where = pipeline(tmp_path, tmp_path / "in", "--no_html", *exact)
    assert test_pipeline.main(where) == 1  # which echo is meant is not guessed
    assert test_pipeline.main([*where, "--contrast", "echo1"]) == 0
    volume = read_volume(tmp_path / "out" / NAME / "p1.nii.gz")
    np.testing.assert_allclose(volume.array, expected.array, atol=1)
    made = (tmp_path / "out" / NAME / "p1.nii.gz").stat().st_mtime_ns
    assert test_pipeline.main([*where, "--echo", "1"]) == 0
    assert (tmp_path / "out" / NAME / "p1.nii.gz").stat().st_mtime_ns == made
    assert test_pipeline.main([*where, "--echo", "2"]) == 0
    assert (tmp_path / "out" / NAME / "p1.nii.gz").stat().st_mtime_ns != made

    files = ["--input", tmp_path / "in/p1", "--like", tmp_path / "mr.nii.gz", "--output", tmp_path / "e2.nii.gz"]
    resample.main([*map(str, files), "--echo", "2"])
    np.testing.assert_array_equal(read_volume(tmp_path / "e2.nii.gz").array, mr.array // 2)


def test_a_series_is_chosen_by_its_description(tmp_path):
    write_model(tmp_path)
    for uid, description in (("1.2.3.1111", "t1_vibe_dixon"), ("1.2.3.2222", "T2 haste")):
        write_dicom_patient(tmp_path / "mr", uid=uid, description=description)
    with pytest.raises(InputError, match=r"2 DICOM series; .*--series_description"):
        test_adapt.main(adapt(tmp_path, tmp_path / "mr"))
    with pytest.raises(InputError, match="no DICOM series whose description matches 'flair'; it has"):
        test_adapt.main(adapt(tmp_path, tmp_path / "mr", "--series_description", "flair"))
    assert test_adapt.main(adapt(tmp_path, tmp_path / "mr", "--series_description", "VIBE.*dix")) == 0


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="development data absent")
@pytest.mark.parametrize("folder", ["dicom/STS_024/MR_T1", "raw_oblique/STS_001_MR_T1"])
def test_a_real_series_made_enhanced_is_that_series(tmp_path, folder):
    mr = read_volume(SHARED / folder)
    headers = sorted(
        (pydicom.dcmread(file) for file in (SHARED / folder).glob("*.dcm")), key=lambda h: h.SOPInstanceUID
    )
    frames = []
    for header in headers:
        groups = Dataset()
        set_group(groups, "PlanePositionSequence", ImagePositionPatient=header.ImagePositionPatient)
        set_group(groups, "PlaneOrientationSequence", ImageOrientationPatient=header.ImageOrientationPatient)
        set_group(groups, "PixelMeasuresSequence", PixelSpacing=header.PixelSpacing)
        frames.append((groups, header.pixel_array))
    write_enhanced(tmp_path / "im.dcm", frames)
    back = read_volume(tmp_path)
    np.testing.assert_array_equal(back.array, mr.array)
    assert same_grid(back, mr, tolerance=1e-6)
