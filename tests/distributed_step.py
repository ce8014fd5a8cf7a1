"""One training step on this process's part of a batch: torchrun runs it for test_distributed_training.py."""

import sys

import torch

from data.values.intensity import IntensityMap
from models.cycle_gan_model import CycleGANModel, CycleGANSettings
from models.shape_extractor import ExtractorSettings, ShapeExtractor
from training.distributed import ProcessGroup, open_process_group

CPU = torch.device("cpu")
SAMPLES = 4


def take_step(group: ProcessGroup, norm: str = "instance") -> dict:
    """Return the mean losses and all gradients of a step of the full method, pools letting images pass."""
    torch.manual_seed(0)
    settings = CycleGANSettings(
        netG="resnet_6blocks", ngf=4, ndf=4, init_gain=0.2, norm=norm, pool_size=0, lambda_shape=10.0,
        lambda_shape_gan=1.0, shape_loss="bce",
    )  # fmt: skip
    extractor = ShapeExtractor(
        ExtractorSettings(width=2, n_classes=1, ct=IntensityMap.window(-1000, 1400), size=32, spacing_mm=1.0)
    )
    model = CycleGANModel(settings, CPU, extractor.requires_grad_(False).eval(), 1, group.rank, group.size)
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand((2, SAMPLES, 1, 32, 32), generator=generator) * 2 - 1
    batch = {"A": a, "B": b, "mask_A": (a > 0).to(torch.uint8)}
    own = slice(group.rank * SAMPLES // group.size, (group.rank + 1) * SAMPLES // group.size)
    losses = group.average(model.step({name: value[own] for name, value in batch.items()}))
    gradients = {
        f"{name}.{key}": parameter.grad
        for name, net in model.networks.items()
        for key, parameter in net.named_parameters()
    }
    return {"losses": losses, "gradients": gradients}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with open_process_group() as processes:
        result = take_step(processes)
        if processes.rank == 0:
            torch.save(result, sys.argv[1])
