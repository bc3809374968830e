"""BLEU of what is written for the sources of the validation split."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath

from pretrain.config import EvalConfig
from pretrain.configs.llama import llama
from pretrain.configs.t5 import t5
from pretrain.data.config import CorpusConfig, DataConfig, JsonPairs, TrainSentencePiece
from pretrain.data.corpus import prepare_if_needed
from pretrain.errors import UserError
from pretrain.evaluate import bleu
from pretrain.evaluate.bleu import Translator
from pretrain.evaluate.perplexity import evaluate
from pretrain.metrics.sinks import read_lines
from pretrain.models.generate.config import BeamSearch
from pretrain.objectives.config import SequencePairs
from pretrain.opened import open_run
from pretrain.sharding.mesh import MeshConfig
from tests.train import tiny

sacrebleu = pytest.importorskip("sacrebleu")
R = np.random.default_rng(0)
WORDS = ["alt", "bei", "das", "ein", "fern", "gut", "hier"]
SENTENCES = [" ".join(R.choice(WORDS, R.integers(4, 9))) for _ in range(120)]
PAIRS = {f"{n} {text}": f"{text.upper()} {n}" for n, text in enumerate(SENTENCES)}
SIZE = {"vocab_size": 400, "d_model": 32, "layers": 1, "heads": 2, "d_ff": 64}
MODELS = {"beside an encoder": t5(**SIZE, head_dim=16), "alone": llama(**SIZE)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "a.jsonl").write_text("".join(json.dumps({"de": a, "en": b}) + "\n" for a, b in PAIRS.items()))
    source = JsonPairs(paths=(str(folder / "a.jsonl"),), source="de", target="en")
    tokenizer = TrainSentencePiece(vocab_size=400, sample_bytes=10_000)
    corpus = CorpusConfig(source=source, tokenizer=tokenizer, validation_fraction=0.2, record_tokens=64)
    return DataConfig(corpus=corpus, sequence_length=120, path=str(folder / "c"))


def run_of(model, data):
    return tiny.config(epath.Path(), model=model, data=data, objective=SequencePairs())


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_written_is_compared_with_the_targets_as_sacrebleu_does(kind, data, monkeypatch):
    config = run_of(MODELS[kind], data)
    _, validation, tokenizer = prepare_if_needed(config.prepared(), data.path)
    asked = []

    def generate(model, prompts, *, sources=None, **_):
        read = prompts if sources is None else sources
        assert all(row[-1] == tokenizer.eos for row in read)
        texts = [tokenizer.decode(row) for row in read]
        asked.extend(texts)
        return SimpleNamespace(tokens=[tokenizer.encode(answers[-1](text)) for text in texts])

    monkeypatch.setattr(bleu, "generate", generate)
    translator, answers = Translator(config, tokenizer, validation, 20), [PAIRS.__getitem__]
    assert translator(None) == {"bleu": pytest.approx(100), "translated": 20}
    assert len(set(asked)) == 20

    def spoiled(text):
        return PAIRS[text].replace("GUT", "HIER").removeprefix("DAS ")

    answers.append(spoiled)

    found = translator(None)["bleu"]
    sides = [spoiled(text) for text in asked[:20]], [[PAIRS[text] for text in asked[:20]]]
    assert found == sacrebleu.corpus_bleu(*sides).score < 95
    assert "tok:13a" in translator.signature


def test_pairs_that_no_row_holds_are_not_translated(data):
    config = run_of(MODELS["alone"], replace(data, sequence_length=16))
    _, validation, tokenizer = prepare_if_needed(config.prepared(), data.path)
    lengths = validation.document_lengths()
    fits = lengths[::2] + lengths[1::2] <= 16
    assert len(Translator(config, tokenizer, validation, 1000).pairs) == fits.sum() < len(fits)


@pytest.mark.parametrize("kind", MODELS)
def test_a_run_translates_at_every_evaluation_and_evaluate_says_the_same(kind, data, train, tmp_path):
    evals = EvalConfig(every=2, batches=1, translations=3)
    run = epath.Path(tmp_path / "run")
    train(run, steps=4, model=MODELS[kind], data=data, objective=SequencePairs(), evals=evals)
    events = [e for e in read_lines(run / "events.jsonl") if e["kind"] == "evaluation"]
    assert [(e["step"], e["translated"]) for e in events] == [(2, 3), (4, 3)]
    assert all(0 <= e["bleu"] <= 100 for e in events)
    opened = open_run(run)
    assert evaluate(opened)["bleu"] == pytest.approx(events[-1]["bleu"])
    more = evaluate(opened, translations=5, search=BeamSearch(beams=2))
    assert more["translated"] == 5
    assert "bleu" not in evaluate(opened, translations=0)
    with pytest.raises(UserError, match="beams: found no translations to search for"):
        evaluate(opened, translations=0, search=BeamSearch(beams=2))


def test_a_run_that_translates_nothing_is_refused(data):
    config = replace(run_of(MODELS["alone"], data), evals=EvalConfig(translations=2), mesh=MeshConfig())
    config.check(1)
    with pytest.raises(UserError, match=r"evals.translations=2 with 8 devices: a model translates on one; set it to 0"):
        config.check(8)
    with pytest.raises(UserError, match=r"evals.translations=2: found NextToken, only SequencePairs translates"):
        tiny.config(epath.Path(), evals=EvalConfig(translations=2)).check()
