"""Commands in messages start the Python that runs; where no environment is active, `python` is another one."""

import sys

import pytest

from data import commands
from data.commands import program, python_command
from options import train_options


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout, reached by a link, whose environment runs this process and is not active."""
    (tmp_path / "checkout/.venv/bin").mkdir(parents=True)
    (tmp_path / "link").symlink_to("checkout")
    monkeypatch.setattr(commands, "_OWN", tmp_path / "checkout/.venv")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "link/.venv"))
    monkeypatch.delenv("VIRTUAL_ENV")
    return tmp_path / "checkout"


def test_a_command_names_the_environment_that_is_not_active(checkout, monkeypatch):
    assert python_command("train.py", "--n_epochs", 3, "--name", "my run") == (
        ".venv/bin/python train.py --n_epochs 3 --name 'my run'"
    )
    assert program("torchrun") == ".venv/bin/torchrun"
    monkeypatch.setenv("VIRTUAL_ENV", str(checkout.parent / "another"))
    assert program("python") == ".venv/bin/python"
    monkeypatch.setenv("VIRTUAL_ENV", str(checkout.parent / "link/.venv"))
    assert python_command("train.py") == "python train.py"


def test_another_environment_is_not_named(checkout, monkeypatch):
    """Nobody knows its place in a container or with conda; its `python` is the one on the path."""
    monkeypatch.setattr(sys, "prefix", "/usr")
    assert program("python") == "python"


def test_what_is_printed_begins_so(checkout, capsys):
    run = train_options.parse(["--dataroot", "D", "--name", "run", "--device", "cpu"]).run
    assert run.resume_command(1) == ".venv/bin/python train.py --continue_train --name run"
    start = ".venv/bin/torchrun --standalone --nproc_per_node=2"
    assert run.resume_command(2) == f"{start} train.py --continue_train --name run"
    with pytest.raises(SystemExit):
        train_options.parse(["--dataroots", "D"])
    assert capsys.readouterr().err.endswith("\nhelp: .venv/bin/python train.py --help_all\n")
