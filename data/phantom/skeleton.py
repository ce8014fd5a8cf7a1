"""The phantom's bones, and what they enclose in the head."""

from collections.abc import Iterable

import numpy as np

from data.phantom.labels import Tissue
from data.phantom.shapes import SIDES, Canvas, Point, Tube, View, capsule, ellipsoid, smooth_union

# Sections: z, centre x, centre y, half-width, half-depth (mm).
_SPINE = Tube(
    [
        (1512, 0, 12, 11, 9),
        (1430, 0, 20, 12, 10),
        (1380, 0, 34, 15, 12),
        (1280, 0, 52, 16, 15),
        (1180, 0, 50, 19, 17),
        (1100, 0, 42, 22, 19),
        (1030, 0, 34, 25, 20),
        (950, 0, 46, 27, 20),
    ]
)
_SACRUM = Tube([(965, 0, 54, 52, 20), (925, 0, 68, 40, 17), (890, 0, 76, 22, 11), (860, 0, 74, 8, 7)])
_ILIUM = Tube([(1080, 0, 6, 138, 84), (1020, 0, 6, 134, 84), (960, 0, 8, 118, 82), (840, 0, 8, 100, 72)], exponent=2.3)


def draw_head(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint skull, brain, eyes, jaws and the air spaces of nose and throat."""
    view = canvas.view((-100, -130, 1440), (100, 130, 1740))
    size = float(rng.uniform(0.97, 1.02))
    skull = ellipsoid(view, (0, 6, 1597), (71 * size, 91 * size, 99 * size))
    # The base of the skull falls towards the neck.
    base = view.z - 1548 + np.float32(0.28) * (view.y + 20)
    skull = np.maximum(skull, -base - 6)
    _bone(canvas, view, skull, 7, inside=Tissue.BRAIN)
    canvas.paint(view, (skull < -2.5) & (skull > -4.5) & (base > 6), Tissue.TRABECULAR)
    brain = skull < -9
    canvas.paint(view, (skull < -7) & ~brain, Tissue.CSF)
    for side in SIDES:
        ventricle = capsule(view, (side * 12, -30, 1605), (side * 20, 40, 1608), 8)
        canvas.paint(view, brain & (ventricle < 0), Tissue.CSF)
        for centre, radius, tissue in (
            ((side * 32, -66, 1566), 20, Tissue.FAT),
            ((side * 32, -72, 1566), 12, Tissue.CSF),
        ):
            canvas.paint(view, (ellipsoid(view, centre, (radius,) * 3) < 0) & (skull > 0), tissue)
        sinus = ellipsoid(view, (side * 26, -58, 1532), (16, 18, 18))
        canvas.paint(view, (np.abs(sinus) < 2.5) & (skull > 0), Tissue.CORTEX)
        canvas.paint(view, (sinus < -2.5) & (skull > 0), Tissue.GAS)
    nose = np.minimum(ellipsoid(view, (0, -62, 1535), (7, 32, 22)), capsule(view, (0, -26, 1530), (0, -14, 1445), 8))
    canvas.paint(view, (nose < 0) & (skull > 0), Tissue.GAS)
    for radii, low, high in (((50, 60), 1482, 1502), ((44, 56), 1506, 1516)):
        arch = np.abs(ellipsoid(view, (0, -32, (low + high) / 2), (*radii, 400))) - 7
        arch = np.maximum(arch, np.maximum(low - view.z, view.z - high))
        _bone(canvas, view, np.maximum(arch, view.y + 22), 3)


def draw_ribs(canvas: Canvas, cavity: np.ndarray) -> None:
    """Paint ribs, costal cartilage, sternum, shoulder blades and collar bones on and outside the cavity's wall.

    Args:
        canvas: with the organs painted.
        cavity: distance to the cavity's wall, shape (z, y, x), mm, negative inside.
    """
    view = canvas.view((-190, -190, 1040), (190, 150, 1420))
    wall = cavity[view.box]
    # Ribs fall from back to front: along a rib, z + slope (70 - y) is constant.
    attached = view.z + np.float32(0.55) * (70 - view.y)
    pitch = np.float32(25.5)
    number = (1404 - attached + 60) / pitch
    across = (number - np.floor(number) - np.float32(0.5)) * pitch * np.float32(0.88)
    rib = np.sqrt((across / 6.5) ** 2 + ((wall - 5.5) / 5) ** 2)
    span = (number > 0.3) & (number < 12) & ((number < 10) | (view.y > -20)) & (np.abs(view.x) > 14)
    cartilage = (view.y < -40) & (np.abs(view.x) < np.float32(60) + np.maximum(number - 5, 0) * 9)
    ribs = span & (rib < 1)
    canvas.paint(view, ribs & ~cartilage, Tissue.CORTEX)
    canvas.paint(view, ribs & ~cartilage & (rib < 0.55), Tissue.TRABECULAR)
    canvas.paint(view, ribs & cartilage & (number < 9), Tissue.CARTILAGE)
    sternum = np.maximum(np.abs(wall - 5.5) - 6, np.abs(view.x) - (17 + (view.z - 1290) / 14))
    sternum = np.maximum(np.maximum(sternum, view.y + 20), np.maximum(1205 - view.z, view.z - 1375))
    _bone(canvas, view, sternum, 2.5)
    for side in SIDES:
        _draw_shoulder(canvas, view, wall, side)


def _draw_shoulder(canvas: Canvas, view: View, wall: np.ndarray, side: int) -> None:
    below = 1378 - view.z
    blade = np.maximum(np.abs(wall - 19) - 5, np.abs(below - 62) - 62)
    # A triangle: its edges run from the shoulder to a point beside the spine, below.
    blade = np.maximum(blade, np.maximum(52 + 0.15 * below - side * view.x, side * view.x - 150 + 0.45 * below))
    _bone(canvas, view, np.maximum(blade, 18 - view.y), 2.5)
    bend = (side * 80, -52, 1388)
    _bones(canvas, [((side * 18, -62, 1372), bend, 8, 6), (bend, (side * 142, -4, 1396), 6, 8)], 2.5)
    _bones(canvas, [((side * 70, 70, 1362), (side * 146, 20, 1394), 6, 9)], 2.5)


def draw_spine(canvas: Canvas) -> None:
    """Paint vertebrae and discs from the second cervical to the fifth lumbar, and the spinal canal."""
    view = canvas.view((-60, -20, 930), (60, 130, 1530))
    distance = _SPINE.distance(view)
    _, centre_y, half_width, half_depth = _SPINE.section(view.z)
    level = np.interp(view.z, (945, 1105, 1395, 1512), (24, 19, 7, 0)).astype(np.float32)
    phase = level - np.floor(level)
    _bone(canvas, view, distance, 2.5)
    column = distance < 0
    canvas.paint(view, column & ((phase < 0.28) | (phase > 0.94)), Tissue.CORTEX)
    canvas.paint(view, column & (phase < 0.22), Tissue.CARTILAGE)
    in_range = (view.z > 945) & (view.z < 1512)
    canal_y = view.y - centre_y - half_depth - 9
    canal = np.sqrt(view.x**2 + canal_y**2)
    arch = in_range & (phase > 0.3) & (phase < 0.85)
    canvas.paint(view, arch & (np.abs(canal - 12.5) < 4) & ~column, Tissue.CORTEX)
    spinous = arch & (np.abs(view.x) < 4.5) & (canal_y > 10) & (canal_y < 16 + half_depth)
    transverse = (
        arch & (phase < 0.65) & (np.abs(canal_y) < 5) & (np.abs(view.x) > 11) & (np.abs(view.x) < half_width + 18)
    )
    canvas.paint(view, spinous | transverse, Tissue.CORTEX)
    canvas.paint(view, (np.abs(view.x) < 2) & spinous, Tissue.TRABECULAR)
    canvas.paint(view, in_range & (canal < 9), Tissue.CSF)
    canvas.paint(view, in_range & (canal < 4.5), Tissue.BRAIN)


def draw_pelvis(canvas: Canvas) -> None:
    """Paint sacrum and hip bones."""
    view = canvas.view((-150, -100, 830), (150, 120, 1030))
    _bone(canvas, view, _SACRUM.distance(view), 3)
    wing = _ILIUM.distance(view)
    wing = np.maximum(np.abs(wing + 7) - 7, view.z - 1022 + ((view.y - 10) / 75) ** 2 * 55)
    wing = np.maximum(np.maximum(wing, 44 - np.abs(view.x)), np.maximum(-58 - view.y, 900 - view.z))
    for side in SIDES:
        hip: Point = (side * 90, 4, 894)
        parts = [
            ellipsoid(view, hip, (35, 35, 35)),
            capsule(view, hip, (side * 9, -56, 876), 14, 12),
            capsule(view, (side * 9, -56, 872), (side * 56, 28, 836), 9, 12),
            capsule(view, (side * 80, 22, 885), (side * 58, 34, 838), 17, 15),
        ]
        for part in parts:
            wing = smooth_union(wing, part, 6)
    _bone(canvas, view, wing, 3)
    canvas.paint(view, (np.abs(view.x) < 4) & (wing < 0) & (view.y < -20), Tissue.CARTILAGE)


def draw_legs(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint femur, knee cap, tibia and fibula."""
    for side in SIDES:
        head: Point = (side * 90, 4, 894)
        socket = canvas.around((head,), 30)
        canvas.paint(socket, ellipsoid(socket, head, (27, 27, 27)) < 0, Tissue.CARTILAGE)
        thick = float(rng.uniform(0.92, 1.1))
        trochanter, knee = (side * 142, 12, 872), (side * 80, 2, 505)
        shaft_top = (side * 134, 10, 850)
        proximal = [(head, head, 23, 23), (head, trochanter, 15, 18), (trochanter, shaft_top, 18, 18)]
        _bones(canvas, [*proximal, (shaft_top, knee, 16 * thick, 15 * thick)], 5.5, inside=Tissue.MARROW)
        x = side * 78
        condyles = [((x - 20, 6, 490), (x + 20, 6, 490), 23, 23), ((x, 2, 512), (x, 0, 560), 24, 14)]
        _bones(canvas, condyles, 2.5, inside=Tissue.TRABECULAR)
        _bones(canvas, [((x, -42, 502), (x, -42, 488), 15, 13)], 2.5)
        _bones(canvas, [((x - 18, 6, 448), (x + 18, 6, 448), 19, 19), ((x, 2, 440), (x, 2, 400), 20, 14)], 2.5)
        _bones(canvas, [((x, 0, 405), (x - side * 4, -2, 110), 14, 12)], 4.5, inside=Tissue.MARROW)
        _bones(canvas, [((side * 106, 20, 436), (side * 92, 12, 110), 8, 7)], 3, inside=Tissue.MARROW)


def draw_arm_bones(canvas: Canvas, arms: Iterable[tuple[Point, ...]], rng: np.random.Generator) -> None:
    """Paint humerus, radius, ulna and the middle hand's bones, under the arms' own labels."""
    thick = float(rng.uniform(0.93, 1.08))
    for joints in arms:
        shoulder, elbow, wrist, tip = (np.asarray(joint) for joint in joints)
        across = np.cross(wrist - elbow, (0, 1, 0))
        across = across / np.linalg.norm(across)
        palm = wrist + 0.62 * (tip - wrist)
        bones: list[tuple[list[tuple], float]] = [
            ([(shoulder, shoulder, 22, 22), (shoulder, elbow, 12 * thick, 10.5 * thick)], 4),
            ([(elbow - 16 * across, elbow + 16 * across, 12, 12)], 3),
        ]
        for at in (-9, 9):
            bones.append(([(elbow + at * across, wrist + at * across, 8.5 * thick, 7.5 * thick)], 3))
        for at in (-12, 0, 12):
            bones.append(([(wrist + 0.6 * at * across, palm + at * across, 6, 4.5)], 2.5))
        for rods, cortex_mm in bones:
            _bones(canvas, rods, cortex_mm, Tissue.ARM_CORTEX, Tissue.ARM_MARROW)


def _bones(
    canvas: Canvas,
    rods: list,
    cortex_mm: float,
    cortex: Tissue = Tissue.CORTEX,
    inside: Tissue = Tissue.TRABECULAR,
) -> None:
    """Paint one bone made of tapered rods (start, end, radius, end radius)."""
    view = canvas.around([point for rod in rods for point in rod[:2]], 40)
    distance = capsule(view, *rods[0])
    for rod in rods[1:]:
        distance = smooth_union(distance, capsule(view, *rod), 5)
    _bone(canvas, view, distance, cortex_mm, cortex, inside)


def _bone(
    canvas: Canvas,
    view: View,
    distance: np.ndarray,
    cortex_mm: float,
    cortex: Tissue = Tissue.CORTEX,
    inside: Tissue = Tissue.TRABECULAR,
) -> None:
    """Paint a bone: a shell of cortex `cortex_mm` thick around `inside`."""
    canvas.paint(view, distance < 0, cortex)
    canvas.paint(view, distance < -cortex_mm, inside)
