"""Convert one patient's MR to a synthetic CT: `python test_adapt.py --name NAME --input MR [--reference CT]`.

A model of several contrasts takes each by name, in any order: `--input in_phase=MR1 --input fat=MR2`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import data  # noqa: F401  # isort: skip  # first: it says what to do where packages are missing
import numpy as np

from cohort.checks import Check, finite, hu_statistics, shown_figures
from cohort.findings import describe_findings, join_findings
from cohort.making import Made, describe_computation
from cohort.patient_results import (
    DICOM,
    MODELS_JOINED,
    MU_MAP,
    OUTPUT,
    UNCERTAINTY,
    PatientResults,
    description_of,
    made_before,
    refuse_to_replace,
    write_claimed,
)
from cohort.results import now
from cohort.scoring import single_command
from cohort.several import refuse_several
from data.errors import InputError, run_command
from data.masks.body_mask import read_mask
from data.prepared.case_names import case_name, name_without
from data.values.attenuation import describe_mu, mu_map
from data.volumes.contrasts import describe_paths, in_order, selector, shown_name
from data.volumes.dicom import list_series
from data.volumes.dicom_series import NAMES_KEPT, Derivation, Identity, check_identity, source_hash, write_series
from data.volumes.volume import Volume, read_volume, write_volume
from evaluation.cases import Reference, read_reference
from evaluation.origin import SYNTHETIC, reference_warnings
from evaluation.report import COLUMNS, describe_mask, format_table, score_case, write_report
from models.ensemble import called, check_ensemble, ensemble_sha256, mean_uncertainty, mixed_air, synthesize_ensemble
from models.inference_settings import InferenceSettings
from models.synthesis import (
    METHOD_VERSION,
    Synthesiser,
    TrainedGenerator,
    VolumePlan,
    check_sources,
    find_generator,
    load_synthesiser,
    synthesize_volume,
)
from options import test_options
from options.test_options import PatientSettings, is_volume_file
from visualization.case_page import write_case_page
from visualization.preview import heading, save_preview

log = logging.getLogger(__name__)


class Patient(NamedTuple):
    """The inputs: the MR, its further contrasts, and if given a body mask and a true CT."""

    source: Volume
    further: list[Volume]
    body: np.ndarray | None
    reference: Reference | None


def main(arguments: list[str] | None = None) -> int:
    """Read, convert, write, score if there is a reference, and make a picture and a page.

    Returns:
        1 where the volume is there and something beside it is not, else 0.

    Raises:
        InputError: there is no volume.
    """
    opt = test_options.parse(arguments)
    generators = [find_generator(folder, opt.epoch, opt.spacing_mm, opt.direction) for folder in opt.folders]
    off = turned_off(generators, opt)
    how = (opt.epoch, opt.device, opt.precision, opt.spacing_mm, opt.direction, off)
    synthesisers = [load_synthesiser(folder, *how) for folder in opt.folders]
    check_ensemble(opt.name, [one.settings for one in synthesisers], opt.uncertainty is not None, opt.fusion)
    settings = synthesisers[0].settings
    if mixture := mixed_air(opt.name, [one.settings for one in synthesisers], opt.fusion):
        log.warning("warning: %s", mixture)
    names = settings.contrasts
    paths = dict(zip(names, in_order("--input", opt.input, names), strict=True))
    # Read first, so that an unreadable input is reported before a result that is in the way.
    patient = read_patient(opt, paths, settings.direction)
    case = case_of(paths)
    results = PatientResults.beside(place_of(case, generators, opt), opt)
    own = own_results(results, patient, paths, settings, opt)
    try:
        made = synthesize(patient, synthesisers, opt)
    except InputError as error:
        raise InputError(f"{describe_paths(paths)}: {error}") from error
    refuse_to_replace(results, own, paths, opt)  # again: somebody may have written there meanwhile
    row = {"case": case, "input": description_of(paths)} | origin_of(opt, generators, synthesisers, off)
    row["made"] = sorted(own | results.names())
    if opt.reference:
        made.findings.warnings += reference_warnings("--reference", opt.reference)
    row |= account_of(made, patient.source.notes, settings.direction == "AtoB")
    if mixture:  # said before the conversion
        made.findings.warnings.insert(0, mixture)
    makers = volume_parts(results, patient, made, synthesisers, generators, row["model_sha256"], opt)
    write_claimed(makers[OUTPUT], results, row, own, opt.overwrite)
    log.info("%s: %s", "volume" if is_volume_file(results.main) else "DICOM series", results.main)
    if opt.anonymous:
        log.info("%s", NAMES_KEPT)
    parts = {path: makers[option] for option, path in results.extras.items()}
    if not results.alone:
        parts |= shown_parts(results, patient, made, settings, row, describe_paths(paths), opt.purpose)
    written = [make_beside(results.main, path, make) for path, make in parts.items()]
    if settings.direction == "AtoB" and patient.reference is None:
        mr = next(iter(paths.values()))
        alone = not mr.is_dir() or not (opt.chosen or len(paths) > 1 or len(list_series(mr)) > 1)
        log.info("%s", single_command(results.main, mr, alone))
    return 0 if all(written) else 1


def place_of(case: str, generators: Sequence[TrainedGenerator], opt: PatientSettings) -> Path:
    """Return where the result of a case goes: a file, or the folder of its DICOM series in that of `--output`."""
    if opt.output is None:
        return opt.results_dir / called(opt.name, generators) / f"{case}.nii.gz"
    return opt.output if is_volume_file(opt.output) else opt.output / case


def turned_off(generators: Sequence[TrainedGenerator], opt: PatientSettings) -> list[str]:
    """Return which of the models' settings are switched off.

    Raises:
        InputError: no model has what an option turns off.
    """
    off = [name for name in ("mirrored", "solid_body") if getattr(opt, f"no_{name}")]
    without = {"mirrored": "does not average over mirrorings", "solid_body": "leaves air inside the body anyway"}
    for name in off:
        if not any(getattr(generator.settings, name) for generator in generators):
            raise InputError(f"--no_{name} does nothing: {called(opt.name, generators)} {without[name]}; leave it out")
    return off


def own_results(
    results: PatientResults,
    patient: Patient,
    paths: Mapping[str, Path],
    settings: InferenceSettings,
    opt: PatientSettings,
) -> set[str]:
    """Return the names of files that may be renewed.

    Raises:
        InputError: another patient's or model's files are in the way, or the results cannot be written.
    """
    try:
        own = made_before(results, paths, opt.folders, opt.overwrite)
    except InputError:  # a CT beside the MR is called like it: what it is says more than whose result is in the way
        refuse_other_modality(patient, paths, settings)
        raise
    refuse_to_replace(results, own, paths, opt)
    if settings.direction != "AtoB":
        refuse_for_mr(results, opt)
    return own


def refuse_for_mr(results: PatientResults, opt: PatientSettings) -> None:
    """Refuse options that need a CT, for a model that makes MR."""
    if opt.air_outside:
        raise InputError("--air_outside: concerns a synthetic CT, but the model makes MR; leave it out")
    if opt.reference:
        raise InputError(
            "--reference: the model makes MR from CT, and MR in arbitrary units is not scored; leave it out"
        )
    if asked := [*results.extras.values(), *filter(None, [results.folder])]:
        raise InputError(f"{asked[0]}: needs a synthetic CT, but the model makes MR; leave it out")


def read_patient(opt: PatientSettings, paths: Mapping[str, Path], direction: str) -> Patient:
    """Read all inputs of a patient, MR or, in the direction BtoA, a CT."""
    if len(paths) == 1:
        refuse_several(next(iter(paths.values())), opt.model_words, "mr" if direction == "AtoB" else "ct")
    source, *further = (
        read_volume(
            path, opt.series_uid, contrast=selector(name), chosen=opt.chosen, description=opt.series_description
        )
        for name, path in paths.items()
    )
    check_identity(source, identity_of(opt))
    body = read_mask(opt.mask, source) if opt.mask else None
    reference = None
    if opt.reference:
        reference = read_reference(opt.reference, source, opt.resample_reference, at=next(iter(paths.values())))
    return Patient(source, further, body, reference)


def refuse_other_modality(patient: Patient, paths: Mapping[str, Path], settings: InferenceSettings) -> None:
    """Refuse inputs that the model does not take by their values."""
    try:
        check_sources([patient.source, *patient.further], settings)
    except InputError as error:
        hint = "; a true CT goes to --reference" if settings.direction == "AtoB" else ""
        raise InputError(f"{describe_paths(paths)}: {error}{hint}") from error


def identity_of(opt: PatientSettings) -> Identity:
    """Return the identity for a DICOM series, as the options give it."""
    return Identity(opt.patient_name, opt.patient_id, opt.anonymous)


def synthesize(patient: Patient, synthesisers: Sequence[Synthesiser], opt: PatientSettings) -> Made:
    """Make the synthetic volume, and its uncertainty if requested; check the result of each model."""
    checks: list[Check] = []

    def look(synthesiser: Synthesiser, plan: VolumePlan) -> Check:
        checks.append(Check.of_model(plan, synthesiser.settings, opt.air_outside))
        return checks[-1]

    arguments = (patient.body, opt.batch_size, patient.further)
    deviation = None
    if len(synthesisers) == 1 and not opt.uncertainty:
        synthetic = synthesize_volume(patient.source, synthesisers[0], *arguments, bar=True, look=look)
    else:
        synthetic, deviation = synthesize_ensemble(
            patient.source, synthesisers, *arguments, opt.fusion, bar=True, look=look,
            uncertainty=opt.uncertainty is not None,
        )  # fmt: skip
    findings = join_findings({name: check.findings for name, check in zip(opt.name, checks, strict=True)})
    made = Made(synthetic, deviation, checks[0].body, findings)
    if opt.air_outside:
        made.clear_outside()
    return made


def account_of(made: Made, said: Sequence[str], to_ct: bool) -> dict:
    """Return what the report says of checks and uncertainty, and log warnings and notes; `said`: warnings before."""
    findings = made.findings
    for text in findings.warnings:
        log.warning("warning: %s", text)
    say_notes(findings.notes)
    findings.warnings += said
    for text in findings.unchecked:
        log.info("not checked: %s", text)
    row: dict = {
        "warnings": findings.warnings,
        "unchecked": findings.unchecked,
        "notes": findings.notes,
        "checks": finite(findings.figures),
        "hu": hu_statistics(made.synthetic, made.body) if to_ct else {},
    }
    if made.deviation is not None:
        row["uncertainty_mean_hu"] = mean_uncertainty(made.deviation, made.body)
        log.info(
            "uncertainty: %.1f HU on average (standard deviation of the averaged predictions); it hints at where "
            "to look, the actual errors are several times as large",
            row["uncertainty_mean_hu"],
        )
    return row


def say_notes(notes: Sequence[str]) -> None:
    """Log notes."""
    for text in notes:
        log.info("note: %s", text)


def origin_of(
    opt: PatientSettings,
    generators: Sequence[TrainedGenerator],
    synthesisers: Sequence[Synthesiser],
    off: Sequence[str],
) -> dict:
    """Return what the report says of the models and the computation; `off`: settings of models that are off."""
    fusion = {"fusion": opt.fusion} if opt.fusion else {}
    return {
        "model": MODELS_JOINED.join(map(str, opt.folders)),
        "epoch": opt.epoch,
        "direction": synthesisers[0].settings.direction,
        **fusion,
        **{f"no_{name}": True for name in off},
        **({"air_outside": True} if opt.air_outside else {}),
        "finished": now(),
        "model_sha256": model_hash(opt, generators, synthesisers),
        "run": describe_computation(synthesisers[0].model),
    }


def model_hash(
    opt: PatientSettings, generators: Sequence[TrainedGenerator], synthesisers: Sequence[Synthesiser]
) -> str:
    """Return the hash of all models, that of a cohort's records."""
    pairs = zip(synthesisers, generators, strict=True)
    return ensemble_sha256([(synthesiser.settings, generator.weights) for synthesiser, generator in pairs], opt.fusion)


