"""Which samples show a row, and which rows hold a token: the inverses of what a run reads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.config_mixture import Cap, Mixture, Phase, Weight
from pretrain.data.mixture import Mixed, Part
from pretrain.data.order import Epochs
from pretrain.data.plan import Chunks, Joined, Pairs, Windows


def phase(step: int, weights: tuple[int, int]) -> Phase:
    return Phase(step=step, weights=tuple(Weight(name=n, weight=w) for n, w in zip("ab", weights)))


def mixed(a: int, b: int, cap: float) -> Mixed:
    mixture = Mixture(phases=(phase(0, (3, 1)), phase(5, (1, 4))), caps=(Cap(name="b", epochs=cap),))
    return Mixed(mixture, [Part("a", 0, a, a), Part("b", a, b, b)], batch=4, seed=3, shuffle=True)


@settings(max_examples=40, deadline=None)
@given(
    a=st.integers(1, 40),
    b=st.integers(1, 40),
    until=st.integers(1, 300),
    cap=st.sampled_from([0.5, 1, 2.5]),
    data=st.data(),
)
@pytest.mark.parametrize("kind", ["shuffled", "in order", "mixed"])
def test_the_samples_of_rows_are_all_those_that_show_them(kind, a, b, until, cap, data):
    order = mixed(a, b, cap) if kind == "mixed" else Epochs(a + b, 3, kind == "shuffled")
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, a + b - 1), max_size=5))), np.int64)
    shown = np.isin(order.rows(np.arange(until)), rows)
    assert order.samples_of(rows, until).tolist() == np.flatnonzero(shown).tolist()


def plans(lengths: np.ndarray, T: int):
    half = len(lengths) // 2 // 2 * 2
    chunks = [Chunks(lengths[:half], T), Chunks(lengths[half:], T)]
    pairs = {"read": T, "written": T, "total": 2 * T - 1}
    return {
        "windows": Windows(int(lengths.sum()), T),
        "chunks": Chunks(lengths, T),
        "pairs left out": Pairs(lengths, **pairs, truncate=False),
        "pairs cut": Pairs(lengths, **pairs, truncate=True),
        "joined": Joined(chunks, [int(lengths[:half].sum()), int(lengths[half:].sum())]),
    }


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 25), min_size=2, max_size=12), T=st.integers(2, 20), data=st.data())
@pytest.mark.parametrize("name", ["windows", "chunks", "pairs left out", "pairs cut", "joined"])
def test_the_rows_of_a_passage_are_all_those_that_hold_any_of_its_tokens(name, lengths, T, data):
    documents = np.array(lengths[: len(lengths) // 2 * 2])
    plan, tokens = plans(documents, T)[name], int(documents.sum())
    position = data.draw(st.integers(0, tokens - 1))
    length = data.draw(st.integers(1, tokens - position))
    holds = [
        row
        for row in range(plan.rows)
        if any(begin < position + length and position < begin + n for begin, n in plan.runs(row))
    ]
    assert plan.rows_of(position, length).tolist() == holds
