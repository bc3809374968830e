"""Pairs from a file to rows and back."""

import json

import numpy as np
import pytest

from pretrain.data.config import CorpusConfig, DataConfig, JsonPairs, TrainSentencePiece
from pretrain.data.corpus import prepare_if_needed
from pretrain.data.pipeline import Pipeline, validation_batches
from pretrain.data.plan import Pairs
from pretrain.data.write import prepare
from pretrain.errors import UserError
from pretrain.objectives.config import SequencePairs
from pretrain.objectives.transforms import transform
from tests.objectives.zoo import both, decoder

R = np.random.default_rng(0)
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyzäöü"))


def made_up(words: int) -> str:
    return " ".join("".join(R.choice(LETTERS, R.integers(1, 8))) for _ in range(words))


SENTENCES = [(f"{i} {made_up(R.integers(1, 20))}", made_up(R.integers(1, 20))) for i in range(400)]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    lines = "".join(json.dumps({"de": a, "en": b}) + "\n" for a, b in SENTENCES)
    (folder / "a.jsonl").write_text(lines + '{"de": "", "en": "nothing"}\n')
    source = JsonPairs(paths=(str(folder / "a.jsonl"),), source="de", target="en")
    tokenizer = TrainSentencePiece(vocab_size=420, sample_bytes=10_000)
    corpus = CorpusConfig(source=source, tokenizer=tokenizer, validation_fraction=0.1, record_tokens=64)
    return prepare_if_needed(DataConfig(corpus=corpus), folder / "c", workers=1)


def rows(opened, model, length: int, **config):
    return transform(SequencePairs(**config), opened[2], length, model)


def texts(tokenizer, tokens, segments) -> list[str]:
    out = []
    for row, numbers in zip(tokens, segments):
        for n in range(1, numbers.max() + 1):
            text = row[numbers == n].tolist()
            assert text.pop() == tokenizer.eos
            out.append(tokenizer.decode(text))
    return out


def epoch(split, transform) -> dict[str, np.ndarray]:
    return Pipeline(split, transform, batch=transform.plan(split).rows, seed=1).rows(0)


def test_an_epoch_shows_every_pair_once_read_and_written(opened):
    train, validation, tokenizer = opened
    found = []
    for split in (train, validation):
        batch = epoch(split, rows(opened, both(), 400, target_length=200))
        read = texts(tokenizer, batch["encoder_tokens"], batch["encoder_segments"])
        written = texts(tokenizer, batch["targets"], batch["segments"])
        found.append(set(zip(read, written)))
        assert np.array_equal(batch["encoder_segments"].max(1), batch["segments"].max(1))
    assert found[0] | found[1] == set(SENTENCES)
    assert not found[0] & found[1]
    assert 20 < len(found[1]) < 60


def test_the_decoder_starts_each_text_with_its_start_token(opened):
    batch = epoch(opened[0], rows(opened, both(), 300))
    begins = (batch["positions"] == 0) & (batch["segments"] > 0)
    assert begins.sum() == batch["segments"].max(1).sum()
    assert (batch["tokens"][begins] == opened[2].bos).all()
    inside = (batch["positions"] > 0)[:, 1:]
    assert (batch["tokens"][:, 1:][inside] == batch["targets"][:, :-1][inside]).all()
    assert np.array_equal(batch["weights"], batch["segments"] > 0)
    assert (batch["encoder_positions"][:, 1:] - batch["encoder_positions"][:, :-1] <= 1).all()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_decoder_alone_is_asked_for_the_targets_only(opened, bidirectional):
    tokenizer = opened[2]
    batch = epoch(opened[0], rows(opened, decoder(), 300, bidirectional=bidirectional))
    assert ("prefix" in batch) == bidirectional
    pairs = []
    for row in range(len(batch["tokens"])):
        for n in range(1, batch["segments"][row].max() + 1):
            there = batch["segments"][row] == n
            tokens, asked = batch["tokens"][row][there], batch["weights"][row][there] > 0
            first = asked.argmax()
            assert asked.tolist() == [False] * first + [True] * (len(tokens) - first - 1) + [False]
            assert batch["targets"][row][there][asked].tolist() == tokens[first + 1 :].tolist()
            assert tokens[first] == tokens[-1] == tokenizer.eos
            assert batch["positions"][row][there].tolist() == list(range(len(tokens)))
            if bidirectional:
                assert batch["prefix"][row][there].tolist() == [1] * (first + 1) + [0] * (len(tokens) - first - 1)
            pairs.append(tuple(tokenizer.decode(t.tolist()) for t in (tokens[:first], tokens[first + 1 : -1])))
    assert len(pairs) == opened[0].documents // 2
    assert set(pairs) <= set(SENTENCES)


