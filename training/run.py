"""One training run: data, model and schedule put together, the loop over them, and its saved states."""

import logging
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch

from data.errors import InputError, is_out_of_memory
from data.prepared.manifest import MANIFEST_NAME, read_manifest
from data.prepared.splits import ValidationCases, validation_cases
from data.settings.declaration import Nature
from data.volumes.contrasts import shown_name
from models import run_folder
from models.base_model import BaseModel, Place
from models.inference_settings import check_compatible, check_continued, package_versions, read_inference_settings
from models.memory import asked_and_free
from models.precision import choose_precision
from models.run_folder import Position
from models.schedules import LearningRate
from training.distributed import ProcessGroup, job, open_process_group, restarts
from training.interruption import Interruption, exit_code
from training.settings import TrainingSettings, with_precision
from training.validation import GeneratorValidator, Validation
from visualization.display import RunInfo
from visualization.training_log import TrainingLog, open_training_log

log = logging.getLogger(__name__)

# How long a process waits for another, which may be reading from a slow disk, or validating.
PATIENCE = timedelta(minutes=30)


class TrainingRun:
    """A run of a training method, shared by the processes of `group`, each with `--batch_size` samples a step.

    The first process alone writes and shows.
    """

    def __init__(self, method: type[BaseModel], settings: TrainingSettings, group: ProcessGroup) -> None:
        """Open the data set and build the model; nothing is written yet.

        Raises:
            InputError: data or options that cannot be used.
        """
        self.group, self.folder = group, settings.run.folder
        if settings.schedule.seconds and group.size > 1:  # their clocks would give them different learning rates
            raise InputError(f"--seconds: {group.size} processes train together; give them --n_epochs instead")
        self.device = group.device(settings.run.device)
        settings = with_precision(settings, choose_precision(settings.model.precision, self.device))
        self.settings, model, data = settings, settings.model, settings.data
        set_up_torch(self.device, model.deterministic)
        torch.manual_seed(model.seed + group.rank)  # of dropout; order and augmentation have their own
        cases = group.share(lambda: _validation_cases(settings))
        leave_out = cases.left_out if cases else frozenset()
        self.dataset = group.share(lambda: method.open_data(model, data, leave_out))
        place = Place(self.device, group.rank, group.size)
        self.model = method.from_data(model, data, self.dataset, place)
        self.batches = method.batches(model, data, self.dataset, place)
        schedule = settings.schedule
        self.rate = LearningRate(
            list(self.model.optimisers.values()), schedule.lr_policy, model.lr, schedule.n_epochs,
            schedule.n_epochs_decay, schedule.lr_decay_iters or 50, n_epochs_warm=settings.epochs_warm,
            warm_lr=model.rate_when_warm,
        )  # fmt: skip
        together = self.model.facts(data, self.dataset) | {"processes": str(group.size)}
        if self.device.type == "cpu":  # the order of sums is that of threads
            together["threads"] = str(torch.get_num_threads())
        self.record = settings.record() | together
        self._spent, self._since = 0.0, time.monotonic()
        self.validator = self.model.open_validator(data, self.dataset)
        if cases:
            self.validator = self._validate_generator(cases)
        self.best: dict[str, Any] = {"score": math.inf, "epoch": 0}

    def train(self) -> int:
        """Train to the last epoch, or until a signal asks to end; return the exit code.

        Raises:
            InputError: there is nothing to go on from, something that would be overwritten, another training in the
                folder, or a slice or loss is bad.
        """
        with ExitStack() as held:
            self.group.share(lambda: held.enter_context(run_folder.lock(self.folder)))
            return self._train_from(self._go_on() if self._continues() else self._begin())

    def _train_from(self, at: Position) -> int:
        """Train from `at` to the last epoch, or until a signal asks to end; return the exit code."""
        settings, steps = self.settings, self.batches.steps
        log.info(
            "%s: %s, %d steps an epoch, on %s in %s%s", settings.run.name, settings.method, steps, self.device,
            settings.model.precision, f", with {self.group.size} processes" if self.group.size > 1 else "",
        )  # fmt: skip
        start = (at.epoch, at.samples // self.batches.together)
        described = self.model.describe(settings.data, self.dataset)
        run = RunInfo(settings.run.name, self.folder, settings.values(), package_versions(), settings.epochs, steps)
        with (
            Interruption() as interruption,
            open_training_log(
                run, settings.display, settings.data.ct_map, settings.model.direction, start,
                shown=self.group.rank == 0, slab=settings.data.slab,
                contrast=shown_name(described.contrasts) if described else None,
            ) as training_log,
        ):  # fmt: skip
            self._saved_at = self._since = time.monotonic()
            received = 0
            while not self._is_done(at) and not received:
                at = self._train_epoch(at, training_log, interruption)
                # One process may have heard alone what ends them all.
                (received,) = self.group.greatest(interruption.received)
        if received and not self._is_done(at):
            return self._stopped(at, received)
        if self.best["epoch"]:
            log.info("best validation: of epoch %d (%.6g)", self.best["epoch"], self.best["score"])
        log.info("trained: %s", self.folder)
        return 0

    def _validate_generator(self, cases: ValidationCases) -> "GeneratorValidator":
        """Put together what validates a generator."""
        settings, data = self.settings, self.settings.data
        described = self.model.describe(data, self.dataset)
        if described is None:
            raise InputError(f"--val does nothing with --model {settings.method}, which validates by itself")
        validation = Validation(
            data.dataroot, read_manifest(data.dataroot), cases, described, settings.model.seed, self.device,
            settings.model.precision,
        )  # fmt: skip
        return GeneratorValidator(validation, settings.validation.val_criterion)

    def _validate(self, epoch: int, iteration: int, training_log: TrainingLog) -> None:
        """Measure the model on what does not train, and keep its weights where it is the best so far."""
        validator = self.validator
        assert validator is not None, "it is asked for where there is one"

        def measure() -> float:
            values, slices = validator.run(self.model)
            training_log.write_validation(epoch, iteration, values, slices)
            score = validator.score(values)
            if score < self.best["score"]:
                run_folder.save_weights(self.folder, self.model, "best")
                self.model.keep_best(self.folder, validator, values)
            return score

        self.model.finite.settle()
        score = self.group.share(measure)
        if score < self.best["score"]:
            self.best = {"score": score, "epoch": epoch}

    def _seconds(self) -> float:
        """Return how long the run has trained, before its last state and since."""
        return self._spent + time.monotonic() - self._since

    def _is_done(self, at: Position) -> bool:
        """Tell whether nothing is left to train, by the clock with `--seconds`, which all processes read as one."""
        limit = self.settings.schedule.seconds
        if limit is None:
            return at.epoch > self.settings.epochs
        return self.group.greatest(int(1000 * self._seconds()))[0] >= 1000 * limit

    def _progress(self, epoch: int, iteration: int) -> float:
        """Return the share of the run, without its warm start, that is done before step `iteration` of an epoch."""
        if self.settings.schedule.seconds:
            return min(1.0, self._seconds() / self.settings.schedule.seconds)
        warm = self.settings.epochs_warm
        done = epoch - 1 - warm + (iteration - 1) / self.batches.steps
        return max(0.0, done / max(self.settings.epochs - warm, 1))

    def _train_epoch(self, at: Position, training_log: TrainingLog, interruption: Interruption) -> Position:
        """Train from `at` to the end of its epoch; return where the run is then, its state saved."""
        settings, batches, epoch = self.settings, self.batches, at.epoch
        display, schedule = settings.display, settings.schedule
        self.rate.start_epoch(epoch)
        self.model.start_epoch(epoch)
        first = at.samples // batches.together
        training_log.start_epoch(epoch, first)
        # In float64, but for MPS, which has none.
        sum_type = torch.float32 if self.device.type == "mps" else torch.float64
        epoch_loss = torch.tensor(at.epoch_loss, dtype=sum_type)
        waiting_since = time.perf_counter()
        for iteration, batch in enumerate(batches.epoch(epoch, at.samples), start=first + 1):
            data_seconds = time.perf_counter() - waiting_since
            self.rate.start_step(self._progress(epoch, iteration))
            losses = self.model.step(batch)
            epoch_loss = epoch_loss + losses["G"].to(sum_type) / batches.steps
            training_log.step(data_seconds)
            last = iteration == batches.steps
            if iteration % display.print_freq == 0 or last:
                training_log.write_losses(epoch, iteration, self.group.average(losses), self.rate.current)
            if iteration % display.display_freq == 0 or last:
                training_log.write_pictures(epoch, iteration, self.model.visuals)
            received, due, over = self.group.greatest(
                interruption.received,
                schedule.save_latest_freq.due(iteration, self._saved_at),
                schedule.seconds is not None and not last and self._seconds() >= schedule.seconds,
            )
            if received or due or over:
                samples = min(at.samples + (iteration - first) * batches.together, batches.samples)
                here = Position(epoch, samples, self._mean_loss(epoch_loss))
                self._save(here)
                if over and self.validator:
                    self._validate(epoch, iteration, training_log)
                    self._save(here)
                if received or over:
                    return here
            waiting_since = time.perf_counter()
        training_log.end_epoch()
        mean_loss = self._mean_loss(epoch_loss)
        if self.validator and (epoch % settings.validation.val_freq == 0 or epoch == settings.epochs):
            self._validate(epoch, batches.steps, training_log)
        if epoch % schedule.save_epoch_freq == 0 or epoch == settings.epochs:
            # Before the next epoch's state: a run killed between would not go back. Nor could it go on without any.
            if not self.group.share(lambda: run_folder.has_state(self.folder)):
                self._save(Position(epoch, batches.samples, mean_loss))
            self._save_weights(epoch)
        self.rate.end_epoch(mean_loss)
        at = Position(epoch + 1)
        self._save(at)
        return at

    def _mean_loss(self, loss: torch.Tensor) -> float:
        """Return the mean over all processes; each may go on from it in place of its own, and the mean stays."""
        return float(self.group.average({"G": loss})["G"])

    def _stopped(self, at: Position, number: int) -> int:
        """Say where the run stands, and return the exit code."""
        name = signal.Signals(number).name
        place = f"epoch {at.epoch}, step {at.samples // self.batches.together}"
        log.info("%s: saved at %s: %s; go on by --continue_train", name, place, self.folder)
        return exit_code(number)

    def _save_weights(self, epoch: str | int) -> None:
        self.model.finite.settle()
        if self.group.rank == 0:
            run_folder.save_weights(self.folder, self.model, epoch)

    def _save(self, at: Position) -> None:
        """Save the state of all processes, and after it the weights, which `_go_on` would write again."""
        self.model.finite.settle()
        processes = self.group.gather(self._state_of_this_process())
        if self.group.rank == 0:
            parts = {"model": self.model.state_dict(), "rate": self.rate.state_dict(), "position": at._asdict()}
            origin = {"options": self.record, "job": job(), "spent": self._seconds(), "best": self.best}
            run_folder.save_state(self.folder, {**parts, "processes": processes, **origin})
        self._save_weights("latest")
        self._saved_at = time.monotonic()

    def _state_of_this_process(self) -> dict[str, Any]:
        return {"model": self.model.process_state(), "random": run_folder.random_state(self.device)}

    def _continues(self) -> bool:
        """Tell whether the run goes on from a state: as asked for, or where torchrun has restarted what it began."""
        return self.settings.run.continue_train or (
            self.group.greatest(restarts())[0] > 0 and self.group.share(self._is_of_this_job)
        )

    def _is_of_this_job(self) -> bool:
        """Tell whether this very start of torchrun saved the state in the folder; another's is not written over."""
        if job() is None or not run_folder.has_state(self.folder):
            return False
        return run_folder.load_state(self.folder).get("job") == job()

    def _begin(self) -> Position:
        """Make the folder of a new run, with fresh weights or those of `--init_from`."""
        run = self.settings.run
        source = run.checkpoints_dir / (run.init_from or "")

        def prepare() -> None:
            run_folder.check_new(self.folder)
            run_folder.clear_scratch(self.folder)
            described = self.model.describe(self.settings.data, self.dataset)
            if described:
                if run.init_from:
                    check_compatible(run.init_from, read_inference_settings(source), described)
                described.write(self.folder)
            run_folder.save_options(self.folder, self.settings.values())

        self.group.share(prepare)
        if run.init_from:
            run_folder.load_weights(source, self.model, run.epoch)
        return Position()

    def _go_on(self) -> Position:
        """Restore the last saved state; processes that it knows nothing of start afresh in what is theirs alone."""

        def take_over(state: dict[str, Any]) -> None:
            natures = self.settings.natures() | dict.fromkeys(self.model.fixed_facts, Nature.FIXED)
            run_folder.check_options(self.folder, state["options"], self.record, natures)
            self._restore(state)

        def load() -> dict[str, Any]:
            run_folder.clear_scratch(self.folder)
            state = run_folder.load_state(self.folder, take_over)
            if here := self.model.describe(self.settings.data, self.dataset):
                try:
                    started = read_inference_settings(self.folder)
                except InputError as error:
                    log.warning("warning: %s; it is written again", error)
                    here.write(self.folder)
                else:
                    check_continued(self.folder, started, here)
            return state

        at = self._restore(self.group.share(load))
        self._save_weights("latest")  # a run killed while it saved may have left them behind its state
        return at

    def _restore(self, state: dict[str, Any]) -> Position:
        """Set model, schedule and randomness to a saved state; return where it was saved."""
        self.model.load_state_dict(state["model"])
        self.rate.load_state_dict(state["rate"])
        self._spent, self.best = state["spent"], {"score": state["best"]["score"], "epoch": state["best"]["epoch"]}
        if self.group.rank < len(state["processes"]):
            own = state["processes"][self.group.rank]
            self.model.load_process_state(own["model"])
            run_folder.restore_random_state(own["random"], self.device)
        return run_folder.saved_position(state)


def _validation_cases(settings: TrainingSettings) -> ValidationCases | None:
    """Return what validates with `--val`, None without it."""
    validation, data = settings.validation, settings.data
    if not validation.val:
        return None
    if not (data.dataroot / MANIFEST_NAME).exists():
        raise InputError(
            f"{data.dataroot}: --val needs a prepared data set, with whole volumes; leave it out for images"
        )
    return validation_cases(read_manifest(data.dataroot), validation.val_patients, settings.model.seed)


def train_method(method: type[BaseModel], settings: TrainingSettings) -> int:
    """Train in this process, or in this one of those that torchrun started; return the exit code.

    That is 0, or 128 and the number of a signal that ended the training.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with (
        memory_shortage_said(settings.run.device, method.memory_options),
        open_process_group(backend, PATIENCE) as group,
    ):
        if group.rank > 0:
            logging.getLogger().setLevel(logging.WARNING)
        return TrainingRun(method, settings, group).train()


@contextmanager
def memory_shortage_said(device: torch.device, smaller: str = "") -> Iterator[None]:
    """Make an error of the user's, which says the way out, of a want of memory for a training on `device`.

    `smaller`: the options of its method that `BaseModel.memory_options` names.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if isinstance(error, MemoryError) or "CPUAllocator" in str(error):  # the computer's, whatever trains
            device = torch.device("cpu")
        new_run = f", or start a run with a smaller {smaller}" if smaller else ""
        raise InputError(
            f"{device}: out of memory{asked_and_free(error, device)}; lower --batch_size or take --precision bf16, and "
            f"go on from the last saved state by --continue_train{new_run}"
        ) from error


def set_up_torch(device: torch.device, deterministic: bool) -> None:
    """Let torch choose the fastest algorithms, or those that give the same result every time."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
        torch.use_deterministic_algorithms(True)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not deterministic
