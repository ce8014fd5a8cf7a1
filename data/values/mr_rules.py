"""Rules of `--mr_window`, by which an MR's window is set: one for all contrasts, or one for each by name."""

from collections.abc import Mapping, Sequence

from data.errors import InputError
from data.values.intensity import MR_RULES
from data.volumes.contrasts import in_order

# One of `MR_RULES`, or a fixed (low, high).
Rule = str | tuple[float, float]


def parse_named_rules(words: Sequence[str]) -> dict[str, Rule] | None:
    """Return the rules that words such as `in_phase=tissue fat=0:400` give; None where they name no contrast.

    Raises:
        InputError: one names a contrast twice, or no rule.
    """
    if not any("=" in word for word in words):
        return None
    rules: dict[str, Rule] = {}
    for word in words:
        name, _, text = word.strip().partition("=")
        if name in rules:
            raise InputError(f"--mr_window {word}: {name} for the second time; expected one rule for each contrast")
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
    raise InputError(f"--mr_window {word}: expected NAME={', NAME='.join(MR_RULES)} or NAME=LO:HI with LO below HI")


def rules_in_order(rule: Rule | Mapping[str, Rule], names: Sequence[str]) -> list[Rule]:
    """Return the rule of each contrast in the order of `names`.

    Raises:
        InputError: a contrast without a rule, or a rule without its contrast.
    """
    if not isinstance(rule, Mapping):
        return [rule] * len(names)
    return in_order("--mr_window", list(rule.items()), names)
