"""Procedural whole-body anatomy: a labelled volume of a random patient, head to below the knees.

Everything is drawn in the coordinates of one standard person, 1700 mm tall: x to the Left, y to the Posterior with 0
in the middle of the trunk, z to the head from the soles (so the right hand has negative x). A patient is that person
with random sizes and organs, seen through a smooth random displacement. Proportions follow common anthropometry
(segment lengths as fractions of the height); nothing is taken from a data set.
"""

from dataclasses import dataclass

import numpy as np

from data.phantom.labels import Tissue
from data.phantom.organs import draw_abdomen, draw_chest
from data.phantom.shapes import (
    SIDES,
    Canvas,
    Point,
    SmoothField,
    Tube,
    View,
    as_point,
    capsule,
    ellipsoid,
    smooth_union,
)
from data.phantom.skeleton import draw_arm_bones, draw_head, draw_legs, draw_pelvis, draw_ribs, draw_spine

CENTRE_Z, TOP_Z = 1120.0, 1703.0

# Sections of the standard person: z, centre x, centre y, half-width, half-depth (mm).
_TRUNK = Tube(
    [
        (1445, 0, 18, 58, 60),
        (1420, 0, 16, 84, 64),
        (1398, 0, 14, 128, 74),
        (1370, 0, 10, 158, 88),
        (1320, 0, 4, 168, 104),
        (1270, 0, 0, 167, 112),
        (1190, 0, -2, 158, 114),
        (1110, 0, -4, 148, 108),
        (1050, 0, -6, 145, 102),
        (980, 0, -3, 158, 104),
        (900, 0, 4, 171, 110),
        (850, 0, 8, 168, 112),
        (820, 0, 12, 140, 98),
        (800, 0, 16, 92, 72),
        (788, 0, 18, 40, 40),
    ],
    exponent=2.4,
)
_LEG = Tube(
    [
        (900, 90, 4, 76, 90),
        (830, 88, 4, 84, 96),
        (720, 86, 0, 80, 88),
        (600, 82, -2, 67, 72),
        (510, 79, 0, 58, 64),
        (470, 78, 4, 55, 60),
        (390, 78, 12, 56, 64),
        (300, 77, 10, 48, 54),
        (120, 75, 5, 32, 38),
    ]
)
_CAVITY = Tube(
    [
        (1412, 0, 14, 30, 22),
        (1390, 0, 10, 72, 48),
        (1340, 0, 4, 112, 74),
        (1280, 0, 0, 130, 88),
        (1200, 0, -2, 136, 93),
        (1120, 0, -5, 132, 88),
        (1050, 0, -10, 122, 78),
        (980, 0, -14, 112, 70),
        (910, 0, -8, 84, 62),
        (850, 0, 0, 52, 46),
    ],
    exponent=2.3,
)
# Fat thickness along the body, as a multiple of the patient's fat thickness.
_FAT_Z = (100, 450, 520, 700, 860, 1040, 1200, 1380, 1440, 1500, 1700)
_FAT_SHARE = (0.4, 0.45, 0.6, 1.0, 1.35, 1.25, 0.75, 0.6, 0.5, 0.35, 0.25)
_REFERENCE_FAT_MM = 9.0


@dataclass(frozen=True)
class Body:
    """What makes one patient: drawn once, independent of the grid.

    Attributes:
        scale: size along x, y, z relative to the standard person.
        fat_mm: thickness of the subcutaneous fat of the trunk.
        belly_mm: how far the belly stands out.
        warp: displacement fields along x, y, z (mm).
        joints: shoulder, elbow, wrist and finger tips for the right and the left arm.
        organ_seed: seed of the organs' sizes and places.
    """

    scale: Point
    fat_mm: float
    belly_mm: float
    warp: tuple[SmoothField, ...]
    joints: tuple[tuple[Point, ...], ...]
    organ_seed: int

    @property
    def top_z(self) -> float:
        """Highest point of the head or the raised hands, in the standard person's mm."""
        return max([TOP_Z, *(point[2] + 20 for arm in self.joints for point in arm)])


def random_body(rng: np.random.Generator, arms_up: bool) -> Body:
    """Draw a patient. Those with raised arms (CT) are larger and fatter on average than the others (MR)."""
    fat_mm = float(rng.uniform(7, 24) if arms_up else rng.uniform(5, 17))
    width = rng.uniform(0.95, 1.07) if arms_up else rng.uniform(0.9, 1.0)
    scale = (float(width), float(width * rng.uniform(0.95, 1.06)), float(rng.uniform(0.93, 1.06)))
    warp = tuple(SmoothField(rng, mm, (900.0, 520.0, 330.0)) for mm in (5.0, 4.0, 9.0))
    joints = tuple(_arm_joints(rng, side, fat_mm, arms_up) for side in SIDES)
    belly_mm = float(rng.uniform(0, 12) + fat_mm * rng.uniform(0, 1.2))
    return Body(scale, fat_mm, belly_mm, warp, joints, int(rng.integers(2**31)))


