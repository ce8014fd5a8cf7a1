"""Losses in words: which chart a loss belongs to, and what its curve is called there; validations in words, too."""

from collections.abc import Sequence
from typing import NamedTuple

# What a term of the loss measures, by what its name begins with.
_CHARTS = {
    "G": "Total",
    "gan": "Adversarial loss of the generators",
    "cycle": "Cycle consistency",
    "idt": "Identity",
    "correlation": "Correlation coefficient",
    "mi": "Mutual information",
    "shape": "Shape consistency",
    "simulated": "Simulated pairs",
    "D": "Discriminators",
    "pairs": "Mean absolute error in the network's units",
    "hu": "Mean absolute error in 1000 HU, weighted by --bone_weight",
    "reverse": "Reverse generator, CT to MR",
    "keep": "Refined against simulated MR",
    "segmentation": "Segmentation",
}
# Curves, with the domains' names put in: A is the source, B the target.
_CURVES = {
    "gan_A": "{A} to {B}",
    "gan_B": "{B} to {A}",
    "gan_S": "shape of the synthetic CT",
    "gan_R": "refined MR",
    "cycle_A": "{A} to {B} and back",
    "cycle_B": "{B} to {A} and back",
    "idt_A": "{B} stays {B}",
    "idt_B": "{A} stays {A}",
    "correlation_A": "synthetic {B} with its {A}",
    "correlation_B": "synthetic {A} with its {B}",
    "mi_A": "synthetic {B} with its {A}",
    "mi_B": "synthetic {A} with its {B}",
    "simulated_A": "{A} to {B}",
    "simulated_B": "{B} to {A}",
    "D_A": "real or synthetic {B}",
    "D_B": "real or synthetic {A}",
    "D_S": "shape of the MR or of the synthetic CT",
    "D_R_real": "real MR",
    "D_R_refined": "refined MR",
}
VALIDATION_TITLES = {
    "mae": "MAE [HU]",
    "dice_bone": "Dice of bone",
    "ssim": "SSIM",
    "body_dice": "Dice of bodies",
    "histogram": "distance of HU histograms [HU]",
    "cycle": "cycle error",
    "simulated_mae": "MAE on simulated MR [HU]",
    "simulated_dice_bone": "Dice of bone on simulated MR",
}
"""Values of a validation; others are called by their names."""


class LossTitle(NamedTuple):
    """What the chart of a loss is called, and its curve in it; that is "" where the chart has this curve alone."""

    chart: str
    curve: str

    def together(self, separator: str) -> str:
        """Return both as one title."""
        return separator.join(part for part in self if part)


def loss_titles(names: Sequence[str], direction: str) -> list[LossTitle]:
    """Return the titles of losses by their names in the record; `direction`: 'AtoB' where A is MR.

    A loss that is unknown here, of a method of one's own, is called by its name.
    """
    a, b = ("MR", "CT") if direction == "AtoB" else ("CT", "MR")
    return [_title(name, {"A": a, "B": b}) for name in names]


def explain_losses(names: Sequence[str], direction: str) -> str:
    """Return what losses are, by their names in the record, in one line; "" where all are unknown here."""
    titles = zip(names, loss_titles(names, direction), strict=True)
    return "; ".join(f"{name} = {title.together(': ')}" for name, title in titles if name not in title)


def _title(name: str, domains: dict[str, str]) -> LossTitle:
    kind = name.partition("_")[0]
    if name in _CURVES:
        return LossTitle(_CHARTS[kind], _CURVES[name].format(**domains))
    if name in (*_CHARTS, "keep_R"):
        return LossTitle(_CHARTS[kind], "")
    return LossTitle(kind if name.removeprefix(kind) in ("_A", "_B") else name, name)
