"""Write docs/options.md from the settings: `python -m tools.option_reference`."""

import argparse
from pathlib import Path

from ct_segmentation.method import ShapeExtractorModel
from options.pipeline_options import pipeline_parser
from options.test_options import test_parser
from options.train_options import METHODS, train_parser
from scripts.prepare_dataset import prepare_parser
from training.settings import training_parser

PAGE = Path(__file__).resolve().parents[1] / "docs/options.md"
_HEAD = """# All options

Generated from the settings by `python -m tools.option_reference`. Published options with other names are in
[published.md](published.md).
"""


def reference() -> str:
    """Return the page as Markdown."""
    shared = train_parser("cycle_gan")
    parts = [_HEAD, _section("train.py", "With the default, `--model cycle_gan`.", shared)]
    known = {action.dest: action.default for action in shared._actions}
    for method in METHODS:
        if method != "cycle_gan":
            parts.append(
                _section(
                    f"train.py --model {method}",
                    "Only what differs from `train.py --model cycle_gan`.",
                    train_parser(method),
                    known,
                )
            )
    extractor = training_parser(ShapeExtractorModel, "", "")
    known = {action.dest: action.default for action in extractor._actions}
    parts += [
        "## python -m ct_segmentation.train\n\nTakes the options of `train.py --model shape_extractor`. `--out` is the "
        "run's folder, and `--epochs` means `--n_epochs`.\n",
        _section("test_adapt.py", "Converts one patient.", test_parser()),
        _section("test_pipeline.py", "Converts a cohort.", pipeline_parser()),
        _section("python -m scripts.prepare_dataset", "Prepares volumes for training.", prepare_parser()),
    ]
    return "\n".join(parts)


def _section(title: str, text: str, parser: argparse.ArgumentParser, known: dict | None = None) -> str:
    """Return the options of a parser by group; with `known` those that it lacks or gives another default."""
    lines = [f"## {title}", "", text, ""]
    for group in parser._action_groups:
        rows = [
            _row(action)
            for action in group._group_actions
            if action.option_strings
            and action.dest not in ("help", "help_all")
            and (known is None or known.get(action.dest, known) != action.default)
        ]
        if rows:
            heading = group.title if group.title != "options" else "general"
            lines += [f"**{heading}**", "", "| option | default | what it does |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(lines)


def _row(action: argparse.Action) -> str:
    if action.default in (None, False, "", argparse.SUPPRESS):
        default = "required" if action.required else ""
    else:
        values = action.default if isinstance(action.default, tuple) else (action.default,)
        default = f"`{' '.join(map(str, values))}`"
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    choices = f" ({', '.join(map(str, action.choices))})" if action.choices else ""
    text = f"{action.help or ''}{choices}".replace("|", "\\|").replace("%%", "%")
    return f"| {names} | {default} | {text} |"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
