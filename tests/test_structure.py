"""How the code hangs together: packages import in one direction, and commands are not imported by what they use."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data.settings.declaration import options_of
from models.base_model import MethodSettings
from options.train_options import METHODS

ROOT = Path(__file__).resolve().parents[1]
# From the bottom: a package imports those before it, never one after it. `commands` are the files of the top folder.
LAYERS = (
    "data", "evaluation", "unet", "models", "visualization", "training", "ct_segmentation", "options", "cohort",
    "benchmarks", "scripts", "tools", "container", "commands",
)  # fmt: skip
# The rooms of `data`, likewise; the files of `data` itself lie below them all.
ROOMS = ("settings", "volumes", "values", "masks", "prepared", "simulation", "loading", "phantom")


def imports_of(path: Path) -> set[str]:
    """Return the modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def layer_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else "commands"


def sources() -> list[Path]:
    packages = [path for layer in LAYERS[:-1] for path in sorted((ROOT / layer).rglob("*.py"))]
    return packages + sorted(ROOT.glob("*.py"))


def test_every_package_has_its_layer():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages == set(LAYERS) - {"commands"}


@pytest.mark.parametrize("layer", LAYERS)
def test_packages_import_in_one_direction(layer):
    later = set(LAYERS[LAYERS.index(layer) + 1 :]) - {"commands"} | {"tests"}
    if layer not in ("benchmarks", "tools", "container", "commands"):  # what measures or wraps commands runs them
        later |= {path.stem for path in ROOT.glob("*.py")} - {"fill_hole"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources()
        if layer_of(path) == layer
        for module in imports_of(path)
        if module.partition(".")[0] in later
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_the_rooms_of_data_import_in_one_direction(room):
    later = ROOMS[ROOMS.index(room) + 1 :] if room else ROOMS
    files = (ROOT / "data" / room).glob("*.py")
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files
        for module in imports_of(path)
        if module.startswith("data.") and module.split(".")[1] in later
    ]
    assert not wrong, "\n".join(wrong)


def test_the_overview_names_every_file_once_and_no_other():
    text = (ROOT / "docs/overview.md").read_text().partition("## Files")[2].partition("## A prepared data set")[0]
    named = []
    for section in text.split("\n### ")[1:]:
        folder = found[1] if (found := re.match(r"`([\w/]+)/`", section)) else ""
        cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
        named += [
            f"{folder}/{name}".removeprefix("/") for cell in cells for name in re.findall(r"`([\w/]+\.py)`", cell)
        ]
    expected = {str(path.relative_to(ROOT)) for path in sources() if path.name != "__init__.py"}
    assert sorted(name for name in named if not name.startswith("tests/")) == sorted(expected)


def test_the_rule_can_fail(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("def f():\n    from models import networks\n\nimport cohort.inputs\n")
    assert imports_of(file) == {"models", "models.networks", "cohort.inputs"}


@pytest.mark.parametrize(
    "package", ["models", "training", "visualization", "data", "evaluation", "cohort", "unet", "benchmarks"]
)
def test_no_command_line_travels_below_the_commands(package):
    """Functions take settings; only what parses, and what converts words, knows argparse."""
    parsing = ("declaration", "devices", "parser", "values")
    allowed = {f"data/settings/{name}.py" for name in parsing} | {"training/settings.py"}
    users = {
        str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")
        if any(module.partition(".")[0] == "argparse" for module in imports_of(path))
    }  # fmt: skip
    assert users <= allowed


def test_every_command_has_the_one_parser():
    """Whose errors are one line."""
    others = [path for path in sources() if re.search(r"argparse\.ArgumentParser\(", path.read_text())]
    assert others == []


@pytest.mark.parametrize("command", ["train", "test_adapt", "test_pipeline"])
def test_commands_take_settings(command):
    """What parses, in `options`, gives them declared settings."""
    assert not {module for module in imports_of(ROOT / f"{command}.py") if module.startswith("argparse")}


def test_the_engine_knows_no_option_of_a_method():
    """It asks the method: a new one with other options needs no change in `training`."""
    of_methods = {field.name for method in METHODS.values() for field, _ in options_of(method.settings_type)}
    own = {name for name in of_methods if not hasattr(MethodSettings, name)}
    assert {"n_epochs_warm", "warm_lr", "ngf", "width"} <= own and "lr" not in own
    own.add("crop_size")  # of the data, but not every method follows it
    for path in sorted((ROOT / "training").rglob("*.py")):
        found = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        found |= set(re.findall(r"--(\w+)", path.read_text())) | set(re.findall(r'"(\w+)"', path.read_text()))
        assert not found & own, f"{path.relative_to(ROOT)} names {', '.join(sorted(found & own))}"


def test_commands_that_run_no_network_start_without_torch():
    """It takes most of the seconds that their help, or a mistake, would be waited for."""
    names = ("prepare_dataset", "prepare_sts", "evaluate", "figure", "plot_losses", "make_phantom", "resample")
    names += ("trivial_predictors",)
    code = f"import sys, fill_hole, scripts.{', scripts.'.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
