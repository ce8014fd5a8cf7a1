"""The mu-map: published constants, tissues against tabulated coefficients, smoothing, and both commands."""

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

import test_adapt
import test_pipeline
from data.errors import InputError
from data.values.attenuation import LINES, MuSettings, describe_mu, mu_map
from data.volumes.volume import Volume, description_in, from_sitk, read_volume, same_grid, write_volume
from scripts import resample
from tests.cohort_data import NAME, patient_mr, write_model
from tests.faults.commands import adapt, pipeline

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS, SHARED = ROOT / "checkpoints", ROOT.parent / "shared/data/sts/dicom"
# Hubbell and Seltzer, NIST Standard Reference Database 126: mass attenuation (cm2/g) at 500 and 600 keV, density
# (g/cm3) of ICRU-44's tissues.
NIST = {
    "water": (0.09687, 0.08956, 1.00),
    "muscle": (0.09598, 0.08874, 1.05),
    "cortical bone": (0.09022, 0.08332, 1.92),
}
# The same at 50, 60 and 80 keV.
NIST_X_RAYS = {"water": (0.2269, 0.2059, 0.1837), "cortical bone": (0.4242, 0.3148, 0.2229)}
# Effective energy (keV) of a CT's filtered spectrum behind a body, by tube voltage.
EFFECTIVE_KEV = {80: 58, 120: 75, 140: 80}


def mu_of(hu: float, kvp: int) -> float:
    ct = Volume(np.full((1, 1, 1), hu, np.int16))
    return float(mu_map(ct, MuSettings(kvp)).array[0, 0, 0])


def tabulated(tissue: str) -> float:
    """Attenuation (1/cm) at 511 keV, interpolated as NIST says, logarithmically."""
    low, high, density = NIST[tissue]
    return density * np.exp(np.interp(np.log(511), np.log([500, 600]), np.log([low, high])))


def ct_number(tissue: str, kev: float) -> float:
    at = {t: np.exp(np.interp(np.log(kev), np.log([50, 60, 80]), np.log(v))) for t, v in NIST_X_RAYS.items()}
    return 1000 * (NIST[tissue][2] * at[tissue] / at["water"] - 1)


@pytest.mark.parametrize("kvp", LINES)
def test_air_is_nothing_water_is_water_and_the_lines_meet(kvp):
    assert mu_of(-1000, kvp) == mu_of(-1024, kvp) == mu_of(-32768, kvp) == 0
    assert mu_of(0, kvp) == pytest.approx(tabulated("water"), rel=1e-3) == pytest.approx(0.096, rel=1e-3)
    line = LINES[kvp]
    assert mu_of(line.break_hu - 1, kvp) == pytest.approx(9.6e-5 * (line.break_hu + 999), rel=1e-6)
    assert mu_of(line.break_hu, kvp) == pytest.approx(9.6e-5 * (line.break_hu + 1000), rel=3e-4)
    values = [mu_of(hu, kvp) for hu in range(-1000, 3001, 40)]
    assert np.all(np.diff(values) > 0)


@pytest.mark.parametrize(
    ("kvp", "at_1000_hu"), [(80, 0.1354), (100, 0.1430), (110, 0.1472), (120, 0.1491), (130, 0.1526), (140, 0.1536)]
)
def test_bone_has_the_published_lines(kvp, at_1000_hu):
    """a * 2000 + b of the paper's table, worked out by hand."""
    assert mu_of(1000, kvp) == pytest.approx(at_1000_hu, abs=1e-6)


def test_what_the_documentation_says_of_a_wrong_curve():
    """docs/clinical_formats.md and the models' cards: 120 kVp in place of 140, in per cent."""
    found = [round(100 * (mu_of(hu, 120) / mu_of(hu, 140) - 1), 1) for hu in (45, 500, 1000, 1500)]
    assert found == [0.6, -1.4, -2.9, -4.0]


