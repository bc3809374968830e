"""The proof, from what a run wrote down, that it saw every sample once in its turn.

A batch is a function of (seed, step), so two things are to be shown: that each step that was written down had the
batch of its number (`batch_hash`), and that the numbers lead to every row of the plan, none twice before all were seen.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pretrain.data.pipeline import Pipeline, batch_hash
from pretrain.data.streamed import Streamed

BLOCK, ROWS = 1 << 16, 1 << 28
"""Samples and rows of the plan that are counted at a time."""


@dataclass(frozen=True)
class Session:
    """A start, a resume or a rewind, of events.jsonl."""

    step: int
    """Finished steps before it."""
    every: int
    """Its log.every."""


@dataclass(frozen=True)
class Log:
    """Lines of metrics.jsonl, and the sessions that wrote them."""

    lines: Sequence[dict[str, Any]]
    sessions: Sequence[Session]

    @property
    def last(self) -> int:
        return max((line["step"] for line in self.lines), default=0)

    def expected(self) -> Iterator[tuple[int, int]]:
        """(step, every so many steps of its session) of the lines that should be there, but for the first."""
        for session, following in pairwise(self.sessions):  # it trained at least as far as the next one began
            yield from ((s, session.every) for s in _multiples(session.every, session.step, following.step))
        *before, final = self.sessions
        begun = 0  # line with which the last ascending ones begin
        for i, (a, b) in enumerate(pairwise(line["step"] for line in self.lines), start=1):
            begun = i if b <= a else begun
        every = final.every
        if before and self.lines and self.lines[begun]["step"] <= final.step:
            every = math.lcm(every, before[-1].every)  # the lines do not say which of the two wrote them
        reached = self.lines[-1]["step"] if before and self.lines else self.last
        yield from ((s, every) for s in _multiples(every, final.step, reached))


def _multiples(every: int, after: int, until: int) -> range:
    return range((after // every + 1) * every, until + 1, every)


@dataclass(frozen=True)
class Problem:
    kind: str
    """lost, repeated or different."""
    step: int
    what: str


def log_problems(log: Log) -> Iterator[Problem]:
    """Steps that the log should hold and does not, and steps that it holds again without a resume before them."""
    there = {line["step"] for line in log.lines}
    for step, every in ((1, 1), *log.expected()):
        if step <= log.last and step not in there:
            yield Problem("lost", step, f"found no line of step {step}, expected one of every {every} steps")
    unused = [session.step for session in log.sessions[1:]]
    for before, step in pairwise(line["step"] for line in log.lines):
        if step <= before:
            resumed = next((r for r in sorted(unused, reverse=True) if r < step), None)
            if resumed is None:
                what = f"found step {step} again behind step {before} without a resume, expected later ones"
                yield Problem("repeated", step, what)
            else:
                unused.remove(resumed)


def batch_problems(pipeline: Pipeline | Streamed, lines: Iterable[dict[str, Any]]) -> Iterator[Problem]:
    """Lines whose batch was another than that of their step, and steps after which the count of tokens has not grown by
    those of their batch. Each batch is built anew, once.

    The count is kept in the checkpoint: it shows a batch that was trained on twice or not at all.
    """
    steps: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        steps.setdefault(line["step"], []).append(line)
    for step, written in sorted(steps.items()):
        batch = pipeline.rows(step - 1)
        expected = batch_hash(batch)
        for line in written:
            if (found := line.get("batch_hash")) != expected:
                yield Problem("different", step, f"found batch_hash {found} at step {step}, expected {expected}")
        line = written[-1]  # of a step that was trained again, the one that counts
        before, after = 0 if step == 1 else steps.get(step - 1, [{}])[-1].get("tokens"), line.get("tokens")
        if line.get("batch_hash") != expected or before is None or after is None or "segments" not in batch:
            continue
        tokens = sum(int((a > 0).sum()) for name, a in batch.items() if name.endswith("segments"))
        if after - before != tokens:
            what = f"found {after - before} tokens more after step {step}, expected {tokens}"
            yield Problem("lost" if after - before < tokens else "repeated", step, what)


def order_problems(pipeline: Pipeline, steps: int) -> Iterator[Problem]:
    """Rows of the plan that steps 1 to `steps` show too often or too seldom.

    After k whole epochs of a part and a begun one each of its rows has been shown k or k + 1 times. Memory: at most
    4 * ROWS bytes.
    """
    samples, rows_there = steps * pipeline.batch, pipeline.plan.rows
    for low in range(0, rows_there, ROWS):
        shown = np.zeros(min(ROWS, rows_there - low), np.int32)
        total = np.zeros(len(pipeline.parts), np.int64)
        for at in range(0, samples, BLOCK):
            rows = pipeline.order.rows(np.arange(at, min(at + BLOCK, samples)))
            total += [int(((rows >= p.first) & (rows < p.first + p.rows)).sum()) for p in pipeline.parts]
            np.add.at(shown, rows[(rows >= low) & (rows < low + len(shown))] - low, 1)
        for part, n in zip(pipeline.parts, total.tolist()):
            first, epochs = max(part.first, low), n // part.rows
            own = shown[first - low : max(part.first + part.rows - low, 0)]
            for kind, wrong in (("lost", own < epochs), ("repeated", own > epochs + 1)):
                for row in (first + np.flatnonzero(wrong)).tolist():
                    found = pipeline.order.samples_of(np.array([row]), samples)
                    step = int(found[-1]) // pipeline.batch + 1 if found.size else steps
                    what = f"found row {row} of the plan {shown[row - low]} times in {steps} steps, last at step {step}"
                    yield Problem(kind, step, f"{what}, expected {epochs} or {epochs + 1} times")
