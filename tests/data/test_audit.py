"""What a run wrote down is compared with what it must have seen; each kind of wrong is found."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pretrain.data.audit import Log, Session, batch_problems, log_problems, order_problems
from pretrain.data.config_mixture import Mixture, Phase, Weight
from pretrain.data.mixture import Mixed, Part
from pretrain.data.order import Epochs
from pretrain.data.pack import Packed
from pretrain.data.pipeline import Pipeline, batch_hash


@pytest.fixture(scope="module")
def pipeline(opened) -> Pipeline:
    return Pipeline(opened[0], Packed(50), batch=6, seed=7)


@pytest.fixture(scope="module")
def lines(pipeline) -> list[dict[str, Any]]:
    out, tokens = [], 0
    for step in range(1, 41):
        batch = pipeline.rows(step - 1)
        tokens += int((batch["segments"] > 0).sum())
        out.append({"step": step, "batch_hash": batch_hash(batch), "tokens": tokens})
    return out


def log_of(lines, *resumed: int, every: int = 1) -> Log:
    return Log(lines, [Session(step, every) for step in (0, *resumed)])


def found(problems):
    return [(p.kind, p.step) for p in problems]


def test_an_honest_log_has_no_problem_also_where_steps_were_trained_again(pipeline, lines):
    for log in (log_of(lines), log_of([*lines[:20], *lines[16:]], 16), log_of([*lines[:5], *lines], 0)):
        assert not found(log_problems(log))
        assert not found(batch_problems(pipeline, log.lines))
    some = [line for line in lines if line["step"] == 1 or line["step"] % 10 == 0]
    assert not found(log_problems(log_of(some, every=10)))


def test_a_step_that_is_missing_is_lost(lines):
    assert found(log_problems(log_of(lines[:10] + lines[12:]))) == [("lost", 11), ("lost", 12)]
    assert found(log_problems(log_of(lines[9::10][1:], every=10))) == [("lost", 1), ("lost", 10)]


def test_each_session_is_held_to_its_own_distance_of_lines(lines):
    def some(*steps):
        return [lines[step - 1] for step in steps]

    fives = [1, *range(5, 21, 5)]
    sessions = [Session(0, 5), Session(20, 10)]
    assert not found(log_problems(Log(some(*fives, 30, 40), sessions)))
    assert found(log_problems(Log(some(1, 5, 15, 20, 30), sessions))) == [("lost", 10)]
    assert found(log_problems(Log(some(*fives, 40), sessions))) == [("lost", 30)]
    again = [Session(0, 10), Session(20, 5)]
    assert not found(log_problems(Log(some(1, 10, 20, 30, 25, 30, 35), again)))
    assert found(log_problems(Log(some(1, 10, 20, 30, 25, 35), again))) == []  # 30 was written by the first
    assert not found(log_problems(Log(some(1, 10, 20, 30, 40), again))), "the second wrote nothing"
    assert found(log_problems(Log(some(1, 10, 20, 30, 40, 25, 35), again))) == []
    assert found(log_problems(Log(some(1, 10, 20, 30, 40, 30, 35), again))) == [("lost", 25)]


def test_a_step_again_without_a_resume_is_repeated(lines):
    assert found(log_problems(log_of([*lines[:20], *lines[16:]]))) == [("repeated", 17)]
    assert found(log_problems(log_of([*lines[:20], *lines[16:]], 18))) == [("repeated", 17)]


def test_another_batch_is_different(pipeline, lines):
    wrong = [{**line, "batch_hash": lines[3]["batch_hash"]} if line["step"] == 8 else line for line in lines]
    assert found(batch_problems(pipeline, wrong)) == [("different", 8)]
    other = Pipeline(pipeline.split, Packed(50), batch=6, seed=8)
    assert len(found(batch_problems(other, lines))) == len(lines)


def test_the_count_of_tokens_shows_batches_that_were_trained_on_twice_or_never(pipeline, lines):
    def moved(by: int):
        return [{**line, "tokens": line["tokens"] + by * (line["step"] >= 9)} for line in lines]

    assert found(batch_problems(pipeline, moved(300))) == [("repeated", 9)]
    assert found(batch_problems(pipeline, moved(-300))) == [("lost", 9)]


@dataclass(frozen=True)
class Flawed(Epochs):
    """Shows one row in place of another."""

    def rows(self, samples: np.ndarray) -> np.ndarray:
        rows = super().rows(samples)
        return np.where(rows == 5, 6, rows)


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_order_that_leaves_a_row_out_for_another_is_found(pipeline, shuffle, monkeypatch):
    n = pipeline.plan.rows
    for steps in (1, 7, n // 6, n // 6 + 1, 3 * n // 6 + 2):
        assert not found(order_problems(pipeline, steps))
    flawed = Pipeline(pipeline.split, Packed(50), batch=6, seed=7, shuffle=shuffle)
    flawed.__dict__["order"] = Flawed(n, 7, shuffle)
    assert {kind for kind, _ in found(order_problems(flawed, 2 * n // 6 + 1))} == {"lost", "repeated"}
    monkeypatch.setattr("pretrain.data.audit.ROWS", 10)
    assert {kind for kind, _ in found(order_problems(flawed, 2 * n // 6 + 1))} == {"lost", "repeated"}
    assert not found(order_problems(pipeline, 2 * n // 6 + 1))


def test_parts_that_are_read_at_their_own_pace_are_whole_each():
    mixture = Mixture(
        phases=(
            Phase(weights=(Weight(name="a", weight=3), Weight(name="b", weight=1))),
            Phase(weights=(Weight(name="b"),), step=40),
        )
    )
    parts = [Part("a", 0, 23, 23), Part("b", 23, 31, 31)]
    order = Mixed(mixture, parts, batch=4, seed=1, shuffle=True)
    pipeline: Any = SimpleNamespace(order=order, parts=parts, batch=4, plan=SimpleNamespace(rows=54))
    for steps in (1, 10, 39, 60, 200):
        assert not found(order_problems(pipeline, steps))
    order._orders[1] = Flawed(31, "1:b", True, 23)
    order._orders[0] = Flawed(23, "1:a")
    assert {kind for kind, _ in found(order_problems(pipeline, 60))} == {"lost", "repeated"}
