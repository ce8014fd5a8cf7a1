"""What the models of a run make of one volume, step by step, and what is found when that is checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cohort.checks import Findings, check_conversion, join_findings
from data.loading.single_dataset import SlabSpread
from data.volumes.volume import Volume
from models.ensemble import Fusion, new_spread
from models.inference_settings import InferenceSettings
from models.synthesis import Synthesiser, VolumePlan, prepare_volume, restore_volume


class Made(NamedTuple):
    """What is made of a volume: a synthetic one, its uncertainty where asked for, the source's body, and findings."""

    synthetic: Volume
    deviation: Volume | None
    body: np.ndarray
    findings: Findings


class Part(NamedTuple):
    """One model's part of a volume on its way: slices that go through the network, and the plan for what comes out."""

    slices: np.ndarray
    plan: VolumePlan


class Output(NamedTuple):
    """What one model's network gave, (M, size, size) in [-1, 1], how far its views lie apart, and the plan for both."""

    translated: np.ndarray
    spread: SlabSpread | None
    plan: VolumePlan


@dataclass(frozen=True)
class Models:
    """The models of a run, by name.

    Attributes:
        synthesisers: the models.
        fusion: how the CT of several become one; None: by their mean.
        uncertainty: whether the standard deviation is wanted.
        batch_size: slices in one pass, or None.
    """

    synthesisers: dict[str, Synthesiser]
    fusion: str | None
    uncertainty: bool
    batch_size: int | None

    @property
    def first(self) -> Synthesiser:
        """The first one: all take and make the same."""
        return next(iter(self.synthesisers.values()))

    @property
    def settings(self) -> InferenceSettings:
        """Settings of the first one."""
        return self.first.settings

    def prepare(self, source: Volume, body: np.ndarray | None, further: Sequence[Volume]) -> list[Part]:
        """Return what goes through each network; the body is found once. Errors as in `prepare_volume`."""
        parts = []
        for one in self.synthesisers.values():
            parts.append(Part(*prepare_volume(source, one.settings, body, further)))
            body = parts[-1].plan.body
        return parts

    def translate(self, parts: list[Part]) -> list[Output]:
        """Send a volume through the networks, on the device; what has gone through is taken out of `parts`."""
        outputs = []
        for one in self.synthesisers.values():
            slices, plan = parts.pop(0)
            spread = new_spread(slices, plan, one.model.slab) if self.uncertainty else None
            outputs.append(Output(one.model.translate(slices, self.batch_size, spread), spread, plan))
        return outputs

    def restore(self, outputs: Sequence[Output]) -> list[Volume]:
        """Return the volume that each model makes."""
        return [restore_volume(output.translated, output.plan) for output in outputs]

    def fuse(self, outputs: Sequence[Output], volumes: Sequence[Volume]) -> tuple[Volume, Volume | None]:
        """Return what the models make together, and its standard deviation where that is wanted."""
        if len(volumes) == 1 and not self.uncertainty:
            return volumes[0], None
        together = Fusion(volumes[0], self.fusion)
        for output, volume in zip(outputs, volumes, strict=True):
            together.add(volume, output.plan, output.spread)
        synthetic, deviation = together.result()
        return synthetic, deviation if self.uncertainty else None

    def check(self, outputs: Sequence[Output], volumes: Sequence[Volume]) -> Findings:
        """Check what each model makes against what that one was trained on."""
        return join_findings({
            name: check_conversion(output.plan, output.translated, volume, one.settings.training)
            for (name, one), output, volume in zip(self.synthesisers.items(), outputs, volumes, strict=True)
        })  # fmt: skip
