"""One case from its files to its record, in the three stages that a pipeline overlaps."""

import logging
import socket
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cohort.checks import Findings, check_conversion, describe_findings, finite, hu_statistics
from cohort.extras import Extras
from cohort.inputs import CohortCase, exists, short_hash
from cohort.results import DICOM, MU_MAP, CaseRecord, Claim, Results, now
from data.errors import InputError
from data.masks.body_mask import read_mask
from data.outputs import check_free
from data.prepared.manifest import hash_files, hash_source
from data.values.attenuation import mu_map
from data.volumes.contrasts import describe_paths, shown_name
from data.volumes.dicom_origin import DicomOrigin
from data.volumes.dicom_series import Derivation, check_folder, check_identity, source_hash, write_series
from data.volumes.volume import Volume, read_volume, write_volume
from evaluation.cases import read_reference
from evaluation.report import score_case
from models.inference_settings import package_versions
from models.synthesis import METHOD_VERSION, Synthesiser, VolumePlan, prepare_volume, restore_volume
from visualization.case_page import write_case_page
from visualization.panels import save_preview

log = logging.getLogger(__name__)


@dataclass
class Work:
    """A case on its way: what the stages hand on to each other."""

    case: CohortCase
    claim: Claim | None
    key: dict
    seconds: dict[str, float] = field(default_factory=dict)
    slices: np.ndarray | None = None
    plan: VolumePlan | None = None
    further: list[DicomOrigin | None] = field(default_factory=list)
    source_sha256: str = ""
    output_sha256: str | None = None
    unwritten: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Outcome:
    """What became of a case: 'done', 'failed', 'held' (by another process), or done or failed 'elsewhere' meanwhile."""

    case: CohortCase
    what: str
    record: CaseRecord | None = None


def result_key(case: CohortCase, model_sha256: str, precision: str, chosen: Sequence[str] = ()) -> dict:
    """Return all that a case's result depends on. Raises `InputError` where a file cannot be read.

    `chosen`: names of the images in a DICOM series of several volumes.
    `precision` is the one asked for: machines of one cluster may resolve 'auto' differently, and their results count
    as the same.
    """
    return {
        "input_sha256": case.hash(),
        "series_uid": case.series_uid,
        "mask_sha256": case.mask and hash_source(case.mask),
        # A missing one is a matter of scoring, and no reason not to convert.
        "reference_sha256": hash_source(case.reference) if case.reference and exists(case.reference) else None,
        "model_sha256": model_sha256,
        "precision": precision,
        "method": METHOD_VERSION,
        **({"chosen": list(chosen)} if chosen else {}),
    }


