"""Number formats of the networks; losses and weights are always float32."""

import torch

from data.errors import InputError

# tf32 is float32 with fewer bits in a GPU's products.
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision that 'auto' stands for on a device, any other as it is, and set torch up for it.

    'auto' is bf16 where the device multiplies it natively, else fp16 on CUDA, else fp32.

    Raises:
        InputError: 'tf32' for a device that has none.
    """
    if name == "auto":
        name = _fastest(device)
    if name == "tf32" and device.type != "cuda":
        raise InputError(
            f"--precision tf32: {device} has no TF32, only NVIDIA GPUs do; expected auto, fp32, bf16 or fp16"
        )
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = name == "tf32"
    return name


def _fastest(device: torch.device) -> str:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Versions of torch that cannot tell what the CPU does compute in fp32.
    cpu = torch.cpu.get_capabilities() if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if cpu.get("avx512_bf16") or cpu.get("amx_bf16") else "fp32"
