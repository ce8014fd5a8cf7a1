"""Convert one case, from its files to its record, in three stages that a pipeline overlaps."""

import logging
import math
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cohort.checks import finite, hu_statistics, shown_figures
from cohort.extras import Extras
from cohort.findings import Findings, describe_findings
from cohort.inputs import CohortCase, exists
from cohort.making import Made, Models, Output, Part, describe_computation
from cohort.patient_results import account_in, description_of
from cohort.result_keys import is_made, result_key, without_reference
from cohort.results import DICOM, MU_MAP, NO_PICTURE, UNCERTAINTY, CaseRecord, Claim, Results, now
from data.errors import InputError
from data.files import hash_files, remove
from data.masks.body_mask import ct_body_mask, mr_body_mask, read_mask
from data.prepared.case_names import short_hash
from data.values.attenuation import describe_mu, mu_map
from data.volumes.contrasts import describe_paths, shown_name
from data.volumes.dicom_origin import DicomOrigin
from data.volumes.dicom_series import Derivation, check_folder, check_identity, source_hash, write_series
from data.volumes.outputs import check_free
from data.volumes.volume import Volume, read_volume, write_volume
from evaluation.cases import read_reference
from evaluation.origin import SYNTHETIC, reference_warnings
from evaluation.report import describe_mask, score_case
from models.ensemble import mean_uncertainty
from models.synthesis import METHOD_VERSION
from visualization.case_page import remove_case_page, write_case_page
from visualization.preview import heading, save_preview

log = logging.getLogger(__name__)

# How warnings begin that are of a case's true CT alone.
NOT_SCORED, _REFERENCE = "not scored: ", "--reference "


