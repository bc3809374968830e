"""A step that is computed again is that of the log, and a log that says otherwise is found."""

import json

import pytest

from pretrain import cli
from pretrain.config import CheckpointConfig, EvalConfig

QUIET = {"steps": 7, "checkpoint": CheckpointConfig(every=4), "evals": EvalConfig(every=100, batches=1)}


@pytest.fixture
def run(train, tmp_path):
    train(tmp_path / "run", **QUIET)
    return tmp_path / "run"


def test_steps_behind_a_checkpoint_are_those_of_the_log_and_a_changed_log_is_named(run, capsys):
    assert cli.main(["replay", str(run), "--step", "6", "--json"]) == cli.DONE
    found = json.loads(capsys.readouterr().out)
    assert (found["from"], found["compared"], found["differences"]) == (4, 2, [])
    assert cli.main(["replay", str(run), "--step", "3"]) == cli.DONE
    assert "3 steps from the checkpoint of step 0, 3 of them logged: all equal" in capsys.readouterr().out

    log = run / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[5]["loss"] += 1e-6
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main(["replay", str(run), "--step", "6"]) == cli.CHECK
    assert "step 6: loss was logged as" in capsys.readouterr().err


def test_a_step_that_was_never_logged_is_refused(run, capsys):
    assert cli.main(["replay", str(run), "--step", "70"]) == cli.YOURS
    assert "step=70: found no such step" in capsys.readouterr().err
