"""Which of the images of a DICOM series are meant."""

import re
from dataclasses import dataclass

from data.settings.declaration import option
from data.settings.values import positive_int, regular_expression


@dataclass(frozen=True, kw_only=True)
class DicomChoice:
    """which images of DICOM series."""

    series_description: re.Pattern | None = option(
        None, parse=regular_expression, metavar="REGEX", first=True,
        help="use the DICOM series whose description matches this regular expression, in upper or lower case",
    )  # fmt: skip
    contrast: str | None = option(
        None, first=True,
        help="which volume, if a DICOM series holds several; without it, the error message lists their names",
    )  # fmt: skip
    echo: int | None = option(
        None, parse=positive_int, metavar="N", help="which echo of such a series; 1 is the earliest"
    )

    @property
    def chosen(self) -> list[str]:
        """Names that the images must have."""
        return [name for name in (self.contrast, self.echo and f"echo{self.echo}") if name]