@pytest.mark.parametrize("card", sorted(CHECKPOINTS.glob("[!.]*/README.md")), ids=lambda card: card.parent.name)
def test_every_card_says_what_is_known_of_the_tube_voltage(card):
    assert card.read_text().count("**Tube voltage of the training CT") == 1


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="development data absent")
@pytest.mark.parametrize("patient", ["STS_024", "STS_042"])
def test_the_cards_tube_voltage_is_that_of_the_headers(patient):
    found = [pydicom.dcmread(file, specific_tags=["KVP"]) for file in (SHARED / patient / "CT").glob("*.dcm")]
    assert len(found) > 40 and {header.KVP for header in found} == {140}


@pytest.mark.parametrize("kvp", EFFECTIVE_KEV)
def test_tissues_are_near_their_tabulated_attenuation(kvp):
    assert mu_of(45, kvp) == pytest.approx(tabulated("muscle"), rel=0.01)  # muscle: 40 to 50 HU at any voltage
    bone = ct_number("cortical bone", EFFECTIVE_KEV[kvp])
    assert 1200 < bone < 2200
    assert mu_of(bone, kvp) == pytest.approx(tabulated("cortical bone"), rel=0.03)
    assert mu_of(-800, kvp) == pytest.approx(0.2 * tabulated("water"), rel=1e-3)  # lung, a fifth of water


