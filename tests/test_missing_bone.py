"""Slices of a synthetic CT without bone: counted in axial slices whatever the orientation, and noted from three on."""

from collections.abc import Collection

import numpy as np
import pytest

from cohort.checks import check_bone
from cohort.findings import Findings
from cohort.missing_bone import LEAST_BODY_CM2, LEAST_BONE_CM2, MissingBone, missing_bone
from data.volumes.volume import Volume

AXIAL = tuple(np.eye(3).ravel())


def limb(without: Collection[int], pixel_mm: float = 2.0, bone_px: int = 6) -> Volume:
    """Twenty slices of a square limb of 60 x 60 mm with a bone in its middle, which some slices lack."""
    half = round(30 / pixel_mm)
    hu = np.full((20, 50, 50), -1000, np.int16)
    hu[:, 25 - half : 25 + half, 25 - half : 25 + half] = 40
    hu[:, 22 : 22 + bone_px, 22 : 22 + bone_px] = 900
    hu[np.array(list(without), int), 22 : 22 + bone_px, 22 : 22 + bone_px] = 100
    return Volume(hu, (pixel_mm, pixel_mm, 4.0), (0.0, 0.0, 0.0), AXIAL)


def found(ct: Volume) -> list[int]:
    return missing_bone(ct, ct.array > -300).slices


def test_slices_are_counted_from_the_feet_from_1():
    assert found(limb(range(0))) == []
    assert found(limb(range(4, 8))) == [5, 6, 7, 8]


def test_a_volume_in_another_order_has_the_same_slices():
    ct = limb(range(4, 8))
    upside_down = Volume(ct.array[::-1].copy(), ct.spacing, ct.origin, (1.0, 0, 0, 0, 1.0, 0, 0, 0, -1.0))
    assert found(upside_down) == [5, 6, 7, 8]
    # Index axes x, y, z run to the head, the left and the back.
    turned = Volume(ct.array.transpose(1, 2, 0).copy(), (4.0, 2.0, 2.0), ct.origin, (0, 1.0, 0, 0, 0, 1.0, 1.0, 0, 0))
    assert found(turned) == [5, 6, 7, 8]


def test_areas_are_in_cm2():
    # Four pixels of bone are 0.16 cm2 at 2 mm and more than 0.3 cm2 at 3 mm.
    assert 4 * 0.04 < LEAST_BONE_CM2 < 4 * 0.09
    assert len(found(limb(range(0), 2.0, 2))) == 20 and found(limb(range(0), 3.0, 2)) == []
    # A thin slice has too little body to say anything: 20 cm2 of it are 500 pixels of 2 mm.
    ct = limb(range(20))
    few, enough = (np.zeros(ct.array.shape, bool) for _ in range(2))
    few[:, :20, :24], enough[:, :20, :25] = True, True
    assert missing_bone(ct, few).slices == [] and pytest.approx(LEAST_BODY_CM2) == 500 * 0.04
    assert len(missing_bone(ct, enough).slices) == 20


@pytest.mark.parametrize(
    ("without", "warning", "note"),
    [
        (range(2), None, None),
        (range(9, 11), None, None),
        (range(4), None, "no bone in 4 of 20 axial slices (1 to 4): check them; "),
        (range(16, 20), None, "no bone in 4 of 20 axial slices (17 to 20): check them; "),
        (range(4, 8), "no bone in axial slices 5 to 8 of 20, although slices above and below have some: ", None),
        (
            [0, 1, 2, 12, 13, 14],
            "no bone in axial slices 13 to 15 of 20, ",
            "no bone in 3 of 20 axial slices (1 to 3): ",
        ),
        (range(20), None, "no bone in 20 of 20 axial slices (1 to 20): "),
    ],
    ids=str,
)
def test_three_slices_are_noted_at_an_end_and_warned_of_between_bone(without, warning, note):
    findings, ct = Findings(), limb(without)
    check_bone(findings, ct, ct.array > -300)
    assert findings.figures["slices_without_bone"] == len(without)
    for texts, begin in ((findings.warnings, warning), (findings.notes, note)):
        assert [text[: len(begin or "")] for text in texts] == ([begin] if begin else [])


def test_slices_are_named_in_spans():
    assert "slices (1, 3, 5 to 6):" in (MissingBone([1, 3, 5, 6], 9, []).describe() or "")
    assert "slices 2 to 4, 7 to 9 of 20," in (MissingBone([], 20, [(2, 4), (7, 9)]).describe_gaps() or "")
