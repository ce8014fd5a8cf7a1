"""Validation during a training: volumes that it does not see go through its generators as in use, and are measured.

Of every MR, whether or not a true CT of its patient is known:

    body_dice              Dice of the synthetic CT's body with the MR's mask
    histogram              distance (HU) of the synthetic CT's histogram inside the bodies from the training CT's
    cycle                  mean |G_B(G_A(x)) - x| over the slices with body, x in [-1, 1]

Of every MR whose patient has a CT on the same grid: mae (HU), dice_bone and ssim, inside the true CT's body where the
MR sees it. Of every CT: simulated_mae and simulated_dice_bone inside its body, from an MR that was simulated of it,
always the same one.

Nothing here draws a random number of the training's, nor leaves a trace in its networks.
"""

import logging
from collections import defaultdict
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data.errors import InputError
from data.loading.single_dataset import SingleDataset
from data.loading.slices import prepared_windows
from data.prepared.arrays import read_case, read_contrasts
from data.prepared.manifest import Case, read_manifest
from data.prepared.slice_spacing import through_mm
from data.prepared.splits import ValidationCases, hash_number
from data.prepared.training_statistics import HU_EDGES, hu_distance, hu_histogram
from data.simulation.contrasts import contrasts_to_simulate, shown_alike
from data.simulation.settings import SimulationSettings
from data.simulation.simulated_mr import simulate_volume
from data.simulation.simulation_set import simulation_maps
from data.values.intensity import IntensityMap
from data.volumes.slice_frame import view_direction
from data.volumes.volume import Volume
from evaluation import metrics
from evaluation.criteria import check_criterion, score
from evaluation.unpaired import body_dice, mean_difference
from models.base_model import BaseModel, in_evaluation
from models.inference_settings import InferenceSettings
from models.synthesis import plan_volume, restore_volume
from models.test_model import Translator
from visualization.panels import ValidationSlice

log = logging.getLogger(__name__)

# Slices that are shown: of the MR, and of the MR simulated from CT.
SHOWN, SHOWN_SIMULATED = 3, 1
COMPARISONS = {"mae": metrics.mae, "dice_bone": metrics.dice_bone, "ssim": metrics.ssim}
# A simulated MR is made in the networks' units.
_NETWORK_UNITS = IntensityMap.window(-1.0, 1.0)
# Pixels around the body in pictures.
_SHOWN_MARGIN = 6

Values = dict[str, list[float]]
# Values by name, and slices to show.
Found = tuple[dict[str, float], list[ValidationSlice]]
# It yields after every volume, and returns every volume's values.
Measuring = Generator[None, None, tuple[Values, list[ValidationSlice]]]


@dataclass(frozen=True)
class ValidationVolume:
    """A volume on the data set's grid.

    Attributes:
        name: of the case.
        mr: the contrasts of the MR, each in the units of its map.
        mr_maps: their maps to [-1, 1].
        body: its body mask, bool (z, y, x).
        ct: the CT that should come out, HU (z, y, x); None if it is not known.
        scored: where the CT is compared, bool (z, y, x); None without one.
    """

    name: str
    mr: tuple[Volume, ...]
    mr_maps: tuple[IntensityMap, ...]
    body: np.ndarray
    ct: np.ndarray | None = None
    scored: np.ndarray | None = None


