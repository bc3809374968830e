"""Vocabularies inside GGUF files give the ids of the tokenizers they were made from."""

import json
from pathlib import Path

import pytest

from pretrain.data.config import TrainSentencePiece
from pretrain.data.tokenizer_gguf import tokenizer_of
from pretrain.data.tokenizer_hf import HFTokenizer
from pretrain.data.tokenizer_sentencepiece import train_sentencepiece
from pretrain.errors import UserError
from tests.parity.vocabulary import TEXT, trained, vocabulary


@pytest.fixture(scope="module")
def bpe():
    return trained()


def test_byte_level_merges_become_the_tokenizer_they_came_from(bpe):
    ours, add_bos = tokenizer_of(vocabulary(bpe), "file")
    assert isinstance(ours, HFTokenizer)
    assert ours.encode(TEXT) == bpe.encode(TEXT, add_special_tokens=False).ids
    assert (ours.decode(ours.encode(TEXT)), ours.bos, ours.eos, add_bos) == (TEXT, 1, 0, False)
    assert ours.encode("<|im_start|>") != [1]


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken"])
def test_every_way_to_cut_a_text_keeps_it_whole(pre, bpe):
    ours, _ = tokenizer_of(vocabulary(bpe) | {"tokenizer.ggml.pre": pre}, "file")
    assert ours.decode(ours.encode(TEXT)) == TEXT


def test_pieces_and_scores_become_the_tokenizer_they_came_from(tmp_path):
    theirs = train_sentencepiece([Path(json.__file__).read_text(), TEXT], TrainSentencePiece(vocab_size=420), tmp_path)
    pieces = theirs.proto.pieces
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [p.piece for p in pieces],
        "tokenizer.ggml.scores": [p.score for p in pieces],
        "tokenizer.ggml.token_type": [p.type for p in pieces],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": False,
    }
    ours, add_bos = tokenizer_of(metadata, "file")
    assert ours.encode(TEXT) == theirs.encode(TEXT)
    assert (ours.decode(ours.encode(TEXT)), ours.bos, ours.eos, add_bos) == (TEXT, 1, 2, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "t5"}, "tokenizer.ggml.model is 't5', expected gpt2 or llama; import another file"),
        ({"tokens": [1, 2]}, "found no list of strings in tokenizer.ggml.tokens; copy the file again"),
        ({"token_type": [1]}, "tokenizer.ggml.token_type does not have 400 numbers; copy the file again"),
        ({"bos_token_id": 400}, "tokenizer.ggml.bos_token_id is 400, expected one of 400 tokens"),
        ({"merges": ["nowhere tobefound"]}, "its vocabulary makes no tokenizer"),
        ({"merges": ["one"]}, "its vocabulary makes no tokenizer"),
        ({"pre": "new"}, "tokenizer.ggml.pre is 'new', expected one of gpt-2, smollm, llama-bpe, qwen2, tekken"),
        ({"model": "llama"}, "tokenizer.ggml.scores does not have 400 numbers; copy the file again"),
    ],
)
def test_a_broken_vocabulary_is_refused_in_one_line(change, message, bpe):
    with pytest.raises(UserError) as error:
        tokenizer_of(vocabulary(bpe) | {f"tokenizer.ggml.{key}": value for key, value in change.items()}, "file")
    (problem,) = error.value.problems
    assert problem.startswith(f"file: {message}")
    assert "\n" not in problem
