"""Masking against the numbers of BERT, RoBERTa and ALBERT."""

import numpy as np
import pytest

from pretrain.data.pipeline import Pipeline
from pretrain.data.vocabulary import Vocabulary
from pretrain.errors import UserError
from pretrain.objectives.config import MaskedLm, Masking, Sentences
from pretrain.objectives.transforms import transform
from tests.data.stored import write_split
from tests.objectives.zoo import CASES, TOKENIZER, V, documents, encoder, raw

MASK, CLS, SEP = (TOKENIZER.specials[name] for name in ("[MASK]", "[CLS]", "[SEP]"))
VOCABULARY = Vocabulary.of(TOKENIZER)


def rows(objective: MaskedLm, length: int = 256):
    return transform(objective, TOKENIZER, length, encoder())


def originals(batch) -> np.ndarray:
    """Tokens with every answer put in its place."""
    tokens, (b, k) = batch["tokens"].copy(), np.nonzero(batch["weights"])
    tokens[b, batch["places"][b, k]] = batch["targets"][b, k]
    return tokens


def test_fifteen_percent_of_the_text_is_asked_for_of_which_80_10_10():
    text = raw(256, 64)
    batch = rows(MaskedLm())(text)
    special = VOCABULARY.is_special(text.tokens[:, :256])
    free = (~special).sum(1)
    asked = batch["weights"].sum(1)
    assert np.array_equal(asked, np.floor(free * 0.15 + 0.5))
    assert np.array_equal(originals(batch), text.tokens[:, :256])
    b, k = np.nonzero(batch["weights"])
    assert not special[b, batch["places"][b, k]].any()
    shown, hidden = batch["tokens"][b, batch["places"][b, k]], batch["targets"][b, k]
    assert abs((shown == MASK).mean() - 0.8) < 0.02
    assert abs((shown == hidden).mean() - 0.1) < 0.02
    drawn = shown[(shown != MASK) & (shown != hidden)]
    assert len(drawn)
    assert not VOCABULARY.is_special(drawn).any()
    assert len(set(drawn.tolist())) > len(drawn) / 4


def test_questions_stand_once_and_in_the_order_of_the_row():
    batch = rows(MaskedLm())(raw(256, 64))
    asked = batch["weights"] > 0
    assert (np.diff(batch["places"], axis=1) > 0)[asked[:, 1:]].all()
    assert not batch["places"][~asked].any()
    assert not batch["targets"][~asked].any()


def test_each_token_is_as_likely_as_any_other():
    text = raw(64, 4000, longest=10**4)
    batch = rows(MaskedLm(), 64)(text)
    counts = np.bincount(batch["places"][batch["weights"] > 0], minlength=64)
    assert abs(counts / 4000 - 10 / 64).max() < 4 * np.sqrt(10 / 64 / 4000)


def test_whole_words_are_hidden_whole_and_as_many_tokens():
    text = raw(256, 64)
    batch = rows(MaskedLm(masking=Masking(whole_words=True)))(text)
    tokens, starts = text.tokens[:, :256], text.starts[:, :256]
    word = np.cumsum(VOCABULARY.words(tokens, starts), axis=1)
    chosen = np.zeros(tokens.shape, bool)
    b, k = np.nonzero(batch["weights"])
    chosen[b, batch["places"][b, k]] = True
    for row in range(64):
        for w in np.unique(word[row]):
            assert len(set(chosen[row][(word[row] == w) & ~VOCABULARY.is_special(tokens[row])].tolist())) <= 1
    assert max(np.bincount(word[0])) > 2
    limit = np.floor((~VOCABULARY.is_special(tokens)).sum(1) * 0.15 + 0.5)
    assert (chosen.sum(1) <= limit).all()
    assert chosen.sum() > 0.98 * limit.sum()


def test_masks_change_from_epoch_to_epoch(tmp_path):
    split = write_split(tmp_path, [documents(30)], 64)
    pipeline = Pipeline(split, CASES["masked"].transform(), batch=1, shuffle=False)
    first, second = pipeline.rows(2), pipeline.rows(2 + pipeline.plan.rows)
    assert np.array_equal(originals(first), originals(second))
    assert not np.array_equal(first["places"], second["places"])