def _arm_joints(rng: np.random.Generator, side: int, fat_mm: float, arms_up: bool) -> tuple[Point, ...]:
    growth = 0.6 * (fat_mm - _REFERENCE_FAT_MM)
    if arms_up:
        shoulder = (side * 152.0, 6.0, 1392.0)
        upper, fore = np.radians([rng.uniform(2, 8), rng.uniform(35, 65)])
        elbow = _step(shoulder, 280, side * np.sin(upper), rng.uniform(-0.25, 0.0), np.cos(upper))
        # One hand lies in front of the other above the head.
        y = -0.1 * (2 + side)
        wrist = _step(elbow, 240, -side * np.sin(fore), y, np.cos(fore))
        return shoulder, elbow, wrist, _step(wrist, 130, -side * np.sin(fore), y, np.cos(fore))
    shoulder = (side * (160.0 + 0.5 * growth), 10.0, 1368.0)
    upper, fore = np.radians([rng.uniform(6, 8), rng.uniform(-1.5, 2.5)])
    elbow = _step((side * (160.0 + growth), 10.0, 1368.0), 288, side * np.sin(upper), 0.03, -np.cos(upper))
    y = rng.uniform(-0.2, 0.0)
    wrist = _step(elbow, 245, side * np.sin(fore), y, -np.cos(fore))
    return shoulder, elbow, wrist, _step(wrist, 130, side * np.sin(fore), y - 0.1, -np.cos(fore))


def _step(start: Point, length: float, *direction: float) -> Point:
    unit = np.asarray(direction) / np.linalg.norm(direction)
    return as_point(np.asarray(start) + length * unit)