def test_smoothing_is_a_gaussian_of_that_width_in_mm():
    """An edge between air and water becomes the Gaussian's integral; a voxel spreads with the width's variance."""
    hu = np.full((25, 41, 61), -1000, np.int16)
    hu[12, 20, 30] = 0
    ct = Volume(hu, (1.0, 1.5, 2.5), (4.0, 5.0, 6.0))
    smooth = mu_map(ct, MuSettings(120, pet_fwhm_mm=6.0))
    assert smooth.array.dtype == np.float32 and same_grid(smooth, ct)
    assert smooth.array.sum() == pytest.approx(0.096, rel=1e-3)
    sigma = 6.0 / 2.3548
    for axis, mm in enumerate((2.5, 1.5, 1.0)):
        along = smooth.array.sum(axis=tuple({0, 1, 2} - {axis}), dtype=float)
        place = (np.arange(len(along)) - len(along) // 2) * mm
        assert np.average(place**2, weights=along) == pytest.approx(sigma**2, rel=0.02)
    water = Volume(np.zeros((5, 6, 7), np.int16))
    np.testing.assert_allclose(mu_map(water, MuSettings(120, 8.0)).array, 0.096, rtol=1e-5)  # no dark rim


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".mhd", ".nrrd"])
@pytest.mark.parametrize("kvp", LINES)
def test_every_format_says_what_the_values_are(tmp_path, suffix, kvp):
    says = describe_mu(MuSettings(kvp))
    assert len(says) < 80 and says == (
        f"mu in 1/cm at 511 keV, curve for CT of {kvp} kVp; synthetic, not for clinical use"
    )
    mu = Volume(np.linspace(0, 0.2, 24, dtype=np.float32).reshape(2, 3, 4), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    path = write_volume(mu, tmp_path / f"mu{suffix}", says)
    for back in (read_volume(path), from_sitk(sitk.ReadImage(str(path)))):
        np.testing.assert_array_equal(back.array, mu.array)
        assert same_grid(back, mu)
    assert description_in(path) == says
    assert description_in(write_volume(mu, tmp_path / f"plain{suffix}")) == ""
    if suffix in (".nii", ".nii.gz"):
        assert nibabel.load(path).header["descrip"].item().decode() == says
    else:
        between = b":=" if suffix == ".nrrd" else b" = "
        assert path.read_bytes().count(b"\nComment" + between + says.encode() + b"\n") == 1


def test_one_patient_and_a_cohort_write_the_map_of_their_ct(tmp_path):
    write_model(tmp_path)
    write_volume(patient_mr(), tmp_path / "in/a.nii.gz")
    more = ["--mu_map", tmp_path / "mu.nii.gz", "--kvp", "140", "--pet_fwhm_mm", "5", "--precision", "fp32"]
    assert test_adapt.main(adapt(tmp_path, tmp_path / "in/a.nii.gz", *more)) == 0
    assert test_adapt.main(adapt(tmp_path, tmp_path / "in/a.nii.gz", *more)) == 0  # its own is renewed
    ct, mu = read_volume(tmp_path / "out" / NAME / "a.nii.gz"), read_volume(tmp_path / "mu.nii.gz")
    expected = mu_map(ct, MuSettings(140, 5.0))
    assert mu.array.dtype == np.float32 and same_grid(mu, ct)
    np.testing.assert_array_equal(mu.array, expected.array)
    said = b"mu in 1/cm at 511 keV, curve for CT of 140 kVp; synthetic, not for clinical use"
    assert nibabel.load(tmp_path / "mu.nii.gz").header["descrip"] == said

    out = tmp_path / "cohort" / NAME
    arguments = [*pipeline(tmp_path, tmp_path / "in", "--no_html", "--results_dir", tmp_path / "cohort"), "--mu_map"]
    assert test_pipeline.main(arguments) == 0
    np.testing.assert_array_equal(
        read_volume(out / "mu_maps/a.nii.gz").array, mu_map(read_volume(out / "a.nii.gz"), MuSettings()).array
    )
    assert b"CT of 120 kVp" in nibabel.load(out / "mu_maps/a.nii.gz").header["descrip"].item()
    copy = tmp_path / "copy.nii.gz"
    resample.main(
        ["--input", str(out / "mu_maps/a.nii.gz"), "--like", str(tmp_path / "in/a.nii.gz"), "--output", str(copy)]
    )
    assert description_in(copy) == describe_mu(MuSettings())
    image = nibabel.load(tmp_path / "in/a.nii.gz")
    image.header["descrip"] = "Gr\xf6\xdfe\nMeier^Anna".encode("latin-1")  # another program's
    nibabel.save(image, tmp_path / "foreign.nii")
    assert description_in(tmp_path / "foreign.nii") == "GreMeier^Anna"
    words = ["--input", str(tmp_path / "foreign.nii"), "--like", str(tmp_path / "in/a.nii.gz")]
    resample.main([*words, "--output", str(tmp_path / "own.mha")])
    assert description_in(tmp_path / "own.mha") == ""
    made = (out / "mu_maps/a.nii.gz").stat().st_mtime_ns
    assert test_pipeline.main(arguments) == 0
    assert (out / "mu_maps/a.nii.gz").stat().st_mtime_ns == made
    assert test_pipeline.main([*arguments, "--kvp", "140", "--pet_fwhm_mm", "5"]) == 0
    np.testing.assert_array_equal(read_volume(out / "mu_maps/a.nii.gz").array, expected.array)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mu_map", "mu.txt"], "--mu_map mu.txt: expected a file ending in .nii.gz"),
        (["--kvp", "120"], "they concern a mu-map; add --mu_map"),
        (["--pet_fwhm_mm", "4"], "they concern a mu-map; add --mu_map"),
        (["--mu_map", "mu.nii", "--kvp", "90"], "invalid choice"),
        (["--mu_map", "mu.nii", "--pet_fwhm_mm", "0"], "expected a number above 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, capsys, options, said):
    with pytest.raises(SystemExit):
        test_adapt.main(adapt(tmp_path, tmp_path / "mr.nii", *options))
    assert said in capsys.readouterr().err


def test_the_map_replaces_nothing_of_others(tmp_path):
    write_model(tmp_path)
    mr = write_volume(patient_mr(), tmp_path / "mr.nii.gz")
    write_volume(patient_mr(), tmp_path / "mu.nii.gz")
    with pytest.raises(InputError, match=r"mu.nii.gz: exists already.* another --mu_map"):
        test_adapt.main(adapt(tmp_path, mr, "--mu_map", tmp_path / "mu.nii.gz"))
    with pytest.raises(InputError, match=r"mr.nii.gz: is one of the inputs; choose another --mu_map"):
        test_adapt.main(adapt(tmp_path, mr, "--mu_map", mr, "--overwrite"))
