"""Where numbers go: metrics.jsonl, events.jsonl and tensorboard. Lines are only ever added."""

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from pretrain import untrusted

COUNTS = ("step", "log_every", "first_skipped", "last_skipped")
SECONDS = ("time", "began", "seconds", "step_seconds", "data_wait_seconds")
"""Fields that every reader of a log counts with."""


class Lines:
    """One JSON object a line, flushed at once. A torn last line, left by a kill, is closed before the first new one."""

    def __init__(self, path: epath.Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and (text := path.read_bytes()) != b"" and not text.endswith(b"\n")
        self._file = path.open("a")
        if torn:
            self._file.write("\n")

    def write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({k: _finite(v) for k, v in line.items()}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_lines(path: epath.Path) -> list[dict[str, Any]]:
    """All whole lines of a file that may not exist and may end in a torn line."""
    return scan_lines(path)[0]


def scan_lines(path: epath.Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines that these sinks may have written, and the 1-based numbers of those that they have not."""
    lines, broken = [], []
    for number, text in enumerate(path.read_bytes().split(b"\n") if untrusted.is_regular(path) else (), start=1):
        if not text.strip():
            continue
        try:
            found = untrusted.loads(text)
        except ValueError:
            found = None
        if _is_line(found):
            lines.append(found)
        else:
            broken.append(number)
    return lines, broken


def _is_line(found: Any) -> bool:
    """An object whose kind, counts and seconds, where it has them, are what the sinks write."""
    return (
        isinstance(found, dict)
        and isinstance(found.get("kind", ""), str)
        and all(type(found.get(name, 0)) is int and 0 <= found.get(name, 0) < 2**63 for name in COUNTS)
        and all(type(found.get(name, 0)) in (int, float) and 0 <= found.get(name, 0) < 2**40 for name in SECONDS)
    )


class Recorder:
    """The sinks of one run. `active=False` (all processes but the first): writes nothing."""

    def __init__(self, run: epath.Path, *, tensorboard: bool, active: bool = True):
        self.active = active
        self._metrics = self._events = self._board = None
        if not active:
            return
        self._metrics, self._events = Lines(run / "metrics.jsonl"), Lines(run / "events.jsonl")
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(run / "tb"))

    def metrics(self, line: Mapping[str, Any]) -> None:
        if self._metrics:
            self._metrics.write({"time": time.time(), **line})
        self._scalars("train", line["step"], line)

    def event(self, kind: str, **facts: Any) -> None:
        """`kind` of start, resume, changed, data, compiled, evaluation, checkpoint, save_failed, damaged, sample,
        preempted, interrupted, failed, done; of spike, lowered, rewind, not_finite, corrupted, hung, slow."""
        if self._events:
            self._events.write({"time": time.time(), "kind": kind, **facts})

    def evaluation(self, step: int, result: Mapping[str, float], seconds: float) -> None:
        self.event("evaluation", step=step, **result, seconds=seconds)
        self._scalars("validation", step, result)

    def close(self) -> None:
        for sink in (self._metrics, self._events, self._board):
            if sink:
                sink.close()

    def _scalars(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        if self._board:
            for name, value in values.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._board.add_scalar(f"{group}/{name}", value, step)


def _finite(value: Any) -> Any:
    """JSON has no NaN: its name instead."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
