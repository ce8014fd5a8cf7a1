"""What converts a cohort: which volumes, by which model, and what is written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data.values.attenuation import MuSettings


@dataclass(frozen=True, kw_only=True)
class CohortSettings:
    """Settings of one conversion; `options.pipeline_options` makes them of a command line.

    Attributes:
        name, checkpoints_dir, epoch: the model.
        device, precision, batch_size, num_threads: how it runs; None leaves the choice to what is free.
        direction: 'AtoB' makes CT from MR, 'BtoA' MR from CT; None: what the model was trained for.
        spacing_mm: pixel spacing, for a model trained on images without one.
        results_dir: where results go, in a folder of the model's name.
        input_dir, pattern, series_description: the folder that is searched, and for what.
        list: table of the cases, in place of `input_dir`.
        chosen: names that the images of a DICOM series must have.
        num_test: at most this many volumes; None: all.
        overwrite: whether what is up to date is converted again.
        no_html: a picture of each case in place of results pages.
        dicom, anonymous: whether DICOM series are written, and whether they leave out who the patient is.
        mu_settings: how attenuation is computed; None: it is not.
    """

    name: str
    checkpoints_dir: Path
    epoch: str
    device: torch.device
    precision: str
    batch_size: int | None
    num_threads: int | None
    direction: str | None
    spacing_mm: float | None
    results_dir: Path
    input_dir: Path | None
    pattern: Sequence[str] | None
    series_description: re.Pattern | None
    list: Path | None
    chosen: Sequence[str]
    num_test: int | None
    overwrite: bool
    no_html: bool
    dicom: bool
    anonymous: bool
    mu_settings: MuSettings | None
