"""The study of uncertainty against error: its figures on values known in closed form, and one patient through it."""

from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from data.volumes.volume import Volume, write_volume
from tools import uncertainty_study
from tools.uncertainty_study import figures, found_share, tenths


def test_the_share_is_that_of_the_most_uncertain_tenth():
    error = np.arange(1.0, 101.0)  # of a sum of 5050, the ten largest hold 955
    assert found_share(error, error) == pytest.approx(955 / 5050)
    assert found_share(-error, error) == pytest.approx(55 / 5050)
    assert found_share(np.zeros(100), np.ones(100)) == pytest.approx(0.1)


def test_figures_of_an_uncertainty_that_is_half_the_error_and_of_its_reverse():
    error = np.arange(1.0, 101.0)
    assert figures(error / 2, error) == pytest.approx([50.5, 25.25, 955 / 5050, 955 / 5050, 1.0])
    assert figures(101 - error, error) == pytest.approx([50.5, 50.5, 55 / 5050, 955 / 5050, -1.0])


def test_tenths_are_sorted_by_uncertainty_and_meet_where_it_is_calibrated():
    rng = np.random.default_rng(0)
    uncertainty = rng.uniform(1, 100, 200_000)
    error = np.abs(rng.normal(0, uncertainty))
    said, real = tenths(uncertainty, error)
    assert (np.diff(said) > 0).all()
    np.testing.assert_allclose(real, said, rtol=0.03)
    assert np.sqrt(np.mean(said**2)) == pytest.approx(np.sqrt(np.mean(uncertainty**2)))


def test_a_patient_is_scored_in_the_body_where_the_mr_has_signal(monkeypatch, tmp_path, capsys):
    body = np.zeros((4, 40, 40), bool)
    body[:, 8:32, 8:32] = True
    ct = Volume(np.where(body, 40, -1000).astype(np.int16), (2.0, 2.0, 4.0))
    mr = Volume(np.where(body, 100, 0).astype(np.int16), (2.0, 2.0, 4.0))
    mr.array[:, :, :16] = 0  # not in the field of view
    folder = tmp_path / "data" / "P1"
    folder.mkdir(parents=True)
    write_volume(mr, folder / "mr.nii.gz")
    write_volume(ct, folder / "ct.nii.gz")
    upper = np.indices(ct.array.shape)[1] < 20
    made = ct.with_array(ct.array + np.where(upper, 5, 15).astype(np.int16)), ct.with_array(np.where(upper, 4, 6))
    monkeypatch.setattr(uncertainty_study, "synthesize_ensemble", lambda *_: made)
    inside = 4 * 24 * 16
    patterns = ["--mr_pattern", "{case}/mr.nii.gz", "--ct_pattern", "{case}/ct.nii.gz"]
    out = tmp_path / "tenths.png"
    uncertainty_study.main(["--data", str(tmp_path / "data"), *patterns, "--figure", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"P1: {inside} voxels"
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells == ["P1", "10.0", "5.0", "0.15", "0.15", "1.00"]  # a tenth at 15 HU of a mean of 10 HU
    assert out.stat().st_size > 0
    with pytest.raises(InputError, match="--figure"):
        uncertainty_study.main(["--data", str(tmp_path / "data"), *patterns, "--figure", str(out)])
    with pytest.raises(InputError, match="P1 is in an earlier folder, too"):
        uncertainty_study.main(["--data", *[str(tmp_path / "data")] * 2, *patterns])
    (folder / "ct.nii.gz").rename(tmp_path / "data" / "ct.nii.gz")
    with pytest.raises(InputError, match="no patient has both"):
        uncertainty_study.main(["--data", str(tmp_path / "data"), *patterns[:2], "--ct_pattern", "{case}.nii.gz"])


def test_the_figure_is_written_whole_or_not_at_all(monkeypatch, tmp_path):
    path = tmp_path / "tenths.png"
    path.write_bytes(b"earlier")

    def fill_the_disk(self, file, **how):
        Path(file).write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(uncertainty_study.plt.Figure, "savefig", fill_the_disk)
        with pytest.raises(InputError, match="no space left"):
            uncertainty_study.draw(np.array([[1.0, 2.0], [2.0, 4.0]]), path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"earlier"]
    uncertainty_study.draw(np.array([[1.0, 2.0], [2.0, 4.0]]), path)
    assert path.read_bytes()[:4] == b"\x89PNG"
