"""Runs of other objectives than the next token: trained, looked at, opened again."""

import json
import random
from dataclasses import replace

import jax
import pytest
from etils import epath

from pretrain import job
from pretrain.config import CheckpointConfig, EvalConfig, RunConfig
from pretrain.data.config import JsonPairs
from pretrain.evaluate.perplexity import evaluate
from pretrain.metrics.sinks import read_lines
from pretrain.models import config as m
from pretrain.objectives import config as c
from pretrain.opened import open_run
from tests.objectives.zoo import JUDGE, both, encoder
from tests.train import tiny


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """As on a machine with one: the devices of this process are counted once."""
    device = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: device)
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    monkeypatch.setattr(job, "cache_compilations", lambda: None)


def config(corpus, objective: c.Objective, model: m.TransformerConfig) -> RunConfig:
    return tiny.config(
        corpus,
        simulate=None,
        objective=objective,
        model=replace(model, vocab_size=500),
        steps=24,
        checkpoint=CheckpointConfig(every=24),
        evals=EvalConfig(every=24, batches=2),
    )


def pairs(folder, run: RunConfig) -> RunConfig:
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [["".join(rng.choices(letters, k=3)) for _ in range(rng.randint(1, 12))] for _ in range(300)]
    lines = [json.dumps({"source": " ".join(w), "target": " ".join(reversed(w))}) for w in words]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    source = JsonPairs(paths=(str(folder / "pairs.jsonl"),))
    return replace(run, data=replace(run.data, corpus=replace(run.data.corpus, source=source)))


RUNS = {
    "masked": (c.MaskedLm(sentences=c.Sentences()), encoder(**JUDGE), {"nll", "sentence_correct"}),
    "pairs": (c.SequencePairs(too_long="drop"), both(), {"nll", "correct"}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_learns_and_is_evaluated_as_it_was(name, corpus, tmp_path, capsys):
    objective, model, said = RUNS[name]
    run = config(corpus, objective, model)
    if name == "pairs":
        run = pairs(tmp_path, run)
    facts = job.train(run, epath.Path(tmp_path / "run"))
    lines = tiny.lines(tmp_path / "run")
    steps = [line for line in lines if "grad_norm" in line]
    assert facts["status"] == "done"
    assert sum(s["loss"] for s in steps[-4:]) < sum(s["loss"] for s in steps[:4])
    assert said <= facts["validation"].keys()
    assert "bits_per_byte" not in facts["validation"]
    assert steps[-1]["tokens"] > sum(s["weight"] for s in steps)
    if name == "pairs":
        assert "pairs are longer than a row and left out" in capsys.readouterr().err
        events = read_lines(epath.Path(tmp_path / "run" / "events.jsonl"))
        assert any("pairs are longer" in event.get("what", "") for event in events)
    again = evaluate(open_run(tmp_path / "run"))
    assert again["loss"] == pytest.approx(facts["validation"]["loss"], rel=1e-4)
