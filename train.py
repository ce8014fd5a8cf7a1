"""Train a model that makes CT from MR: `python train.py --dataroot datasets/NAME --name NAME [--model METHOD]`.

Several processes train together where torchrun starts them: `torchrun --nproc_per_node=N train.py ...`.
"""

import logging
from datetime import timedelta

import torch

from data.errors import run_command
from options import train_options
from options.train_options import METHODS
from training.distributed import open_process_group
from training.run import TrainingRun, memory_shortage_said

# How long a process waits for another, which may be reading from a slow disk, before the training ends.
PATIENCE = timedelta(minutes=30)


def main(arguments: list[str] | None = None) -> int:
    """Train from the first epoch, or from the saved state with `--continue_train`, to the last; return the exit code.

    That is 0, or 128 and the number of a signal that ended the training.
    """
    settings = train_options.parse(arguments)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with memory_shortage_said(settings.run.device), open_process_group(backend, PATIENCE) as group:
        if group.rank > 0:
            logging.getLogger().setLevel(logging.WARNING)
        return TrainingRun(METHODS[settings.method], settings, group).train()


if __name__ == "__main__":
    run_command(main)
