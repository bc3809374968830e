"""What people read when their input is wrong: bad_input.txt holds every command with its exact lines on stderr."""

import hashlib
import re
import shlex
from pathlib import Path

import pytest

from pretrain.cli import VERBS, main

GOLDEN = Path(__file__).with_name("bad_input.txt").read_text()
CASES = {command: lines for command, lines in re.findall(r"^\$ pretrain (.*)\n((?:.+\n)+)", GOLDEN, re.MULTILINE)}


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def may_begin(command: str) -> tuple[str, ...]:
    """A corpus that cannot be read to its end leaves what it has begun in its own new folder, nothing else."""
    words = shlex.split(command)
    begins = words[:2] == ["data", "prepare"] or words[0] == "train"
    return (f"{words[words.index('--run') + 1]}/data/",) if begins and "--run" in words else ()


def test_there_are_enough_cases():
    assert len(CASES) == GOLDEN.count("$ pretrain ") >= 200


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_some(verb):
    assert sum(command.split()[0] == verb for command in CASES) >= 4


@pytest.mark.parametrize("command", CASES)
def test_bad_input_is_told_in_one_line_a_problem_and_nothing_is_overwritten(command, world, capsys):
    before = contents(world)
    code = main(shlex.split(command))
    out, err = capsys.readouterr()
    assert (code, err, out) == (2, CASES[command], "")
    after = contents(world)
    assert {name: after.get(name) for name in before} == before
    new = [name for name in after if name not in before]
    assert [name for name in new if not name.startswith(may_begin(command))] == []
