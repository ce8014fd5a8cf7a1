"""What the code must never do, told from its syntax: run what a file holds, start a shell, or reach for the network."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    "cohort", "ct_segmentation", "data", "evaluation", "models", "options", "scripts", "training", "unet",
    "visualization",
)  # fmt: skip
FILES = sorted([*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))])
UNPICKLING = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
NETWORK = {"socket", "requests", "urllib", "http", "ftplib", "smtplib", "httpx", "aiohttp", "websocket", "visdom"}
# Only those speak to a visdom server, and only where it was asked for; `urlsplit` and `quote` reach for nothing.
MAY_USE_NETWORK = {
    "visualization/visdom_display.py", "visualization/visdom_server.py", "tools/benchmark_visualization.py",
}  # fmt: skip
HARMLESS = {("urllib.parse", "urlsplit"), ("urllib.parse", "quote"), ("socket", "gethostname")}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "torch.hub.load", "pd.read_pickle"}


def name_of(node: ast.AST) -> str:
    """Return `a.b.c` of an attribute or name."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def keyword(call: ast.Call, name: str) -> object:
    return next((k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def offences(source: str, may_use_network: bool = False) -> Iterator[str]:
    """Yield what of a module's source is forbidden."""
    tree = ast.parse(source)
    attributes = {name_of(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imports(node, attributes, may_use_network)
        elif isinstance(node, ast.Call):
            called = name_of(node.func)
            if called in FORBIDDEN_CALLS:
                yield called
            if called.endswith("torch.load") and keyword(node, "weights_only") is not True:
                yield "torch.load without weights_only=True"
            if called == "np.load" and keyword(node, "allow_pickle") is not False:
                yield "np.load without allow_pickle=False"
            if keyword(node, "shell") is True:
                yield "shell=True"


def _imports(node: ast.Import | ast.ImportFrom, attributes: set[str], may_use_network: bool) -> Iterator[str]:
    pairs = [(node.module or "", a.name) for a in node.names] if isinstance(node, ast.ImportFrom) else []
    pairs += [(a.name, "") for a in node.names] if isinstance(node, ast.Import) else []
    for module, name in pairs:
        package = module.partition(".")[0]
        if package in UNPICKLING:
            yield f"imports {module}"
        used = {(module, a.rpartition(".")[2]) for a in attributes if a.startswith(f"{module}.")} if not name else None
        harmless = (module, name) in HARMLESS or (used is not None and used and used <= HARMLESS)
        if package in NETWORK and not harmless and not may_use_network:
            yield f"imports {module}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_module_unpickles_starts_a_shell_or_uses_the_network(file):
    allowed = str(file.relative_to(ROOT)) in MAY_USE_NETWORK
    assert not list(offences(file.read_text(), allowed))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import load", "import requests", "import socket\nsocket.create_connection(a)",
        "from urllib.request import urlopen", "torch.load(a)", "torch.load(a, weights_only=False)", "np.load(a)",
        "np.load(a, allow_pickle=True)", "subprocess.run(a, shell=True)", "os.system(a)", "eval(a)", "import visdom",
    ],
)  # fmt: skip
def test_each_offence_is_seen(source):
    assert list(offences(source))


def test_what_is_allowed_is_no_offence():
    good = "torch.load(a, weights_only=True)\nnp.load(a, allow_pickle=False)\nimport socket\nsocket.gethostname()"
    assert not list(offences(good))
