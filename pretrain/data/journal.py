"""Where the lanes of a stream were, step by step, on the disk: what a resume would else read again from the start.

It may be lost: all of it follows from the seed and the source files. Each process and worker appends lines to a file
of its lanes; a line is whole or ignored, and so is one of other sources, another seed or another batch.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from pretrain import untrusted
from pretrain.data.lanes import Cursor, Place

FIRST, LONGEST = 0.5, 60.0
"""Seconds between two lines: doubled after each."""


class Journal:
    def __init__(self, folder: Path, digest: str):
        """`digest`: of everything that decides the lanes."""
        self.folder, self.digest = folder, digest
        self._wait, self._last = FIRST, time.monotonic()

    def due(self) -> bool:
        """Whether it is time for a line."""
        if time.monotonic() - self._last < self._wait:
            return False
        self._wait, self._last = min(2 * self._wait, LONGEST), time.monotonic()
        return True

    def append(self, step: int, first: int, cursors: Sequence[Cursor]) -> None:
        """Where lanes from `first` on begin their windows of `step`. A folder that can only be read stays as it is."""
        content = {"of": self.digest, "step": step, "first": first, "lanes": [[*c.place, *c[1:]] for c in cursors]}
        line = json.dumps({**content, "sha256": _digest(content)}, separators=(",", ":")) + "\n"
        try:
            self.folder.mkdir(exist_ok=True)
            path = self.folder / f"{first:05d}-{first + len(cursors):05d}.jsonl"
            with path.open("ab", buffering=0) as file:
                file.write(b"\n" + line.encode())  # one write; the line before may have lost its end
        except OSError:
            return

    def latest(self, step: int, lanes: range) -> list[tuple[int, Cursor | None]]:
        """For each lane the last known place at or before `step`: (its step, its cursor), or (0, None)."""
        found: list[tuple[int, Cursor | None]] = [(0, None)] * len(lanes)
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.open("rb"):
                content = self._content(line)
                if content is None or content["step"] > step:
                    continue
                for lane, (epoch, file, row, number, document, offset) in enumerate(content["lanes"], content["first"]):
                    if lane in lanes and content["step"] > found[lane - lanes.start][0]:
                        cursor = Cursor(Place(epoch, file, row, number), document, offset)
                        found[lane - lanes.start] = (content["step"], cursor)
        return found

    def _content(self, line: bytes) -> dict | None:
        try:
            content = untrusted.loads(line)
            stated = content.pop("sha256")
        except (ValueError, KeyError, AttributeError, TypeError):
            return None
        if stated != _digest(content) or content.get("of") != self.digest:
            return None
        match content:
            case {"step": int(), "first": int(), "lanes": list(lanes)} if all(
                isinstance(lane, list) and len(lane) == 6 and all(type(n) is int and n >= 0 for n in lane)
                for lane in lanes
            ):
                return content
        return None


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
