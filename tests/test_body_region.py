"""A body region that the model has not seen: cross-sections of the training set, and a volume held against them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cohort.checks import MAX_UNSEEN_SLICES, NO_SECTIONS, SECTION_FACTOR, Check
from cohort.findings import Findings
from data.errors import InputError
from data.masks.body_mask import mr_body_mask
from data.phantom.patients import PhantomSettings, make_patient
from data.prepared.manifest import case_problems, read_manifest
from data.prepared.training_statistics import (
    cross_sections,
    describe_training_set,
    section_figures,
    training_statistics,
)
from data.volumes.volume import Volume, read_volume
from models import inference_settings
from models.inference_settings import check_continued, read_inference_settings
from models.synthesis import prepare_volume, restore_volume
from scripts import export_model
from tests.cohort_data import NAME, patient_mr, write_model
from tests.test_cohort import MR_SETTINGS, TRAINING, converted
from tests.test_preparation import prepare, raw  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared/data"


# Cross-sections


def test_the_area_is_that_of_the_largest_part_and_dark_is_counted_inside_the_skin():
    masks = np.zeros((4, 40, 40), np.uint8)
    masks[0, 5:25, 5:25] = 1  # 400 pixels, and an arm
    masks[0, 5:25, 30:34] = 1
    masks[1, 5:25, 5:25] = 3  # a label
    masks[2, 0, :3] = 1  # too little
    dark = np.zeros(masks.shape, bool)
    dark[0] = True
    dark[1, 5:15] = True  # of the 18 x 18 inner pixels nine rows
    areas, shares = cross_sections(masks, dark, 2.0)
    assert areas.tolist() == [16.0, 16.0] and shares.tolist() == [1.0, 0.5]  # 400 pixels of 4 mm2


def test_a_ct_is_described_by_quantiles_of_its_slices():
    masks, ct = np.zeros((21, 32, 32), np.uint8), np.zeros((21, 32, 32), np.int16)
    for k in range(21):
        masks[k, : k + 10, :10] = 1
    ct[-1] = -900  # one slice of 21 is gas: no more than 5 % of them
    (low, high), gas = section_figures(ct, masks, 10.0)
    assert (low, high) == pytest.approx((110.0, 290.0)) and gas == 0  # areas of 100, 110, ... 300 cm2
    ct[-2] = -301
    assert section_figures(ct, masks, 10.0)[1] == 1
    assert section_figures(ct, np.zeros_like(masks), 10.0) == ((0.0, 0.0), 0.0)


def test_preparation_records_them_and_older_data_sets_are_measured(raw):  # noqa: F811
    _, manifest = prepare(raw)
    found = training_statistics(manifest)
    disc = np.pi * 4.5**2  # of 45 mm radius
    assert found.section_cm2 == pytest.approx((disc, disc), rel=0.01) and found.gas_share == 0
    assert describe_training_set(raw / "nothing is read here", manifest) == found
    older = replace(manifest, cases=tuple(replace(c, section_cm2=None, gas_share=None) for c in manifest.cases))
    assert training_statistics(older).section_cm2 is None
    assert describe_training_set(raw / "set", older) == found
    (raw / "set" / manifest.select("train", "B")[0].mask_file).unlink()
    with pytest.raises(InputError, match=r"cannot be read .* prepare the data set again"):
        describe_training_set(raw / "set", older)
    # A CT whose slices show no body to speak of says nothing of the others.
    cases = [replace(c, section_cm2=(0.0, 0.0)) if c.name == "q0" else c for c in manifest.cases]
    assert training_statistics(replace(manifest, cases=tuple(cases))) == found


@pytest.mark.parametrize("changes", [{"section_cm2": (1.0,)}, {"gas_share": None}, {"gas_share": "much"}])
def test_damaged_figures_of_a_case_are_refused(raw, changes):  # noqa: F811
    _, manifest = prepare(raw)
    (case, *_) = manifest.select("train", "B")
    assert not case_problems(case) and case_problems(replace(case, **changes))


def test_an_older_data_set_is_brought_up_to_date_by_preparing_it_again(raw):  # noqa: F811
    _, manifest = prepare(raw)
    for path in (raw / "set/trainB").glob("*.json"):
        data = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in data.items() if k not in ("section_cm2", "gas_share")}))
    assert prepare(raw)[1] == manifest == read_manifest(raw / "set")


# The check

BODY = mr_body_mask(patient_mr())
AREA = np.count_nonzero(BODY[0]) * 0.04  # pixels of 4 mm2, in cm2


def region_of(least: float, greatest: float, gas: float = 0.0, mr=None) -> Findings:
    training = replace(TRAINING, section_cm2=(least, greatest), gas_share=gas)
    findings = converted(mr=mr, training=training, body=BODY)
    findings.warnings = [text for text in findings.warnings if "body region" in text]
    return findings


def test_a_body_as_large_as_those_of_the_training_has_no_warning():
    findings = region_of(AREA, AREA)
    assert findings.warnings == [] == findings.unchecked
    assert findings.figures["section_cm2"] == pytest.approx(AREA)
    assert pytest.approx(np.pi * 4.0**2, rel=0.15) == AREA  # a disc of 40 mm radius
    assert findings.figures["unseen_slices_share"] == 0 and findings.figures["dark_share"] == 0


@pytest.mark.parametrize(
    ("least", "greatest", "said"),
    [
        (5.0, 0.97 * AREA / SECTION_FACTOR, "6 of 6 slices are larger: 55 cm2 of body; in the training CT 5 to 43 cm2"),
        (
            1.03 * AREA * SECTION_FACTOR,
            900.0,
            "6 of 6 slices are smaller: 55 cm2 of body; in the training CT 71 to",
        ),
        (5.0, 1.03 * AREA / SECTION_FACTOR, None),
        (0.97 * AREA * SECTION_FACTOR, 900.0, None),
    ],
)
def test_a_larger_or_smaller_body_is_another_region(least, greatest, said):
    warnings = region_of(least, greatest).warnings
    assert (said is None) == (warnings == [])
    if said:
        assert said in warnings[0] and "docs/which_model.md" in warnings[0]


def with_lung(share: float, slices: int = 6) -> Volume:
    """The cylinder, of whose first slices a share is dark."""
    mr = patient_mr()
    y, x = np.indices(mr.array.shape[1:]) - 29.5
    mr.array[:slices, np.hypot(y, x) * 2 < 40 * np.sqrt(share)] = 10
    return mr


def test_a_body_with_more_air_is_another_region():
    (warning,) = region_of(AREA, AREA, 0.1, with_lung(0.4)).warnings
    assert "6 of 6 slices are darker: 4" in warning and "(lungs, gas, or no signal)" in warning
    assert "in the training CT 10 % gas at most" in warning
    assert region_of(AREA, AREA, 0.1, with_lung(0.15)).warnings == []
    assert region_of(AREA, AREA, 0.4, with_lung(0.4)).warnings == []


def test_a_few_slices_are_not_a_region():
    for slices in (1, 2):
        found = region_of(AREA, AREA, 0.1, with_lung(0.4, slices))
        assert found.figures["unseen_slices_share"] == pytest.approx(slices / 6)
        assert bool(found.warnings) == (slices / 6 > MAX_UNSEEN_SLICES)


def test_without_the_figures_the_check_is_listed_as_not_done():
    assert TRAINING.section_cm2 is None
    findings = converted(training=TRAINING)
    assert findings.unchecked == [NO_SECTIONS] and "unseen_slices_share" not in findings.figures
    assert findings.figures["section_cm2"] == pytest.approx(AREA)


# The files of models


def test_files_with_and_without_the_figures_are_read_and_halves_are_damaged(tmp_path):
    settings = replace(MR_SETTINGS, training=replace(TRAINING, section_cm2=(3.0, 5.0), gas_share=0.1))
    path = settings.write(tmp_path)
    assert read_inference_settings(tmp_path) == settings
    data = json.loads(path.read_text())
    for names in (("section_cm2", "gas_share"), ("gas_share",)):
        older = {key: value for key, value in data["training"].items() if key not in names}
        path.write_text(json.dumps(data | {"training": older}))
        if len(names) == 2:
            assert read_inference_settings(tmp_path).training == TRAINING
        else:
            with pytest.raises(InputError, match="damaged"):
                read_inference_settings(tmp_path)


def test_an_older_run_resumes_without_a_word_on_them(tmp_path, caplog):
    newer = replace(MR_SETTINGS, training=replace(TRAINING, section_cm2=(3.0, 5.0), gas_share=0.1))
    check_continued(tmp_path, replace(newer, training=TRAINING), newer)
    assert not caplog.messages
    check_continued(tmp_path, newer, replace(newer, training=replace(newer.training, gas_share=0.2)))
    assert "other intensities" in caplog.text


def test_figures_of_an_older_run_are_added_by_exporting_it(raw):  # noqa: F811
    _, manifest = prepare(raw)
    settings = replace(MR_SETTINGS, size=64, training=None)
    options = ["--checkpoints_dir", str(write_model(raw, settings=settings)), "--name", NAME]
    dataroot = ["--dataroot", str(raw / "set")]
    export_model.main([*options, "--out", str(raw / "out"), *dataroot])
    found = read_inference_settings(raw / "out")
    assert found.training == training_statistics(manifest) and replace(found, training=None) == settings
    hashes = [inference_settings.model_sha256(one, raw / "out/latest_net_G_A.pth") for one in (found, settings)]
    assert hashes[0] == hashes[1]  # results made before stay current
    write_model(raw, settings=replace(settings, size=32))
    with pytest.raises(InputError, match="axial slices of 128 mm; the model was trained on axial ones of 64 mm"):
        export_model.main([*options, "--out", str(raw / "other"), *dataroot])
    assert not (raw / "other").exists()


# The shipped models


def regions(name: str, mr: Volume) -> list[str]:
    """Return what a shipped model says of an MR's body region; the network's work is left out."""
    settings = read_inference_settings(ROOT / "checkpoints" / name)
    slices, plan = prepare_volume(mr, settings)
    check = Check(plan, settings.training)
    restore_volume(np.asarray(slices), plan, check)
    findings = check.findings
    assert "unseen_slices_share" in findings.figures and NO_SECTIONS not in findings.unchecked
    return [text for text in findings.warnings if "body region" in text]


def test_the_model_of_limbs_notices_a_trunk_and_those_of_whole_bodies_know_it():
    body = make_patient(5, 0, "test", PhantomSettings(96, 48, 5.3, 38)).mr
    mr = replace(body, array=body.array[24:29])
    (warning,) = regions("recommended", mr)
    assert "slices are larger" in warning and "in the training CT 32 to 388 cm2" in warning
    assert regions("wholebody", mr) == regions("phantom", mr) == []


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("volume", ["CHAOS_IMG-0004", "CHAOS_IMG-0010"])
def test_a_real_trunk_is_noticed_by_the_model_of_limbs_alone(volume):
    path = SHARED / f"trunk/MR_test_only/{volume}_inphase.nii.gz"
    if not path.exists():
        pytest.skip("the real trunks are not here")
    mr = read_volume(path)
    assert "slices are larger" in regions("recommended", mr)[0] and regions("wholebody", mr) == []


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "sts").is_dir(), reason="the real limbs are not here")
@pytest.mark.parametrize("name", ["recommended", "wholebody"])
def test_real_limbs_are_no_other_region(name):
    patients = sorted((SHARED / "sts").glob("dev*/*/*_MR_T1.nii.gz"))
    assert len(patients) == 10
    for path in patients:
        assert regions(name, read_volume(path)) == []
