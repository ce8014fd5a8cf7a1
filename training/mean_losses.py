"""What a record of losses says: their means over the steps since the record before, of all processes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from training.distributed import ProcessGroup


class MeanLosses:
    """The losses since the last record, summed on the device that they are on: no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        """Begin without any step. Sums are in float64, but for MPS, which has none."""
        self.device = device
        self._type = torch.float32 if device.type == "mps" else torch.float64
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._steps = 0

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Count a step: scalars by name.

        Other names than those before begin a new sum: a run was resumed with other losses.
        """
        if self._names != list(losses):
            self._start_anew()
        values = torch.stack(list(losses.values())).to(self._type)
        self._sums = values if self._sums is None else self._sums + values
        self._names = list(losses)
        self._steps += 1

    def take(self, group: ProcessGroup) -> dict[str, Tensor]:
        """Return the means over the steps since the last record in all processes, and start anew."""
        assert self._sums is not None, "a record follows a step"
        steps = torch.full((1,), self._steps, dtype=self._type, device=self._sums.device)
        # A process that joined when the run resumed may have made fewer steps: sums are averaged, not means.
        totals = group.average({"totals": torch.cat([self._sums, steps])})["totals"]
        means = dict(zip(self._names, totals[:-1] / totals[-1], strict=True))
        self._start_anew()
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and the number of steps: a record after a resume is then that of an unbroken run."""
        sums = [] if self._sums is None else self._sums.tolist()
        return {"steps": self._steps, "sums": dict(zip(self._names, sums, strict=True))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        self._steps, self._names = int(state["steps"]), list(state["sums"])
        sums = list(state["sums"].values())
        self._sums = torch.tensor(sums, dtype=self._type, device=self.device) if sums else None

    def _start_anew(self) -> None:
        self._names, self._sums, self._steps = [], None, 0
