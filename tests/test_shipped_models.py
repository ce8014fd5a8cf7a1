"""The models in checkpoints/: small, whole, described, and worth what their cards say."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.phantom.patients import PhantomSettings, make_patient
from data.volumes.volume import read_volume, same_grid
from evaluation.report import score_case
from models.state_dicts import load_checkpoint
from models.synthesis import load_synthesiser, synthesize_volume
from options import test_options

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"
STS = CHECKPOINTS.parents[1] / "shared/data/sts/dev"
CPU = torch.device("cpu")
ARMS = ("pure_cyclegan", "cycle_Lcc", "Self+Lcc_finetune")
GENERATORS = (*ARMS, "recommended", "wholebody", "phantom")
EXTRACTORS = ("shape_extractor", "shape_extractor_wholebody")


def test_they_are_below_60_mb_in_all():
    files = [file for name in (*GENERATORS, *EXTRACTORS) for file in (CHECKPOINTS / name).iterdir()]
    assert sum(file.stat().st_size for file in files if file.suffix == ".pth") < 60e6


@pytest.mark.parametrize("name", [*GENERATORS, *EXTRACTORS])
def test_each_has_a_card(name):
    card = (CHECKPOINTS / name / "README.md").read_text(encoding="utf-8")
    for word in ("**Recipe.**", "Score", "**Intended use.**", "Not for clinical use", "Apache-2.0"):
        assert word in card
    if name != "phantom":
        assert "10.7937/K9/TCIA.2015.7GO2GSKS" in card and "Creative Commons Attribution 3.0" in card


def test_without_a_name_the_commands_say_which_models_there_are(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        test_options.parse(["--input", "mr.nii.gz", "--checkpoints_dir", str(CHECKPOINTS)])
    said = capsys.readouterr().err
    for name in GENERATORS:
        title = (CHECKPOINTS / name / "README.md").read_text(encoding="utf-8").splitlines()[0]
        assert f"  {name:<20} {title.partition(': ')[2]}\n" in said
    with pytest.raises(SystemExit, match="2"):
        test_options.parse(["--input", "mr.nii.gz", "--checkpoints_dir", str(tmp_path)])
    assert f"There is none in {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("name", GENERATORS)
def test_weights_are_half_precision_generators_alone(name):
    assert [file.name for file in sorted((CHECKPOINTS / name).glob("*.pth"))] == ["latest_net_G_A.pth"]
    weights = load_checkpoint(CHECKPOINTS / name / "latest_net_G_A.pth")
    assert {value.dtype for value in weights.values()} <= {torch.float16, torch.int64}
    load_synthesiser(CHECKPOINTS / name, "latest", CPU)


@pytest.mark.slow
def test_the_phantom_model_makes_a_ct_of_a_generated_patient():
    """A patient that it has never seen, on a coarse grid: the outline, and better than water everywhere."""
    patient = make_patient(5, 0, "test", PhantomSettings(96, 24, 5.3, 75))
    synthetic = synthesize_volume(patient.mr, load_synthesiser(CHECKPOINTS / "phantom", "latest", CPU))
    scores = score_case(synthetic, patient.ct)
    water = patient.ct.with_array(np.where(patient.mr.array > 50, 0, -1000).astype(np.int16))
    assert scores["dice_body"] > 0.9
    assert scores["mae"] < 0.85 * score_case(water, patient.ct)["mae"]


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.skipif(not STS.is_dir(), reason="the real limbs are not here")
def test_the_recommended_model_scores_what_its_card_says():
    folder = STS / "STS_024"
    mr, ct = (read_volume(folder / f"STS_024_{name}.nii.gz") for name in ("MR_T1", "CT_on_MR_grid"))
    synthetic = synthesize_volume(mr, load_synthesiser(CHECKPOINTS / "recommended", "latest", CPU))
    assert same_grid(synthetic, mr) and synthetic.array.dtype == np.int16
    scores = score_case(synthetic, ct, mr=mr)
    assert scores["mae"] == pytest.approx(43.3, abs=0.3)
    assert scores["dice_bone"] == pytest.approx(0.815, abs=0.005)
