"""Where the time of a run went, from what it wrote down: every second of it in one row.

A session begins with a `start` or `resume` and reaches to the last line or event before the next one; what lies between
two sessions is down. Steps that were trained again behind a resume or a rewind were lost the first time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

Line = dict[str, Any]
ROWS = ("productive", "data_wait", "start", "compile", "evaluation", "checkpoint", "lost", "down", "other")
"""`start`: from the command to compiling, or to the first step. `other`: what nothing accounts for."""


@dataclass
class _Steps:
    """Neighbours that one line speaks for: a log says how long its steps took on the average."""

    first: int
    last: int
    seconds: float
    """Of each."""
    waited: float

    @property
    def count(self) -> int:
        return self.last - self.first + 1


@dataclass
class _Session:
    begin: float
    end: float
    seconds: dict[str, float] = field(default_factory=dict)
    steps: list[_Steps] = field(default_factory=list)

    def add(self, row: str, seconds: Any) -> None:
        if isinstance(seconds, int | float):
            self.seconds[row] = self.seconds.get(row, 0.0) + seconds


def goodput(metrics: Sequence[Line], events: Sequence[Line]) -> dict[str, Any]:
    """Seconds by row, which add up to `wall`; `goodput`, the productive share; `sessions`, `rewinds`, `steps_lost`."""
    sessions, lost = _sessions(metrics, events)
    out: dict[str, float] = dict.fromkeys(ROWS, 0.0)
    for session in sessions:
        for row, seconds in session.seconds.items():
            out[row] += seconds
        for step in session.steps:
            out["productive"] += step.count * (step.seconds - step.waited)
            out["data_wait"] += step.count * step.waited
    out["lost"] = sum(step.count * step.seconds for step in lost)
    out["down"] = sum(max(0.0, b.begin - a.end) for a, b in pairwise(sessions))
    wall = sessions[-1].end - sessions[0].begin if sessions else 0.0
    out["other"] = wall - sum(out.values())
    return {
        "wall": wall,
        "seconds": out,
        "goodput": out["productive"] / wall if wall else 0.0,
        "sessions": len(sessions),
        "rewinds": sum(e.get("kind") == "rewind" for e in events),
        "steps_lost": sum(step.count for step in lost),
    }


def table(facts: dict[str, Any]) -> list[str]:
    """Lines for people."""
    wall = facts["wall"] or 1.0
    rows = [f"{name:<12}{seconds:>14,.1f} s {seconds / wall:>8.2%}" for name, seconds in facts["seconds"].items()]
    return [*rows, f"{'wall':<12}{facts['wall']:>14,.1f} s"]


def _sessions(metrics: Sequence[Line], events: Sequence[Line]) -> tuple[list[_Session], list[_Steps]]:
    timed = [x for x in (*events, *metrics) if isinstance(x.get("time"), int | float)]
    sessions: list[_Session] = []
    lost: list[_Steps] = []
    last_step = 0
    for line in sorted(timed, key=lambda x: x["time"]):  # stable: events before the lines of the same moment
        kind = line.get("kind")
        if kind in ("start", "resume"):
            sessions.append(_Session(begin=line.get("began", line["time"]), end=line["time"]))
            sessions[-1].add("start", line["time"] - sessions[-1].begin)
        if not sessions:
            continue
        now = sessions[-1]
        if kind in ("start", "resume", "rewind"):
            last_step = line.get("step", 0)
            for session in sessions:
                behind = [s for s in session.steps if s.last > last_step]
                lost += [replace(s, first=max(s.first, last_step + 1)) for s in behind]
                before = [s for s in session.steps if s.first <= last_step]
                session.steps = [replace(s, last=min(s.last, last_step)) for s in before]
        elif kind == "compiled":
            now.add("compile", line.get("seconds"))
            now.add("start", line["time"] - now.end - line.get("seconds", 0.0))
        elif kind in ("evaluation", "sample"):
            now.add("evaluation", line.get("seconds"))
        elif kind in ("checkpoint", "local_copy"):
            now.add("checkpoint", line.get("seconds"))
        elif kind is None and isinstance(line.get("step_seconds"), int | float):
            step, waited = line.get("step", last_step), line.get("data_wait_seconds", 0.0)
            if step > last_step:
                now.steps.append(_Steps(last_step + 1, step, line["step_seconds"], waited))
            last_step = step
        now.end = max(now.end, line["time"])
    return sessions, lost
