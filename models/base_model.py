"""Base of all training methods: networks, optimisers, the form of a step, and the state."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.errors import InputError
from data.loading.batches import Batches
from data.loading.settings import DataSettings
from data.settings.declaration import Nature, option, options_of
from data.settings.values import nonnegative_int, positive_float, share
from models.averages import WarmedUpAverage
from models.finite_losses import FiniteLosses
from models.image_pool import ImagePool
from models.inference_settings import InferenceSettings, check_compatible, read_inference_settings
from models.precision import DTYPES, PRECISIONS
from models.state_dicts import load_optimiser

# Seeds of a process's streams of random numbers, and the distance between one process's and the next one's.
_STREAMS, _NEXT_RANK = 3, 7919


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """optimiser."""

    lr: float = option(
        2e-4, nature=Nature.RESULT, parse=positive_float, first=True, help="initial learning rate of Adam"
    )
    beta1: float = option(0.5, nature=Nature.FIXED, parse=share, help="first momentum term of Adam")
    ema: float = option(
        0.0, nature=Nature.FIXED, parse=share,
        help="decay of an exponential moving average of the generators' weights, saved in their place; 0: none",
    )  # fmt: skip
    seed: int = option(
        0,
        nature=Nature.RESULT,
        parse=nonnegative_int,
        help="random seed of initial weights, order of samples and augmentation",
    )


@dataclass(frozen=True, kw_only=True)
class ComputingSettings:
    """speed and reproducibility."""

    precision: str = option(
        "fp32",
        nature=Nature.RESULT,
        choices=PRECISIONS,
        first=True,
        help="number format that the networks compute in; losses are always fp32",
    )
    compile: bool = option(
        False,
        nature=Nature.RESULT,
        help="compile the networks with torch.compile: faster steps after minutes of compilation",
    )
    deterministic: bool = option(
        False, nature=Nature.RESULT,
        help="use only deterministic algorithms on a GPU, which are slower; a CPU is always deterministic",
    )  # fmt: skip
    sync_batch_norm: bool = option(
        False, nature=Nature.RESULT, help="with --norm batch on several GPUs: take statistics over all GPUs"
    )


@dataclass(frozen=True, kw_only=True)
class MethodSettings(OptimiserSettings, ComputingSettings):
    """Options of every method; a method's own settings inherit from it.

    `direction` says which domain A is: with 'AtoB' MR.
    """

    @classmethod
    def outdated(cls, given: Mapping[str, Any], before: Callable[[str], Any]) -> set[str]:
        """Return the options of which a file's value counts no more, because of those on the command line.

        Args:
            given: the options on the command line, by name.
            before: returns what an option is without it: the value of a file, or else the method's own.
        """
        return set()

    def __post_init__(self) -> None:
        """Refuse options that nothing would use.

        Raises:
            InputError: it names the option and what it needs.
        """
        if self.sync_batch_norm and not self.uses_batch_norm:
            raise InputError("--sync_batch_norm does nothing without --norm batch")

    @property
    def direction(self) -> str:
        """AtoB: MR to CT."""
        return "AtoB"

    @property
    def uses_batch_norm(self) -> bool:
        """Whether batch norm is used."""
        return False

    @property
    def warm_epochs(self) -> int:
        """Epochs of a warm start, before those that the schedule counts."""
        return 0

    @property
    def rate_when_warm(self) -> float:
        """Learning rate during the epochs of a warm start."""
        return 0.0


@dataclass(frozen=True)
class Place:
    """Where a process trains: its device, and its number `rank` among the `processes` that train together."""

    device: torch.device
    rank: int = 0
    processes: int = 1


class Validator(Protocol):
    """Measures a model on data that are not trained on, the same way every time, without affecting the training."""

    def measure(self, model: "BaseModel") -> Generator[tuple[dict[str, float], list[Any]] | None]:
        """Yield None after each volume, so that signals are heard, and at last values by name, and slices to show.

        Those are of `visualization.panels.ValidationSlice`.
        """
        ...

    def score(self, values: Mapping[str, float]) -> float:
        """Return what the values are worth: less is better."""


class BaseModel(ABC):
    """A training method: its networks, optimisers and pools, one step over them, and what it trains on.

    A method is one file with a subclass; `options.train_options.METHODS` lists them, and the engine (`training/`) knows
    none by name. The engine calls `open_data`, `from_data` and `batches`, then `step` for every batch.

    Class attributes:
        settings_type: the class of the method's options, of which `settings` is one.
        defaults: other defaults than usual of the options that all methods share, by name.
        fixed_facts: names of `facts` that a run cannot resume without.
        validates_itself: whether `open_validator` returns something.
        learns_from_mr: whether it trains on the MR of the data set.
        unused_options: options of all methods that do nothing to this one; its help lacks them, `check` refuses them.
        memory_options: its options of which smaller values need less memory, as a message names them.

    Attributes:
        networks, optimisers, pools: by name; weights are kept in files of the networks' names.
        averages: moving averages of networks, which inference uses in their place.
        visuals: images of the last step, as `visualization.panels` names them.
        finite: stops at a loss that is not finite.
    """

    settings_type: ClassVar[type[MethodSettings]]
    settings: MethodSettings
    defaults: ClassVar[Mapping[str, Any]] = {}
    fixed_facts: ClassVar[tuple[str, ...]] = ()
    validates_itself: ClassVar[bool] = False
    unused_options: ClassVar[tuple[str, ...]] = ()
    learns_from_mr: ClassVar[bool] = True
    memory_options: ClassVar[str] = ""

    @classmethod
    def shared_defaults(cls, group: type) -> dict[str, Any]:
        """Return the method's own defaults of the options in a settings class that all methods share."""
        return {field.name: cls.defaults[field.name] for field, _ in options_of(group) if field.name in cls.defaults}

    @classmethod  # noqa: B027
    def check(cls, settings: Any, data: DataSettings) -> None:
        """Refuse options of the method and of the data that do not go together.

        Raises:
            InputError: it names them.
        """

    @classmethod
    @abstractmethod
    def open_data(cls, settings: Any, data: DataSettings, leave_out: Collection[str] = ()) -> Any:
        """Open what is trained on: something that can be pickled, for other processes to have it too.

        `leave_out`: patients of a prepared data set that validate and so do not train.

        Raises:
            InputError: it cannot be used.
        """

    @classmethod
    @abstractmethod
    def from_data(cls, settings: Any, data: DataSettings, dataset: Any, place: Place) -> Self:
        """Build the model for what `open_data` returned."""

    @classmethod
    @abstractmethod
    def batches(cls, settings: Any, data: DataSettings, dataset: Any, place: Place) -> Batches:
        """Return the batches of an epoch."""

    @abstractmethod
    def describe(self, data: DataSettings, dataset: Any) -> InferenceSettings | None:
        """Return what inference needs to know of the generator; None for a method that trains none."""

    def next_command(self, folder: Path, epoch: str, described: InferenceSettings | None, data: DataSettings) -> str:
        """Return the command that uses the weights of an epoch in a run's folder, as a shell takes it.

        `described`: what `describe` said when the run began.
        """
        assert described is not None, "a method that trains no generator says so itself"
        return described.use_command(folder, epoch)

    def open_validator(self, data: DataSettings, dataset: Any) -> Validator | None:
        """Return how the method validates itself; None if it is validated as a generator."""
        return None

    def check_init_from(self, name: str, folder: Path, data: DataSettings, dataset: Any) -> None:
        """Refuse to start from the weights of the run `name` in `folder` where they know other images.

        Raises:
            InputError: it says what differs.
        """
        if described := self.describe(data, dataset):
            check_compatible(name, read_inference_settings(folder), described)

    def keep_best(self, folder: Path, validator: Validator, values: Mapping[str, float]) -> None:  # noqa: B027
        """Keep in the run's folder what a best validation yields beside weights."""

    def facts(self, data: DataSettings, dataset: Any) -> dict[str, str]:
        """Return what a result depends on beside the options, such as the number of slices, for the check on resume."""
        return {}

    def __init__(self, settings: MethodSettings, device: torch.device, processes: int = 1) -> None:
        """Begin without any network; `processes`: how many train together and average their gradients."""
        self.settings = settings
        self.device, self.processes = device, processes
        self.networks: dict[str, nn.Module] = {}
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        self.pools: dict[str, ImagePool] = {}
        self.averages: dict[str, WarmedUpAverage] = {}
        self.visuals: dict[str, Tensor] = {}
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.finite = FiniteLosses()
        self._compiled: dict[nn.Module, Any] = {}
        self._parallel: dict[nn.Module, DistributedDataParallel] = {}

    def _wrap_networks(self, averaged: Iterable[str] = (), frozen: Iterable[nn.Module] = ()) -> None:
        """Compile, average and parallelise the networks as the settings say, after all are initialised.

        Args:
            averaged: names of those of which an exponential moving average is kept: steadier than one step's weights.
            frozen: further networks that are run and never trained.
        """
        s = self.settings
        self.averages = {name: WarmedUpAverage(self.networks[name], s.ema) for name in averaged if s.ema > 0}
        nets = [*self.networks.values(), *frozen]
        self._compiled = {net: torch.compile(net, dynamic=False) for net in nets if s.compile}
        self._parallel = {
            net: DistributedDataParallel(
                self._compiled.get(net, net), [self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False, gradient_as_bucket_view=True,
            )
            for net in (self.networks.values() if self.processes > 1 else ())
        }  # fmt: skip

    @abstractmethod
    def step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Update the networks on one batch; return scalars without history, the generator's total `G` first.

        Raises:
            NonFiniteLossError: before any weight is changed by the loss that is not finite; on a GPU at the next step.
        """

    def start_epoch(self, epoch: int) -> None:  # noqa: B027
        """Prepare for an epoch, counted from 1; most methods need nothing."""

    def fixed_visuals(self) -> dict[str, Tensor]:
        """Return images as `visuals` has them, of the same slices at any time of the run: what changes is the networks.

        The slices follow from the seed. No random number of the training is drawn for them. Most methods have none.
        """
        return {}

    @property
    def kept_networks(self) -> dict[str, nn.Module]:
        """The networks whose weights inference uses: the averages, if there are any."""
        return self.networks | {name: average.module for name, average in self.averages.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that later steps of all processes depend on: weights, optimisers, averages, loss scale."""
        return {kind: {name: part.state_dict() for name, part in parts.items()} for kind, parts in self._parts()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            KeyError, RuntimeError, ValueError: something is missing, or of other networks.
        """
        for kind, parts in self._parts():
            for name, part in parts.items():
                if kind == "scalers" and name not in state[kind]:  # another precision was used
                    continue
                if kind == "optimisers":
                    load_optimiser(part, state[kind][name])
                else:
                    part.load_state_dict(state[kind][name])

    def process_state(self) -> dict[str, Any]:
        """Return what later steps of this process alone depend on: its pools."""
        return {name: pool.state_dict() for name, pool in self.pools.items()}

    def load_process_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a `process_state`."""
        for name, pool in self.pools.items():
            pool.load_state_dict(state[name])

    def _parts(self) -> Iterable[tuple[str, dict[str, Any]]]:
        yield "networks", self.networks
        yield "optimisers", self.optimisers
        yield "averages", self.averages
        yield "scalers", {"fp16": self.scaler} if self.scaler.is_enabled() else {}

    def _run(self, net: nn.Module, images: Tensor) -> Tensor:
        """Run a network in the chosen precision; its output is float32, as are all losses."""
        # A frozen network has no gradients to average.
        frozen = not any(parameter.requires_grad for parameter in net.parameters())
        run = self._compiled.get(net, net) if frozen else self._parallel.get(net, self._compiled.get(net, net))
        dtype = DTYPES[self.settings.precision]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return run(images).float()

    def _run_in_use(self, name: str, images: Tensor) -> Tensor:
        """Run a network as it is used: its average where there is one, without dropout, and without a trace."""
        net, dtype = self.kept_networks[name], DTYPES[self.settings.precision]
        autocast = torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)
        with torch.no_grad(), in_evaluation(net), autocast:
            return net(images).float()

    def _run_together(self, net: nn.Module, *images: Tensor) -> Iterable[Tensor]:
        """Run a network on several batches: in one pass, unless batch norm would mix them or their sizes differ.

        The running statistics of batch norm are those of the first batch alone.
        """
        if self.settings.uses_batch_norm or len({image.shape[1:] for image in images}) > 1:
            first = self._run(net, images[0])
            with unchanged_statistics(net):
                return [first, *(self._run(net, image) for image in images[1:])]
        return self._run(net, torch.cat(images)).split([len(image) for image in images])

    def _update(self, name: str, losses: dict[str, Tensor], batch: dict, clip: float | None = None) -> Tensor:
        """Take a step of one optimiser against the sum of losses; return the sum.

        `clip`: the norm that gradients are reduced to, where theirs is greater.
        """
        total = torch.stack(list(losses.values())).sum()
        bad = self.finite.watch(losses, total, batch)
        if self._parallel and bad.is_cuda:  # its gradients reach every process
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        optimiser = self.optimisers[name]
        optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        if clip is not None:
            self.scaler.unscale_(optimiser)
            parameters = chain.from_iterable(group["params"] for group in optimiser.param_groups)
            nn.utils.clip_grad_norm_(parameters, clip, foreach=True)
        if not self.scaler.is_enabled():  # the scaler finds what is not finite by itself
            optimiser.found_inf = bad  # type: ignore[attr-defined]  # what torch's fused optimisers read
        self.scaler.step(optimiser)
        return total

    def _average(self) -> None:
        for name, average in self.averages.items():
            average.update_parameters(self.networks[name])

    def _adam(self, *networks: nn.Module) -> torch.optim.Adam:
        parameters = list(chain.from_iterable(net.parameters() for net in networks))
        return torch.optim.Adam(parameters, lr=self.settings.lr, betas=(self.settings.beta1, 0.999), fused=True)


@contextmanager
def in_evaluation(*networks: nn.Module) -> Iterator[None]:
    """Have networks in evaluation mode while the block lasts; afterwards every part has the mode that it had."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def unchanged_statistics(*networks: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms as they are while the block lasts.

    A batch is still normalised by its own statistics. The running ones, which a network has in use, must be those of
    what it gets there: real images, and not what another network makes of them in training.
    """
    norms = [part for net in networks for part in net.modules() if isinstance(part, nn.BatchNorm2d | nn.SyncBatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


def process_seed(seed: int, rank: int, stream: int = 0) -> int:
    """Return the seed of one of a process's streams of random numbers; those of nearby seeds and ranks all differ.

    Args:
        seed: the run's. rank: the process's number. stream: below `_STREAMS`; which of the process's streams it is.
    """
    return _STREAMS * (seed + _NEXT_RANK * rank) + stream


def require_gradients(networks: Iterable[nn.Module], needed: bool) -> None:
    """Switch the gradients of networks on or off."""
    for net in networks:
        net.requires_grad_(needed)
