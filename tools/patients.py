"""Patients with an MR and its true CT on one grid, as the studies of a model take them."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from data.errors import InputError
from data.volumes.volume import Volume, read_volume
from evaluation.case_folders import CaseVolumes
from evaluation.cases import case_volumes, read_reference


def add_patients(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the patients and the models lie."""
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of patients")
    parser.add_argument("--mr_pattern", default="{case}/{case}_MR_T1.nii.gz", help="where an MR lies in them")
    parser.add_argument(
        "--ct_pattern", default="{case}/{case}_CT_on_MR_grid.nii.gz", help="where its true CT lies in them"
    )
    parser.add_argument("--checkpoints_dir", type=Path, default=Path("checkpoints"), help="where models are kept")


def patients(options: argparse.Namespace) -> Iterator[tuple[str, Volume, Volume]]:
    """Yield name, MR and true CT (HU) of every patient that has both, one folder after the other, by name.

    Raises:
        InputError: a folder holds none, or one of an earlier folder's names.
    """
    seen: set[str] = set()
    for folder in options.data:
        mr, ct = (
            case_volumes(CaseVolumes("--data", folder, pattern, kind, pattern_called=f"--{kind}_pattern")) or {}
            for kind, pattern in (("mr", options.mr_pattern), ("ct", options.ct_pattern))
        )
        if not mr.keys() & ct.keys():
            raise InputError(f"--data {folder}: no patient has both an MR and a CT")
        if twice := seen & mr.keys() & ct.keys():
            raise InputError(f"--data {folder}: {min(twice)} is in an earlier folder, too; name patients differently")
        seen |= mr.keys() & ct.keys()
        for case in sorted(mr.keys() & ct.keys()):
            volume = read_volume(mr[case])
            yield case, volume, read_reference(ct[case], volume).ct
