"""The phantom's organs: what fills chest and belly."""

from collections.abc import Iterable

import numpy as np

from data.phantom.labels import Tissue
from data.phantom.shapes import SIDES, Canvas, Point, View, as_point, capsule, ellipsoid


def draw_chest(canvas: Canvas, cavity: np.ndarray, rng: np.random.Generator) -> None:
    """Paint lungs, heart, great vessels, gullet and airways.

    Args:
        canvas: with fat and muscle painted.
        cavity: distance to the cavity's wall, shape (z, y, x), mm, negative inside.
        rng: draws sizes and places.
    """
    view = canvas.view((-180, -180, 1040), (180, 140, 1430))
    inside = cavity[view.box]
    dome = _diaphragm(view, rng)
    chest = (inside < -1) & (view.z > dome)
    canvas.paint(view, chest, Tissue.FAT)
    mediastinum = (view.x / 29) ** 2 + ((view.y - 8) / 80) ** 2 < 1
    heart_at = _near(rng, (24, -30, 1222), 6)
    heart = ellipsoid(view, heart_at, (58, 46, 52)) + np.float32(0.12) * (view.x - np.float32(heart_at[0]))
    lungs = chest & ~mediastinum & (inside < -3) & (heart > 5)
    canvas.paint(view, lungs, Tissue.LUNG)
    _draw_lung_vessels(canvas, view, lungs, rng)
    canvas.paint(view, chest & (heart < 0), Tissue.BLOOD)
    for start, end, radius, tissue in (
        ((16, 34, 1320), (14, 30, 1000), 11, Tissue.BLOOD),
        ((-10, -18, 1270), (14, 34, 1322), 13, Tissue.BLOOD),
        ((-18, -14, 1385), (-20, -8, 1240), 10, Tissue.BLOOD),
        ((12, -16, 1330), (10, 2, 1400), 8, Tissue.BLOOD),
        ((24, -22, 1250), (30, 6, 1290), 13, Tissue.BLOOD),
        ((-36, 10, 1280), (36, 10, 1284), 9, Tissue.BLOOD),
        ((-24, 18, 1170), (-20, 24, 1000), 10, Tissue.BLOOD),
        ((4, 30, 1420), (8, 26, 1180), 7, Tissue.MUSCLE),
        ((0, -10, 1450), (0, 10, 1310), 9, Tissue.GAS),
        ((0, 10, 1310), (34, 14, 1270), 7, Tissue.GAS),
        ((0, 10, 1310), (-34, 14, 1275), 7, Tissue.GAS),
    ):
        vessel = canvas.around((start, end), 20)
        canvas.paint(vessel, capsule(vessel, start, end, radius) < 0, tissue)


def _diaphragm(view: View, rng: np.random.Generator) -> np.ndarray:
    """Height of the diaphragm over (x, y): two domes, the right one higher."""
    right, left = 1196 + rng.normal(0, 8), 1180 + rng.normal(0, 8)
    domes = (
        np.float32(top) - 75 * ((view.x - np.float32(x)) / 80) ** 2 - 85 * ((view.y + 10) / 95) ** 2
        for top, x in ((right, -66), (left, 66))
    )
    return np.maximum(*domes)


def _draw_lung_vessels(canvas: Canvas, view: View, lungs: np.ndarray, rng: np.random.Generator) -> None:
    """Paint the ridges of a random field as a vessel tree that thins out away from the hilum."""
    tree = sum(
        np.sin(view.x / np.float32(a) + np.float32(p))
        * np.sin(view.y / np.float32(b) + np.float32(q))
        * np.sin(view.z / 19)
        for (a, b), (p, q) in zip(((9, 11), (6, 7)), rng.uniform(0, 6, (2, 2)), strict=True)
    )
    hilum = np.sqrt((np.abs(view.x) - 40) ** 2 + (view.y - 5) ** 2 + (view.z - 1270) ** 2)
    canvas.paint(view, lungs & (tree > 0.85 + hilum / 220), Tissue.BLOOD)


