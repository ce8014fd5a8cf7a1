"""One training run: data, model and schedule put together, the loop over them, and its saved states."""

import logging
import math
import os
import signal
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch

from data.errors import InputError
from data.loading.data_set_folders import check_data_root
from data.prepared.manifest import MANIFEST_NAME, read_manifest
from data.prepared.splits import VALIDATION_FACTS, ValidationCases, validation_cases
from data.settings.declaration import Nature
from data.signals import exit_code
from data.volumes.contrasts import shown_name
from models import run_folder
from models.base_model import BaseModel, Place, Validator, process_seed
from models.inference_settings import InferenceSettings, check_continued, package_versions, read_inference_settings
from models.memory import memory_shortage_said
from models.precision import choose_precision
from models.run_folder import STATE_NAME, Position
from models.schedules import LearningRate
from training.distributed import ProcessGroup, job, open_process_group, restarts
from training.interruption import Interruption
from training.mean_losses import MeanLosses
from training.selection import Selection
from training.settings import TrainingSettings, with_precision
from training.validation import GeneratorValidator, Validation
from visualization.display import RunInfo
from visualization.training_log import TrainingLog, open_training_log

log = logging.getLogger(__name__)

# How long a process waits for another in a step: that may be reading from a slow disk.
PATIENCE = timedelta(minutes=30)
# What validates follows from names alone, not from --seed: runs that differ in it are measured alike, and a run that
# resumes with another one never validates with patients that it was trained on.
_HELD_BACK_BY = 0


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
        if settings.run.continue_train:
            log.info("%s: resuming from its last saved state, %s", settings.run.name, self.folder / STATE_NAME)
        group.share(lambda: _check_clock(settings, group.size))
        group.share(lambda: check_data_root(settings.data.dataroot))
        self.device = group.device(settings.run.device)
        settings = with_precision(settings, choose_precision(settings.model.precision, self.device))
        self.settings, model, data = settings, settings.model, settings.data
        set_up_torch(self.device, model.deterministic)
        torch.manual_seed(process_seed(model.seed, group.rank))  # of dropout; order and augmentation have their own
        cases = group.share(lambda: _validation_cases(settings))
        leave_out = cases.left_out if cases else frozenset()
        self.dataset = group.share(lambda: method.open_data(model, data, leave_out))
        place = Place(self.device, group.rank, group.size)
        self.model = method.from_data(model, data, self.dataset, place)
        self.batches = method.batches(model, data, self.dataset, place)
        schedule = settings.schedule
        self.rate = LearningRate(
            list(self.model.optimisers.values()), schedule.lr_policy, model.lr, schedule.n_epochs,
            schedule.n_epochs_decay, schedule.lr_decay_iters, n_epochs_warm=settings.epochs_warm,
            warm_lr=model.rate_when_warm,
        )  # fmt: skip
        together = self.model.facts(data, self.dataset) | {"processes": str(group.size)}
        if self.device.type == "cpu":  # the order of sums is that of threads
            together["threads"] = str(torch.get_num_threads())
        self.losses = MeanLosses(self.device)
        self.record = settings.record() | together | (cases.facts() if cases else {})
        self._spent, self._since = 0.0, time.monotonic()
        self._in_use: InferenceSettings | None = None  # what the run's folder says of the use of its generator
        self._steps: int | None = None  # made since random weights; None where that is not known
        self.selection = Selection(group, self.folder, self.model, lambda: self._open_validator(cases))

    @cached_property
    def described(self) -> InferenceSettings | None:
        """What the use of the generator must know; None for a method that trains none."""
        return self.model.describe(self.settings.data, self.dataset)

    def train(self) -> int:
        """Train to the last epoch, or until a signal asks to end; return the exit code.

        Raises:
            InputError: there is nothing to resume from, something that would be overwritten, another training in the
                folder, or a slice or loss is bad.
        """
        self._start_from_weights()
        with ExitStack() as held:
            self.group.share(lambda: held.enter_context(run_folder.lock(self.folder)))
            return self._train_from(self._resume() if self._continues() else self._begin())

    def _train_from(self, at: Position) -> int:
        """Train from `at` to the last epoch, or until a signal asks to end; return the exit code."""
        settings, steps = self.settings, self.batches.steps
        log.info(
            "%s: %s, %d steps an epoch, on %s in %s%s", settings.run.name, settings.method, steps, self.device,
            settings.model.precision, f", with {self.group.size} processes" if self.group.size > 1 else "",
        )  # fmt: skip
        start = (at.epoch, self._steps_done(at), *([1] if at.validated else []))
        run = RunInfo(
            settings.run.name, self.folder, settings.values(), package_versions(), settings.epochs, steps,
            settings.schedule.seconds, settings.epochs_warm,
        )  # fmt: skip
        with (
            Interruption() as interruption,
            open_training_log(
                run, settings.display, settings.data.ct_map, settings.model.direction, start,
                shown=self.group.rank == 0, slab=settings.data.slab,
                contrast=shown_name(self.described.contrasts) if self.described else None,
            ) as training_log,
        ):  # fmt: skip
            self._saved_at = self._since = time.monotonic()
            received = 0
            self._say_what_is_left(at)
            while not self._is_complete(at) and not received:
                advance = self._validate_last if self._is_done(at) else self._train_epoch
                at = advance(at, training_log, interruption)
                # One process may have heard alone what ends them all.
                (received,) = self.group.greatest(interruption.received)
        if received and not self._is_complete(at):
            return self._stopped(at, received)
        if self.selection.best["epoch"]:
            validation, best = settings.validation, self.selection.best
            by = f"{validation.val_criterion} " if validation.val else ""
            log.info("best validation: epoch %d (%s%.6g)", best["epoch"], by, best["score"])
        log.info("trained: %s", self.folder)
        epoch = "best" if self.selection.best["epoch"] else "latest"
        log.info("next: %s", self.model.next_command(self.folder, epoch, self.described, settings.data))
        return 0

    def _say_what_is_left(self, at: Position) -> None:
        """Say that nothing is left to train, where that is so, and that the run is longer than asked for, if it is."""
        asked, done = self.settings.epochs, at.epoch - 1
        if asked is None or done <= asked:
            if self._is_complete(at):
                log.info("the training is complete; to continue, give a larger --n_epochs or --seconds")
            return
        kept = run_folder.weights_path(self.folder, asked, next(iter(self.model.kept_networks))).exists()
        log.warning(
            "warning: the run already has %d epochs, but --n_epochs %d asks for %d in total: nothing to train; to "
            "continue, give a larger --n_epochs; the weights of epoch %d %s", done, self.settings.schedule.n_epochs,
            asked, asked,
            f"are kept: use them with --epoch {asked}" if kept else "were not kept (--save_epoch_freq)",
        )  # fmt: skip

    def _open_validator(self, cases: ValidationCases | None) -> Validator | None:
        """Return what validates the model, with `--val` by the generator's `cases`; None if nothing does."""
        settings, data = self.settings, self.settings.data
        if cases is None:
            return self.model.open_validator(data, self.dataset)
        assert self.described is not None, "a method without a generator validates by itself"
        validation = Validation(
            data.dataroot, cases, self.described, _HELD_BACK_BY, self.device, settings.model.precision
        )
        return GeneratorValidator(validation, settings.validation.val_criterion, self.model)

    def _validate(self, at: Position, training_log: TrainingLog, interruption: Interruption) -> Position:
        """Return `at` as validated; as it was where a signal ended the validation."""
        done = self.selection.validate(
            at.epoch if at.samples else at.epoch - 1,
            lambda values, slices: training_log.write_validation(at.epoch, self._steps_done(at), values, slices),
            lambda: interruption.received,
        )
        return at._replace(validated=done)

    def _validate_last(self, at: Position, training_log: TrainingLog, interruption: Interruption) -> Position:
        """Validate at the end of a run, whatever ended it, and save."""
        at = self._validate(at, training_log, interruption)
        self._save(at)
        return at

    def _seconds(self) -> float:
        """Return how long the run has trained, before its last state and since."""
        return self._spent + time.monotonic() - self._since

    def _is_over(self) -> bool:
        """Tell whether the time of `--seconds` is up."""
        limit = self.settings.schedule.seconds
        return limit is not None and self._seconds() >= limit

    def _is_done(self, at: Position) -> bool:
        """Tell whether nothing is left to train."""
        epochs = self.settings.epochs
        return self._is_over() if epochs is None else at.epoch > epochs

    def _is_complete(self, at: Position) -> bool:
        """Tell whether nothing is left to do: a run ends with a validation."""
        return self._is_done(at) and (at.validated or not self.selection.validates)

    def _steps_done(self, at: Position) -> int:
        """Return how many steps of its epoch are done; a step that does not come out even counts as one."""
        batches = self.batches
        return batches.steps - math.ceil((batches.samples - at.samples) / batches.together)

    def _progress(self, epoch: int, iteration: int) -> float:
        """Return the share of the run, without its warm start, that is done before step `iteration` of an epoch."""
        epochs, warm = self.settings.epochs, self.settings.epochs_warm
        if epochs is None:
            assert self.settings.schedule.seconds, "the clock ends it"
            return min(1.0, self._seconds() / self.settings.schedule.seconds)
        done = epoch - 1 - warm + (iteration - 1) / self.batches.steps
        return max(0.0, done / max(epochs - warm, 1))

    def _train_epoch(self, at: Position, training_log: TrainingLog, interruption: Interruption) -> Position:
        """Train from `at` to the end of its epoch, or to a signal's or the clock's; return where the run is, saved."""
        display, schedule = self.settings.display, self.settings.schedule
        batches, epoch = self.batches, at.epoch
        self.rate.start_epoch(epoch)
        self.model.start_epoch(epoch)
        first = self._steps_done(at)
        training_log.start_epoch(epoch, first, self._seconds())
        # In float64, but for MPS, which has none.
        sum_type = torch.float32 if self.device.type == "mps" else torch.float64
        epoch_loss = torch.tensor(at.epoch_loss, dtype=sum_type)
        waiting_since = time.perf_counter()
        for iteration, batch in enumerate(batches.epoch(epoch, at.samples), start=first + 1):
            data_seconds = time.perf_counter() - waiting_since
            self.rate.start_step(self._progress(epoch, iteration))
            losses = self.model.step(batch)
            self._steps = None if self._steps is None else self._steps + 1
            epoch_loss = epoch_loss + losses["G"].to(sum_type) / batches.steps
            self.losses.add(losses)
            training_log.step(data_seconds, losses)
            last = iteration == batches.steps
            if iteration % display.print_freq == 0 or last:
                training_log.write_losses(epoch, iteration, self.losses.take(self.group), self.rate.current)
            if iteration % display.display_freq == 0 or last:
                training_log.write_pictures(epoch, iteration, self.model.visuals, self.model.fixed_visuals)
            received, due, over = self.group.greatest(
                interruption.received,
                schedule.save_latest_freq.due(iteration, self._saved_at),
                not last and self._is_over(),
            )
            if received or due or over:
                samples = min(at.samples + (iteration - first) * batches.together, batches.samples)
                here = Position(epoch, samples, self._mean_loss(epoch_loss))
                self._save(here)
                if received or over:
                    return here
            waiting_since = time.perf_counter()
        training_log.end_epoch()
        validated = at.validated and first == batches.steps
        at = Position(epoch, batches.samples, self._mean_loss(epoch_loss), validated)
        return self._end_epoch(at, training_log, interruption)

    def _end_epoch(self, at: Position, training_log: TrainingLog, interruption: Interruption) -> Position:
        """Validate, and keep the weights, as is due after an epoch's last step; return where the run is, saved."""
        validation, schedule, epoch = self.settings.validation, self.settings.schedule, at.epoch
        ends = epoch == self.settings.epochs or self._is_over()
        if self.selection.validates and not at.validated and (ends or epoch % validation.val_freq == 0):
            self._save_first(at)
            at = self._validate(at, training_log, interruption)
            if not at.validated:
                self._save(at)
                return at
        if ends or epoch % schedule.save_epoch_freq == 0:
            self._save_first(at)
            self._save_weights(epoch)  # before the next epoch's state: a run killed between would not go back
        self.rate.end_epoch(at.epoch_loss)
        at = Position(epoch + 1, validated=at.validated)
        self._save(at)
        return at

    def _save_first(self, at: Position) -> None:
        """Save a state, if there is none, before weights: a run that ended between could not go on at all."""
        if not self.group.share(lambda: run_folder.has_state(self.folder)):
            self._save(at)

    def _mean_loss(self, loss: torch.Tensor) -> float:
        """Return the mean over all processes; each may resume from it in place of its own, and the mean stays."""
        return float(self.group.average({"G": loss})["G"])

    def _stopped(self, at: Position, number: int) -> int:
        """Say where the run stands, and return the exit code."""
        name = signal.Signals(number).name
        log.info("%s: saved at %s: %s", name, self._place(at), self.folder)
        # Of torchrun: processes on this machine, and machines.
        counts = [int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")]
        log.info("resume: %s", self.settings.run.resume_command(*counts))
        return exit_code(number)

    def _place(self, at: Position) -> str:
        of_epochs = f" of {self.settings.epochs}" if self.settings.epochs else ""
        return f"epoch {at.epoch}{of_epochs}, step {self._steps_done(at)} of {self.batches.steps}"

    def _save_weights(self, epoch: str | int) -> None:
        self.model.finite.settle()
        if self.group.rank == 0:
            run_folder.save_weights(self.folder, self.model, epoch)

    def _save(self, at: Position) -> None:
        """Save the state of all processes, and after it the weights, which `_resume` would write again."""
        self.model.finite.settle()
        processes = self.group.gather(self._state_of_this_process())
        if self.group.rank == 0:
            parts = {"model": self.model.state_dict(), "rate": self.rate.state_dict(), "position": at._asdict()}
            origin = {"options": self.record, "job": job(), "spent": self._seconds(), "best": self.selection.best}
            run_folder.save_state(self.folder, {**parts, "processes": processes, **origin, "steps": self._steps})
            self._describe(at)
        self._save_weights("latest")
        self._saved_at = time.monotonic()

    def _describe(self, at: Position) -> None:
        """Say in the run's folder for how many steps its latest generator was trained, and whether that is all."""
        if not self._in_use:
            return
        unfinished = "" if self._is_complete(at) else self._place(at)
        now = replace(self._in_use, steps=self._steps, unfinished=unfinished)
        if now != self._in_use:
            self._in_use = now
            now.write(self.folder)

    def _state_of_this_process(self) -> dict[str, Any]:
        random = run_folder.random_state(self.device)
        return {"model": self.model.process_state(), "random": random, "losses": self.losses.state_dict()}

    def _continues(self) -> bool:
        """Tell whether the run resumes from a state: as requested, or because torchrun has restarted it."""
        return self.settings.run.continue_train or (
            self.group.greatest(restarts())[0] > 0 and self.group.share(self._is_of_this_job)
        )

    def _is_of_this_job(self) -> bool:
        """Tell whether this very start of torchrun saved the state in the folder; another's is not written over."""
        if job() is None or not run_folder.has_state(self.folder):
            return False
        return run_folder.load_state(self.folder).get("job") == job()

    def _start_from_weights(self) -> None:
        """Load the weights of `--init_from` before anything is written: a failed start leaves nothing."""
        run = self.settings.run
        if not run.init_from or run.continue_train or run_folder.has_state(self.folder):
            return
        name, source = run.init_from, run.checkpoints_dir / run.init_from
        self.group.share(lambda: self.model.check_init_from(name, source, self.settings.data, self.dataset))
        run_folder.load_weights(source, self.model, run.epoch)

    def _begin(self) -> Position:
        """Make the folder of a new run."""

        def prepare() -> None:
            run_folder.check_new(self.folder)
            run_folder.clear_scratch(self.folder)
            self._steps = self._steps_before()
            if self.described:
                self._in_use = replace(self.described, steps=self._steps)
                self._in_use.write(self.folder)
            run_folder.save_options(self.folder, self.settings.values())

        self.group.share(prepare)
        return Position()

    def _steps_before(self) -> int | None:
        """Return for how many steps the weights that a new run starts from were trained, None where it is not known."""
        run = self.settings.run
        if not run.init_from:
            return 0
        if not self.described:
            return None
        try:
            return read_inference_settings(run.checkpoints_dir / run.init_from).steps
        except InputError:
            return None

    def _resume(self) -> Position:
        """Restore the last saved state; processes that it knows nothing of start afresh in what is theirs alone."""

        def take_over(state: dict[str, Any]) -> None:
            facts = (*self.model.fixed_facts, *VALIDATION_FACTS)
            natures = self.settings.natures() | dict.fromkeys(facts, Nature.FIXED)
            run_folder.check_options(self.folder, state["options"], self.record, natures)
            self._restore(state)

        def load() -> dict[str, Any]:
            run_folder.clear_scratch(self.folder)
            state = run_folder.load_state(self.folder, take_over)
            self._steps = state.get("steps")  # an earlier version did not count
            if here := self.described:
                try:
                    self._in_use = read_inference_settings(self.folder)
                except InputError as error:
                    log.warning("warning: %s; it is written again", error)
                    self._in_use = replace(here, steps=self._steps)
                    self._in_use.write(self.folder)
                else:
                    check_continued(self.folder, self._in_use, here, self.model.learns_from_mr)
                self._describe(run_folder.saved_position(state))  # killed, perhaps, after its state was saved
            return state

        state = self.group.share(load)
        at = self._restore(state)
        if not self._is_complete(at):
            log.info("%s: resumed at %s", self.settings.run.name, self._place(at))
        natures = self.settings.natures()
        self.group.share(lambda: run_folder.update_options(self.folder, self.settings.values(), natures))
        self.selection.choose_anew(state["options"].get("val_criterion"), self.record["val_criterion"])
        self._save_weights("latest")  # a run killed while it saved may have left them behind its state
        return at

    def _restore(self, state: dict[str, Any]) -> Position:
        """Set model, schedule and randomness to a saved state; return where it was saved."""
        self.model.load_state_dict(state["model"])
        self.rate.load_state_dict(state["rate"])
        self._spent, self._since = state["spent"], time.monotonic()
        self.selection.restore(state["best"])
        if self.group.rank < len(state["processes"]):
            own = state["processes"][self.group.rank]
            self.model.load_process_state(own["model"])
            run_folder.restore_random_state(own["random"], self.device)
            if "losses" in own:  # an earlier version recorded those of single steps
                self.losses.load_state_dict(own["losses"])
        return run_folder.saved_position(state)


def _check_clock(settings: TrainingSettings, processes: int) -> None:
    """Refuse several processes that train by the clock: theirs would give them different learning rates."""
    if settings.schedule.seconds and processes > 1:
        raise InputError(f"--seconds: {processes} processes train together; use --n_epochs instead")


def _validation_cases(settings: TrainingSettings) -> ValidationCases | None:
    """Return what validates with `--val`, None without it."""
    validation, data = settings.validation, settings.data
    if not validation.val:
        return None
    if not (data.dataroot / MANIFEST_NAME).exists():
        raise InputError(
            f"{data.dataroot}: --val needs a prepared data set, with whole volumes; leave it out for images"
        )
    return validation_cases(read_manifest(data.dataroot), validation.val_patients, _HELD_BACK_BY)


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


def set_up_torch(device: torch.device, deterministic: bool) -> None:
    """Let torch choose the fastest algorithms, or those that give the same result every time."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
        torch.use_deterministic_algorithms(True)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not deterministic