class Validation:
    """What validates a run; it is put together once, and measures the same volumes every time."""

    def __init__(
        self, dataroot: Path, cases: ValidationCases, settings: InferenceSettings, seed: int,
        device: torch.device, precision: str = "fp32", batch_size: int | None = None,
    ) -> None:  # fmt: skip
        """Simulate MR of the CT; with their CT they stay in memory, 7 bytes a voxel.

        Args:
            dataroot: the prepared data set.
            cases: which of its volumes validate (`data.prepared.splits.validation_cases`).
            settings: how the generator will be used: its frame, slab, intensity maps, and the HU that it learnt from.
            seed: of the simulated MR.
            device: where the generators are.
            precision: what they compute in, of `models.precision.PRECISIONS`.
            batch_size: slices in one pass; None chooses by the free memory.

        Raises:
            InputError: a generator of MR, which these measures do not fit, a volume that cannot be read, or a true CT
                that shows another place than its MR.
        """
        if settings.direction != "AtoB":
            raise InputError(
                "validation measures synthetic CT in HU, but --direction BtoA makes MR; leave out --val, or train with "
                "--direction AtoB"
            )
        manifest = read_manifest(dataroot)
        if cases.mr and not shown_alike(manifest.contrasts, settings.contrasts):
            log.info(
                "validation is on simulated MR only: the model takes %s, the data set has %s",
                ", ".join(settings.contrasts), ", ".join(manifest.contrasts),
            )  # fmt: skip
            cases = replace(cases, mr=())
        self.dataroot, self.manifest, self.cases, self.settings = dataroot, manifest, cases, settings
        self.device, self.precision, self.batch_size = device, precision, batch_size
        self._with_truth = [self._check(case) for case in cases.mr]
        self._mr_maps = prepared_windows(list(cases.mr), settings.mr_window, settings.ct)
        self._histogram = settings.training.hu_histogram if settings.training else None
        self._to_simulate = contrasts_to_simulate(settings.contrasts) or ()
        of_ct = cases.ct if self._to_simulate else ()
        maps = simulation_maps(dataroot, of_ct, manifest.spacing_mm, [self._slice_mm(case) for case in of_ct])
        self._simulated = [self._simulate(case, maps.pop(case.name), seed) for case in of_ct]

    def gives(self, way_back: bool) -> set[str]:
        """Return the names of the values that criteria may go by; `way_back`: whether there is a generator to MR."""
        of_mr = {"body_dice"} | ({"cycle"} if way_back else set())
        if self._histogram is not None:
            of_mr.add("histogram")
        if any(self._with_truth):
            of_mr.add("mae")
        return (of_mr if self.cases.mr else set()) | ({"simulated_mae"} if self._simulated else set())

    def run(self, to_ct: nn.Module, to_mr: nn.Module | None = None) -> Found:
        """Return what `measure` yields at last."""
        *_, found = self.measure(to_ct, to_mr)
        assert found is not None, "it comes last"
        return found

    def measure(self, to_ct: nn.Module, to_mr: nn.Module | None = None) -> Generator[Found | None]:
        """Yield None after each volume, and at last the values by name, and slices to show, always the same ones.

        A value is the mean over the volumes that define it; one that none defines is left out. Where the generator is
        closed earlier, the networks and torch's random state are as they were, too.

        Args:
            to_ct: the generator from MR to CT (`netG_A`), (N, C, H, W) in [-1, 1].
            to_mr: the generator back (`netG_B`); None in a method without one.

        Raises:
            InputError: what a generator gives is not finite, or there is no memory for a single slice.
        """
        networks = [network for network in (to_ct, to_mr) if network is not None]
        gpus = [self.device] if self.device.type == "cuda" else []
        with in_evaluation(*networks), torch.random.fork_rng(gpus):
            of_mr, shown = yield from self._measure_mr(to_ct, to_mr)
            of_ct, shown_of_ct = yield from self._measure_simulated(to_ct)
        values = {
            name: float(np.nanmean(found)) for name, found in (of_mr | of_ct).items() if not np.isnan(found).all()
        }
        yield values, shown + shown_of_ct

    def _measure_mr(self, to_ct: nn.Module, to_mr: nn.Module | None) -> Measuring:
        """Return the values of every MR by name, and what to show of them."""
        values, shown, counts = defaultdict(list), [], np.zeros(len(HU_EDGES) - 1)
        translator = self._translator(to_ct)
        cycle = self._translator(nn.Sequential(to_ct, to_mr)) if to_mr else None
        for number, case in enumerate(self.cases.mr):
            volume = self._read(case, self._mr_maps[number])
            slices, synthetic = self._synthesize(translator, volume)
            values["body_dice"].append(body_dice(volume.mr[0].with_array(synthetic), volume.body))
            counts += hu_histogram(synthetic[volume.body])
            if cycle:
                slabs = SingleDataset(slices, self.settings.slab)
                back = enumerate(cycle.translate_slabs(slices, self.batch_size))
                values["cycle"].append(mean_difference((slabs[k].numpy(), slab) for k, slab in back))
            if volume.ct is not None and volume.scored is not None:
                for name, metric in COMPARISONS.items():
                    values[name].append(metric(*_around(volume.scored, synthetic, volume.ct)))
            shown += _slices_to_show(volume, synthetic, number, len(self.cases.mr), SHOWN)
            yield
        if len(self.cases.mr) and self._histogram is not None:
            values["histogram"].append(hu_distance(counts, self._histogram, self.settings.ct.range))
        return values, shown

    def _measure_simulated(self, to_ct: nn.Module) -> Measuring:
        """Return the values of every simulated MR by name, and what to show of them."""
        values, shown = defaultdict(list), []
        translator = self._translator(to_ct)
        for number, volume in enumerate(self._simulated):
            _, synthetic = self._synthesize(translator, volume)
            for name in ("mae", "dice_bone"):
                assert volume.ct is not None and volume.scored is not None, "it was simulated from a CT"
                metric = COMPARISONS[name](*_around(volume.scored, synthetic, volume.ct))
                values[f"simulated_{name}"].append(metric)
            shown += _slices_to_show(volume, synthetic, number, len(self._simulated), SHOWN_SIMULATED)
            yield
        return values, shown

    def _check(self, case: Case) -> bool:
        """Tell whether an MR has a true CT; refuse an MR that cannot be read, and a true CT that it sees nothing of."""
        mask, truth = read_case(self.dataroot, case)[1], self.cases.true_ct(case)
        if not truth:
            return False
        scored = self._read(case, ()).scored
        if not np.any((mask > 0) & (read_case(self.dataroot, truth)[1] > 0)) or not np.any(scored):
            raise InputError(
                f"{self.dataroot}: the body of the MR {case.name} and that of its patient's CT {truth.name} have no "
                "voxel in common; look at both under bodies/, and leave one out if they do not belong together"
            )
        return True

    def _translator(self, network: nn.Module) -> Translator:
        return Translator(network, self.settings.slab, self.device, self.precision, self.settings.mirrored)

    def _synthesize(self, translator: Translator, volume: ValidationVolume) -> tuple[np.ndarray, np.ndarray]:
        """Return what went through the network, and the synthetic CT, int16 HU (z, y, x), on the volume's grid."""
        each, plan = plan_volume(volume.mr, volume.body, (volume.mr_maps, self.settings.ct), self.settings)
        slices = np.asarray(each)
        return slices, restore_volume(translator.translate(slices, self.batch_size), plan).array

    def _read(self, case: Case, mr_maps: tuple[IntensityMap, ...]) -> ValidationVolume:
        """Read a prepared MR, and the true CT where there is one."""
        images, mask = read_contrasts(self.dataroot, case)
        slices, mask = np.array(images[0]), np.array(mask)
        ct = scored = None
        if truth := self.cases.true_ct(case):
            ct, ct_mask = (np.array(array) for array in read_case(self.dataroot, truth))
            # As `evaluation.report.score_case` has it: a standardised MR has its background at its minimum, not at 0.
            scored = (ct_mask > 0) & (slices > min(0, slices.min()))
        mr = tuple(self._on_grid(np.array(image), case) for image in images)
        return ValidationVolume(case.name, mr, mr_maps, mask > 0, ct, scored)

    def _simulate(self, case: Case, maps: Mapping[str, np.ndarray], seed: int) -> ValidationVolume:
        """Simulate the MR of a prepared CT, of its slices with body."""
        spacing = (self._slice_mm(case), self.manifest.spacing_mm)
        seed = hash_number(case.name, seed) % 2**62
        settings = SimulationSettings(contrasts=self._to_simulate)
        images = simulate_volume(maps["hu"], maps["depth"], spacing, seed, settings)
        mr, units = tuple(self._on_grid(image, case) for image in images), (_NETWORK_UNITS,) * len(images)
        body = np.array(read_case(self.dataroot, case)[1][slice(*case.body_slices)]) > 0
        return ValidationVolume(case.name, mr, units, body, maps["hu"], body)

    def _on_grid(self, slices: np.ndarray, case: Case) -> Volume:
        pixel_mm = self.manifest.spacing_mm
        spacing = (pixel_mm, pixel_mm, self._slice_mm(case))
        return Volume(slices, spacing, direction=view_direction(self.manifest.view))

    def _slice_mm(self, case: Case) -> float:
        return self.manifest.slice_mm or through_mm(case)


