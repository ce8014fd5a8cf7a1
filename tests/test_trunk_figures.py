"""`tools.trunk_figures`: a canal of known HU and bone of known volume, however the volume is turned."""

import numpy as np
import pytest

from data.errors import InputError
from data.volumes.volume import Volume, write_volume
from tools import trunk_figures

SPACING = (2.0, 2.0, 8.0)


def trunk() -> tuple[np.ndarray, np.ndarray]:
    """Return an MR and a CT (z, y, x), to the head, the back and the left: an ellipse with a canal and two rods."""
    _, y, x = np.indices((6, 120, 180))
    body = ((y - 60) / 50) ** 2 + ((x - 90) / 80) ** 2 < 1
    canal = np.hypot(y - 82, x - 90) < 6  # 22 to 28 rows, some 55 mm, before the back
    mr = np.where(body, np.where(canal, 60.0, 400.0), 0.0) + np.random.default_rng(0).uniform(0, 8, body.shape)
    ct = np.where(body, 50.0, -1000.0)
    ct[canal] = 130.0
    for column in (30, 150):  # 120 mm beside the middle
        ct[:, 58:62, column : column + 2] = 700.0
    ct[:, 58:62, 88:92] = 700.0  # in the middle
    return mr.astype(np.float32), ct.astype(np.float32)


def test_canal_and_flanks_are_found():
    mr, ct = trunk()
    canal, flanks = trunk_figures.canal_and_flanks(Volume(mr, SPACING), Volume(ct, SPACING))
    assert canal == 130
    assert flanks == pytest.approx(6 * 2 * 8 * 0.032)


def test_a_turned_volume_has_the_same_figures():
    """Coronal slices that run to the front, rows to the feet, columns to the left."""
    mr, ct = (array[::-1, ::-1].transpose(1, 0, 2).copy() for array in trunk())
    direction = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, -1.0, 0.0)
    found = trunk_figures.canal_and_flanks(
        Volume(mr, (2.0, 8.0, 2.0), direction=direction), Volume(ct, (2.0, 8.0, 2.0), direction=direction)
    )
    assert found == pytest.approx((130, 6 * 2 * 8 * 0.032))


def test_the_command_prints_a_line_for_each_and_refuses_other_grids(tmp_path, capsys):
    mr, ct = (Volume(array, SPACING) for array in trunk())
    paths = [str(write_volume(volume, tmp_path / name)) for volume, name in ((mr, "mr.nii.gz"), (ct, "ct.nii.gz"))]
    trunk_figures.main(["--mr", paths[0], "--ct", paths[1]])
    assert capsys.readouterr().out.splitlines()[2].endswith("| 130 | 3.1 |")
    with pytest.raises(InputError, match="--mr names 1 volumes, --ct 2"):
        trunk_figures.main(["--mr", paths[0], "--ct", paths[1], paths[1]])
    short = write_volume(Volume(ct.array[:3], SPACING), tmp_path / "short.nii.gz")
    with pytest.raises(InputError, match="lies on another grid"):
        trunk_figures.main(["--mr", paths[0], "--ct", str(short)])
