"""Rules of `--mr_window`: one for all contrasts, or one for each by name."""

from collections.abc import Mapping, Sequence

from data.errors import InputError
from data.values.intensity import MR_RULES, parse_mr_window
from data.volumes.contrasts import in_order

# One of `MR_RULES`, or a fixed (low, high).
Rule = str | tuple[float, float]


def parse_mr_rules(words: Sequence[str]) -> Rule | dict[str, Rule]:
    """Return what the words of `--mr_window` mean: one rule, or by name those of `in_phase=tissue fat=0:400`.

    Raises:
        InputError: a word that is no rule, or a contrast that is named twice.
    """
    if not any("=" in word for word in words):
        return parse_mr_window(list(words))
    rules: dict[str, Rule] = {}
    for word in words:
        name, _, text = word.strip().partition("=")
        if name in rules:
            raise InputError(f"{name} is given twice; expected one rule for each contrast")
        rules[name] = _rule(word, text)
    return rules


def _rule(word: str, text: str) -> Rule:
    if text in MR_RULES:
        return text
    try:
        low, high = map(float, text.split(":"))
        if low < high:
            return low, high
    except ValueError:
        pass
    raise InputError(f"{word}: expected NAME={', NAME='.join(MR_RULES)} or NAME=LO:HI with LO below HI")


def rules_in_order(rule: Rule | Mapping[str, Rule], names: Sequence[str]) -> list[Rule]:
    """Return the rule of each contrast in the order of `names`.

    Raises:
        InputError: a contrast without a rule, or a rule without its contrast.
    """
    if not isinstance(rule, Mapping):
        return [rule] * len(names)
    return in_order("--mr_window", list(rule.items()), names)
