"""Shorter documents in rows that stay as long: a warm-up of the length, and mixed lengths."""

from dataclasses import replace

import numpy as np
import pytest

from pretrain.data.config import Lengths
from pretrain.data.corpus import prepare_if_needed
from pretrain.data.pack import Packed
from pretrain.data.pipeline import Pipeline
from pretrain.errors import UserError, check
from pretrain.objectives.config import SpanCorruption
from tests.train import tiny

ROWS = 6


@pytest.fixture(scope="module")
def pipelines(data):
    train, _, _ = prepare_if_needed(data, data.path, workers=1)

    def make(*lengths: Lengths) -> Pipeline:
        return Pipeline.from_config(train, Packed(48), replace(data, sequence_length=48, lengths=lengths), ROWS)

    return make


def longest(batch) -> list[int]:
    """Tokens of the longest segment of each row."""
    return [int(np.bincount(row[row > 0]).max()) for row in batch["segments"]]


def test_documents_are_as_long_as_the_step_says_and_the_text_is_the_same(pipelines):
    plain, short = (
        pipelines(),
        pipelines(Lengths(choices=(8,)), Lengths(step=3, choices=(24,)), Lengths(step=5, choices=(48,))),
    )
    for step, most in ((0, 8), (2, 8), (3, 24), (4, 24), (5, 48), (900, 48)):
        mine, whole = short.rows(step), plain.rows(step)
        assert (mine["tokens"] == whole["tokens"]).all()
        assert max(longest(mine)) <= most
        assert mine["positions"].max() < most
        ends = (np.arange(48) % most == most - 1) & (np.arange(48) < 47)
        assert not mine["weights"][:, ends].any()
        inside = (mine["weights"] > 0) | ends
        assert (inside >= (whole["weights"] > 0)).all()
    assert all((short.rows(9)[name] == plain.rows(9)[name]).all() for name in plain.rows(9))


def test_before_its_first_step_nothing_is_cut(pipelines):
    plain, late = pipelines(), pipelines(Lengths(step=4, choices=(8,)))
    assert (late.rows(3)["segments"] == plain.rows(3)["segments"]).all()
    assert (late.rows(4)["segments"] != plain.rows(4)["segments"]).any()


def test_rows_of_mixed_lengths_have_each_of_them(pipelines):
    mixed = pipelines(Lengths(choices=(6, 48)))
    most = np.array([longest(mixed.rows(step)) for step in range(40)])
    assert (most <= 6).mean() == pytest.approx(0.5, abs=0.12)
    assert (mixed.rows(7, slice(2, 4))["segments"] == mixed.rows(7)["segments"][2:4]).all(), "whoever computes them"


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (
            (Lengths(step=5, choices=(8,)), Lengths(step=2, choices=(8,))),
            r"found steps \[5, 2\], expected ascending ones",
        ),
        ((Lengths(choices=()),), "expected choices from 1 to sequence_length=50, one or more each"),
        ((Lengths(choices=(51,)),), "expected choices from 1 to sequence_length=50"),
    ],
)
def test_lengths_that_make_no_sense_are_refused(lengths, message, data):
    with pytest.raises(UserError, match=message):
        check(replace(data, lengths=lengths))


def test_another_objective_has_lengths_of_its_own(corpus):
    config = tiny.config(corpus)
    spans = replace(config, objective=SpanCorruption(), data=replace(config.data, lengths=(Lengths(choices=(8,)),)))
    with pytest.raises(UserError, match=r"data.lengths: SpanCorruption has its own lengths; leave them out"):
        spans.check()