class GeneratorValidator:
    """The validation of a model's generators, and the criterion by which its best weights are chosen."""

    def __init__(self, validation: Validation, criterion: str, model: BaseModel) -> None:
        """Choose among the weights of `model` by `criterion`, of `evaluation.criteria.CRITERIA`.

        Raises:
            InputError: the validation of this model will not give what the criterion goes by.
        """
        check_criterion(criterion, validation.gives(way_back="G_B" in model.networks))
        self.validation, self.criterion = validation, criterion

    def measure(self, model: BaseModel) -> Generator[Found | None]:
        """Measure the weights that inference uses; see `Validation.measure`."""
        kept = model.kept_networks
        yield from self.validation.measure(kept["G_A"], kept.get("G_B"))

    def score(self, values: Mapping[str, float]) -> float:
        """Return the score by the criterion: less is better."""
        return score(values, self.criterion)


def _slices_to_show(
    volume: ValidationVolume, synthetic: np.ndarray, index: int, volumes: int, shown: int
) -> list[ValidationSlice]:
    """Return the slices of volume `index` of several that are among the `shown` ones of all, each at another height."""
    with_body = np.flatnonzero(volume.body.any(axis=(1, 2)))
    box = _box(volume.body.any(axis=0), _SHOWN_MARGIN)
    pictures = []
    for place in range(index, shown, volumes):
        z = int(with_body[(place + 1) * len(with_body) // (shown + 1)])
        mr = volume.mr_maps[0].to_network(volume.mr[0].array[z][box])
        ct = None if volume.ct is None else volume.ct[z][box]
        simulated = volume.mr_maps[0] is _NETWORK_UNITS
        pictures.append(ValidationSlice(f"{volume.name}:{z}", mr, synthetic[z][box], ct, simulated))
    return pictures


def _around(mask: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return arrays, and the mask last, cut to the mask and what a window of SSIM reaches: no value there changes."""
    box = _box(mask, metrics.SSIM_WINDOW // 2)
    return tuple(array[box] for array in (*arrays, mask))


def _box(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Return the box around a mask, and so many voxels around that."""
    axes = range(mask.ndim)
    return tuple(
        slice(max(used[0] - margin, 0), used[-1] + margin + 1)
        for used in (np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes)
        if used.size
    )
