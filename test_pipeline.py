"""Convert a cohort of MR to synthetic CT: `python test_pipeline.py --name NAME --input_dir FOLDER`.

A folder of images, or one with `testA`, is converted to images and a page.
"""

from cohort.images import convert_images, takes_images
from cohort.pipeline import convert_cohort
from data.errors import run_command
from options import pipeline_options
from training.distributed import open_process_group


def main(arguments: list[str] | None = None) -> int:
    """Convert what is missing or changed; return 0, or 1 if a case failed or could not be scored."""
    opt = pipeline_options.parse(arguments)
    with open_process_group() as group:
        if group.share(lambda: takes_images(opt)):
            return group.share(lambda: convert_images(opt, group.device(opt.device)))
        return convert_cohort(opt, group)


if __name__ == "__main__":
    run_command(main)
