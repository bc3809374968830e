"""Every field of checkpoint, evals, log and health changes what a run does or leaves behind."""

import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from etils import epath

from pretrain import samples
from pretrain.config import CheckpointConfig, EvalConfig, LogConfig
from pretrain.health.config import HealthConfig, Skip
from pretrain.health.guard import Guard
from pretrain.health.watchdog import Watchdog
from pretrain.metrics.sinks import read_lines
from pretrain.optimizer.config import Constant, OptimizerConfig
from tests.train import tiny

STEPS, ROWS, LENGTH = 12, 8, 32
DIGIT_ZERO = 4 + ord("0")
"""Four specials, then the bytes: see `train_sentencepiece`."""
ONE = {
    "checkpoint": CheckpointConfig(every=3, keep_latest=2, keep_best=1),
    "evals": EvalConfig(every=2, batches=1, prompts=("the a",), sample_tokens=3),
    "log": LogConfig(every=5, tensorboard=True),
    "health": HealthConfig(compare_every=5, recompute_every=4, hang_seconds=500.0),
}
OTHER = {
    "checkpoint": CheckpointConfig(
        every=2,
        every_minutes=600.0,
        keep_latest=1,
        keep_best=0,
        keep_every=6,
        on_failure="stop",
        local="copies",
        local_every=3,
    ),
    "evals": EvalConfig(every=4, batches=2, prompts=("of", "to"), sample_tokens=5),
    "log": LogConfig(every=4, tensorboard=False),
    "health": HealthConfig(
        compare_every=None, recompute_every=None, hang_seconds=None, policy=Skip(), window=64, sigmas=5.0
    ),
}
RUNS = {"one": ONE, "other": OTHER}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Trained by the first test, looked at by all."""
    return {name: tmp_path_factory.mktemp("runs") / name for name in RUNS}


def generate(model, prompts, *, max_tokens, **_):
    """In place of the model's own words, which would have to be compiled."""
    return SimpleNamespace(tokens=[[DIGIT_ZERO] * max_tokens for _ in prompts])


@pytest.fixture(params=RUNS)
def ran(request, runs, train, monkeypatch):
    """(the folder of a run, the fields it ran with)."""
    run = runs[request.param]
    if not run.exists():
        monkeypatch.setattr(samples, "generate", generate)
        # The loss rises in the end, so that the best checkpoint is not among the latest.
        rate = OptimizerConfig(peak_lr=3.0, schedule=Constant(warmup_steps=STEPS))
        fields = RUNS[request.param]
        if request.param == "other":
            fields = {**fields, "checkpoint": replace(fields["checkpoint"], local=str(run.parent / "copies"))}
        seen = watched(monkeypatch)
        train(run, steps=STEPS, optimizer=rate, **fields)
        (run / "seen.json").write_text(json.dumps(seen))
    return run, RUNS[request.param]


def watched(monkeypatch) -> dict[str, list]:
    """What the guards of the run will have looked at: steps, and seconds that a step may take."""
    seen: dict[str, list] = {"compared": [], "computed again": [], "patience": []}
    compare, again, begin = Guard._compare, Guard._again, Watchdog.__enter__

    def comparing(self, found, groups, at):
        seen["compared"].append(at)
        compare(self, found, groups, at)

    def computing(self, step, state, batch, at):
        seen["computed again"].append(at)
        return again(self, step, state, batch, at)

    def beginning(self):
        seen["patience"].append(None if math.isinf(self.limit) else self.limit)
        return begin(self)

    monkeypatch.setattr(Guard, "_compare", comparing)
    monkeypatch.setattr(Guard, "_again", computing)
    monkeypatch.setattr(Watchdog, "__enter__", beginning)
    return seen


def events(run: Path, kind: str) -> list[dict]:
    return [e for e in read_lines(epath.Path(run) / "events.jsonl") if e["kind"] == kind]


def due(every: int) -> list[int]:
    return [step for step in range(1, STEPS + 1) if step % every == 0 or step == STEPS]


def test_the_two_runs_differ_in_every_field():
    for name, config in ONE.items():
        for f in fields(config):
            if f.name != "translations":  # of pairs: see test_translations
                # every_minutes and on_failure: see test_checkpoints; policy, window and sigmas: see test_spikes
                assert getattr(config, f.name) != getattr(OTHER[name], f.name), f"{name}.{f.name}"


def test_checkpoints_are_written_every_so_many_steps(ran):
    run, config = ran
    assert [e["step"] for e in events(run, "checkpoint")] == due(config["checkpoint"].every)


def test_between_checkpoints_machines_keep_copies_where_a_folder_is_named(ran):
    run, config = ran
    between = sorted(set(due(config["checkpoint"].local_every)) - set(due(config["checkpoint"].every)))
    assert [e["step"] for e in events(run, "local_copy")] == (between if config is OTHER else [])


def test_the_latest_the_best_and_every_so_many_th_checkpoint_stay(ran):
    run, config = ran
    saved = due(config["checkpoint"].every)
    loss = {e["step"]: e["loss"] for e in events(run, "evaluation") if e["step"] in saved}
    best = sorted(loss, key=lambda step: loss[step])[: config["checkpoint"].keep_best]
    latest = saved[-config["checkpoint"].keep_latest :]
    assert not set(best) & set(latest), "the best must not stay as one of the latest"
    forever = [step for step in saved if step % (config["checkpoint"].keep_every or 1000) == 0]
    assert {int(p.name) for p in (run / "checkpoints").iterdir()} == {*latest, *best, *forever}


def test_the_validation_split_is_looked_at_every_so_many_steps_for_so_many_batches(ran):
    run, config = ran
    found = events(run, "evaluation")
    assert [e["step"] for e in found] == due(config["evals"].every)
    assert {math.ceil(e["tokens"] / (ROWS * LENGTH)) for e in found} == {config["evals"].batches}


def test_prompts_are_continued_at_every_evaluation_by_so_many_tokens(ran):
    run, config = ran
    written = {
        int(p.stem): re.findall(r"^(.*)⟨(.*)⟩", p.read_text(), re.MULTILINE) for p in (run / "samples").iterdir()
    }
    assert sorted(written) == due(config["evals"].every)
    for continued in written.values():
        assert continued == [(prompt, "0" * config["evals"].sample_tokens) for prompt in config["evals"].prompts]


def test_metrics_are_written_every_so_many_steps(ran):
    run, config = ran
    assert [line["step"] for line in tiny.lines(run)] == sorted({1, *due(config["log"].every)})


def test_fingerprints_are_compared_and_steps_computed_again_every_so_many_steps(ran):
    run, config = ran
    health, seen = config["health"], json.loads((run / "seen.json").read_text())
    again, every = health.recompute_every, health.compare_every
    assert seen["computed again"] == [step for step in range(1, STEPS + 1) if again and step % again == 0]
    pauses = {*due(config["evals"].every), *due(config["checkpoint"].every)}
    compared = [n for n in range(1, STEPS + 1) if every and n >= every and (n % every == 0 or n in pauses)]
    assert seen["compared"] == compared


def test_a_step_may_take_so_many_seconds(ran):
    run, config = ran
    assert json.loads((run / "seen.json").read_text())["patience"] == [config["health"].hang_seconds]


def test_tensorboard_has_the_same_numbers_or_is_not_there(ran):
    run, config = ran
    assert (run / "tb").exists() == config["log"].tensorboard == bool(list(run.glob("tb/events*")))
