"""Turn a cohort of MR into synthetic CT: `python test_pipeline.py --name NAME --input_dir DIR --results_dir DIR`."""

from cohort.pipeline import convert_cohort
from data.errors import run_command
from options import pipeline_options
from training.team import open_team


def main(arguments: list[str] | None = None) -> int:
    """Convert what is missing or changed; return 0, or 1 where a case failed."""
    opt = pipeline_options.parse(arguments)
    with open_team() as team:
        return convert_cohort(opt, team)


if __name__ == "__main__":
    run_command(main)
