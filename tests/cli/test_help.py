import json
import subprocess
import sys

import pytest

from pretrain.cli import VERBS, main

HEAVY = ("jax", "flax", "grain", "orbax")
PROBE = """
import json, sys
from pretrain.cli import main
code = main(sys.argv[1:])
heavy = [name for name in {heavy} if name in sys.modules]
sys.stderr.write(json.dumps([code, heavy]))
"""
ACTIONS = [["data", "prepare"], ["data", "inspect"], ["tokenizer", "train"], ["config", "why"], ["config", "show"]]


@pytest.mark.parametrize("words", [[], ["train"], ["config", "show"], ["generate"]])
def test_help_never_imports_jax(words):
    """Half a second instead of five."""
    probe = [sys.executable, "-c", PROBE.format(heavy=HEAVY), *words, "--help"]
    done = subprocess.run(probe, capture_output=True, text=True)
    assert json.loads(done.stderr) == [0, []]
    assert "pretrain" in done.stdout


@pytest.mark.parametrize("words", [*([verb] for verb in VERBS), *ACTIONS])
def test_every_help_has_worked_examples(words, capsys):
    assert main([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"pretrain {' '.join(words)}" in text.split("examples:")[1]


def test_every_verb_and_no_other_is_listed(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.split("\n\n")[2].splitlines()] == list(VERBS)


def test_the_help_of_a_verb_with_actions_names_them(capsys):
    assert main(["config"]) == 2
    text = capsys.readouterr().out
    assert all(f"\n  {action} " in text for action in ("list", "show", "diff", "why"))


def test_the_version_is_printed(capsys):
    from pretrain import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"