def draw_abdomen(canvas: Canvas, cavity: np.ndarray, rng: np.random.Generator) -> None:
    """Paint the belly's fat and organs below the chest's. Arguments as for `draw_chest`."""
    view = canvas.view((-180, -190, 820), (180, 140, 1230))
    belly = (cavity[view.box] < -1) & ~_is_chest(canvas, view) & (canvas.labels[view.box] != Tissue.GAS)
    canvas.paint(view, belly, Tissue.FAT)
    for side in SIDES:
        psoas = canvas.view((side * 10, 0, 860), (side * 90, 90, 1110))
        canvas.paint(psoas, capsule(psoas, (side * 36, 34, 1090), (side * 62, 6, 880), 14, 24) < 0, Tissue.MUSCLE)
    _draw_bowel(canvas, cavity, rng)

    def organ(centre: Point, radii: Point, tissue: Tissue, wander_mm: float = 5, slope: float | None = None) -> None:
        """Paint an ellipsoid of random place and size, below the diaphragm and inside the cavity.

        With a `slope`, its lower end is cut off by a plane that rises to the left.
        """
        centre = _near(rng, centre, wander_mm)
        radii = as_point(np.asarray(radii) * rng.uniform(0.9, 1.1, 3))
        near = canvas.around((centre,), max(radii))
        shape = (ellipsoid(near, centre, radii) < 0) & (cavity[near.box] < -2)
        if slope is not None:
            shape &= near.z > centre[2] - radii[2] / 2 + np.float32(slope) * (near.x - np.float32(centre[0]))
        canvas.paint(near, shape & ~_is_chest(canvas, near), tissue)

    organ((50, -30, 1130), (44, 34, 42), Tissue.BOWEL)
    organ((54, -52, 1142), (24, 12, 20), Tissue.GAS)
    organ((-72, -6, 1118), (84, 86, 96), Tissue.LIVER, slope=0.5)
    organ((4, -44, 1150), (70, 40, 32), Tissue.LIVER)
    organ((100, 34, 1140), (30, 38, 50), Tissue.SPLEEN)
    for side in SIDES:
        organ((side * 70, 36, 1062 + 8 * side), (26, 23, 52), Tissue.KIDNEY)
        organ((side * 58, 34, 1062 + 8 * side), (8, 12, 20), Tissue.FAT)
    organ((0, 6, 868), (26, 20, 24), Tissue.MUSCLE, 2)
    organ((0, 44, 885), (16, 14, 40), Tissue.BOWEL, 3)
    organ((0, 42, 892), (9, 8, 22), Tissue.GAS, 3)
    organ((0, -24, 905), (36, 30, 28), Tissue.BLADDER)


def _is_chest(canvas: Canvas, view: View) -> np.ndarray:
    labels = canvas.labels[view.box]
    return (labels == Tissue.LUNG) | (labels == Tissue.BLOOD)


def _draw_bowel(canvas: Canvas, cavity: np.ndarray, rng: np.random.Generator) -> None:
    """Paint the colon's frame and a heap of bowel loops in the belly's fat, some holding gas."""
    frame = (
        ((-92, 0, 965), (-94, 4, 1050)),
        ((-90, -30, 1065), (0, -66, 1060)),
        ((0, -66, 1060), (88, -20, 1085)),
        ((94, 8, 1080), (92, 4, 970)),
    )
    loops = [
        (_near(rng, np.add(a, np.subtract(b, a) * t), 3), rng.uniform(17, 23))
        for a, b in frame
        for t in np.linspace(0, 1, 4)
    ]
    loops += [
        ((rng.uniform(-80, 80), rng.uniform(-80, 0), rng.uniform(930, 1065)), rng.uniform(12, 20))
        for _ in range(rng.integers(60, 90))
    ]
    for centre, radius in loops:
        near = canvas.around((centre,), radius + 2)
        distance = ellipsoid(near, centre, (radius * 1.1, radius, radius * 1.2))
        free = (cavity[near.box] < -4) & (canvas.labels[near.box] == Tissue.FAT)
        canvas.paint(near, free & (distance < 0), Tissue.BOWEL)
        if rng.random() < 0.35:
            # Gas rises: it collects at the anterior side of a loop.
            bubble = ellipsoid(
                near, (centre[0], centre[1] - 0.25 * radius, centre[2]), (0.7 * radius, 0.55 * radius, 0.8 * radius)
            )
            canvas.paint(near, free & (bubble < 0), Tissue.GAS)


def _near(rng: np.random.Generator, point: Iterable[float], wander_mm: float) -> Point:
    return as_point(np.asarray(point) + rng.normal(0, wander_mm / 2, 3))
