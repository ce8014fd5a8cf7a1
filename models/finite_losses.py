"""Stop a training at losses that are NaN or infinite, without waiting for the GPU."""

from dataclasses import dataclass

import torch
from torch import Tensor

from data.errors import InputError


class NonFiniteLossError(InputError):
    """A loss is NaN or infinite; nothing was updated by the step that met it."""


@dataclass(frozen=True)
class _Watched:
    finite: Tensor
    arrived: torch.cuda.Event | None
    losses: dict[str, Tensor]
    origins: list[str]


class FiniteLosses:
    """Watches the losses of one update after another.

    On a GPU the answer is fetched while the next update is prepared: the update that met a bad loss has been skipped by
    the optimiser then, which knows the answer on the device.
    """

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._last: _Watched | None = None

    def watch(self, losses: dict[str, Tensor], total: Tensor, batch: dict) -> Tensor:
        """Return 1 where `total`, the sum of `losses` on `batch`, is not finite, else 0: for the optimiser to skip it.

        Raises:
            NonFiniteLossError: these losses are not finite; or, on a GPU, those before were not.
        """
        self.settle()
        finite = torch.isfinite(total.detach())
        origins = [*batch.get("origin_A", []), *batch.get("origin_B", [])]
        details = ({name: loss.detach() for name, loss in losses.items()}, origins)
        if total.is_cuda:
            fetched = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            self._last = _Watched(fetched, arrived, *details)
        else:
            self._last = _Watched(finite, None, *details)
            self.settle()
        return (~finite).float()

    def settle(self) -> None:
        """Wait for the last answer.

        Raises:
            NonFiniteLossError: the losses watched last are not finite.
        """
        last, self._last = self._last, None
        if last is None:
            return
        if last.arrived:
            last.arrived.synchronize()
        if not last.finite:
            bad = {name: loss.item() for name, loss in last.losses.items() if not torch.isfinite(loss)}
            where, look = "", ""
            if last.origins:
                where, look = f" on slices {', '.join(last.origins)}", "look at these slices, "
            raise NonFiniteLossError(
                f"loss not finite: {bad}{where}; no weight was changed by it: {look}lower --lr, and resume from the "
                "last saved state with --continue_train, or start again without it where none was saved yet"
            )
