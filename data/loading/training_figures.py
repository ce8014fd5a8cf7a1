"""Statistics of a prepared training set, also of one prepared by an earlier version."""

from dataclasses import replace
from pathlib import Path

from data.loading.slices import read_case
from data.prepared.manifest import Case, Manifest
from data.prepared.training_statistics import TrainingStatistics, section_figures, training_statistics


def describe_training_set(root: Path, manifest: Manifest) -> TrainingStatistics | None:
    """Return the statistics of the prepared data set in `root`; None if its manifest does not record what is needed.

    Cross-sections that it does not record are measured in its files.

    Raises:
        InputError: manifest or files are damaged.
    """
    cases = tuple(
        _measured(root, case, manifest.spacing_mm) if _lacks_sections(case) else case for case in manifest.cases
    )
    return training_statistics(replace(manifest, cases=cases))


def _lacks_sections(case: Case) -> bool:
    is_used = (case.split, case.domain) == ("train", "B") and case.hu_histogram is not None
    return is_used and case.section_cm2 is None


def _measured(root: Path, case: Case, pixel_mm: float) -> Case:
    section, gas = section_figures(*read_case(root, case), pixel_mm)
    return replace(case, section_cm2=section, gas_share=gas)
