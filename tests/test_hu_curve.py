"""`tools.hu_curve`: curves tried on results whose bone is too soft."""

import numpy as np
import pytest

from data.volumes.volume import Volume, write_volume
from tools import hu_curve

AXIAL = tuple(np.eye(3).ravel())
# Bone that the results give 200 HU lies at 500; they draw more of it than there is at 150 HU.
TRUE, SOFT = {"muscle": 50, "bone": 500}, {"muscle": 50, "bone": 200}


def limb(values: dict[str, int], seed: int) -> Volume:
    rng = np.random.default_rng(seed)
    hu = np.full((4, 60, 60), -1000.0)
    hu[:, 10:50, 10:50] = values["muscle"]
    hu[:, 25:35, 25:35] = values["bone"]
    hu[:, 10:50, 10:50] += rng.normal(0, 3, (4, 40, 40))
    return Volume(hu.round().astype(np.int16), (1.0, 1.0, 3.0), (0.0,) * 3, AXIAL)


def test_a_curve_sends_hu_where_it_says():
    pred, ref = np.array([0.0, 200.0, 200.0, 600.0]), np.array([0.0, 300.0, 100.0, 800.0])
    assert hu_curve.figures(pred, ref, ()) == (pytest.approx(100), pytest.approx(2 / 3), pytest.approx(150))
    # 200 becomes 251, and 600 becomes 660.
    mae, dice, bone = hu_curve.figures(pred, ref, ((130, 130), (200, 251), (1000, 1069)))
    assert mae == pytest.approx((49 + 151 + 140) / 4, abs=0.1)
    assert dice == pytest.approx(2 * 2 / (3 + 2)) and bone == pytest.approx((49 + 140) / 2, abs=0.1)


def test_the_table_has_no_curve_all_that_are_tried_and_a_choice_without_the_patient(tmp_path, capsys):
    for seed in range(3):
        write_volume(limb(SOFT, seed), tmp_path / f"pred/p{seed}.nii.gz")
        write_volume(limb(TRUE, seed), tmp_path / f"ref/p{seed}.nii.gz")
    hu_curve.main(["--pred", str(tmp_path / "pred"), "--ref", str(tmp_path / "ref")])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["curve", "MAE [HU]", "bone Dice", "MAE in bone [HU]"]
    table = {row[0]: [float(cell) for cell in row[1:]] for row in rows[2:]}
    assert len(table) == len(hu_curve.curves()) + 1 and hu_curve.curves()[0] == ()
    # A sixteenth of the body is bone, 300 HU too soft.
    assert table["none"] == [pytest.approx(300 / 16, abs=0.1), 0.0, pytest.approx(300, abs=1)]
    raised = table["100:100 180:250 1000:1234"]  # 200 HU becomes 274
    assert raised[1] == 1.0 and raised[2] == pytest.approx(226, abs=1)
    assert table["chosen without the patient"] == table["100:100 160:250 1000:1258"]  # the most that is tried
