"""Free memory of a device, and the amount that an out-of-memory error requested."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from data.errors import InputError, is_out_of_memory

# How torch and NumPy say what they asked for: 'Tried to allocate 2.00 GiB', 'you tried to allocate 4096 bytes'.
_ASKED = re.compile(r"(?:[Tt]ried|Unable) to allocate ([\d.]+) ([bKMGTPE])")


def free_memory(device: torch.device) -> int:
    """Return the bytes of a device's memory that are free, or that torch holds in reserve."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return psutil.virtual_memory().available  # an MPS device shares it


def asked_and_free(error: Exception, device: torch.device) -> str:
    """Return how much memory an error requested, if it says so, and how much is free.

    For example ' (2.0 GiB more asked for, 1.5 GiB free)'.
    """
    free = f"{free_memory(device) / 2**30:.1f} GiB free"
    found = _ASKED.search(str(error))
    if not found:
        return f" ({free})"
    asked = float(found[1]) * 1024.0 ** "bKMGTPE".index(found[2])
    return f" ({asked / 2**30:.1f} GiB more requested, {free})"


@contextmanager
def memory_shortage_said(device: torch.device, smaller: str = "") -> Iterator[None]:
    """Turn running out of memory on `device` into an `InputError` with a way out.

    `smaller`: the options of its method that `BaseModel.memory_options` names.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if isinstance(error, MemoryError) or "CPUAllocator" in str(error):  # the computer's, whatever trains
            device = torch.device("cpu")
        new_run = f", or start a run with a smaller {smaller}" if smaller else ""
        raise InputError(
            f"{device}: out of memory{asked_and_free(error, device)}; lower --batch_size or use --precision bf16, and "
            f"resume from the last saved state, if there is one, with --continue_train{new_run}"
        ) from error