def test_rows_are_as_full_as_neighbours_allow(opened):
    transform = rows(opened, both(), 400)
    plan, batch = transform.plan(opened[0]), epoch(opened[0], transform)
    read = (batch["encoder_segments"] > 0).sum(1)
    assert read.max() <= 400
    assert read.mean() > 0.8 * 400
    for row in range(plan.rows - 1):
        following = plan._sizes[plan._rows[row + 1]]
        sums = plan._sizes[plan._rows[row] : plan._rows[row + 1]].sum(0)
        assert (sums + following > 400).any()


def test_pairs_that_are_too_long_are_counted_and_left_out_or_cut():
    lengths = np.array([5, 5, 30, 4, 3, 3, 4, 30])
    left = Pairs(lengths, read=10, written=10, total=20, truncate=False)
    assert left.notes == ("2 of 4 pairs are longer than a row and left out",)
    assert [left.runs(r) for r in range(left.rows)] == [[(0, 10), (44, 6)]]
    cut = Pairs(lengths, read=10, written=10, total=20, truncate=True)
    assert cut.notes == ("2 of 4 pairs are longer than a row and cut to their room",)
    assert [cut.runs(r) for r in range(cut.rows)] == [[(0, 10)], [(10, 10), (40, 4)], [(44, 6)], [(50, 14)]]
    whole = Pairs(lengths, read=40, written=40, total=40, truncate=False)
    assert whole.notes == ()


def test_a_pair_that_is_cut_still_ends_with_eos(opened):
    tokenizer, length = opened[2], 16
    for model in (both(), decoder()):
        transform = rows(opened, model, length, too_long="truncate")
        assert "cut to their room" in transform.plan(opened[0]).notes[0]
        batch = epoch(opened[0], transform)
        for name in ("tokens", "encoder_tokens"):
            if name == "tokens" and model.encoder is not None:
                tokens, segments = batch["targets"], batch["segments"]
            elif name in batch:
                tokens, segments = batch[name], batch[name.replace("tokens", "segments")]
            else:
                continue
            ends = (segments > 0) & (np.pad(segments[:, 1:], ((0, 0), (0, 1))) != segments)
            assert (tokens[ends] == tokenizer.eos).all()
        assert batch["segments"].max(1).sum() == opened[0].documents // 2


def test_both_texts_of_a_pair_are_of_one_split_and_an_empty_one_is_dropped(opened):
    train, validation, _ = opened
    assert train.documents % 2 == validation.documents % 2 == 0
    assert train.documents + validation.documents == 2 * len(SENTENCES)
    batches = list(validation_batches(validation, rows(opened, both(), 400), 4))
    assert sum(b["segments"].max(1).sum() for b in batches) == validation.documents // 2


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"de": "a"}', "found fields 'de', expected text in 'en'; set the source's field or repair the line"),
        ("[1]", "found a JSON list, expected an object with 'de' and 'en'; repair the line"),
    ],
)
def test_a_line_that_is_no_pair_is_named(line, expected, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"de": "a", "en": "b"}\n' + line + "\n")
    source = JsonPairs(paths=(str(tmp_path / "a.jsonl"),), source="de", target="en")
    with pytest.raises(UserError) as error:
        prepare(CorpusConfig(source=source), tmp_path / "c")
    assert str(error.value) == f"{tmp_path}/a.jsonl line 2: {expected}"


def test_a_split_without_a_pair_that_fits_is_refused(opened):
    transform = rows(opened, both(), 2)
    with pytest.raises(UserError) as error:
        Pipeline(opened[0], transform, batch=4).rows(0)
    n = opened[0].documents // 2
    assert str(error.value) == (
        f"{opened[0].folder}, train split: found no text that makes a row; {n} of {n} pairs are longer than a row and "
        "left out; raise data.sequence_length or prepare other text"
    )


def test_the_texts_of_a_row_lead_back_to_their_lines(opened):
    train, _, tokenizer = opened
    pipeline = Pipeline(train, rows(opened, both(), 60), batch=4)
    for row in range(4):
        raw, pieces = pipeline.raw(3, slice(row, row + 1)), pipeline.sources(3, row)
        assert sum(p.length for p in pieces) == raw.lengths[0]
        for number, piece in enumerate(pieces):
            text = tokenizer.decode(raw.tokens[0, piece.start : piece.start + piece.length - 1].tolist())
            assert text == SENTENCES[piece.row][number % 2]
