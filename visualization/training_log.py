"""What training writes while it runs: progress bar, `loss_log.txt`, `losses.jsonl` and sample pictures."""

import json
import logging
import time
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from data.files import whole_file
from visualization.panels import save_training_panel

log = logging.getLogger(__name__)


class TrainingLog:
    """The record of one run, kept in its folder; a resumed run appends to it."""

    def __init__(self, folder: Path, steps_per_epoch: int, epochs: int, start: tuple[int, int]) -> None:
        """Start logging into `folder`; `start`: the epoch and its steps done, whose later records are dropped."""
        self.folder, self.steps_per_epoch, self.epochs = folder, steps_per_epoch, epochs
        self._drop_records_after(start)
        self._bar: tqdm | None = None
        self._losses: dict[str, float] = {}
        self._last = time.perf_counter()
        self._steps = 0
        self._data_seconds = 0.0

    def _drop_records_after(self, start: tuple[int, int]) -> None:
        """Cut both files back to what the state knows: steps after it are taken, and written, again."""
        jsonl, text = self.folder / "losses.jsonl", self.folder / "loss_log.txt"
        if not jsonl.exists():
            return
        records = [json.loads(line) for line in jsonl.read_text().splitlines()]
        kept = sum((record["epoch"], record["iteration"]) <= start for record in records)
        for path in (jsonl, text):
            lines = path.read_text().splitlines(keepends=True)[:kept]
            with whole_file(path) as scratch:
                scratch.write_text("".join(lines))

    def start_epoch(self, epoch: int, done: int) -> None:
        """Begin the bar of an epoch, `done` of whose steps were taken before."""
        self._bar = tqdm(
            total=self.steps_per_epoch, initial=done, desc=f"epoch {epoch}/{self.epochs}", unit="it",
            disable=None, leave=False,
        )  # fmt: skip
        self._last, self._steps, self._data_seconds = time.perf_counter(), 0, 0.0

    def step(self, data_seconds: float) -> None:
        """Count one step, which waited `data_seconds` for its batch."""
        self._steps += 1
        self._data_seconds += data_seconds
        self._bar.update()

    def write_losses(self, epoch: int, iteration: int, losses: dict[str, Tensor], lr: float) -> None:
        """Write one record of losses to the bar, the console and both files."""
        now = time.perf_counter()
        steps = max(self._steps, 1)
        seconds, data_seconds = (now - self._last) / steps, self._data_seconds / steps
        self._last, self._steps, self._data_seconds = now, 0, 0.0
        values = {name: float(loss) for name, loss in losses.items()}
        self._bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()})
        text = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        line = (
            f"epoch {epoch}  iteration {iteration}  {seconds:.3f} s/it  data {data_seconds:.3f} s  lr {lr:.2e}  {text}"
        )
        record = {
            "epoch": epoch, "iteration": iteration, "time": round(time.time(), 3), "lr": lr,
            "seconds_per_step": round(seconds, 4), "seconds_of_data": round(data_seconds, 4), "losses": values,
        }  # fmt: skip
        with (self.folder / "loss_log.txt").open("a") as file:
            file.write(line + "\n")
        with (self.folder / "losses.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        tqdm.write(line)

    def write_pictures(self, epoch: int, iteration: int, visuals: dict[str, Tensor]) -> None:
        """Save the current images side by side as `samples/epoch<epoch>_<iteration>.png`."""
        save_training_panel(visuals, self.folder / "samples" / f"epoch{epoch:03d}_{iteration:06d}.png")

    def end_epoch(self) -> None:
        """Close the bar."""
        self._bar.close()
