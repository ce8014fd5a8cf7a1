"""Options of the training data: the data set, how slices are drawn and augmented, and their intensities."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError
from data.loading.augmentation import FLIPS, PREPROCESS, Augmentation
from data.prepared.manifest import MANIFEST_NAME
from data.settings.declaration import Nature, option
from data.settings.values import nonnegative_float, nonnegative_int, odd_int, positive_int
from data.values.intensity import (
    CT_TRANSFERS,
    CT_WINDOW_HU,
    IntensityMap,
    parse_ct_transfer,
    parse_window,
)
from data.values.mr_rules import Rule, parse_mr_rules


@dataclass(frozen=True, kw_only=True)
class CtMapSettings:
    """CT intensities."""

    # What they mean together is recorded, as `ct_map`.
    ct_window: tuple[float, float] | None = option(
        None, nature=Nature.FREE, nargs=2, metavar=("LO", "HI"), convert=parse_window,
        help="HU at -1 and 1 (default: -1000 1400)",
    )  # fmt: skip
    ct_transfer: str | None = option(
        None, nature=Nature.FREE,
        help=f"curve in place of --ct_window: {', '.join(CT_TRANSFERS)} or HU:VALUE,HU:VALUE,...",
    )  # fmt: skip

    @property
    def ct_map(self) -> IntensityMap:
        """HU to the networks' [-1, 1].

        Raises:
            InputError: both options were given, or the curve is none.
        """
        if self.ct_window and self.ct_transfer:
            raise InputError("--ct_window and --ct_transfer: expected one of them")
        if self.ct_transfer:
            return parse_ct_transfer(self.ct_transfer)
        return IntensityMap.window(*(self.ct_window or CT_WINDOW_HU))


@dataclass(frozen=True, kw_only=True)
class DataSettings(CtMapSettings):
    """data."""

    dataroot: Path = option(
        nature=Nature.FREE, parse=Path, first=True, help="prepared data set, or folder of trainA/ and trainB/ images"
    )
    batch_size: int = option(
        1,
        nature=Nature.RESULT,
        parse=positive_int,
        aliases=("--batchSize",),
        first=True,
        help="slices (or slabs) per step, of each domain",
    )
    num_threads: int = option(
        2,
        nature=Nature.FREE,
        parse=nonnegative_int,
        aliases=("--nThreads",),
        help="threads that load slices ahead of the training",
    )
    slab: int = option(
        1,
        nature=Nature.FIXED,
        parse=odd_int,
        first=True,
        help="neighbouring slices that the networks see at once as channels; an odd number",
    )
    max_dataset_size: int | None = option(
        None, nature=Nature.RESULT, parse=positive_int, help="use at most this many samples per epoch"
    )
    preprocess: str | None = option(
        None,
        nature=Nature.FIXED,
        choices=PREPROCESS,
        first=True,
        help="none: slices as prepared; crop: a random square; body_crop: a square around the body; resize_and_crop: "
        "resize, then a random square (default: none; for a folder of images, resize to "
        f"{Augmentation.crop_size} x {Augmentation.crop_size} as published)",
    )
    load_size: int | None = option(
        None, nature=Nature.FIXED, parse=positive_int, aliases=("--loadSize",),
        help=f"with resize_and_crop: size in pixels before the crop (default: {Augmentation.load_size})",
    )  # fmt: skip
    crop_size: int | None = option(
        None, nature=Nature.FIXED, parse=positive_int, aliases=("--fineSize",),
        first=True, help=f"side of the random crop in pixels (default: {Augmentation.crop_size})",
    )  # fmt: skip
    flip: str = option(
        "", nature=Nature.RESULT, nargs="?", const="x", choices=(*FLIPS, "none"), metavar="AXES", first=True,
        help="mirror at random: x swaps left and right (also --flip alone), y front and back, xy both; none: no "
        "mirroring; "
        "for limbs xy, for trunks at most x, although it puts organs on the wrong side",
    )  # fmt: skip
    rotate: float = option(
        0.0, nature=Nature.RESULT, parse=nonnegative_float, help="rotate at random by up to this many degrees"
    )
    zoom: float = option(
        0.0, nature=Nature.RESULT, parse=nonnegative_float, help="scale at random by up to this fraction"
    )
    mr_window: Rule | Mapping[str, Rule] = option(
        "percentile", nature=Nature.FIXED, nargs="+", metavar="W", convert=parse_mr_rules,
        first=True,
        help="how MR intensities are scaled: percentile or tissue (0 to just above fat), each from the volume itself, "
        "or the fixed limits LO HI; for several contrasts NAME=percentile, NAME=tissue or NAME=LO:HI each",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Fill in what depends on other options; refuse sizes without effect and impossible values.

        Raises:
            InputError: it names the option and what it needs.
        """
        if self.preprocess is None and self.load_size is None and self.crop_size is None and self.of_images:
            object.__setattr__(self, "load_size", Augmentation.crop_size)
            object.__setattr__(self, "preprocess", "resize_and_crop")
        elif self.preprocess is None:
            object.__setattr__(self, "preprocess", "none")
        if self.load_size and self.preprocess != "resize_and_crop":
            raise InputError("--load_size does nothing without --preprocess resize_and_crop")
        if self.crop_size and self.preprocess == "none":
            raise InputError(f"--crop_size does nothing without --preprocess {', '.join(PREPROCESS[1:])}")
        _ = self.ct_map, self.augmentation

    @property
    def of_images(self) -> bool:
        """Whether the data set is a folder of images, and none that was prepared."""
        return not (self.dataroot / MANIFEST_NAME).exists() and (self.dataroot / "trainB").is_dir()

    @property
    def augmentation(self) -> Augmentation:
        """What is done to every slice."""
        sizes = (self.load_size or Augmentation.load_size, self.crop_size or Augmentation.crop_size)
        return Augmentation(self.preprocess or "none", *sizes, self.flip.replace("none", ""), self.rotate, self.zoom)
