"""One trained generator, for use: evaluation mode, no gradients, batches of slices."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from data.single_dataset import SingleDataset
from models.cycle_gan_model import PRECISIONS
from models.inference_settings import InferenceSettings
from models.networks import build_generator
from models.state_dicts import load_network_weights


class TestModel:
    """The generator from the source to the target domain (`G_A`)."""

    __test__ = False  # not a test case, whatever its published name makes pytest think

    def __init__(
        self, settings: InferenceSettings, weights: Path, device: torch.device, precision: str = "fp32"
    ) -> None:
        """Build the generator and load its weights from the file `weights`."""
        s = settings
        self.device, self.dtype = device, PRECISIONS[precision]
        self.netG = build_generator(s.netG, ngf=s.ngf, norm=s.norm, use_dropout=s.use_dropout, upsample=s.upsample)
        load_network_weights(self.netG, weights)
        self.netG.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def translate(self, slices: np.ndarray, batch_size: int) -> np.ndarray:
        """Return the target slices of source slices; both float32 (N, H, W) in [-1, 1]."""
        translated = np.empty_like(slices)
        start = 0
        for batch in DataLoader(SingleDataset(slices), batch_size):
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                output = self.netG(batch.to(self.device))
            translated[start : start + len(output)] = output[:, 0].float().cpu().numpy()
            start += len(output)
        return translated