@dataclass
class Work:
    """A case in progress, as the stages pass it on."""

    case: CohortCase
    claim: Claim | None
    key: dict
    seconds: dict[str, float] = field(default_factory=dict)
    source: Volume | None = None  # as it was read: networks may get it without its bias field
    parts: list[Part] = field(default_factory=list)
    further: list[DicomOrigin | None] = field(default_factory=list)
    source_sha256: str = ""
    output_sha256: str | None = None
    unwritten: list[str] = field(default_factory=list)
    made_of: dict | None = None  # the key of the volume that the case's files are of, once that is known
    started: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case: 'done', 'failed', 'held' (by another process), or done or failed 'elsewhere' meanwhile."""

    case: CohortCase
    what: str
    record: CaseRecord | None = None


class Conversion:
    """The three stages of a case with the models of a run; each returns its `Outcome` if the case ends there."""

    def __init__(
        self,
        models: Models,
        model_sha256: str,
        precision: str,
        results: Results,
        known: Mapping[str, CaseRecord],
        extras: Extras,
        chosen: Sequence[str] = (),
        pages: bool = True,
        overwrite: bool = False,
        resample_reference: bool = False,
        purpose: str | None = None,
    ) -> None:
        """Set up.

        Args:
            models: the models; model_sha256: their hash.
            precision: as asked for.
            results: where results go.
            known: the records by case as they were before the run: one that has changed since is another process's.
            extras: what is written beside the volumes.
            chosen: names of the images in DICOM series of several volumes.
            pages: whether each case gets a results page, or only a picture.
            overwrite: whether files that no pipeline made may be replaced.
            resample_reference: whether a reference on another grid is resampled.
            purpose: what the models are for, for the pages.
        """
        self.extras, self.chosen, self.pages, self.overwrite = extras, chosen, pages, overwrite
        self.resample_reference, self.purpose = resample_reference, purpose
        self.models, self.model_sha256, self.precision = models, model_sha256, precision
        self.results, self.known = results, known
        self.run = describe_computation(models.first.model)

    def prepare(self, case: CohortCase) -> Work | Outcome:
        """Claim a case, read it and make its slices."""
        try:
            claim = self.results.claim(case.name)
        except InputError as error:  # not put on record: another process may be at work on the case
            return Outcome(case, "failed", self._failure(Work(case, None, {}), error))
        if claim is None:
            return Outcome(case, "held")
        work = Work(case, claim, {})
        with self._isolated(work) as failure:
            if case.problem:
                raise InputError(case.problem)
            with _timed(work, "read"):
                how = (self.precision, self.chosen, self.resample_reference, self.models.air_outside)
                work.key = result_key(case, self.model_sha256, *how)
                self._refuse_other_patient(work)
                earlier = self._done_elsewhere(work)
                if earlier:
                    claim.release()
                    return Outcome(case, "elsewhere", earlier)
                self._targets(work)
            if record := self._volume_made(work):
                return self._score_again(work, record)
            with _timed(work, "read"):
                source, *further = (
                    self._read(case, name, path) for name, path in ((case.contrast, case.path), *case.further)
                )
                body = read_mask(case.mask, source) if case.mask else None
                if self.extras.dicom:
                    check_identity(source, self.extras.identity(case))
                    work.source_sha256 = source_hash([source, *further], body)
                    work.further = [one.dicom for one in further]
            work.source = source
            with _timed(work, "prepare"):
                work.parts = self.models.prepare(source, body, further)
            return work
        return failure[0]

    def translate(self, work: Work) -> list[Output] | Outcome:
        """Send a case's slices through the networks: the stage on the device."""
        with self._isolated(work) as failure, _timed(work, "device"):
            return self.models.translate(work.parts)
        return failure[0]

    def finish(self, work: Work, outputs: list[Output]) -> Outcome:
        """Make the volume, check it, write it, score it, and record everything."""
        with self._isolated(work) as failure:
            plan = outputs[0].plan
            source = work.source
            assert source is not None, "it was read before its slices were made"
            with _timed(work, "restore"):
                volumes, found = self.models.restore(outputs)
                synthetic, deviation = self.models.fuse(outputs, volumes)
            with _timed(work, "check"):
                made = Made(synthetic, deviation, plan.body, found)
                if self.models.air_outside:
                    made.clear_outside()
                findings = made.findings
                findings.warnings += source.notes
                hu = hu_statistics(synthetic, made.body) if plan.to_ct else {}
                if deviation is not None:
                    findings.figures["uncertainty_mean_hu"] = mean_uncertainty(deviation, made.body)
            outputs.clear()
            del volumes
            with _timed(work, "write"):
                self._reserve(work)
                described = SYNTHETIC[self.models.settings.direction]
                path = write_volume(synthetic, self.results.volume_path(work.case.name), described)
                work.output_sha256 = hash_files([path])
                self._remove_outdated(work)
                extras = self._write_extras(work, made)
            with _timed(work, "score"):
                scores, reference = self._score(work, source, made)
            with _timed(work, "show"):
                self._show(work, source, made, reference, scores | shown_figures(hu, findings.figures))
            work.seconds["total"] = time.perf_counter() - work.started
            record = replace(
                self._record(work, "done"),
                warnings=findings.warnings,
                unchecked=findings.unchecked,
                notes=findings.notes,
                output=path.name,
                output_sha256=work.output_sha256,
                geometry=_geometry(synthetic),
                hu=hu,
                checks=finite(findings.figures),
                scores=finite(scores),
                unwritten=work.unwritten,
                extras=extras,
            )
            return self._done(work, record)
        return failure[0]

    def _read(self, case: CohortCase, contrast: str | None, path: Path) -> Volume:
        """Read one contrast of a case."""
        return read_volume(path, case.series_uid, contrast=contrast, chosen=self.chosen if path.is_dir() else ())

    def _done(self, work: Work, record: CaseRecord) -> Outcome:
        """Put a finished case on record and let others have it."""
        self.results.write(record)
        if work.claim is not None:
            work.claim.release()
        return Outcome(work.case, "done", record)

    def _volume_made(self, work: Work) -> CaseRecord | None:
        """Return the record of a volume, its page and extras that only lack the scores against another true CT."""
        record, asked = self.known.get(work.case.name), self.extras.asked(work.case)
        if record is None or self.overwrite or without_reference(record.key) != without_reference(work.key):
            return None
        return record if self.results.is_current(record, record.key, asked) else None

    def _score_again(self, work: Work, record: CaseRecord) -> Outcome:
        """Score a volume that is there, and make its page anew."""
        case, work.output_sha256 = work.case, record.output_sha256
        with _timed(work, "read"):
            source = self._read(case, case.contrast, case.path)
            synthetic = read_volume(self.results.volume_path(case.name))
            uncertainty = self.results.extra_path(UNCERTAINTY, case.name)
            deviation = read_volume(uncertainty) if self.extras.uncertainty else None
            find = mr_body_mask if self.models.settings.direction == "AtoB" else ct_body_mask
            body = read_mask(case.mask, source) if case.mask else find(source)
        warnings = [text for text in record.warnings if not text.startswith((NOT_SCORED, _REFERENCE))]
        made = Made(synthetic, deviation, body, Findings(dict(record.checks), warnings, record.unchecked, record.notes))
        with _timed(work, "score"):
            scores, reference = self._score(work, source, made)
        with _timed(work, "show"):
            self._reserve(work)
            self._show(work, source, made, reference, scores | shown_figures(record.hu, record.checks))
        work.made_of = work.key
        work.seconds["total"] = time.perf_counter() - work.started
        again = replace(
            self._record(work, "done"), warnings=made.findings.warnings, unchecked=record.unchecked,
            notes=record.notes, output=record.output, output_sha256=record.output_sha256, geometry=record.geometry,
            hu=record.hu, checks=record.checks, scores=finite(scores), unwritten=work.unwritten, extras=record.extras,
            run=record.run,
        )  # fmt: skip
        return self._done(work, again)

    def _write_extras(self, work: Work, made: Made) -> dict[str, dict]:
        """Write the requested extras; return what the record says of them."""
        case, model, synthetic = work.case, self.models.first.model, made.synthetic
        if self.extras.dicom:
            of = (METHOD_VERSION, model.precision, work.source_sha256, tuple(made.findings.warnings))
            derivation = Derivation(self.extras.model, self.extras.epoch, self.model_sha256, *of)
            folder = self.results.extra_path(DICOM, case.name)
            identity, notes = self.extras.identity(case), made.findings.notes
            write_series(synthetic, folder, derivation, identity, work.further, notes)
        if self.extras.mu:
            path, mu = self.results.extra_path(MU_MAP, case.name), self.extras.mu
            write_volume(mu_map(synthetic, mu), path, describe_mu(mu))
        if made.deviation is not None:
            write_volume(made.deviation, self.results.extra_path(UNCERTAINTY, case.name))
        described = {
            kind: self.results.describe_extra(kind, case.name, of) for kind, of in self.extras.asked(case).items()
        }
        return {kind: one for kind, one in described.items() if one}

    def _score(self, work: Work, source: Volume, made: Made) -> tuple[dict[str, float], Volume | None]:
        """Return the scores against the case's reference, and the reference; problems with it become warnings."""
        if not work.case.reference:
            return self._kept_scores(work), None
        try:
            reference = read_reference(work.case.reference, source, self.resample_reference, at=work.case.path)
            made.findings.warnings += reference_warnings("--reference", work.case.reference)
            return score_case(made.synthetic, reference.ct, mr=source, covered=reference.covered), reference.ct
        except Exception as error:  # the volume is there: no reason to lose it
            log.debug("%s: scores", work.case.name, exc_info=True)
            made.findings.warnings.append(f"{NOT_SCORED}{error}")
            return {} if exists(work.case.reference) else self._kept_scores(work), None

    def _kept_scores(self, work: Work) -> dict[str, float]:
        """Return the scores that an earlier run gave to this very volume."""
        record = self.known.get(work.case.name)
        if record is None or record.output_sha256 != work.output_sha256:
            return {}
        return {name: math.nan if value is None else value for name, value in record.scores.items()}

    def _show(
        self, work: Work, source: Volume, made: Made, reference: Volume | None, figures: Mapping[str, float]
    ) -> None:
        """Make picture or page of the written volume: the only place that does.

        A picture that fails is no reason to lose a patient: it becomes a warning.
        """
        contrast, findings = shown_name(self.models.settings.contrasts), made.findings
        to_ct = self.models.settings.direction == "AtoB"
        mr, ct, kind = (source, made.synthetic, "CT") if to_ct else (made.synthetic, source, "MR")
        try:
            if not self.pages:
                picture = self.results.folder / f"{work.case.name}.png"
                lines = heading(work.case.name, self.extras.model, figures, kind)
                save_preview(mr, ct, reference, picture, lines, kind, contrast, made.deviation)
                return
            write_case_page(
                self.results.page_path(work.case.name).parent,
                work.case.name,
                mr,
                ct,
                reference,
                figures,
                synthetic=kind,
                body=made.body,
                details={
                    "input": describe_paths(work.case.paths),
                    "model": self.extras.model,
                    "epoch": self.extras.epoch,
                    "model for": self.purpose,
                    "true CT": str(work.case.reference) if reference else None,
                    "scored in": describe_mask(with_mask=False, with_mr=True) if reference else None,
                    **describe_findings(findings),
                },
                cohort_page=self.results.folder / "index.html",
                contrast=contrast,
                uncertainty=made.deviation,
            )
        except Exception as error:
            log.debug("%s: picture", work.case.name, exc_info=True)
            findings.warnings.append(f"{NO_PICTURE}{error}")
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
        """Return the names of what earlier runs, or `test_adapt.py` with the same model, made of this case's input."""
        record = self.results.read(work.case.name)
        made = self.results.made(work.case.name)
        if record is None:
            account = account_in(self.results.folder / f"{work.case.name}.json")
            return [*made, *account.made] if account and account.input == description_of(work.case.paths) else made
        same = self.overwrite or record.input == str(work.case.path.absolute())
        return made if same or record.key.get("input_sha256") == work.key.get("input_sha256") else []

    def _remove_outdated(self, work: Work) -> None:
        """Remove what was made of another volume of this case than the one that is there now.

        Raises:
            InputError: the folder of a DICOM series holds other files, too.
        """
        before = self._made_of(work)
        if before is not None and without_reference(before) != without_reference(work.key):
            _, *beside = self.results.targets(work.case.name).items()
            made = self._made(work)
            for path in [path for name, path in beside if name in made and path.exists()]:
                log.info("%s: %s was made of an earlier volume and is removed", work.case.name, path)
                self._remove_own(work, path)
        work.made_of = work.key

    def _remove_own(self, work: Work, path: Path) -> None:
        """Remove a page, a picture or an extra that an earlier run made, but no file of others in its folder."""
        if path == self.results.page_path(work.case.name).parent:
            remove_case_page(path)
            return
        if path.is_dir():
            check_folder(path)
        remove(path, folder=True)

    def _made_of(self, work: Work) -> dict | None:
        """Return the key of the volume that a case's files are of; {}: its record is damaged; None: there is none."""
        record = self.results.read(work.case.name)
        if record is None:
            return {} if self.results.record_path(work.case.name).exists() else None
        return record.key if record.made_of is None and record.status == "done" else record.made_of

    def _reserve(self, work: Work) -> None:
        """Record what is about to be written, so that the files of a killed run are known to be its own."""
        names, made = self._targets(work), self._made(work)
        if not set(names) <= set(made):
            reason = "its process ended while it wrote the results"
            begun = replace(self._record(work, "begun"), made=sorted({*made, *names}), reason=reason)
            self.results.write(begun)

    def _refuse_other_patient(self, work: Work) -> None:
        """Raise `InputError` if another process has written another patient's result under this name meanwhile.

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
        """Return the record of this work if another process has written it since the run began."""
        record = self.results.read(work.case.name)
        if (
            record is None
            or record == self.known.get(work.case.name)
            or not is_made(record.key, work.key, bool(record.scores))
        ):
            return None
        return record if record.status == "failed" or self._is_current(record, work) else None

    def _is_current(self, record: CaseRecord, work: Work) -> bool:
        return self.results.is_current(record, work.key, self.extras.asked(work.case))

    @contextmanager
    def _isolated(self, work: Work) -> Iterator[list[Outcome]]:
        """Confine an error to this case: it is recorded, and the yielded list gets the outcome."""
        outcomes: list[Outcome] = []
        try:
            yield outcomes
        except Exception as error:
            work.parts.clear()
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
            reason += f" ({volume.name} was made from an earlier input or by an earlier model)"
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
            made_of=self._made_of(work) if work.made_of is None else work.made_of,
        )


@contextmanager
def _timed(work: Work, stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        work.seconds[stage] = work.seconds.get(stage, 0.0) + time.perf_counter() - started


def _geometry(volume: Volume) -> dict:
    return {name: list(getattr(volume, name)) for name in ("size", "spacing", "origin", "direction")}
