"""What the simulation of MR from CT draws its random numbers from."""

from dataclasses import dataclass

from data.volumes.contrasts import ONLY_CONTRAST


@dataclass(frozen=True)
class SimulationSettings:
    """Ranges that the simulation draws from: (low, high) of a uniform distribution, signals in shares of the window.

    Attributes:
        fat, muscle: their signals. marrow: in shares of fat's signal.
        bone_from_hu, bone_to_hu: a voxel of a bone holds no mineral below the one, nothing else above the other.
        field_of_view: twice the probability that a side of the field of view is cut.
        bias: standard deviation of the logarithm of the bias field at its nodes.
        skin_mm: largest mean thickness of skin that loses its signal; 0: it is as bright as its HU say.
        mr_slice_mm: largest distance of the slices that an MR was acquired in. Where what is drawn, from 0 to this, is
            larger than the distance of the CT's slices, the MR's are as thick and were interpolated.
        noise: of each channel, in shares of the window.
        contrasts: which MR images are made, names of `data.simulation.contrasts.CONTRASTS`.
        other_sequences: probability that a slab is of no T1-weighted sequence: fat and muscle of any brightness.
    """

    fat: tuple[float, float] = (0.65, 1.0)
    muscle: tuple[float, float] = (0.2, 0.45)
    marrow: tuple[float, float] = (0.35, 1.1)
    bone_from_hu: tuple[float, float] = (60.0, 260.0)
    bone_to_hu: tuple[float, float] = (600.0, 1100.0)
    field_of_view: float = 0.8
    bias: tuple[float, float] = (0.0, 0.15)
    skin_mm: float = 3.0
    mr_slice_mm: float = 9.0
    noise: tuple[float, float] = (0.002, 0.025)
    contrasts: tuple[str, ...] = (ONLY_CONTRAST,)
    other_sequences: float = 0.0
