"""T1-like MR made from CT alone: pairs that start a model off with the right contrast, without a paired patient.

What a T1-weighted spin echo shows of a limb or trunk is told from HU and from where the bones are. A voxel's signal is
the sum of what its tissues give, by volume:

    outside bone    s = (1 - v) (w fat + (1 - w) muscle)      w: share of fat between fat's and muscle's HU
    inside bone     s = (1 - v) fat (1 - c)                   v: share of mineral, c: compact bone

Fat and fatty marrow are bright, muscle and organs dim, mineral, air and skin dark. Marrow has the HU of soft tissue or
of partial volume with trabeculae; only its place, enclosed by compact bone, tells it from muscle and calcification.
Every number is drawn anew for every slice (domain randomisation: Tobin et al., IROS 2017; Billot et al., SynthSeg,
Medical Image Analysis 2023), so that what is learnt is structure, not one scanner's values. Blur, bias field and noise
(Rician, as in magnitude images: Gudbjartsson and Patz, Magn Reson Med 1995) follow.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from skimage.restoration import denoise_tv_chambolle

from data.intensity import AIR_HU, IntensityMap

# Where bone begins when whole bones are outlined, and the smallest and largest outlines that count.
_BONE_HU = 200.0
_SMALLEST_BONE_MM2 = 25.0
_LARGEST_MARROW_MM2 = 4000.0
# The edge's part of an enclosure, in shares of the bone's: a corner leaves 4 / pi of a round bone's quarter.
_LARGEST_OPENING = 1.3
# How deep below a bone's surface compact bone is spared from smoothing.
_CORTEX_MM = 3.0


@dataclass(frozen=True)
class SimulatedPairs:
    """Makes training pairs from CT slices as the networks see them: through `ct_map`, pixels of `spacing_mm`."""

    ct_map: IntensityMap
    spacing_mm: float

    def __call__(self, ct: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return simulated MR and CT, cut to one field of view, of a CT slice; all float32 (1, H, W) in [-1, 1]."""
        mr = torch.from_numpy(simulate_mr(self.ct_map.to_physical(ct[0].numpy()), self.spacing_mm, rng))[None]
        seen = torch.from_numpy(random_field_of_view(ct.shape[1:], rng))
        air = float(self.ct_map.to_network(AIR_HU))
        return torch.where(seen, mr, -1.0), torch.where(seen, ct, air)


