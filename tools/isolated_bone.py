"""How much isolated bone CT have: `python -m tools.isolated_bone CT ...`, volume files of true or synthetic CT.

Prints for each what a conversion notes of a synthetic CT (`cohort/isolated_bone.py`), and the largest share of bone.
"""

from pathlib import Path

from cohort.isolated_bone import isolated_bone
from data.errors import run_command
from data.masks.body_mask import ct_body_mask
from data.settings.parser import CommandParser
from data.values.modality import in_hu
from data.volumes.volume import read_volume


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = CommandParser(prog="python -m tools.isolated_bone", description=__doc__)
    parser.add_argument("ct", type=Path, nargs="+", help="CT in HU")
    largest = 0.0
    for path in parser.parse_args(arguments).ct:
        ct = in_hu(read_volume(path))
        found = isolated_bone(ct, ct_body_mask(ct, synthetic=True))
        largest = max(largest, found.share)
        print(f"{path.name}: {found.describe() if found.pieces else 'no isolated bone'}")
    print(f"largest share of the bone: {100 * largest:.2g} %")


if __name__ == "__main__":
    run_command(main)
