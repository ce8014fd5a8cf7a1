"""One training run: data, model and schedule put together, the loop over them, and its saved states."""

import logging
import os
import signal
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from data.errors import InputError, is_out_of_memory
from data.loading.unaligned_dataset import UnalignedSampler, load_batches, open_unaligned
from data.prepared.manifest import MANIFEST_NAME, hash_files, read_manifest
from models import run_folder
from models.cycle_gan_model import CycleGANModel, CycleGANSettings
from models.inference_settings import check_compatible, check_continued, describe_run, read_inference_settings
from models.memory import asked_and_free
from models.precision import choose_precision
from models.run_folder import Position
from models.schedules import LearningRate
from models.shape_extractor import ShapeExtractor, extractor_file, load_extractor
from training.distributed import ProcessGroup, job, restarts
from training.interruption import Interruption, exit_code
from visualization.training_log import TrainingLog, open_training_log

log = logging.getLogger(__name__)


class TrainingRun:
    """A run with the options `opt` of `train.py`, shared by the processes of `group`, each with `--batch_size` slices.

    The first process alone writes and shows.
    """

    def __init__(self, opt: Namespace, group: ProcessGroup) -> None:
        """Open the data set and build the model; nothing is written yet.

        Raises:
            InputError: data, extractor or options that cannot be used.
        """
        self.opt, self.group = opt, group
        self.folder = opt.checkpoints_dir / opt.name
        self.device = group.device(opt.device)
        opt.precision = choose_precision(opt.precision, self.device)
        set_up_torch(self.device, opt.deterministic)
        torch.manual_seed(opt.seed + group.rank)  # of dropout; order and augmentation have their own
        settings = CycleGANSettings(**{field.name: getattr(opt, field.name) for field in fields(CycleGANSettings)})
        self.dataset = group.share(
            lambda: open_unaligned(
                opt.dataroot, opt.mr_window, opt.ct_map, opt.augmentation, settings.uses_shape, opt.seed,
                simulate_mr=opt.warm_start == "simulated_mr", one_size=opt.batch_size > 1 or opt.pool_size > 0,
            )
        )  # fmt: skip
        extractor = open_extractor(opt, self.device, self.dataset.spacing_mm) if settings.uses_shape else None
        self.sampler = UnalignedSampler(
            self.dataset, opt.seed, opt.max_dataset_size, opt.batch_size, group.rank, group.size
        )
        self.model = CycleGANModel(
            settings, self.device, extractor, self.dataset.a.mask_labels, group.rank, group.size, opt.compile
        )
        if extractor:
            n_classes = extractor.settings.n_classes
            log.info("shape: %d of %d classes, which all masks tell apart", self.model.shape_classes, n_classes)
        self.rate = LearningRate(
            list(self.model.optimisers.values()), opt.lr_policy, opt.lr, opt.n_epochs, opt.n_epochs_decay,
            opt.lr_decay_iters, n_epochs_warm=opt.n_epochs_warm, warm_lr=opt.warm_lr,
        )  # fmt: skip
        self.epochs = opt.n_epochs_warm + opt.n_epochs + opt.n_epochs_decay
        slices = f"{len(self.dataset.a)}, {len(self.dataset.b)}"
        together = {"slices of A and B": slices, "processes": str(group.size)}
        if self.device.type == "cpu":  # the order of sums is that of threads
            together["threads"] = str(torch.get_num_threads())
        if extractor:
            together["shape extractor"] = hash_files([extractor_file(self.opt.shape_extractor)])
        self.record = run_folder.options_record(vars(opt)) | together

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
        steps = self.sampler.steps
        log.info(
            "%s: %d slices of A, %d of B, %d steps an epoch, on %s in %s%s", self.opt.name, len(self.dataset.a),
            len(self.dataset.b), steps, self.device, self.opt.precision,
            f", with {self.group.size} processes" if self.group.size > 1 else "",
        )  # fmt: skip
        start = (at.epoch, at.samples // self.sampler.together)
        with (
            Interruption() as interruption,
            open_training_log(self.opt, self.epochs, steps, start, shown=self.group.rank == 0) as training_log,
        ):
            self._saved_at = time.monotonic()
            received = 0
            while at.epoch <= self.epochs and not received:
                at = self._train_epoch(at, training_log, interruption)
                # One process may have heard alone what ends them all.
                (received,) = self.group.greatest(interruption.received)
        if received and at.epoch <= self.epochs:
            return self._stopped(at, received)
        log.info("trained: %s", self.folder)
        return 0

    def _train_epoch(self, at: Position, training_log: TrainingLog, interruption: Interruption) -> Position:
        """Train from `at` to the end of its epoch; return where the run is then, its state saved."""
        opt, epoch, sampler = self.opt, at.epoch, self.sampler
        self.rate.start_epoch(epoch)
        step = self.model.warm_step if epoch <= opt.n_epochs_warm else self.model.step
        sampler.set_epoch(epoch, at.samples)
        first = at.samples // sampler.together
        last = first + sampler.steps_left
        training_log.start_epoch(epoch, first)
        # In float64, but for MPS, which has none.
        sum_type = torch.float32 if self.device.type == "mps" else torch.float64
        epoch_loss = torch.tensor(at.epoch_loss, dtype=sum_type)
        waiting_since = time.perf_counter()
        pinned = self.device.type == "cuda"
        batches = load_batches(self.dataset, sampler, opt.batch_size, opt.num_threads, pinned)
        for iteration, batch in enumerate(batches, start=first + 1):
            data_seconds = time.perf_counter() - waiting_since
            losses = step(batch)
            epoch_loss = epoch_loss + losses["G"].to(sum_type) / sampler.steps
            training_log.step(data_seconds)
            if iteration % opt.print_freq == 0 or iteration == last:
                training_log.write_losses(epoch, iteration, self.group.average(losses), self.rate.current)
            if iteration % opt.display_freq == 0 or iteration == last:
                training_log.write_pictures(epoch, iteration, self.model.visuals)
            due = opt.save_latest_freq.due(iteration, self._saved_at)
            received, due = self.group.greatest(interruption.received, due)
            if received or due:
                samples = min(at.samples + (iteration - first) * sampler.together, sampler.samples)
                here = Position(epoch, samples, self._mean_loss(epoch_loss))
                self._save(here)
                if received:
                    return here
            waiting_since = time.perf_counter()
        training_log.end_epoch()
        mean_loss = self._mean_loss(epoch_loss)
        if epoch % opt.save_epoch_freq == 0 or epoch == self.epochs:
            # Before the next epoch's state: a run killed between would not go back. Nor could it go on without any.
            if not self.group.share(lambda: run_folder.has_state(self.folder)):
                self._save(Position(epoch, sampler.samples, mean_loss))
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
        place = f"epoch {at.epoch}, step {at.samples // self.sampler.together}"
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
            origin = {"options": self.record, "job": job()}
            run_folder.save_state(self.folder, {**parts, "processes": processes, **origin})
        self._save_weights("latest")
        self._saved_at = time.monotonic()

    def _state_of_this_process(self) -> dict[str, Any]:
        return {"pools": self.model.pools_state(), "random": run_folder.random_state(self.device)}

    def _continues(self) -> bool:
        """Tell whether the run goes on from a state: as asked for, or where torchrun has restarted what it began."""
        return self.opt.continue_train or (
            self.group.greatest(restarts())[0] > 0 and self.group.share(self._is_of_this_job)
        )

    def _is_of_this_job(self) -> bool:
        """Tell whether this very start of torchrun saved the state in the folder; another's is not written over."""
        if job() is None or not run_folder.has_state(self.folder):
            return False
        return run_folder.load_state(self.folder).get("job") == job()

    def _begin(self) -> Position:
        """Make the folder of a new run, with fresh weights or those of `--init_from`."""
        opt, source = self.opt, self.opt.checkpoints_dir / (self.opt.init_from or "")

        def prepare() -> None:
            run_folder.check_new(self.folder)
            run_folder.clear_scratch(self.folder)
            settings = describe_run(opt, self.dataset, self.model.netG_A.multiple)
            if opt.init_from:
                check_compatible(opt.init_from, read_inference_settings(source), settings)
            settings.write(self.folder)
            run_folder.save_options(self.folder, vars(opt))

        self.group.share(prepare)
        if opt.init_from:
            run_folder.load_weights(source, self.model, opt.epoch)
        return Position()

    def _go_on(self) -> Position:
        """Restore the last saved state; processes that it knows nothing of start with empty pools."""

        def take_over(state: dict[str, Any]) -> None:
            run_folder.check_options(self.folder, state["options"], self.record)
            self._restore(state)

        def load() -> dict[str, Any]:
            run_folder.clear_scratch(self.folder)
            state = run_folder.load_state(self.folder, take_over)
            here = describe_run(self.opt, self.dataset, self.model.netG_A.multiple)
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
        if self.group.rank < len(state["processes"]):
            own = state["processes"][self.group.rank]
            self.model.load_pools_state(own["pools"])
            run_folder.restore_random_state(own["random"], self.device)
        return run_folder.saved_position(state)


@contextmanager
def memory_shortage_said(device: torch.device) -> Iterator[None]:
    """Make an error of the user's, which says the way out, of a want of memory for a training on `device`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if isinstance(error, MemoryError) or "CPUAllocator" in str(error):  # the computer's, whatever trains
            device = torch.device("cpu")
        raise InputError(
            f"{device}: out of memory{asked_and_free(error, device)}; lower --batch_size or take --precision bf16, and "
            "go on from the last saved state by --continue_train, or start a run with a smaller --crop_size "
            "(--preprocess body_crop) or --ngf"
        ) from error


def set_up_torch(device: torch.device, deterministic: bool) -> None:
    """Let torch choose the fastest algorithms, or those that give the same result every time."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
        torch.use_deterministic_algorithms(True)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not deterministic


def open_extractor(opt: Namespace, device: torch.device, spacing_mm: float | None) -> ShapeExtractor:
    """Return the frozen shape extractor, for CT of this pixel spacing under this run's intensity map.

    What it was trained on is said; where that is none of the CT of this data set, in a warning.
    """
    path = opt.shape_extractor
    file = extractor_file(path)
    if not file.exists():
        raise InputError(
            f"{file}: no such file: the shape constraint needs an extractor that knows this anatomy; "
            f"train one by python -m ct_segmentation.train --dataroot {opt.dataroot} (it takes a prepared data set), "
            "name one of the same anatomy by --shape_extractor, or train without the constraint: --lambda_shape 0 "
            "--lambda_shape_gan 0"
        )
    extractor = load_extractor(path, device, opt.ct_map)
    learnt_mm = extractor.settings.spacing_mm
    if spacing_mm and not 0.75 <= learnt_mm / spacing_mm <= 1.25:  # the scales that it was augmented with
        log.warning("warning: the shape extractor knows pixels of %g mm, these are %g mm", learnt_mm, spacing_mm)
    training = extractor.settings.training
    if training is None:
        log.warning(
            "warning: %s: does not say what it was trained on; it must know the anatomy of %s", path, opt.dataroot
        )
        return extractor
    known = str(training.get("dataset"))
    if "patients" in training:  # of weights that were taken over nobody knows
        known = f"{training.get('ct')} CT of {training['patients']} patients ({known})"
    if _knows_ct_of(opt.dataroot, training):
        log.info("shape extractor: %s, trained on %s", path, known)
    else:
        log.warning(
            "warning: %s: was trained on %s, none of them in %s; it must know the anatomy there",
            path,
            known,
            opt.dataroot,
        )
    return extractor


def _knows_ct_of(dataroot: Path, training: Mapping[str, Any]) -> bool:
    """Tell whether an extractor was trained on some CT that a prepared data set trains on too."""
    if not (dataroot / MANIFEST_NAME).exists():
        return False
    here = {case.source_sha256 for case in read_manifest(dataroot).select("train", "B")}
    return not here.isdisjoint(training.get("sources") or ())
