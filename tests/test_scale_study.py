"""The study of scales and bias fields: what it changes, and its table."""

import argparse
import shlex

import numpy as np
import pytest

from data.errors import InputError
from data.volumes.volume import Volume
from tools.patients import add_patients, patients
from tools.scale_study import changed, table


def test_scales_and_fields_are_what_they_are_called():
    mr = Volume(np.full((5, 7, 9), 100, np.int16))
    made = {name: volume.array for name, volume in changed(mr).items()}
    assert (made["as it is"] == 100).all()
    assert (made["times 0.3"] == 30).all() and (made["times 3"] == 300).all()
    for axis, name in enumerate("zyx"):
        along = made[f"bias field along {name}"]
        first, last = along.take(0, axis), along.take(-1, axis)
        assert first == pytest.approx(140) and last == pytest.approx(60)
        assert along.mean() == pytest.approx(100)
        assert (np.diff(along, axis=axis) < 0).all()


def test_the_table_compares_with_the_same_patient_unchanged():
    found = {"a": {"as it is": 50.0, "times 3": 51.0}, "b": {"as it is": 70.0, "times 3": 66.0}}
    assert table(found).splitlines()[2:] == ["| as it is | 60.0 | +0.0 | +0.0 |", "| times 3 | 58.5 | -1.5 | -4.0 |"]


def test_patients_under_other_names_are_answered_by_options_that_there_are(tmp_path):
    (tmp_path / "p1").mkdir()
    for name in ("mr", "ct"):
        (tmp_path / f"p1/{name}.nii.gz").touch()
    parser = argparse.ArgumentParser()
    add_patients(parser)
    arguments = ["--data", str(tmp_path)]
    for kind in ("mr", "ct"):
        with pytest.raises(
            InputError, match=f"add --{kind}_pattern '{{case}}/{kind}.nii.gz', which finds 1 case"
        ) as error:
            list(patients(parser.parse_args(arguments)))
        arguments += shlex.split(str(error.value).rpartition("add ")[2].rpartition(", which")[0])
    assert parser.parse_args(arguments).ct_pattern == "{case}/ct.nii.gz"
