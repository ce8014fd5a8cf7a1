"""Every command that README.md, docs/ and the models' cards show is one that its program takes."""

import contextlib
import importlib.util
import io
import json
import re
from pathlib import Path

import pytest

from options import train_options
from tests import documented
from tests.documented import PAGES, ROOT

# What is not ours: blocks that show files or code, and programs of others.
NOT_SHELL = re.compile(r"volume on disk|datasets/NAME/\n|checkpoints/NAME/\n|loss = |\w+: |RGB|error: ")
NOT_OURS = re.compile(r"git |docker |pip-audit |python -m visdom\.server ")
# tests/test_extending.py applies the page's patches and uses these options.
OF_A_PATCH = ("--lambda_tv", "--netG plain", "--model denoising")


def own(text: str) -> str:
    """Return shell text without the lines that are not ours."""
    lines = text.replace("\\\n", " ").splitlines()
    return "\n".join(
        line
        for line in lines
        if not NOT_OURS.match(line.removeprefix(".venv/bin/")) and not any(option in line for option in OF_A_PATCH)
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the pages take as given: data sets, cohorts, and runs to continue."""
    folder = tmp_path_factory.mktemp("documented")
    documented.make_place(folder)
    for case in (
        "SynthRAD2023/Task1/pelvis/1PA009", "SynthRAD2025/Task1/REGION/1AB009", "BIC-MAC/sub-009",
        "STS/dev/STS_024", "STS/dev/STS_042", "path/to/sts/dev/STS_024", "path/to/sts/dev/STS_042",
        "datasets/sts/train", "datasets/sts/dev/STS_024", "datasets/phantom_raw/test/test000", "DATA_DIR/train",
        "DATA_DIR/dev/STS_024",
    ):  # fmt: skip
        (folder / case).mkdir(parents=True)
    for name in ("one", "two"):
        (folder / "datasets" / name).mkdir()
        (folder / "datasets" / name / "manifest.json").touch()
    (folder / "runs.txt").write_text("arms --dataroot datasets/mine\n")
    for name in ("NAME", "mine"):
        run = folder / "checkpoints" / name
        run.mkdir(parents=True)
        values = train_options.parse(["--dataroot", "datasets/mine", "--name", name, "--device", "cpu"]).values()
        (run / "opt.json").write_text(json.dumps(values))
        (run / "latest_state.pth").touch()
    return folder


def read(words: list[str], place: Path, complete: bool = True) -> None:
    """Let its own program read a command line; `complete`: with all that is required."""
    match words:
        case ["python", "-c", code, *_]:
            compile(code, "documented", "exec")
        case ["python", "-m", "pytest", *given]:
            assert all((ROOT / word).exists() for word in given if "/" in word)
        case ["python", "-m", module, *_] if not (ROOT / f"{module.replace('.', '/')}.py").exists():
            assert importlib.util.find_spec(module), module
        case ["torchrun", *_] if not complete and not any(word.endswith(".py") for word in words):
            pass  # its own options alone
        case ["python" | "torchrun" | "sbatch", *_]:
            with contextlib.chdir(place):
                missing = refusal(words)
                if not complete and (named := re.search(r"are required: (.*)", missing)):
                    missing = refusal([*words, *(word for name in named[1].split(", ") for word in (name, "1"))])
            assert not missing, f"{' '.join(words)}: {missing}"


def refusal(words: list[str]) -> str:
    """Return what a command says against its line; nothing where it takes it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            documented.read(words)
    except SystemExit as stop:
        return said.getvalue().rpartition("error: ")[2].strip() or "refused" if stop.code else ""
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_one_that_its_program_takes(page, place):
    for block in documented.blocks(page):
        assert re.match(documented.FIRST_WORD, block) or NOT_SHELL.match(block), (
            f"neither shell nor known text:\n{block}"
        )
    for block in documented.shell_blocks(page):
        for words in documented.noted(place, own(block)):
            read(words, place, complete=" ..." not in block)
    for command in documented.inline_commands(page):
        for words in documented.noted(place, own(command)):
            read(words, place, complete=False)


def test_programs_that_run_at_the_same_time_are_noted_one_by_one(place):
    lines = documented.noted(place, 'for k in 1 2 3 4 5 6; do python "$k" "a b" & done; wait')
    assert sorted(lines) == [["python", str(k), "a b"] for k in range(1, 7)]


def test_variables_before_a_recipe_are_ones_that_it_reads():
    texts = [text for page in PAGES for text in (*documented.shell_blocks(page), page.read_text())]
    for text in texts:
        for name, script in re.findall(r"\b([A-Z_]+)=\S* (?:[A-Z_]+=\S* )*bash (scripts/\w+\.sh)", text):
            assert f"${{{name}" in (ROOT / script).read_text(), f"{name} does nothing in {script}"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("python train.py --dataroot d --name n --nonsense 3", "--nonsense: no such option"),
        ("python -m scripts.evaluate --pred a", "the following arguments are required: --ref"),
        ("python test_adapt.py --name recommended --input x.nii.gz --output x.doc", "x.doc: expected a file ending in"),
        (
            "bash scripts/train_recommended.sh datasets/mine --lambda_shape 0",
            "--lambda_shape: no such option",
        ),
        ("torchrun --nproc_per_node=2 train.py --dataroot d", "the following arguments are required: --name"),
        ("python fill_hole.py --inputs masks", r"--inputs: no such option; did you mean --input\?"),
    ],
)
def test_a_line_that_has_gone_stale_is_noticed(line, reason, place):
    """The check above can fail."""
    words, *_ = documented.noted(place, line)
    with pytest.raises(AssertionError, match=reason):
        read(words, place)