def simulate_mr(ct: np.ndarray, spacing_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Return a T1-like MR of an axial CT slice.

    Args:
        ct: (H, W) in HU, without the couch.
        spacing_mm: pixel size.
        rng: draws everything that is random.

    Returns:
        float32 (H, W) in [-1, 1]: -1 is no signal, 1 the upper end of the MR's window.
    """
    clean = ndimage.gaussian_filter(denoised(ct), rng.uniform(0, 1) / spacing_mm)
    fat, muscle = rng.uniform(0.65, 0.9), rng.uniform(0.15, 0.35)
    inside = bone_depth(clean, spacing_mm)
    # Below its cortex a bone shows the CT's noise, which would tell the network where bone is.
    clean = np.where(inside > _CORTEX_MM, ndimage.gaussian_filter(clean, 1.5 / spacing_mm), clean)
    signal = _blend(
        _soft_tissue(clean, fat, muscle, rng)
        * (1 - _interfaces(clean, spacing_mm, rng))
        * (1 - _dark_details(ct.shape, spacing_mm, rng)),
        _bone(clean, inside, fat, rng),
        np.clip(inside - rng.uniform(0.5, 1.5), 0, 1),
    )
    signal = signal * (1 - _skin(clean, spacing_mm, rng))
    signal = ndimage.gaussian_filter(signal, rng.uniform(0, 0.9) / spacing_mm)
    signal = signal * np.exp(_smooth_field(ct.shape, 3, rng.uniform(0, 0.12), rng))
    noise = rng.uniform(0.002, 0.02)
    signal = np.hypot(signal + rng.normal(0, noise, ct.shape), rng.normal(0, noise, ct.shape))
    return (2 * signal.clip(0, 1) - 1).astype(np.float32)


def random_field_of_view(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return a rectangle, bool (H, W), True inside: MR often ends within the body, with nothing beyond.

    One slice in five is seen whole; of the others each side is cut with probability 1/2, by up to 45 %.
    """
    height, width = shape
    inside = np.ones(shape, bool)
    if rng.random() < 0.2:
        return inside
    top, bottom, left, right = (
        int(rng.uniform(0, 0.45) * extent) if rng.random() < 0.5 else 0 for extent in (height, height, width, width)
    )
    inside[:] = False
    inside[top : height - bottom, left : width - right] = True
    return inside


def denoised(ct: np.ndarray) -> np.ndarray:
    """Return CT without its noise below bone: total variation (Chambolle, J Math Imaging Vis 2004) with its weight from
    the noise found, the median difference of neighbours in soft tissue. An MR's noise is not the CT's.
    """
    soft = (ct > -250) & (ct < 200)
    both = soft[:, 1:] & soft[:, :-1]
    if not both.any():
        return ct.astype(np.float32)
    sigma = np.median(np.abs(np.diff(ct, axis=1)[both])) / (0.6745 * np.sqrt(2))
    smooth = denoise_tv_chambolle(ct.clip(AIR_HU, 300).astype(np.float32), 1.5 * max(float(sigma), 1), max_num_iter=40)
    return np.where(smooth > 230, ct, smooth).astype(np.float32)


def bone_depth(ct: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return for every pixel of a slice its distance in mm to the outside of the bone that it lies in; 0 outside bones.

    A bone is compact bone with all that it encloses, where the edge of the picture may be part of the enclosure.
    """
    pad = max(1, round(3 / spacing_mm))
    dense = np.pad(ndimage.gaussian_filter(ct, 0.6 / spacing_mm) > _BONE_HU, pad, mode="edge")
    dense = ndimage.binary_closing(dense, iterations=max(1, round(1.5 / spacing_mm)))[pad:-pad, pad:-pad]
    pieces, n = ndimage.label(dense)
    areas = ndimage.sum_labels(dense, pieces, np.arange(n + 1)) * spacing_mm**2
    bone = (areas >= _SMALLEST_BONE_MM2)[pieces] & dense
    rest, n = ndimage.label(~bone)
    whole = bone.copy()
    for label, place in enumerate(ndimage.find_objects(rest), start=1):
        part = rest[place] == label
        if part.sum() * spacing_mm**2 <= _LARGEST_MARROW_MM2 and ct[place][part].mean() > -250:
            candidate = rest == label
            wall = ndimage.binary_dilation(candidate, structure=np.ones((3, 3))) & bone
            edge = sum(int(side.sum()) for side in (candidate[0], candidate[-1], candidate[:, 0], candidate[:, -1]))
            if edge < _LARGEST_OPENING * wall.sum():
                whole |= candidate
    # The bone goes on beyond the picture.
    return ndimage.distance_transform_edt(np.pad(whole, 1, mode="edge"))[1:-1, 1:-1] * spacing_mm


def _soft_tissue(ct: np.ndarray, fat: float, muscle: float, rng: np.random.Generator) -> np.ndarray:
    fat_hu, muscle_hu = rng.uniform(-110, -85), rng.uniform(25, 60)
    share = np.clip((muscle_hu - ct) / (muscle_hu - fat_hu), 0, 1)
    # Muscles, organs and tumours differ more than their HU do.
    texture = _smooth_field(ct.shape, int(rng.integers(4, 16)), rng.uniform(0, 0.15), rng)
    signal = (muscle + (fat - muscle) * share) * (1 + texture * (1 - share))
    tissue = np.clip((ct - AIR_HU - 50) / (fat_hu - 20 - AIR_HU - 50), 0, 1)
    mineral = np.clip((ct - rng.uniform(80, 180)) / rng.uniform(300, 700), 0, 1)
    return signal * tissue * (1 - mineral)


def _bone(ct: np.ndarray, depth: np.ndarray, fat: float, rng: np.random.Generator) -> np.ndarray:
    mineral = np.clip((ct + 80) / rng.uniform(1400, 5000), 0, 1)
    # A thin cortex is blurred in CT to the HU of dense trabeculae, but it lies outermost. What CT shows 3 mm wide may
    # be a fine line in MR, or none.
    compact_from = rng.uniform(150, 500) + rng.uniform(80, 160) * np.clip(depth - rng.uniform(0.5, 3), 0, 6)
    compact = np.clip((ct - compact_from) / rng.uniform(80, 400), 0, 1)
    return rng.uniform(0.9, 1.15) * fat * (1 - mineral) * (1 - compact)


def _interfaces(ct: np.ndarray, spacing_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Return the share of the signal that is lost between fat and muscle: fascia and chemical shift.

    Without it all that is bright with a dark outline would be bone.
    """
    sigma = rng.uniform(0.7, 1.2) / spacing_mm
    fat_share = np.clip((40 - ct) / 140, 0, 1)
    steepest = 1 / (np.sqrt(2 * np.pi) * sigma)  # of an edge from 0 to 1
    return rng.uniform(0, 0.8) * np.clip(ndimage.gaussian_gradient_magnitude(fat_share, sigma) / steepest, 0, 1)


def _dark_details(shape: tuple[int, int], spacing_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Return the share of the signal that is lost in vessels, fasciae and tendons, which CT does not tell from others.

    Without them all that is dark inside a body would be air or bone.
    """
    extent_mm = max(shape) * spacing_mm
    coarse = _smooth_field(shape, int(extent_mm / rng.uniform(10, 30)) + 2, 1.0, rng)
    lines = np.clip(1 - np.abs(coarse) / rng.uniform(0.05, 0.2), 0, 1)
    lines *= _smooth_field(shape, int(extent_mm / rng.uniform(20, 60)) + 2, 1.0, rng) > 0
    fine = _smooth_field(shape, int(extent_mm / rng.uniform(3, 8)) + 2, 1.0, rng)
    spots = np.clip(4 * (fine - rng.uniform(2, 3.5)), 0, 1)
    return np.maximum(rng.uniform(0, 0.8) * lines, rng.uniform(0.3, 1) * spots)


def _skin(ct: np.ndarray, spacing_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Return the share of the signal that is lost in the skin, up to 4.5 mm below the surface."""
    depth = ndimage.distance_transform_edt(ct > -500) * spacing_mm
    return np.clip(1 - (depth - 0.5) / rng.uniform(1, 4), 0, 1) * rng.uniform(0.5, 1)


def _blend(outside: np.ndarray, inside: np.ndarray, share: np.ndarray) -> np.ndarray:
    return outside * (1 - share) + inside * share


def _smooth_field(shape: tuple[int, int], cells: int, amplitude: float, rng: np.random.Generator) -> np.ndarray:
    """Return a smooth random field of standard deviation `amplitude` at the nodes of a grid of `cells` x `cells`."""
    nodes = rng.normal(0, amplitude, (cells, cells))
    zoom = [extent / cells for extent in shape]
    return ndimage.zoom(nodes, zoom, order=3, mode="nearest", grid_mode=True)
