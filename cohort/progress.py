"""Progress over patients: a bar in a terminal, a line a patient in a log file."""

import logging
import sys
import time

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cohort.conversion import Outcome
from cohort.results import CaseRecord
from data.durations import describe_seconds
from training.distributed import ProcessGroup

log = logging.getLogger(__name__)


class Progress:
    """Reports each case as it ends, with an estimate of the time that the others will take."""

    def __init__(self, total: int, group: ProcessGroup) -> None:
        """Expect `total` cases, over all processes of the group."""
        self._total, self._team = total, group
        self._started = time.perf_counter()
        terminal = sys.stderr.isatty() and group.size == 1
        self._bar = tqdm(total=total, unit="patient", smoothing=0, dynamic_ncols=True) if terminal else None
        self._redirect = logging_redirect_tqdm() if terminal else None

    def __enter__(self) -> "Progress":
        """Begin."""
        if self._redirect is not None:
            self._redirect.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
        if self._redirect is not None:
            self._redirect.__exit__(*error)

    def report(self, outcome: Outcome) -> None:
        """Say what became of a case."""
        done = self._team.count("finished") + 1
        converted = self._team.count("converted") + 1 if outcome.what == "done" else 0
        assert outcome.record is not None, "a case that is held is not reported"
        text = f"{outcome.case.name}: {_describe(outcome.what, outcome.record)}"
        said = [f"warning: {text}" for text in outcome.record.warnings] + [f"note: {n}" for n in outcome.record.notes]
        findings = "".join(f"\n    {text}" for text in said)
        level = logging.ERROR if outcome.record.status == "failed" else logging.INFO
        if self._bar is not None:
            self._bar.update()
            if level == logging.ERROR or findings:
                log.log(level, "%s%s", text, findings)
            return
        rank = f"rank {self._team.rank}  " if self._team.size > 1 else ""
        width = len(str(self._total))
        text += self._remaining(done, converted)
        log.log(level, "%s[%*d/%d] %s%s", rank, width, done, self._total, text, findings)

    def _remaining(self, done: int, converted: int) -> str:
        """Return an estimate after a case was converted; those that fail take no time, so they tell nothing."""
        left = self._total - done
        if not converted or left <= 0:
            return ""
        seconds = (time.perf_counter() - self._started) / converted * left
        return f"; about {describe_seconds(seconds)} left"


def _describe(what: str, record: CaseRecord) -> str:
    if what == "elsewhere":
        return f"{record.status} by another process" + (f": {record.reason}" if record.reason else "")
    if what == "failed":
        return f"failed: {record.reason}"
    if "device" not in record.seconds:
        return f"scored in {record.seconds['total']:.1f} s; its volume was there"
    return f"done in {record.seconds['total']:.1f} s, {record.seconds['device']:.1f} s on the device"
