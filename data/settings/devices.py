"""Parse the names of devices. Commands that need none start faster without torch."""

import argparse

import torch


def torch_device(text: str) -> torch.device:
    """Return the device that `--device` names; 'auto' is the GPU if there is one.

    Raises:
        argparse.ArgumentTypeError: unknown, or not on this machine.
    """
    if text == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text}: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise argparse.ArgumentTypeError("mps: not available on this machine")
    return device


def add_gpu_ids(parser: argparse.ArgumentParser) -> None:
    """Add upstream's name of the device."""
    parser.add_argument(
        "--gpu_ids", metavar="IDS", help="as upstream: the GPU's number, -1 for the CPU; overrides --device"
    )


def settle_gpu_ids(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Set the device by `--gpu_ids`, if given."""
    if options.gpu_ids is not None:
        options.device = _gpu_of_ids(parser, options.gpu_ids)


def _gpu_of_ids(parser: argparse.ArgumentParser, text: str) -> torch.device:
    try:
        ids = [int(word) for word in text.split(",")]
        if len(ids) > 1:
            parser.error(f"--gpu_ids {text}: expected one for each process; for several GPUs use torchrun train.py")
        return torch_device("cpu" if ids[0] < 0 else f"cuda:{ids[0]}")
    except ValueError:
        parser.error(f"--gpu_ids {text!r}: expected a number, or -1 for the CPU")
    except argparse.ArgumentTypeError as error:
        parser.error(f"--gpu_ids {error}")
