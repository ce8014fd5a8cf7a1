"""Moving average of a network's weights, used for inference: it varies less than the weights of one step."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class WarmedUpAverage(AveragedModel):
    """Exponential moving average of a network; its decay rises to `decay`: (1 + n) / (10 + n) at update n.

    Otherwise the first weights, and the batch norm's statistics of them, would weigh decay^n: in short trainings most.
    The count stays on the host (torch's own average asks the device for it at every update, and waits).
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        """Begin with a copy of `net`, which the first update sets anew."""
        super().__init__(net)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Average the parameters and buffers of `model` in; integer ones are copied."""
        n = int(self.n_averaged)  # on the CPU
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        if floating:
            torch._foreach_lerp_([own for own, _ in floating], [current for _, current in floating], 1 - decay)
        for own, current in pairs:
            if not own.is_floating_point():
                own.copy_(current)
        self.n_averaged += 1
