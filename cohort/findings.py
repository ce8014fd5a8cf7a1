"""What the checks of a synthetic CT found, of one model or of several."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Findings:
    """Figures by name, warnings, what could not be checked, and notes: what is worth knowing and nothing to act on."""

    figures: dict[str, float | None] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def join_findings(findings: Mapping[str, Findings], mixture: str | None = None) -> Findings:
    """Join the findings of an ensemble's models, by name; what all of them report appears once.

    Figures are the models' own: their names begin with the model's. `mixture`: a warning of the models together.
    """
    if len(findings) == 1:
        return next(iter(findings.values()))
    figures = {f"{name}: {key}": value for name, one in findings.items() for key, value in one.figures.items()}
    kinds = ("warnings", "unchecked", "notes")
    texts = {kind: _joined({name: getattr(one, kind) for name, one in findings.items()}) for kind in kinds}
    if mixture:
        texts["warnings"].insert(0, mixture)
    return Findings(figures, **texts)


def describe_findings(findings: Findings) -> dict[str, list[str] | None]:
    """Return the lines of a results page on the findings; None if there are none."""
    lines = {"warnings": findings.warnings, "not checked": findings.unchecked, "notes": findings.notes}
    return {name: texts or None for name, texts in lines.items()}


def _joined(texts: Mapping[str, list[str]]) -> list[str]:
    common = [text for text in next(iter(texts.values())) if all(text in others for others in texts.values())]
    return common + [f"{name}: {text}" for name, own in texts.items() for text in own if text not in common]
