"""Volumes that cannot be used: one clear error from every command, and nothing that lay there before is touched."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import test_adapt
import test_pipeline
from data.errors import InputError
from data.volumes.volume import read_volume, write_volume
from scripts import prepare_dataset
from tests.cohort_data import NAME, patient_mr, write_patients
from tests.faults.commands import adapt, assert_one_clear_error, pipeline, prepare, run, snapshot
from tests.test_preparation import ct_volume


def write_itk(path, size, pixel=sitk.sitkInt16, *components, **geometry):
    image = sitk.Image(size, pixel, *components)
    for name, value in geometry.items():
        getattr(image, name)(value)
    sitk.WriteImage(image, str(path))
    return path


def with_voxel(path, value):
    mr = patient_mr()
    mr.array[2, 30, 30] = value
    return write_volume(mr, path)


def truncated(path):
    write_volume(patient_mr(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def nifti_header(path, **fields):
    """Write a NIfTI of zeros whose header says something else than its maker meant."""
    header = nibabel.Nifti1Image(np.zeros((6, 6, 6), np.int16), np.diag([2.0, 2.0, 3.0, 1.0])).header
    header.set_data_offset(352)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + bytes(4 + 6**3 * 2))
    return path


def text_file(path, text):
    path.write_bytes(text.encode() + bytes(16))
    return path


NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nsizes: {sizes}\nspace: left-posterior-superior\nendian: little\n"
    "encoding: {encoding}\nspace directions: {directions}\nspace origin: (0,0,0)\n\n"
)
META = (
    "ObjectType = Image\nNDims = {dims}\nDimSize = {sizes}\nElementSpacing = {spacing}\nTransformMatrix = {matrix}\n"
    "ElementType = MET_SHORT\nElementDataFile = {data}\n"
)


def nrrd(path, sizes="2 2 2", encoding="raw", directions="(1,0,0) (0,1,0) (0,0,1)"):
    return text_file(path, NRRD.format(sizes=sizes, encoding=encoding, directions=directions))


def meta(path, dims="3", sizes="2 2 2", spacing="1 1 1", matrix="1 0 0 0 1 0 0 0 1", data="LOCAL"):
    return text_file(path, META.format(dims=dims, sizes=sizes, spacing=spacing, matrix=matrix, data=data))


BAD = {
    "missing": (lambda p: p / "x.nii.gz", "no such file or folder"),
    "truncated": (lambda p: truncated(p / "x.nii.gz"), "cannot be read as a volume"),
    "not a volume": (lambda p: text_file(p / "x.nii.gz", "<html>404</html>"), "cannot be read as a volume"),
    "2-D": (lambda p: write_itk(p / "x.nii.gz", [40, 40]), "2-D image of size (40, 40); expected a volume"),
    "4-D": (lambda p: write_itk(p / "x.nii.gz", [9, 9, 9, 3]), "4-D image of size (9, 9, 9, 3); expected 3-D"),
    "components": (lambda p: write_itk(p / "x.mha", [9, 9, 9], sitk.sitkVectorUInt8, 3), "3 values a voxel"),
    "no voxels": (lambda p: nrrd(p / "x.nrrd", sizes="2 0 2"), "cannot be read as a volume"),
    "no voxels, mha": (lambda p: meta(p / "x.mha", sizes="2 0 2"), "x.mha: "),
    "NaN": (lambda p: with_voxel(p / "x.nii.gz", np.nan), "1 of 21600 voxels are NaN or infinite"),
    "infinite": (lambda p: with_voxel(p / "x.nii.gz", np.inf), "1 of 21600 voxels are NaN or infinite"),
    "constant": (
        lambda p: write_volume(patient_mr().with_array(np.full((6, 60, 60), 300, np.int16)), p / "x.nii.gz"),
        "no body found in the MR (values 300 to 300)",
    ),
    "CT as MR": (lambda p: write_volume(ct_volume(), p / "x.nii.gz"), "look like CT in HU"),
    "spacing 0": (lambda p: meta(p / "x.mha", spacing="1 0 1"), "x.mha: "),
    "spacing negative": (
        lambda p: nifti_header(p / "x.nii", sform_code=0, qform_code=1, pixdim=[1, 2, -2, 3, 0, 0, 0, 0]),
        "x.nii: spacing 2 x -2 x 3 mm",
    ),
    "spacing huge": (
        lambda p: write_volume(replace(patient_mr(), spacing=(2.0, 2.0, 4000.0)), p / "x.nii.gz"),
        "expected 0.01 to 100 mm: was it written in another unit?",
    ),
    "spacing in metres": (
        lambda p: write_volume(replace(patient_mr(), spacing=(0.002, 0.002, 0.004)), p / "x.nii.gz"),
        "expected 0.01 to 100 mm",
    ),
    "sheared": (lambda p: nrrd(p / "x.nrrd", directions="(1,0,0) (0.5,1,0) (0,0,1)"), "x.nrrd: "),
    "origin NaN": (
        lambda p: nifti_header(p / "x.nii", sform_code=0, qform_code=1, qoffset_x=np.nan),
        "transform holds NaN",
    ),
    "claims 30000 cubed": (lambda p: nrrd(p / "x.nrrd", sizes="30000 30000 30000"), "claims 54000000000000 bytes"),
    "claims 30000 cubed, gzip": (
        lambda p: nrrd(p / "x.nrrd", "30000 30000 30000", "gzip"),
        "claims 54000000000000 bytes",
    ),
    "claims 30000 cubed, mha": (lambda p: meta(p / "x.mha", sizes="30000 30000 30000"), "claims 54000000000000 bytes"),
    "claims 30000 cubed, nii": (
        lambda p: nifti_header(p / "x.nii", dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]),
        "claims 54000000000000 bytes",
    ),
    # The next four ended the whole process, or never came back, before headers were checked.
    "mha of 30000 dimensions": (lambda p: meta(p / "x.mha", dims="30000"), "MetaImage NDims '30000'; expected 1 to 10"),
    "mha of negative size": (lambda p: meta(p / "x.mha", sizes="2 2 -1"), "MetaImage DimSize '2 2 -1'"),
    "mha of endless direction": (
        lambda p: meta(p / "x.mha", matrix="1 0 0 1e308 1 0 0 0 1"),
        "MetaImage TransformMatrix '1 0 0 1e308 1 0 0 0 1'",
    ),
    "mha with a printf format": (lambda p: meta(p / "x.mhd", data="%s%n"), "ElementDataFile '%s%n'"),
}


@pytest.mark.parametrize("fault", BAD)
def test_one_patient(site, fault):
    make, words = BAD[fault]
    path = make(site)
    before = snapshot(site)
    with pytest.raises(InputError) as error:
        test_adapt.main(adapt(site, path))
    message = str(error.value)
    assert words in message and "\n" not in message
    assert snapshot(site) == before


def test_the_makers_of_headers_make_good_ones_too(tmp_path):
    """Else the faults above might be refused for something else."""
    for path in (nrrd(tmp_path / "a.nrrd"), meta(tmp_path / "a.mha"), meta(tmp_path / "b.mhd", data="a.raw")):
        (tmp_path / "a.raw").write_bytes(bytes(16))
        assert read_volume(path).size == (2, 2, 2)
    assert read_volume(nifti_header(tmp_path / "a.nii")).spacing == (2.0, 2.0, 3.0)


def test_a_whole_cohort_of_faults_costs_no_good_patient(tmp_path, site):
    write_patients(site / "in", 1)
    assert test_pipeline.main(pipeline(site, site / "in", "--no_html")) == 0
    kept = {path: data for path, data in snapshot(site).items() if path.name == "p0.nii.gz"}
    for fault, (make, _) in BAD.items():
        folder = site / "in" / fault.replace(" ", "-").replace(",", "")
        folder.mkdir()
        make(folder)
    result = run("test_pipeline.py", *pipeline(site, site / "in", "--no_html"))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    for fault, (make, words) in BAD.items():
        name = fault.replace(" ", "-").replace(",", "")
        if make is not BAD["missing"][0]:
            lines = [line for line in result.stderr.splitlines() if f" {name}__x: failed: " in line]
            assert len(lines) == 1 and words in lines[0], f"{fault}: {lines}"
    assert kept and kept.items() <= snapshot(site).items()
    assert not list((site / "out" / NAME).glob("*__x.nii.gz"))


@pytest.mark.parametrize("fault", ["truncated", "CT as MR", "claims 30000 cubed", "mha of 30000 dimensions"])
def test_exit_code_and_line_of_one_patient(site, fault):
    make, words = BAD[fault]
    path = make(site)
    before = snapshot(site)
    assert_one_clear_error(run("test_adapt.py", *adapt(site, path)), words)
    assert snapshot(site) == before


def test_a_supplied_mask_does_not_hide_the_wrong_modality(site):
    ct = ct_volume()
    path = write_volume(ct, site / "ct.nii.gz")
    mask = write_volume(ct.with_array(np.ones(ct.array.shape, np.uint8)), site / "mask.nii.gz")
    with pytest.raises(InputError, match=r"look like CT in HU.*not swapped"):
        test_adapt.main(adapt(site, path, "--mask", mask))


def test_an_mr_is_no_reference(site):
    before = snapshot(site / "out")
    with pytest.raises(InputError, match=r"good\.nii\.gz: .*looks like MR"):
        test_adapt.main(adapt(site, site / "good.nii.gz", "--reference", site / "good.nii.gz"))
    assert snapshot(site / "out") == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda mr: replace(mr, spacing=(2.0, 2.0, 4.1)).with_array(np.ones(mr.array.shape, np.uint8)),
            "not on the volume's grid",
        ),
        (lambda mr: mr.with_array(np.zeros(mr.array.shape, np.uint8)), "the mask is empty"),
        (lambda mr: replace(mr, array=np.ones((5, 60, 60), np.uint8)), "not on the volume's grid"),
    ],
)
def test_masks_of_one_patient(site, change, words):
    mask = write_volume(change(patient_mr()), site / "mask.nii.gz")
    before = snapshot(site)
    result = run("test_adapt.py", *adapt(site, site / "good.nii.gz", "--mask", mask))
    assert_one_clear_error(result, str(mask), words)
    assert snapshot(site) == before


def test_mr_and_ct_swapped_in_a_data_set(raw):
    before = snapshot(raw)
    result = run("-m", "scripts.prepare_dataset", *prepare(raw, mr="ct/*", ct="mr/*"))
    assert result.returncode == 2 and "Traceback" not in result.stderr
    (error,) = [line for line in result.stderr.splitlines() if "error" in line]
    ct, mr = (read_volume(path).array for path in (raw / "ct/q0.mha", raw / "mr/p0.nii.gz"))
    assert error == (
        f"error: {raw}/set: MR and CT look swapped: --mr has {raw}/ct/q0.mha with values as low as those of CT "
        f"({ct.min():g} to {ct.max():g}), --ct has {raw}/mr/p0.nii.gz without ({mr.min():g} to {mr.max():g}); give the "
        "globs the other way round; if they are not swapped, the CT are not in HU or the MR are padded below their "
        "intensities"
    )
    assert "finding bodies" not in result.stderr  # that takes long
    assert result.stderr.splitlines()[-1] == error
    assert snapshot(raw) == before


@pytest.mark.parametrize(("swapped", "words"), [("mr", "not an MR"), ("ct", "not a CT in HU")])
def test_one_swapped_volume_is_named_and_left_out_even_with_its_mask(raw, swapped, words, caplog):
    prepare_dataset.main(prepare(raw))
    before = snapshot(raw / "set")
    wrong = ct_volume() if swapped == "mr" else patient_mr()
    write_volume(wrong, raw / swapped / "wrong.nii.gz")
    for path in [*(raw / swapped).iterdir()]:
        volume = read_volume(path)
        inside = volume.with_array((volume.array > 40).astype(np.uint8))
        write_volume(inside, raw / "masks" / f"{path.name.partition('.')[0]}.nii.gz")
    assert prepare_dataset.main(prepare(raw, f"--{swapped}_mask", raw / "masks/*", "--spacing_mm", 2)) == 1
    assert f"wrong.nii.gz: {words}" in caplog.text and "not swapped" in caplog.text
    assert not list((raw / "set").rglob("wrong.npy"))
    assert {path for path in before} <= snapshot(raw / "set").keys()