def draw_body(body: Body, axes: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Return the labels (`Tissue`, uint8) of a patient on the grid of three axes.

    Args:
        body: the patient.
        axes: coordinates of the voxel centres along x, y, z, in the standard person's mm (that is, divided by scale).
    """
    rng = np.random.default_rng(body.organ_seed)
    canvas = Canvas(axes, body.warp)
    skin, fat, arm = _draw_outline(canvas, body)
    cavity = _cavity(canvas, body, skin + fat)
    _draw_muscle_septa(canvas, rng)
    draw_chest(canvas, cavity, rng)
    draw_abdomen(canvas, cavity, rng)
    draw_head(canvas, rng)
    draw_ribs(canvas, cavity)
    draw_spine(canvas)
    draw_pelvis(canvas)
    draw_legs(canvas, rng)
    draw_arm_bones(canvas, body.joints, rng)
    _name_arms(canvas, arm)
    canvas.labels[skin >= 0] = Tissue.AIR
    return canvas.labels


def _draw_outline(canvas: Canvas, body: Body) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paint fat and muscle; return the distance to the skin, the fat's thickness and the arms' mask."""
    trunk = canvas.empty_distance()

    def add(view: View, distance: np.ndarray, blend_mm: float) -> None:
        trunk[view.box] = smooth_union(trunk[view.box], distance, blend_mm)

    view = canvas.view((-230, -190, 750), (230, 190, 1480))
    add(view, _TRUNK.distance(view), 1)
    add(view, ellipsoid(view, (0, -18, 1040), (118, 78 + body.belly_mm, 115)), 30)
    for side in SIDES:
        view = canvas.view((side * 10, -150, 100), (side * 210, 150, 930))
        add(view, _LEG.distance(view, side), 22)
    view = canvas.view((-120, -150, 1380), (120, 160, 1740))
    add(view, capsule(view, (0, 22, 1390), (0, 4, 1540), 60, 56), 35)
    add(view, ellipsoid(view, (0, 4, 1594), (77, 98, 108)), 25)
    add(view, ellipsoid(view, (0, -34, 1528), (60, 62, 66)), 25)
    add(view, capsule(view, (0, -96, 1560), (0, -106, 1535), 8, 12), 12)

    share = np.interp(canvas.everywhere().z, _FAT_Z, _FAT_SHARE).astype(np.float32)
    grown_mm = np.float32(body.fat_mm - _REFERENCE_FAT_MM)
    trunk -= share * grown_mm
    arms = canvas.empty_distance()
    for shoulder, elbow, wrist, tip in body.joints:
        view = canvas.around((shoulder, elbow, wrist, tip), 90)
        limb = smooth_union(capsule(view, shoulder, elbow, 48, 37), capsule(view, elbow, wrist, 37, 25), 15)
        limb = smooth_union(limb, capsule(view, wrist, tip, 26, 15), 20)
        arms[view.box] = np.minimum(arms[view.box], limb - np.float32(0.5) * grown_mm)
    is_arm = (arms < 0) & (arms < trunk)
    fat = np.maximum(np.where(is_arm, np.float32(0.45), share) * np.float32(body.fat_mm), np.float32(2.5))
    skin = np.minimum(trunk, arms)
    canvas.labels[skin < 0] = Tissue.FAT
    canvas.labels[skin < -fat] = Tissue.MUSCLE
    return skin, fat, is_arm


def _cavity(canvas: Canvas, body: Body, muscle: np.ndarray) -> np.ndarray:
    """Return the distance to the chest and belly cavity, which keeps a wall of muscle around it."""
    cavity = canvas.empty_distance()
    view = canvas.view((-200, -190, 820), (200, 140, 1430))
    inside = _CAVITY.distance(view)
    inside = smooth_union(inside, ellipsoid(view, (0, -12, 1035), (100, 62 + body.belly_mm, 95)), 30)
    cavity[view.box] = np.maximum(inside, muscle[view.box] + np.float32(11))
    return cavity


def _draw_muscle_septa(canvas: Canvas, rng: np.random.Generator) -> None:
    """Part the muscle by thin sheets of fat that run along the body: the zeros of a field that is stretched in z."""
    x, y, z = canvas.axes
    field = SmoothField(rng, 1.0, (170.0, 120.0, 90.0, 70.0)).evaluate(x, y, z / 5)
    canvas.labels[(np.abs(field) < 0.09) & (canvas.labels == Tissue.MUSCLE)] = Tissue.FAT


def _name_arms(canvas: Canvas, arm: np.ndarray) -> None:
    """Give the arms' soft tissue its own labels."""
    for tissue, arm_tissue in ((Tissue.FAT, Tissue.ARM_FAT), (Tissue.MUSCLE, Tissue.ARM_MUSCLE)):
        canvas.labels[arm & (canvas.labels == tissue)] = arm_tissue


@dataclass(frozen=True)
class Couch:
    """A CT couch: a shell filled with foam, the same at every z; lengths in mm.

    Attributes:
        half_width: half its width.
        thickness: its thickness in the middle.
        wall: thickness of the shell.
        rise: how much higher (more anterior) its edges are than its middle.
        y: coordinate of its upper side in the middle.
    """

    half_width: float
    thickness: float
    wall: float
    rise: float
    y: float


def random_couch(rng: np.random.Generator, labels: np.ndarray, axes_mm: tuple[np.ndarray, np.ndarray]) -> Couch:
    """Draw a couch that touches, or nearly touches, the body behind it.

    Args:
        rng: draws the couch.
        labels: the body, shape (z, y, x).
        axes_mm: x and y of the voxel centres in the scanner's mm.
    """
    xs, ys = axes_mm
    half_width, thickness = float(rng.uniform(195, 215)), float(rng.uniform(45, 65))
    wall, rise, gap = float(rng.uniform(4, 6)), float(rng.uniform(15, 40)), max(0.0, float(rng.uniform(-4, 10)))
    rearmost = np.where(labels.any(axis=0), ys[:, None], -np.inf).max(axis=0)
    touching = float((rearmost + rise * (xs / half_width) ** 2).max()) + 0.5 * float(ys[1] - ys[0])
    return Couch(half_width, thickness, wall, rise, touching + gap)


def draw_couch(couch: Couch, labels: np.ndarray, axes_mm: tuple[np.ndarray, np.ndarray]) -> None:
    """Paint a couch into `labels`, in air only. Arguments as for `random_couch`; `labels` changes in place."""
    xs, ys = axes_mm
    bend = (xs / couch.half_width) ** 2
    below_top = ys[:, None] - (couch.y - couch.rise * bend)
    above_bottom = couch.thickness * (1 - bend) - below_top
    depth = np.minimum(below_top, above_bottom)
    material = np.where(depth < couch.wall, Tissue.COUCH_SHELL, Tissue.COUCH_FOAM).astype(np.uint8)
    np.copyto(labels, material, where=(depth >= 0) & (labels == Tissue.AIR))
