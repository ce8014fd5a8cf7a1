"""Options of the shape constraint: the body in a synthetic CT agrees with the mask of its MR."""

from dataclasses import dataclass
from pathlib import Path

from data.settings.declaration import Nature, Need, option
from data.settings.values import nonnegative_float
from models.losses import SHAPE_LOSSES
from models.shape_extractor import FOLDER_NAME


@dataclass(frozen=True, kw_only=True)
class ShapeConstraint:
    """shape constraint: with --lambda_shape 0 and --lambda_shape_gan 0 neither an extractor nor masks are needed."""

    lambda_shape: float = option(
        10.0, nature=Nature.RESULT, parse=nonnegative_float, aliases=("--lambda_Self",),
        first=True, help="weight of the shape loss: the body in the synthetic CT against the mask of its MR",
    )  # fmt: skip
    shape_loss: str = option(
        "l1", nature=Nature.RESULT, choices=tuple(SHAPE_LOSSES), help="form of the shape loss; l1 as published",
        needs=Need("lambda_shape"),
    )  # fmt: skip
    lambda_shape_gan: float = option(
        1.0,
        nature=Nature.FIXED,
        parse=nonnegative_float,
        help="weight of the adversarial loss of the shape discriminator",
    )
    shape_extractor: Path | None = option(
        None, nature=Nature.FREE, parse=Path, needs=Need("lambda_shape", or_option="lambda_shape_gan"),
        help=f"trained shape extractor: its file, or the folder of its run (default: DATAROOT/{FOLDER_NAME})",
    )  # fmt: skip

    @property
    def uses_shape(self) -> bool:
        """Whether the shape extractor and the masks of the MR are needed."""
        return self.lambda_shape > 0 or self.lambda_shape_gan > 0

    def extractor_path(self, dataroot: Path) -> Path:
        """Return where the extractor is: the one that is named, or that of the data set."""
        return self.shape_extractor or dataroot / FOLDER_NAME
