"""Convert one volume with the models of a run, step by step, and check the result."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cohort.checks import Check
from cohort.findings import Findings, join_findings
from cohort.outside_tissue import FAR_MM, clear_outside
from data.volumes.slice_frame import RestoredVolume
from data.volumes.volume import Volume
from models.ensemble import Fusion, stream_with_variance
from models.inference_settings import InferenceSettings, package_versions
from models.synthesis import Synthesiser, VolumePlan, prepare_volume, restore_volume
from models.test_model import TestModel, gathered


def describe_computation(model: TestModel) -> dict[str, Any]:
    """Return on what a model runs: device, precision, host, and the versions of packages."""
    return {
        "device": str(model.device), "precision": model.precision, "host": socket.gethostname(),
        "versions": package_versions(),
    }  # fmt: skip


class Made(NamedTuple):
    """The result for a volume: the synthetic volume, its uncertainty if requested, the source's body, and findings."""

    synthetic: Volume
    deviation: Volume | None
    body: np.ndarray
    findings: Findings

    def clear_outside(self) -> None:
        """Set tissue of the synthetic CT far outside the body to air, and note how much that was."""
        ml = clear_outside(self.synthetic, self.body, self.deviation)
        if ml:
            self.findings.notes.append(
                f"{ml:.1f} ml of tissue more than {FAR_MM:g} mm outside the body that was found in the MR were set to "
                "air (--air_outside)"
            )


class Part(NamedTuple):
    """One model's part of a volume in progress: slices for the network, and the plan for its output."""

    slices: np.ndarray
    plan: VolumePlan


class Output(NamedTuple):
    """One model's output: (M, size, size) in [-1, 1], its variance if requested, and the plan for both."""

    translated: np.ndarray
    variance: RestoredVolume | None
    plan: VolumePlan


@dataclass(frozen=True)
class Models:
    """The models of a run, by name.

    Attributes:
        synthesisers: the models.
        fusion: how the CT of several become one; None: by their mean.
        uncertainty: whether the standard deviation is wanted.
        batch_size: slices in one pass, or None.
        mixture: a warning of the models together, for every case.
        air_outside: whether tissue of the CT outside the body is set to air.
    """

    synthesisers: dict[str, Synthesiser]
    fusion: str | None
    uncertainty: bool
    batch_size: int | None
    mixture: str | None = None
    air_outside: bool = False

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
            slices, plan = prepare_volume(source, one.settings, body, further)
            # All of them here, beside the device, which need not wait for any.
            parts.append(Part(np.asarray(slices), plan))
            body = plan.body
        return parts

    def translate(self, parts: list[Part]) -> list[Output]:
        """Send a volume through the networks, on the device; what has gone through is taken out of `parts`."""
        outputs = []
        for one in self.synthesisers.values():
            slices, plan = parts.pop(0)
            if self.uncertainty:
                translated, variance = stream_with_variance(one, slices, plan, self.batch_size)
                outputs.append(Output(gathered(translated, slices), variance, plan))
            else:
                outputs.append(Output(one.model.translate(slices, self.batch_size), None, plan))
        return outputs

    def restore(self, outputs: Sequence[Output]) -> tuple[list[Volume], Findings]:
        """Return the volume of each model, and the findings of its comparison with the training set."""
        volumes, findings = [], {}
        for (name, model), output in zip(self.synthesisers.items(), outputs, strict=True):
            check = Check.of_model(output.plan, model.settings, self.air_outside)
            volumes.append(restore_volume(output.translated, output.plan, check))
            findings[name] = check.findings
        return volumes, join_findings(findings, self.mixture)

    def fuse(self, outputs: Sequence[Output], volumes: Sequence[Volume]) -> tuple[Volume, Volume | None]:
        """Return the volumes of all models combined, and the standard deviation if requested."""
        if len(volumes) == 1 and not self.uncertainty:
            return volumes[0], None
        together = Fusion(volumes[0], self.fusion, self.uncertainty)
        for output, volume in zip(outputs, volumes, strict=True):
            together.add(volume, output.variance)
        return together.result()
