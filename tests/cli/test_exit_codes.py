import subprocess
import sys

import pytest

from pretrain import cli
from pretrain.cli import main
from pretrain.cli.config import Show
from pretrain.errors import CheckFailed, UserError

COMMAND = ["config", "show", "runs.smoke"]


def ends_with(monkeypatch, error: BaseException) -> None:
    def fail(self):
        raise error

    monkeypatch.setattr(Show, "__call__", fail)


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (UserError("a=1: expected 2", "b=1: expected 3"), 2, "a=1: expected 2\nb=1: expected 3\n"),
        (CheckFailed("tensor x differs"), 3, "tensor x differs\n"),
        (ValueError("boom\nagain"), 1, "internal error: ValueError: boom again (--debug shows the traceback)\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_how_a_verb_ends_decides_code_and_lines(error, code, stderr, monkeypatch, capsys):
    ends_with(monkeypatch, error)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    assert main(COMMAND) == code
    assert capsys.readouterr().err == stderr


@pytest.mark.parametrize("error", [UserError("a=1: expected 2"), ValueError("boom"), KeyboardInterrupt()])
def test_debug_shows_the_traceback(error, monkeypatch, capsys):
    ends_with(monkeypatch, error)
    main([*COMMAND, "--debug"])
    assert capsys.readouterr().err.startswith("Traceback (most recent call last):\n")


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "pretrain", "trian"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "trian: no such verb; did you mean train?\n")


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{sys.executable} -m pretrain config show runs.smoke | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("parameters")


def test_every_verb_has_a_module_with_documented_commands():
    for verb in cli.VERBS:
        command = cli.command_of(verb)
        for cls in command.values() if isinstance(command, dict) else [command]:
            assert "examples:\n" in cls.__doc__