def derivation_of(
    opt: PatientSettings, generators: Sequence[TrainedGenerator], synthesisers: Sequence[Synthesiser], sha256: str,
    source: str,
) -> Derivation:  # fmt: skip
    """Return what a DICOM series was made from; `sha256`: of the models; `source`: the hash of the input."""
    return Derivation(
        called(opt.name, generators), opt.epoch, sha256, METHOD_VERSION, synthesisers[0].model.precision, source
    )


def volume_parts(
    results: PatientResults,
    patient: Patient,
    made: Made,
    synthesisers: Sequence[Synthesiser],
    generators: Sequence[TrainedGenerator],
    sha256: str,
    opt: PatientSettings,
) -> dict[str, Callable[[], None]]:
    """Return functions that write the volumes, by the option that names each target; `sha256`: of the models."""

    def volume() -> None:
        write_volume(made.synthetic, results.main, SYNTHETIC[synthesisers[0].settings.direction])

    def series() -> None:
        assert results.folder is not None, "there is one where this is called"
        source = source_hash([patient.source, *patient.further], patient.body)
        derivation = derivation_of(opt, generators, synthesisers, sha256, source)
        derivation = replace(derivation, warnings=tuple(made.findings.warnings))
        further, notes = [one.dicom for one in patient.further], list[str]()
        write_series(made.synthetic, results.folder, derivation, identity_of(opt), further, notes)
        say_notes(notes)
        made.findings.notes += notes

    def attenuation() -> None:
        mu = opt.mu_settings(one.settings.ct_kvp for one in synthesisers)
        assert mu is not None, "it was asked for"
        write_volume(mu_map(made.synthetic, mu), results.extras[MU_MAP], describe_mu(mu))

    def uncertainty() -> None:
        assert made.deviation is not None, "it was asked for"
        write_volume(made.deviation, results.extras[UNCERTAINTY])

    first = volume if is_volume_file(results.main) else series
    return {OUTPUT: first, DICOM: series, MU_MAP: attenuation, UNCERTAINTY: uncertainty}


