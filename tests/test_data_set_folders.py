"""A wrong `--dataroot` is answered by the data sets that there are."""

import pytest

from data.errors import InputError
from data.loading.data_set_folders import check_data_root


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A prepared data set and one of images in the usual folder, one elsewhere, and folders of something else."""
    for made in ("datasets/phantom/manifest.json", "datasets/limbs/trainA/a.png", "other/pelvis/trainB/b.png",
                 "datasets/raw/mr.nii.gz"):  # fmt: skip
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / made).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said_of(root) -> str:
    with pytest.raises(InputError) as error:
        check_data_root(root)
    return str(error.value)


def test_a_misspelt_folder_is_answered_by_the_nearest(place):
    known = "Data sets: datasets/limbs, datasets/phantom"
    relative = place.relative_to(place)
    assert said_of(relative / "datasets/phntom") == (
        f"--dataroot datasets/phntom: no such folder; did you mean phantom? {known}"
    )
    for wrong in ("phantom", "dataset/phantom"):  # the right name in a wrong place
        assert (
            said_of(relative / wrong) == f"--dataroot {wrong}: no such folder; did you mean datasets/phantom? {known}"
        )
    assert said_of(relative / "other/xyz").endswith(
        "no such folder. Data sets: other/pelvis, datasets/limbs, datasets/phantom"
    )


def test_a_folder_without_data_is_told_from_one_that_is_not_there(place):
    said = said_of(place / "datasets")
    assert "no data set: neither a manifest.json nor trainA or trainB in it. Data sets: " in said
    assert f"{place}/datasets/limbs, {place}/datasets/phantom" in said
    assert "no data set" in said_of(place / "datasets/raw")
    for fine in ("datasets/phantom", "datasets/limbs", "other/pelvis"):
        check_data_root(place / fine)


def test_where_there_is_no_data_set_the_command_that_makes_one_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said_of(tmp_path / "x").endswith("no such folder. Make one with python -m scripts.prepare_dataset")
