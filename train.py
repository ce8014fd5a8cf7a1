"""Train a model: `python train.py --dataroot datasets/NAME --name NAME [--model METHOD]`.

Several processes train together where torchrun starts them: `torchrun --nproc_per_node=N train.py ...`.
"""

from data.errors import run_command
from options import train_options
from training.run import train_method


def main(arguments: list[str] | None = None) -> int:
    """Train from the first epoch, or with `--continue_train` from the saved state, to the last; return the exit code.

    That is 0, or 128 and the number of a signal that ended the training.
    """
    settings = train_options.parse(arguments)
    return train_method(train_options.METHODS[settings.method], settings)


if __name__ == "__main__":
    run_command(main)
