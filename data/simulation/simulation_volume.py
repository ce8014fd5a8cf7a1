"""What the simulation of MR needs of a CT volume, computed once: CT without noise and contrast agent, depth in bone and
in the spinal canal.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage import restoration

from data.simulation.spinal_canal import spinal_canal
from data.values.intensity import AIR_HU

# Raised when the same CT gives other maps: what is kept of a data set is then computed anew.
METHOD_VERSION = 3
# Where bone begins when whole bones are outlined, and the smallest and largest outlines that count.
_BONE_HU = 160.0
_SMALLEST_BONE_MM2 = 25.0
_LARGEST_MARROW_MM2 = 4000.0
# The edge's part of an enclosure, in shares of the bone's: a corner leaves 4 / pi of a round bone's quarter.
_LARGEST_OPENING = 1.3
# Contrast agent: dense parts that lie deeper than every rib below the skin, without compact bone, or small and within
# the volume.
_CONTRAST_HU = 170.0
_CONTRAST_DEPTH_MM = 24.0
_COMPACT_HU, _COMPACT_SHARE = 550.0, 0.03
_SKELETON_MM3 = 100_000.0
_SOFT_TISSUE_HU = 60.0


@dataclass(frozen=True)
class SimulationVolume:
    """A CT volume for the simulation: `hu` int16 (N, H, W) and `depth` int8 (N, H, W).

    `depth`: how deep below the surface of its bone the centre of a pixel lies, in quarters of a mm, at most 31 mm; in
    the spinal canal how far from its wall, below zero; 0 elsewhere.
    """

    hu: np.ndarray
    depth: np.ndarray


def simulation_volume(
    ct: np.ndarray, body: np.ndarray, pixel_mm: float, slice_mm: float, view: str = "axial"
) -> SimulationVolume:
    """Return a CT volume as the simulation of MR needs it.

    Args:
        ct: (N, H, W) in HU, without the couch.
        body: its body mask, bool (N, H, W).
        pixel_mm, slice_mm: spacing in the plane and between slices.
        view: how the slices lie in the body, of `data.volumes.slice_frame.VIEWS`; only axial ones show the canal.
    """
    clean = np.stack([denoised(plane) for plane in ct])
    clean = without_contrast_agent(clean, body, pixel_mm, slice_mm)
    outlines = [_bones(plane, pixel_mm) for plane in clean]
    compact, whole = (np.stack(masks) for masks in zip(*outlines, strict=True))
    canal = np.zeros_like(whole)
    if view == "axial":
        canal = spinal_canal(clean, compact, whole & ~compact, pixel_mm, slice_mm)
    depth = np.stack([_depth(plane, pixel_mm) for plane in whole & ~canal])
    depth -= np.stack([_depth(plane, pixel_mm) for plane in canal])
    return SimulationVolume(np.rint(clean).astype(np.int16), np.rint(4 * depth.clip(-31, 31)).astype(np.int8))


def denoised(ct: np.ndarray) -> np.ndarray:
    """Return CT without its noise below bone: total variation (Chambolle, J Math Imaging Vis 2004) with its weight from
    the noise found, the median difference of neighbours in soft tissue. An MR's noise is not the CT's.
    """
    soft = (ct > -250) & (ct < 200)
    both = soft[:, 1:] & soft[:, :-1]
    if not both.any():
        return ct.astype(np.float32)
    sigma = np.median(np.abs(np.diff(ct.astype(np.float32), axis=1)[both])) / (0.6745 * np.sqrt(2))
    smooth = restoration.denoise_tv_chambolle(
        ct.clip(AIR_HU, 300).astype(np.float32), 1.5 * max(float(sigma), 1), max_num_iter=40
    )
    return np.where(smooth > 230, ct, smooth).astype(np.float32)


def without_contrast_agent(ct: np.ndarray, body: np.ndarray, pixel_mm: float, slice_mm: float) -> np.ndarray:
    """Return a CT whose bowel, kidneys and vessels hold no contrast agent: what is dense there is as soft tissue.

    Dense parts are contrast agent where they lie deep below the skin everywhere and are not built like bone.
    """
    spacing = (slice_mm, pixel_mm, pixel_mm)
    inside = np.stack([ndimage.distance_transform_edt(ndimage.binary_fill_holes(plane)) * pixel_mm for plane in body])
    pieces, n = ndimage.label(ndimage.gaussian_filter(ct, (0, 1.0 / pixel_mm, 1.0 / pixel_mm)) > _CONTRAST_HU)
    if not n:
        return ct
    numbers = np.arange(1, n + 1)
    volume = ndimage.sum_labels(np.ones_like(pieces, np.float32), pieces, numbers) * np.prod(spacing)
    shallow = ndimage.minimum(inside, pieces, numbers)
    compact = ndimage.mean(ct > _COMPACT_HU, pieces, numbers)
    # A bone may be short because the volume is: one that passes through its first and last slice.
    passes = np.isin(numbers, pieces[0]) & np.isin(numbers, pieces[-1])
    bone = (shallow < _CONTRAST_DEPTH_MM) | ((compact > _COMPACT_SHARE) & (passes | (volume > _SKELETON_MM3)))
    bones = np.concatenate([[False], bone])[pieces]
    near_bone = ndimage.distance_transform_edt(~bones, spacing) < 5 if bones.any() else bones
    agent = ndimage.binary_dilation(np.concatenate([[False], ~bone])[pieces], iterations=2) & ~bones
    result = np.where(agent, np.minimum(ct, _SOFT_TISSUE_HU), ct)
    return np.where(near_bone, result, np.minimum(result, 100.0)).astype(np.float32)


def bone_depth(ct: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Return how deep in mm below its bone's surface the centre of each pixel of a slice lies; 0 outside bones.

    A bone is compact bone with all that it encloses. Its surface runs between pixels: the outermost ones lie half a
    pixel deep.
    """
    return _depth(_bones(ct, pixel_mm)[1], pixel_mm)


def _depth(mask: np.ndarray, pixel_mm: float) -> np.ndarray:
    # What is inside continues beyond the picture.
    pixels = ndimage.distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1]
    return (pixels - 0.5).clip(min=0) * pixel_mm


def _bones(ct: np.ndarray, pixel_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the compact bone of a slice, and it with all that it encloses, where the edge of the picture may be part
    of the enclosure; both bool (H, W).
    """
    pad = max(1, round(3 / pixel_mm))
    dense = np.pad(ndimage.gaussian_filter(ct, 0.6 / pixel_mm) > _BONE_HU, pad, mode="edge")
    dense = ndimage.binary_closing(dense, iterations=max(1, round(1.5 / pixel_mm)))[pad:-pad, pad:-pad]
    pieces, n = ndimage.label(dense)
    areas = ndimage.sum_labels(dense, pieces, np.arange(n + 1)) * pixel_mm**2
    bone = (areas >= _SMALLEST_BONE_MM2)[pieces] & dense
    rest, n = ndimage.label(~bone)
    whole = bone.copy()
    for label, place in enumerate(ndimage.find_objects(rest), start=1):
        part = rest[place] == label
        if part.sum() * pixel_mm**2 <= _LARGEST_MARROW_MM2 and ct[place][part].mean() > -250:
            candidate = rest == label
            wall = ndimage.binary_dilation(candidate, structure=np.ones((3, 3))) & bone
            edge = sum(int(side.sum()) for side in (candidate[0], candidate[-1], candidate[:, 0], candidate[:, -1]))
            if edge < _LARGEST_OPENING * wall.sum():
                whole |= candidate
    return bone, whole