@pytest.mark.parametrize("kind", ["next", "order"])
def test_sentence_pairs_are_framed_and_typed_as_bert_does(kind):
    text = raw(125, 400, others=True)
    batch = rows(MaskedLm(sentences=Sentences(kind=kind, short=0)), 128)(text)
    tokens = originals(batch)
    assert (tokens[:, 0] == CLS).all()
    for row in range(400):
        n = int(batch["segments"][row].sum())
        middle, last = np.flatnonzero(tokens[row] == SEP)
        assert last == n - 1
        assert not batch["segments"][row, n:].any()
        assert not tokens[row, n:].any()
        assert batch["types"][row].tolist() == [0] * (middle + 1) + [1] * (n - middle - 1) + [0] * (128 - n)
        a, b = tokens[row, 1:middle], tokens[row, middle + 1 : last]
        own = text.tokens[row, :125]
        own = own[own != TOKENIZER.eos]
        label = batch["labels"][row]
        if kind == "order" or label == 0:
            whole = np.concatenate([b, a] if label else [a, b])
            assert np.array_equal(whole, own)
        else:
            other = text.others.tokens[row, :125]
            other = other[other != TOKENIZER.eos].tolist()
            assert np.array_equal(a, own[: len(a)])
            assert any(other[i : i + len(b)] == b.tolist() for i in range(len(other)))
    assert abs(batch["labels"].mean() - 0.5) < 0.1


def test_pairs_are_cut_between_sentences():
    text = raw(125, 400)
    batch = rows(MaskedLm(sentences=Sentences(kind="order", short=0)), 128)(text)
    tokens, cuttable = originals(batch), 0
    for row in range(400):
        middle, last = np.flatnonzero(tokens[row] == SEP)
        cut = middle - 1 if batch["labels"][row] == 0 else last - middle - 1
        own = text.tokens[row : row + 1, :125]
        own = own[own != TOKENIZER.eos][None]
        begins = VOCABULARY.sentences(own, np.zeros(own.shape, bool))[0]
        assert begins[cut] or not begins[1:].any()
        cuttable += begins[1:].any()
    assert cuttable > 300


def test_a_tenth_of_the_rows_is_short():
    text = raw(125, 2000, others=True)
    batch = rows(MaskedLm(sentences=Sentences()), 128)(text)
    full = rows(MaskedLm(sentences=Sentences(short=0)), 128)(text)
    shorter = (batch["segments"].sum(1) < full["segments"].sum(1)) & (full["labels"] == 0) & (batch["labels"] == 0)
    both = (full["labels"] == 0) & (batch["labels"] == 0)
    assert abs(shorter.sum() / both.sum() - 0.1) < 0.03


def test_the_partner_is_of_another_document_and_every_row_can_be_one(tmp_path):
    split = write_split(tmp_path, [documents(30)], 64)
    plan = CASES["next sentence"].transform().plan(split)
    pipeline = Pipeline(split, CASES["next sentence"].transform(), batch=plan.rows, shuffle=False)

    def document(row: int) -> int:
        return split.pieces(*plan.runs(row)[0])[0].document

    seen = set()
    for step in range(60):
        partners = plan.partners(np.arange(plan.rows), pipeline.raw(step).draws)
        seen |= set(partners.tolist())
        assert all(document(int(p)) != document(row) for row, p in enumerate(partners))
    assert seen == set(range(plan.rows))


def test_rows_of_sentences_are_parts_of_one_document_and_all_text(tmp_path):
    split = write_split(tmp_path, [documents(30), documents(5, 1)], 64)
    plan = CASES["sentence order"].transform().plan(split)
    runs = [plan.runs(row)[0] for row in range(plan.rows)]
    assert [at for at, _ in runs] == np.cumsum([0] + [n for _, n in runs])[:-1].tolist()
    assert sum(n for _, n in runs) == split.tokens
    assert all(len(split.pieces(*run)) == 1 for run in runs)


def test_random_replacements_cover_the_ids_of_text():
    assert set(VOCABULARY.ordinary.tolist()) == {0, *range(TOKENIZER.first, V)}


def test_one_document_has_no_partner(tmp_path):
    split = write_split(tmp_path, [documents(1)], 64)
    with pytest.raises(UserError, match="found 1 documents, expected 2 for rows with text of another"):
        CASES["next sentence"].transform().plan(split)
    assert CASES["sentence order"].transform().plan(split).rows > 0
