"""How texts become what the model of a run reads, for each objective, and what is shown of it at a step."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from pretrain import presets, samples
from pretrain.errors import UserError
from pretrain.objectives.config import (
    Denoising,
    FillInTheMiddle,
    MaskedLm,
    NextToken,
    Objective,
    PrefixLm,
    Sentences,
    SequencePairs,
    SpanCorruption,
)
from pretrain.texts import Reader
from tests.models.mechanisms import LLAMA, PAIRS, drawn

ENCODER = replace(PAIRS["mbart"], decoder=None)
SPECIALS = ["<unk>", "<s>", "</s>", "<pad>", "[MASK]", "[CLS]", "[SEP]", "<extra_id_0>", "<extra_id_1>", "<mask>"]


class Letters:
    """Ids from 10 on are letters; a space is no token."""

    bos, eos, pad, unk, vocab_size = 1, 2, 3, 0, 64

    @property
    def specials(self):
        return {name: i for i, name in enumerate(SPECIALS) if i}

    def encode(self, text):
        return [10 + (ord(c) - ord("a")) % 54 for c in text if c != " "]

    def decode(self, ids):
        return "".join(chr(ord("a") + i - 10) for i in ids if i >= 10)


def reader(objective: Objective, model=LLAMA, bos: bool = True, eos: bool = True) -> Reader:
    smoke = presets.load("runs.smoke")
    data = replace(smoke.data, corpus=replace(smoke.data.corpus, add_bos=bos, add_eos=eos))
    return Reader.of_run(replace(smoke, model=model, objective=objective, data=data), Letters())


def test_a_prompt_begins_as_documents_do_and_does_not_end():
    assert reader(NextToken()).prompt("ab") == [1, 10, 11]
    assert reader(NextToken(), bos=False).prompt("ab") == [10, 11]
    assert not reader(NextToken()).reads
    assert not reader(NextToken()).prefix


def test_text_is_text_unless_the_objective_has_the_token():
    assert 4 not in reader(NextToken()).prompt("a [MASK] b")
    marked = reader(MaskedLm(), ENCODER)
    assert marked.masked("a [MASK]b") == ([1, 10, 4, 11, 2], 4)
    assert 9 not in marked.masked("[MASK]<mask>")[0]


@pytest.mark.parametrize(
    ("objective", "reads", "prefix"),
    [
        (PrefixLm(), False, True),
        (FillInTheMiddle(), False, False),
        (SpanCorruption(), True, True),
        (SequencePairs(), True, False),
        (SequencePairs(bidirectional=True), True, True),
    ],
    ids=str,
)
def test_a_decoder_alone_sees_what_it_reads_as_in_its_training(objective, reads, prefix):
    assert (reader(objective).reads, reader(objective).prefix) == (reads, prefix)
    assert reader(objective).source("ab") == [1, 10, 11, 2]


@pytest.mark.parametrize(
    ("objective", "start", "eos"),
    [(SpanCorruption(), 3, True), (Denoising(), 2, False), (SequencePairs(start="bos"), 1, True)],
    ids=str,
)
def test_a_decoder_beside_an_encoder_begins_with_the_objectives_start(objective, start, eos):
    r = reader(objective, PAIRS["t5"], bos=False, eos=False)
    assert r.reads
    assert not r.prefix
    assert r.opening("") == [start]
    assert r.opening("b") == [start, 11]
    assert r.source("a") == ([10, 2] if eos else [10])


def test_sentinels_are_spelled_in_what_is_read():
    assert reader(SpanCorruption(), PAIRS["t5"], bos=False).source("a <extra_id_0> b <extra_id_1>") == [10, 7, 11, 8, 2]


def test_an_encoder_of_sentences_reads_one_of_them():
    objective = MaskedLm(sentences=Sentences())
    assert reader(objective, ENCODER).masked("a [MASK]") == ([5, 10, 4, 6], 4)
    with pytest.raises(UserError, match=r"^found no \[MASK\] in the text, expected one or more; "):
        reader(objective, ENCODER).masked("a b")


def job(tokens: int = 4) -> SimpleNamespace:
    return SimpleNamespace(config=SimpleNamespace(evals=SimpleNamespace(sample_tokens=tokens)))


def test_samples_answer_continue_or_fill():
    prompts = ("ab", "cdef")
    said = samples.written(reader(NextToken()), drawn(LLAMA, 0.4), prompts, job())
    assert [len(text) <= 4 for text in said] == [True, True]
    pair = drawn(PAIRS["mbart"], 0.4)
    answers = samples.written(reader(Denoising(), PAIRS["mbart"]), pair, prompts, job(6))
    assert answers != samples.written(reader(Denoising(), PAIRS["mbart"]), pair, prompts[::-1], job(6))
    filled = samples.filled(reader(MaskedLm(), ENCODER), drawn(ENCODER, 0.4), ("ab", "a [MASK] b [MASK]"))
    assert filled[0] == ""
    assert len(filled[1].split(" ")) == 2
