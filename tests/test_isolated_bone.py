"""Isolated bone: which pieces count, how large they are and where they lie."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from cohort.checks import check_bone
from cohort.findings import Findings
from cohort.isolated_bone import LARGEST_ML, SMALLEST_ML, isolated_bone
from data.volumes.volume import Volume, write_volume
from tools import isolated_bone as command

SHAPE = (20, 40, 30)
VOXEL_ML = 2 * 2 * 5 / 1e3


def limb(*pieces: tuple[slice, slice, slice]) -> Volume:
    """Muscle in which a shaft of 4 x 4 voxels runs through all slices, and boxes of bone."""
    array = np.full(SHAPE, 40, np.int16)
    array[:, 4:8, 4:8] = 900
    for piece in pieces:
        array[piece] = 400
    return Volume(array, spacing=(2, 2, 5), origin=(0, 0, 0))


SPOT = (slice(5, 7), slice(20, 23), slice(20, 22))
WHOLE = np.ones(SHAPE, bool)


def test_a_spot_is_counted_with_its_volume_and_its_slices_from_the_feet():
    ct = limb(SPOT)
    found = isolated_bone(ct, WHOLE)
    assert (found.pieces, found.slices) == (1, ((6, 7),))
    assert found.ml == pytest.approx(12 * VOXEL_ML)
    assert found.bone_ml == pytest.approx((12 + 16 * 20) * VOXEL_ML)
    assert found.share == pytest.approx(12 / 332)
    assert found.describe() == "isolated bone: 1 piece, 0.2 ml, 3.6 % of the bone, in axial slices 6 to 7"
    upside_down = replace(ct, direction=(1, 0, 0, 0, 1, 0, 0, 0, -1))
    assert isolated_bone(upside_down, WHOLE).slices == ((14, 15),)
    sagittal = replace(ct, array=ct.array.transpose(2, 0, 1), direction=(0, 0, 1, 1, 0, 0, 0, 1, 0), spacing=(2, 5, 2))
    assert isolated_bone(sagittal, WHOLE.transpose(2, 0, 1)) == found


OTHERS = {
    "a piece at the volume's side": (slice(5, 7), slice(38, 40), slice(20, 24)),
    "a piece in the last slice": (slice(18, 20), slice(20, 24), slice(20, 24)),
    "what touches the shaft by a corner": (slice(5, 7), slice(8, 11), slice(8, 11)),
    "what nobody sees": (slice(5, 6), slice(20, 21), slice(20, 22)),
    "a bone of its own": (slice(4, 14), slice(20, 26), slice(20, 25)),
}


@pytest.mark.parametrize("piece", OTHERS.values(), ids=OTHERS)
def test_not_counted_is(piece):
    apart = (slice(5, 7), slice(32, 35), slice(10, 12))
    assert isolated_bone(limb(piece), WHOLE).pieces == 0
    assert isolated_bone(limb(piece, apart), WHOLE).pieces == 1


def test_a_piece_that_goes_askew_through_slices_is_one():
    steps = [(slice(5 + k, 6 + k), slice(20 + 2 * k, 22 + 2 * k), slice(20, 22)) for k in range(5)]
    assert isolated_bone(limb(*steps), WHOLE).slices == ((6, 10),)
    gap = steps[:2] + [(part[0], slice(part[1].start + 1, part[1].stop + 1), part[2]) for part in steps[2:]]
    assert isolated_bone(limb(*gap), WHOLE).slices == ((6, 7), (8, 10))


def test_bone_outside_the_body_is_none():
    assert isolated_bone(limb(SPOT), ~ndimage.binary_dilation(limb(SPOT).array == 400)).pieces == 0
    none = isolated_bone(limb().with_array(np.zeros(SHAPE, np.int16)), WHOLE)
    assert (none.pieces, none.ml, none.share, none.slices) == (0, 0, 0, ())


def test_pieces_agree_with_those_of_the_whole_volume():
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(size=(24, 60, 60)), 1.2)
    ct = Volume(np.where(smooth > 0.16, 600, 0).astype(np.int16), spacing=(1.5, 1.5, 3), origin=(0, 0, 0))
    numbered, count = ndimage.label(ct.array > 250, np.ones((3, 3, 3)))
    ml = np.bincount(numbered.ravel())[1:] * 1.5 * 1.5 * 3 / 1e3
    inner = [
        all(part.start > 0 and part.stop < size for part, size in zip(place, ct.array.shape, strict=True))
        for place in ndimage.find_objects(numbered)
    ]
    small = np.array(inner) & (ml >= SMALLEST_ML) & (ml < LARGEST_ML)
    found = isolated_bone(ct, np.ones(ct.array.shape, bool))
    assert 5 < found.pieces == small.sum() < count
    assert (found.ml, found.bone_ml) == pytest.approx((ml[small].sum(), ml.sum()))


def test_slices_are_joined_and_many_are_cut_short():
    spots = [(slice(k, k + 1), slice(20, 24), slice(20, 24)) for k in (2, 4, 6, 8, 10, 12)]
    beside = (slice(3, 4), slice(30, 34), slice(10, 14))  # alone, between the first two
    said = isolated_bone(limb(*spots, beside), WHOLE).describe()
    assert said.startswith("isolated bone: 7 pieces, 2.2 ml, 25.9 % of the bone")
    assert said.endswith("in axial slices 3 to 5, 7, 9, 11, 13")


def findings_of(ct: Volume) -> Findings:
    findings = Findings()
    check_bone(findings, ct, WHOLE)
    return findings


def test_isolated_bone_is_a_note_and_much_of_it_a_warning():
    none, little = findings_of(limb()), findings_of(limb(SPOT))
    assert none.notes == none.warnings == little.warnings == []
    assert none.figures == dict.fromkeys(
        ("isolated_bone_pieces", "isolated_bone_ml", "isolated_bone_share", "slices_without_bone"), 0
    )
    assert little.notes == [f"{isolated_bone(limb(SPOT), WHOLE).describe()}: look at it, it may be false"]
    spots = [(slice(k, k + 1), slice(20, 24), slice(20, 24)) for k in (2, 4, 6)]
    much = findings_of(limb(*spots))
    assert much.notes == []
    assert much.warnings == [
        "isolated bone: 3 pieces, 1.0 ml, 13.0 % of the bone, in axial slices 3, 5, 7; at most 5 % in true CT: "
        "probably false spots, or bone that was drawn in fragments"
    ]
    alone = limb(SPOT)
    alone.array[alone.array == 900] = 40
    assert findings_of(alone).warnings == []  # 0.24 ml and no other bone: too little to tell


def test_the_command_measures_volumes(tmp_path, capsys):
    ct = limb(SPOT)
    ct.array[:, :, 26:] = -1000
    command.main([str(write_volume(ct, tmp_path / "a.nii.gz"))])
    assert capsys.readouterr().out.splitlines() == [
        "a.nii.gz: isolated bone: 1 piece, 0.2 ml, 3.6 % of the bone, in axial slices 6 to 7",
        "largest share of the bone: 3.6 %",
    ]