class Conversion:
    """The three stages of a case with one model; each returns its `Outcome` where the case ends with it."""

    def __init__(
        self,
        synthesiser: Synthesiser,
        model_sha256: str,
        precision: str,
        batch_size: int | None,
        results: Results,
        known: Mapping[str, CaseRecord],
        extras: Extras,
        chosen: Sequence[str] = (),
        pages: bool = True,
        overwrite: bool = False,
    ) -> None:
        """Set up.

        Args:
            synthesiser: the model; model_sha256: its hash.
            precision: as asked for.
            batch_size: slices in one pass, or None.
            results: where results go.
            known: the records by case as they were before the run: one that has changed since is another process's.
            extras: what is written beside the volumes.
            chosen: names of the images in DICOM series of several volumes.
            pages: whether each case gets a results page, or only a picture.
            overwrite: whether files that no pipeline made may be replaced.
        """
        self.extras, self.chosen, self.pages, self.overwrite = extras, chosen, pages, overwrite
        self.synthesiser, self.model_sha256, self.precision = synthesiser, model_sha256, precision
        self.batch_size, self.results, self.known = batch_size, results, known
        model = synthesiser.model
        self.run: dict[str, Any] = {
            "device": str(model.device), "precision": model.precision, "host": socket.gethostname(),
            "versions": package_versions(),
        }  # fmt: skip

    def prepare(self, case: CohortCase) -> Work | Outcome:
        """Claim a case, read it and make its slices."""
        try:
            claim = self.results.claim(case.name)
        except InputError as error:  # not put on record: another process may be at work on the case
            log.error("%s: %s", case.name, error)
            return Outcome(case, "failed", self._failure(Work(case, None, {}), error))
        if claim is None:
            return Outcome(case, "held")
        work = Work(case, claim, {})
        with self._isolated(work) as failure:
            if case.problem:
                raise InputError(case.problem)
            with _timed(work, "read"):
                work.key = result_key(case, self.model_sha256, self.precision, self.chosen)
                self._refuse_other_patient(work)
                earlier = self._done_elsewhere(work)
                if earlier:
                    claim.release()
                    return Outcome(case, "elsewhere", earlier)
                self._targets(work)
                source, *further = (
                    read_volume(path, case.series_uid, contrast=name, chosen=self.chosen if path.is_dir() else ())
                    for name, path in ((case.contrast, case.path), *case.further)
                )
                body = read_mask(case.mask, source) if case.mask else None
                if self.extras.dicom:
                    check_identity(source, self.extras.identity(case))
                    work.source_sha256 = source_hash([source, *further], body)
                    work.further = [one.dicom for one in further]
            with _timed(work, "prepare"):
                work.slices, work.plan = prepare_volume(source, self.synthesiser.settings, body, further)
            return work
        return failure[0]

    def translate(self, work: Work) -> np.ndarray | Outcome:
        """Send a case's slices through the network: the stage on the device."""
        with self._isolated(work) as failure:
            assert work.slices is not None, "`prepare` has made them"
            with _timed(work, "device"):
                translated = self.synthesiser.model.translate(work.slices, self.batch_size)
            work.slices = None
            return translated
        return failure[0]

    def finish(self, work: Work, translated: np.ndarray) -> Outcome:
        """Make the volume, check and write it, score it, and record all."""
        with self._isolated(work) as failure:
            plan = work.plan
            assert plan is not None, "`prepare` has made it"
            with _timed(work, "restore"):
                synthetic = restore_volume(translated, plan)
            with _timed(work, "check"):
                training = self.synthesiser.settings.training
                findings = check_conversion(plan, translated, synthetic, training)
                findings.warnings += plan.source.notes
                hu = hu_statistics(synthetic, plan.body) if plan.to_ct else {}
            del translated
            with _timed(work, "write"):
                self._reserve(work)
                path = write_volume(synthetic, self.results.volume_path(work.case.name))
                work.output_sha256 = hash_files([path])
                extras = self._write_extras(work, synthetic)
            with _timed(work, "score"):
                scores, reference = self._score(work, plan, synthetic, findings.warnings)
            with _timed(work, "show"):
                self._show(work, plan, synthetic, reference, scores, findings)
            work.seconds["total"] = time.perf_counter() - work.started
            record = replace(
                self._record(work, "done"),
                warnings=findings.warnings,
                unchecked=findings.unchecked,
                output=path.name,
                output_sha256=work.output_sha256,
                geometry=_geometry(synthetic),
                hu=hu,
                checks=finite(findings.figures),
                scores=finite(scores),
                unwritten=work.unwritten,
                extras=extras,
            )
            self.results.write(record)
            if work.claim is not None:
                work.claim.release()
            return Outcome(work.case, "done", record)
        return failure[0]

    def _write_extras(self, work: Work, synthetic: Volume) -> dict[str, dict]:
        """Write what is asked for beside the volume; return what the record says of it."""
        case, model = work.case, self.synthesiser.model
        if self.extras.dicom:
            of = (METHOD_VERSION, model.precision, work.source_sha256)
            made = Derivation(self.extras.model, self.extras.epoch, self.model_sha256, *of)
            folder = self.results.extra_path(DICOM, case.name)
            write_series(synthetic, folder, made, self.extras.identity(case), work.further)
        if self.extras.mu:
            write_volume(mu_map(synthetic, self.extras.mu), self.results.extra_path(MU_MAP, case.name))
        described = {
            kind: self.results.describe_extra(kind, case.name, of) for kind, of in self.extras.asked(case).items()
        }
        return {kind: one for kind, one in described.items() if one}

    def _score(
        self, work: Work, plan: VolumePlan, synthetic: Volume, warnings: list[str]
    ) -> tuple[dict[str, float], Volume | None]:
        """Return the scores against the case's reference, and that; what is wrong with it becomes a warning."""
        if not work.case.reference:
            return {}, None
        try:
            reference = read_reference(work.case.reference, plan.source)
            return score_case(synthetic, reference, mr=plan.source), reference
        except Exception as error:  # the volume is there: no reason to lose it
            log.debug("%s: scores", work.case.name, exc_info=True)
            warnings.append(f"not scored: {error}")
            return {}, None

    def _show(
        self,
        work: Work,
        plan: VolumePlan,
        synthetic: Volume,
        reference: Volume | None,
        scores: Mapping[str, float],
        findings: Findings,
    ) -> None:
        """Make what there is to look at, now that the volume is written: the one place for pictures and pages.

        A picture that fails is no reason to lose a patient: it becomes a warning.
        """
        contrast = shown_name(self.synthesiser.settings.contrasts)
        mr, ct, kind = (plan.source, synthetic, "CT") if plan.to_ct else (synthetic, plan.source, "MR")
        try:
            if not self.pages:
                picture = self.results.folder / f"{work.case.name}.png"
                save_preview(mr, ct, reference, picture, kind, contrast)
                return
            write_case_page(
                self.results.page_path(work.case.name).parent,
                work.case.name,
                mr,
                ct,
                reference,
                scores,
                synthetic=kind,
                body=plan.body,
                details={"input": describe_paths(work.case.paths), **describe_findings(findings)},
                cohort_page=self.results.folder / "index.html",
                contrast=contrast,
            )
        except Exception as error:
            log.debug("%s: picture", work.case.name, exc_info=True)
            findings.warnings.append(f"no picture: {error}")
            if isinstance(error, InputError | OSError):  # a full disk: another day it has room
                work.unwritten = self._targets(work)[1:2]

    def _targets(self, work: Work) -> list[str]:
        """Return the names of what is to be written of a case: the volume, page or picture, extras.

        Raises:
            InputError: one of them is there, and no pipeline made it.
        """
        volume, page, picture, *_ = (targets := self.results.targets(work.case.name))
        extras = [self.results.extra_path(kind, work.case.name) for kind in self.extras.asked(work.case)]
        names = [volume, page if self.pages else picture, *(name for name, path in targets.items() if path in extras)]
        read = (*work.case.paths.values(), work.case.mask, work.case.reference)
        inputs = [path for path in read if path and exists(path)]
        made = [targets[name] for name in self._made(work) if name in targets]
        check_free([targets[name] for name in names], "--results_dir", inputs, made, self.overwrite)
        if self.extras.dicom:
            check_folder(self.results.extra_path(DICOM, work.case.name))
        return names

    def _made(self, work: Work) -> list[str]:
        """Return the names of what earlier runs made of this case's input."""
        record = self.results.read(work.case.name)
        same = record is None or record.input == str(work.case.path.absolute())
        if not same and record is not None and record.key.get("input_sha256") != work.key.get("input_sha256"):
            return []
        return self.results.made(work.case.name)

    def _reserve(self, work: Work) -> None:
        """Put on record what is written next: what a run that is killed leaves is then known to be its own."""
        names, made = self._targets(work), self._made(work)
        if not set(names) <= set(made):
            reason = "its process ended while it wrote the results"
            begun = replace(self._record(work, "begun"), made=sorted({*made, *names}), reason=reason)
            self.results.write(begun)

    def _refuse_other_patient(self, work: Work) -> None:
        """Raise `InputError` where another process has written another patient's result under this name meanwhile.

        The failure is then recorded under a name of its own.
        """
        name, path = work.case.name, str(work.case.path.absolute())
        record = self.results.read(name)
        if record is None or record == self.known.get(name) or record.input == path:
            return
        if record.key.get("input_sha256") != work.key["input_sha256"]:
            work.case = replace(work.case, name=f"{name}__{short_hash(path)}")
            raise InputError(
                f"{path}: {name}.nii.gz is the result of {record.input}, which another process converted meanwhile; "
                "use another --results_dir"
            )

    def _done_elsewhere(self, work: Work) -> CaseRecord | None:
        """Return the record that another process has written of this very work since the run began."""
        record = self.results.read(work.case.name)
        if record is None or record == self.known.get(work.case.name) or record.key != work.key:
            return None
        return record if record.status == "failed" or self._is_current(record, work) else None

    def _is_current(self, record: CaseRecord, work: Work) -> bool:
        return self.results.is_current(record, work.key, self.extras.asked(work.case))

    @contextmanager
    def _isolated(self, work: Work) -> Iterator[list[Outcome]]:
        """Let an error end this case alone: it is recorded, and the list that is yielded gets the outcome."""
        outcomes: list[Outcome] = []
        try:
            yield outcomes
        except Exception as error:
            work.slices = work.plan = None
            record = self._failure(work, error)
            try:
                self.results.write(record)
            except InputError as unwritten:
                log.error("%s: %s", work.case.name, unwritten)
            if work.claim is not None:
                work.claim.release()
            outcomes.append(Outcome(work.case, "failed", record))

    def _failure(self, work: Work, error: Exception) -> CaseRecord:
        expected = isinstance(error, InputError | OSError)
        reason = str(error) if expected else f"unexpected {type(error).__name__}: {error}"
        volume = self.results.volume_path(work.case.name)
        if work.output_sha256:
            reason += f" ({volume.name} was written, without a record: the next run converts it again)"
        elif volume.exists() and volume.name in self._made(work):
            reason += f" ({volume.name} is of an earlier input or model)"
        details = "" if expected else "".join(traceback.format_exception(error))
        return replace(self._record(work, "failed"), reason=" ".join(reason.split()), details=details)

    def _record(self, work: Work, status: str) -> CaseRecord:
        return CaseRecord(
            case=work.case.name,
            status=status,
            input=str(work.case.path.absolute()),
            key=work.key,
            attempt=uuid.uuid4().hex,
            finished=now(),
            seconds={name: round(value, 3) for name, value in work.seconds.items()},
            run=self.run,
            made=self._made(work),
        )


@contextmanager
def _timed(work: Work, stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        work.seconds[stage] = time.perf_counter() - started


def _geometry(volume: Volume) -> dict:
    return {name: list(getattr(volume, name)) for name in ("size", "spacing", "origin", "direction")}