def shown_parts(
    results: PatientResults,
    patient: Patient,
    made: Made,
    settings: InferenceSettings,
    row: dict,
    taken: str,
    purpose: str | None,
) -> dict[Path, Callable[[], None]]:
    """Return functions that make report `row`, picture and page, by target; the report first, which has the scores.

    `taken`: the input in words; `purpose`: what the model is for.
    """
    source, synthetic = patient.source, made.synthetic
    reference, covered = patient.reference or (None, None)
    to_ct = settings.direction == "AtoB"
    mr, ct = (source, synthetic) if to_ct else (synthetic, source)
    kind, contrast = "CT" if to_ct else "MR", shown_name(settings.contrasts)

    def report() -> None:
        if reference is not None:
            found = score_case(synthetic, reference, mr=source, covered=covered)
            row.update({"scored_in": describe_mask(with_mask=False, with_mr=True), **found})
            log.info("scored in: %s\n%s", row["scored_in"], format_table([{"case": row["case"], **found}]))
        write_report(row, results.report)

    def scores() -> dict[str, float]:
        return {name: row[name] for name in COLUMNS if name in row}

    def picture() -> None:
        lines = heading(row["case"], row["model"], scores(), kind)
        save_preview(mr, ct, reference, results.picture, lines, kind, contrast, made.deviation)

    def page() -> None:
        details = {
            "input": taken,
            "model": row["model"],
            "epoch": row["epoch"],
            "direction": "MR to CT" if kind == "CT" else "CT to MR",
            "fusion": row.get("fusion"),
            "scored in": row.get("scored_in"),
            "model for": purpose,
            **describe_findings(made.findings),
        }
        checks = {**row["checks"], "uncertainty_mean_hu": row.get("uncertainty_mean_hu")}
        shown = scores() | shown_figures(row["hu"], checks)
        write_case_page(
            results.page, row["case"], mr, ct, reference, shown, synthetic=kind, body=made.body, details=details,
            contrast=contrast, uncertainty=made.deviation,
        )  # fmt: skip

    return {results.report: report, results.picture: picture, results.page / "index.html": page}


def make_beside(volume: Path, path: Path, make: Callable[[], None]) -> bool:
    """Make the files beside a written volume, and log where they are, or why not; return which were made."""
    name = make.__name__
    try:
        make()
    except Exception as error:  # whatever it is, the volume is there, and stays
        why = str(error) or type(error).__name__
        log.warning("warning: %s not made: %s; the volume itself is written: %s", name, why, volume)
        return False
    log.info("%s: %s", name, path)
    return True


def case_of(paths: Mapping[str, Path]) -> str:
    """Return the case name of the MR; of several contrasts that of the first, without the contrast's name."""
    contrast, path = next(iter(paths.items()))
    return name_without(case_name(path), contrast, path) if len(paths) > 1 else case_name(path)


if __name__ == "__main__":
    run_command(main)
