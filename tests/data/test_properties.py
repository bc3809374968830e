"""Whatever seed, mixture, packing, lengths, processes, workers and place of a restart: the same batches."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.config import DataConfig, Lengths, Named, Sources
from pretrain.data.config_mixture import Mixture, Phase, Weight
from pretrain.data.corpus import prepare_if_needed
from pretrain.data.mixture import Part
from pretrain.data.pack import Packed
from pretrain.data.pipeline import Pipeline
from tests.data.conftest import corpus_of, write_documents
from tests.data.test_pipeline import equal

ROWS, LENGTH = 8, 40


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder, parts = tmp_path_factory.mktemp("parts"), []
    for number, name in enumerate(("prose", "code", "talk")):
        write_documents(folder / name, files=2 + number, documents=15, seed=number)
        parts.append(Named(name=name, source=corpus_of(folder / name).source))
    corpus = corpus_of(folder, source=Sources(parts=tuple(parts)))
    return prepare_if_needed(DataConfig(corpus=corpus, path=str(folder / "c")), "unused", workers=1)[0]


def phases() -> st.SearchStrategy[tuple[Phase, ...]]:
    weights = st.tuples(*(st.integers(0, 5) for _ in range(3))).filter(any)
    steps = st.lists(st.integers(1, 30), max_size=2, unique=True).map(sorted)

    def build(drawn) -> tuple[Phase, ...]:
        given_weights, starts = drawn
        out = []
        for step, values in zip((0, *starts), given_weights):
            named = tuple(Weight(name=n, weight=w) for n, w in zip(("prose", "code", "talk"), values))
            out.append(Phase(step=step, weights=named))
        return tuple(out)

    return st.tuples(st.lists(weights, min_size=3, max_size=3), steps).map(build)


mixtures = st.one_of(st.none(), phases().map(lambda p: Mixture(phases=p)))
all_lengths = st.sampled_from(
    [(), (Lengths(choices=(7,)),), (Lengths(choices=(10,)), Lengths(step=9, choices=(20, 40)))]
)
pipelines = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**40),
        "shuffle": st.booleans(),
        "mixture": mixtures,
        "lengths": all_lengths,
        "packing": st.sampled_from(["split", "fit"]),
    }
)


def made(split, drawn, **changes) -> Pipeline:
    fields = {name: value for name, value in drawn.items() if name != "packing"} | changes
    return Pipeline(split, Packed(LENGTH, drawn["packing"]), ROWS, **fields)


def same_batches(split, drawn, processes: int, restart: int, steps: int) -> None:
    whole, share = made(split, drawn), ROWS // processes
    for process in range(processes):
        rows, own = slice(process * share, (process + 1) * share), made(split, drawn)
        for step in range(restart, restart + steps):
            expected = {name: a[rows] for name, a in whole.rows(step).items()}
            assert equal(own.rows(step, rows), expected)


def each_row_once_an_epoch(split, drawn) -> None:
    pipeline = made(split, drawn)
    n, order = pipeline.plan.rows, pipeline.order
    if pipeline.mixture is None:
        epochs = order.rows(np.arange(3 * n)).reshape(3, n)
        assert (np.sort(epochs, axis=1) == np.arange(n)).all()
        return
    shown = order.rows(np.arange(6 * n))
    for part in pipeline.parts:
        inside = shown[(shown >= part.first) & (shown < part.first + part.rows)]
        for begin in range(0, len(inside), part.rows):
            epoch = inside[begin : begin + part.rows]
            assert len(set(epoch.tolist())) == len(epoch)
    assert_shares(drawn["mixture"], pipeline.parts, shown)


def assert_shares(mixture: Mixture, parts: list[Part], shown: np.ndarray) -> None:
    """Within each phase, after any number of samples, no part is a whole sample away from its share."""
    bounds = [phase.step * ROWS for phase in mixture.phases] + [len(shown)]
    for phase, begin, end in zip(mixture.phases, bounds, bounds[1:]):
        window, weights = shown[begin:end], {w.name: w.weight for w in phase.weights}
        for part in parts:
            share = weights[part.name] / sum(weights.values())
            taken = np.cumsum((window >= part.first) & (window < part.first + part.rows))
            assert (abs(taken - share * np.arange(1, len(window) + 1)) < 1 + 1e-9).all()


def tokens_of_an_epoch(split, drawn) -> None:
    """Every token of the corpus is in the rows of an epoch, with the packing that was drawn."""
    pipeline = replace(made(split, drawn), mixture=None, lengths=())
    runs = [run for row in range(pipeline.plan.rows) for run in pipeline.plan.runs(row)]
    covered = np.zeros(split.tokens, np.int64)
    for position, n in runs:
        covered[position : position + n] += 1
    assert (covered == 1).all()


cases = {"processes": st.sampled_from([1, 2, 4, 8]), "restart": st.integers(0, 200)}


@settings(max_examples=40, deadline=None)
@given(drawn=pipelines, **cases)
def test_any_processes_and_any_restart_see_the_same_batches(split, drawn, processes, restart):
    same_batches(split, drawn, processes, restart, steps=3)


@settings(max_examples=40, deadline=None)
@given(drawn=pipelines)
def test_each_sample_is_shown_once_an_epoch_and_mixtures_have_their_shares(split, drawn):
    each_row_once_an_epoch(split, drawn)


@settings(max_examples=8, deadline=None)
@given(drawn=pipelines)
def test_the_rows_of_an_epoch_hold_every_token_once(split, drawn):
    tokens_of_an_epoch(split, drawn)


@settings(max_examples=2, deadline=None)
@given(drawn=pipelines, workers=st.sampled_from([0, 1, 2]), restart=st.integers(0, 60))
def test_any_workers_see_the_same_batches(split, drawn, workers, restart):
    with_workers(split, drawn, workers, restart)


def with_workers(split, drawn, workers: int, restart: int) -> None:
    whole = made(split, drawn)
    stream = made(split, drawn).iterate(restart, rows=slice(2, 6), stop_step=restart + 5, workers=workers)
    for step, batch in enumerate(stream, start=restart):
        assert equal(batch, {name: a[2:6] for name, a in whole.rows(step).items()})
    assert step == restart + 4


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(drawn=pipelines, **cases)
def test_many_pipelines_have_all_these_properties(split, drawn, processes, restart):
    same_batches(split, drawn, processes, restart, steps=4)
    each_row_once_an_epoch(split, drawn)
    tokens_of_an_epoch(split, drawn)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(drawn=pipelines, workers=st.sampled_from([0, 1, 2]), restart=st.integers(0, 200))
def test_many_pipelines_have_the_same_batches_with_any_workers(split, drawn, workers, restart):
    with_workers(split, drawn, workers, restart)
