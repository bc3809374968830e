"""A passage is found wherever a document holds it, and at every step that shows it."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.draws import Draws, row_keys
from pretrain.data.find import Passage, passages, sightings
from pretrain.data.pack import Packed
from pretrain.data.pipeline import Pipeline
from pretrain.data.plan import Chunks
from pretrain.errors import UserError


@pytest.fixture(scope="module")
def documents(opened, data):
    """(position in the stream, tokens, text) of each document of the train split."""
    split, _, tokenizer = opened
    ends = np.cumsum(np.append(0, split.document_lengths())).tolist()
    out = []
    for begin, end in pairwise(ends):
        tokens, starts = np.zeros(end - begin + 1, np.int32), np.zeros(end - begin + 1, bool)
        split.fill(begin, tokens, starts)
        out.append((begin, end - begin, tokenizer.decode(tokens[:-1].tolist())))
    return out


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_passage_is_found_in_every_document_that_holds_it_and_nowhere_else(opened, documents, data):
    split, _, tokenizer = opened
    _, _, text = data.draw(st.sampled_from(documents))
    begin = data.draw(st.integers(0, len(text) - 1))
    passage = text[begin : begin + data.draw(st.sampled_from([1, 5, 20, 400]))]
    found = list(passages(split, tokenizer, passage))
    at = {p.position for p in found}
    assert sorted(p.position for p in found) == [p.position for p in found]
    for first, n, text in documents:
        count = sum(text.startswith(passage, i) for i in range(len(text)))
        here = [p for p in found if first <= p.position < first + n]
        assert all(p.position + p.length <= first + n for p in here)
        assert bool(count) == bool(here)
        assert len(here) <= count  # several may share their tokens
        at -= {p.position for p in here}
    assert not at


def test_a_passage_does_not_reach_from_one_document_into_the_next(opened, documents):
    split, _, tokenizer = opened
    across = documents[3][2][-6:] + documents[4][2][:6]
    assert not any(across in text for _, _, text in documents)
    assert not list(passages(split, tokenizer, across))


def test_an_empty_text_is_refused(opened):
    with pytest.raises(UserError, match="found an empty text"):
        list(passages(opened[0], opened[2], ""))


@settings(max_examples=25, deadline=None)
@given(st.data())
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_of_a_batch_that_shows_a_passage_is_named(opened, shuffle, data):
    split = opened[0]
    pipeline = Pipeline(split, Packed(50), batch=6, seed=7, shuffle=shuffle)
    position = data.draw(st.integers(0, split.tokens - 1))
    passage = Passage(position, data.draw(st.integers(1, min(120, split.tokens - position))))
    steps = data.draw(st.integers(1, 3 * pipeline.plan.rows // 6))
    expected = {}
    for step in range(steps):
        for row, window in enumerate(pipeline.windows(step).tolist()):
            (begin, n), *_ = pipeline.plan.runs(window)
            held = len(set(range(begin, begin + n)) & set(range(position, position + passage.length)))
            if held:
                expected[step + 1, row] = held
    assert {(s.step, s.row): s.tokens for s in sightings(pipeline, passage, steps)} == expected


class Paired(Packed):
    """Rows with a partner of another document."""

    def plan(self, split):
        return Chunks(split.document_lengths(), self.length, paired=True)


def test_rows_that_were_drawn_as_partners_are_named_too(opened):
    split, steps = opened[0], 400
    pipeline = Pipeline(split, Paired(50), batch=6, seed=7)
    passage = Passage(200, 3)
    rows = set(pipeline.plan.rows_of(200, 3).tolist())
    expected = []
    for step in range(steps):
        windows = pipeline.windows(step)
        partners = pipeline.plan.partners(windows, Draws(row_keys(7, pipeline.samples(step), "train")))
        expected += [(step + 1, r, False) for r, w in enumerate(windows.tolist()) if w in rows]
        expected += [(step + 1, r, True) for r, w in enumerate(partners.tolist()) if w in rows]
    found = [(s.step, s.row, s.beside) for s in sightings(pipeline, passage, steps)]
    assert found == sorted(expected)
    assert any(beside for _, _, beside in found)
