"""The presets of families train: ten steps of each here, the whole of them, killed on the way, where time is marked."""

import math
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from etils import epath

from pretrain.checkpoint import manifest
from pretrain.data.config import TrainSentencePiece
from pretrain.metrics.sinks import read_lines
from pretrain.models.config import TransformerConfig
from pretrain.optimizer.config import Constant
from tests.train import tiny
from tests.train.test_resume import assert_same, wait_for_step

STATED = {
    "smoke_bert": 6.3,
    "smoke_t5": 5.1,
    "smoke_bart": 4.7,
    "smoke_original_transformer": 5.6,
    "smoke_mixtral": 4.9,
    "smoke_deepseek": 5.9,
}
"""The validation loss that the preset's docstring states, and 0.1 for other machines."""


def preset(name: str):
    return import_module(f"pretrain.configs.runs.{name}").run()


def shallow(model: TransformerConfig) -> TransformerConfig:
    """With one layer of each kind."""
    stacks = {name: getattr(model, name) for name in ("encoder", "decoder")}
    return replace(model, **{name: stack and replace(stack, repeats=1) for name, stack in stacks.items()})


def evaluations(run: Path) -> list[dict]:
    return [event for event in read_lines(epath.Path(run) / "events.jsonl") if event["kind"] == "evaluation"]


@pytest.mark.parametrize("name", STATED)
def test_ten_steps_lower_the_loss_and_repeat_from_a_checkpoint(name, train, tmp_path):
    config, run = preset(name), tmp_path / "run"
    source = replace(config.data.corpus.source, limit=30)
    tokenizer = TrainSentencePiece(vocab_size=600, sample_bytes=50_000)
    corpus = replace(config.data.corpus, source=source, tokenizer=tokenizer)
    changes = {
        "model": shallow(replace(config.model, vocab_size=600)),
        "data": replace(config.data, corpus=corpus, sequence_length=64),
        "objective": config.objective,
        "optimizer": replace(config.optimizer, schedule=Constant(warmup_steps=2)),
        "checkpoint": replace(config.checkpoint, every=4, keep_latest=3),
        "steps": 10,
    }
    train(run, **changes)
    first = {line["step"]: line for line in tiny.lines(run)}
    assert set(first) == set(range(1, 11))
    assert sum(first[step]["loss"] for step in (8, 9, 10)) / 3 < first[1]["loss"] - 0.3
    evaluation = evaluations(run)[-1]
    assert config.model.ahead is None or math.log(evaluation["perplexity"]) < evaluation["loss"] - 1, "of next tokens"
    for step in (8, 10):
        shutil.rmtree(run / "checkpoints" / str(step))
    assert manifest.latest(epath.Path(run / "checkpoints")) == 4
    train(run, **changes)
    assert_same([line for line in tiny.lines(run) if line["step"] > 4], first)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", STATED)
def test_a_preset_that_is_killed_on_the_way_reaches_its_stated_loss_bit_for_bit(name, tmp_path):
    def start(run: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "pretrain", "train", f"runs.{name}", "--run", str(run)]
        command += ["--data.path", str(tmp_path / "data")]
        return subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(run: Path) -> dict[int, dict]:
        process = start(run)
        output, _ = process.communicate(timeout=3000)
        assert process.returncode == 0, output
        return {line["step"]: line for line in tiny.lines(run)}

    undisturbed = finish(tmp_path / "undisturbed")
    rng, killed = random.Random(0), tmp_path / "killed"
    for stop in (rng.randint(30, 45), rng.randint(60, 90)):
        process = start(killed)
        wait_for_step(process, killed, stop)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert_same([*finish(killed).values()], undisturbed)
    assert evaluations(killed)[-1]["loss"] < STATED[name]
