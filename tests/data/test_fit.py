"""Best-fit packing: every token once, no document cut that fits a row, any row without the others."""

import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.corpus import prepare_if_needed
from pretrain.data.fit import Fit, packed
from pretrain.data.pack import Packed
from pretrain.data.pipeline import Pipeline
from pretrain.errors import UserError
from pretrain.objectives.config import SpanCorruption
from tests.train import tiny

DOCUMENTS = st.lists(st.integers(1, 90), min_size=1, max_size=60)


@settings(max_examples=80, deadline=None)
@given(DOCUMENTS, st.integers(4, 40))
def test_every_token_is_in_one_row_and_what_fits_a_row_is_whole(documents, length):
    rows = packed(np.array(documents), length)
    ends = np.cumsum(documents)
    pieces = sorted(run for row in rows for run in row)
    assert [a + n for a, n in pieces] == [*(a for a, _ in pieces[1:]), ends[-1]]
    assert pieces[0][0] == 0
    assert max(sum(n for _, n in row) for row in rows) <= length
    begins = {0, *ends[:-1].tolist()}
    for row in rows:
        for a, n in row:
            document = int(np.searchsorted(ends, a, "right"))
            inside = a - (ends[document] - documents[document])
            assert a + n <= ends[document], "a run is of one document"
            assert a in begins or inside % length == 0
    cut = sum(n // length + bool(n % length) - 1 for n in documents)
    assert len(pieces) == len(documents) + cut, "no document is cut more often than it must"


@settings(max_examples=40, deadline=None)
@given(DOCUMENTS, st.integers(10, 40))
def test_no_two_rows_would_fit_into_one(documents, length):
    sizes = sorted(sum(n for _, n in row) for row in packed(np.array(documents), length))
    assert len(sizes) < 2 or sizes[0] + sizes[1] > length


@pytest.fixture(scope="module")
def opened(data):
    return prepare_if_needed(data, data.path, workers=1)


def test_an_epoch_holds_every_token_once_and_segments_are_documents(opened):
    train = opened[0]
    pipeline = Pipeline(train, Packed(48, "fit"), 1, seed=3)
    seen, whole = 0, 0
    lengths = train.document_lengths()
    for step in range(pipeline.plan.rows):
        batch, pieces = pipeline.rows(step), pipeline.sources(step, 0)
        segments = batch["segments"][0]
        assert [int((segments == i + 1).sum()) for i in range(len(pieces))] == [p.length for p in pieces]
        assert batch["positions"][0][segments > 0].tolist() == [i for p in pieces for i in range(p.length)]
        for number, piece in enumerate(pieces):
            last = batch["weights"][0][segments == number + 1][-1]
            ends = piece.offset + piece.length == train.document(int(piece.shard[-5:]), piece.document)[3]
            assert last == 0 or not ends, "a document's last token asks for nothing"
            whole += ends and piece.offset == 0
        seen += sum(p.length for p in pieces)
    assert seen == train.tokens
    assert whole == (lengths <= 48).sum()
    assert pipeline.plan.notes[0].endswith("of their tokens are padding")


def test_the_table_is_kept(opened):
    train = opened[0]
    first = Fit.of(train, 30)
    kept = {p.name for p in train.folder.glob("fit-train-30-*.npy")}
    assert len(kept) == 1
    again = Fit.of(train, 30)
    assert isinstance(again.table, np.memmap)
    assert [again.runs(r) for r in range(again.rows)] == [first.runs(r) for r in range(first.rows)]
    assert pickle.loads(pickle.dumps(again)).runs(3) == first.runs(3)


def test_rows_of_a_passage_are_those_that_hold_it(opened):
    plan = Fit.of(opened[0], 30)
    held = [{t for a, n in plan.runs(row) for t in range(a, a + n)} for row in range(plan.rows)]
    for position, length in ((0, 1), (17, 40), (100, 3), (opened[0].tokens - 1, 1)):
        want = [row for row, tokens in enumerate(held) if tokens & set(range(position, position + length))]
        assert plan.rows_of(position, length).tolist() == want


def test_ten_thousand_million_documents_are_sought_in_less_than_a_second_from_160_megabytes():
    kinds = [np.random.default_rng(k).integers(20, 6000, 1024) for k in range(16)]
    sizes = np.array([(len(packed(k, 4096)), k.sum()) for k in kinds])
    windows = 10**10 // 1024
    table = np.concatenate([[[0, 0]], np.cumsum(np.tile(sizes, (windows // 16, 1)), axis=0)])
    assert table.nbytes < 160e6
    plan = Fit(table, lambda window: kinds[window % 16], 4096)
    assert plan.table[-1, 1] > 15e12
    began = time.process_time()
    for row in (0, 12_345_678_901 % plan.rows, plan.rows // 2, plan.rows - 1):
        runs = plan.runs(row)
        assert sum(n for _, n in runs) <= 4096
        assert row in plan.rows_of(*runs[0])
    assert time.process_time() - began < 4


def test_another_objective_has_rows_of_its_own(corpus):
    config = tiny.config(corpus)
    fits = replace(config, data=replace(config.data, packing="fit"))
    fits.check()
    spans = replace(fits, objective=SpanCorruption())
    with pytest.raises(UserError, match=r"data.packing=fit: SpanCorruption has its own rows; set it to split"):
        spans.check()
