"""What memory a device has left, and what an error for want of it asked for."""

import re

import psutil
import torch

# How torch and NumPy say what they asked for: 'Tried to allocate 2.00 GiB', 'you tried to allocate 4096 bytes'.
_ASKED = re.compile(r"(?:[Tt]ried|Unable) to allocate ([\d.]+) ([bKMGTPE])")


def free_memory(device: torch.device) -> int:
    """Return the bytes of a device's memory that are free, or that torch holds in reserve."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return psutil.virtual_memory().available  # an MPS device shares it


def asked_and_free(error: Exception, device: torch.device) -> str:
    """Return what an error for want of memory asked for, where it says so, and what is free.

    For example ' (2.0 GiB more asked for, 1.5 GiB free)'.
    """
    free = f"{free_memory(device) / 2**30:.1f} GiB free"
    found = _ASKED.search(str(error))
    if not found:
        return f" ({free})"
    asked = float(found[1]) * 1024.0 ** "bKMGTPE".index(found[2])
    return f" ({asked / 2**30:.1f} GiB more asked for, {free})"
