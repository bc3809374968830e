"""Rows of whole documents: best-fit decreasing among neighbours (Ding et al. 2024, arXiv:2404.10830).

A document longer than a row fills rows of its own; what is left of it, and every shorter one, is put into the fullest
row that still has room for it, the longest first. This is done in windows of neighbouring documents, of which a table
holds the first row and the first token: any row is found from it and from the lengths of one window's documents.

Memory: 16 bytes a window of 1024 documents, 160 MB for 10^10 documents (15T tokens of 1500 a document). The table is
made once, a second for some million documents and core, and kept beside the corpus where that can be written.
"""

import hashlib
import os
from bisect import bisect_left, insort
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from pretrain.data.draws import Draws
from pretrain.data.manifest import read_json
from pretrain.data.plan import Runs
from pretrain.data.windows import Split

KEPT = 64
"""Windows whose rows are remembered."""
DIGEST = 16
"""Bytes behind the table, its BLAKE2b."""


class Fit:
    def __init__(self, table: np.ndarray, lengths: Callable[[int], np.ndarray], length: int):
        """`table`: int64 [windows + 1, 2], first row and first token of each, and the totals. `lengths`: tokens of the
        documents of a window."""
        self.table, self.lengths, self.length = table, lengths, length
        self._packed = lru_cache(maxsize=KEPT)(self._pack)

    @classmethod
    def of(cls, split: Split, length: int) -> "Fit":
        """Reads the table of this corpus, or makes it."""
        path = _path(split, length)
        table = _kept(path)
        if table is None:
            table = _table(split, length)
            table = _keep(path, table)
        return cls(table, split.window_lengths, length)

    def __reduce__(self):
        """A worker process maps the file of the table instead of getting a copy of it."""
        if isinstance(self.table, np.memmap):
            return _mapped, (Path(str(self.table.filename)), self.lengths, self.length)
        return Fit, (self.table, self.lengths, self.length)

    @property
    def rows(self) -> int:
        return int(self.table[-1, 0])

    @property
    def notes(self) -> tuple[str, ...]:
        """How much of the rows is empty."""
        empty = 1 - int(self.table[-1, 1]) / max(self.rows * self.length, 1)
        return (f"rows hold whole documents, {empty:.2%} of their tokens are padding",)

    def runs(self, row: int) -> Runs:
        window = int(np.searchsorted(self.table[:, 0], row, "right")) - 1
        first_row, first_token = (int(x) for x in self.table[window])
        return [(first_token + begin, n) for begin, n in self._packed(window)[row - first_row]]

    def rows_of(self, position: int, length: int) -> np.ndarray:
        first, last = np.searchsorted(self.table[:, 1], [position, position + length - 1], "right") - 1
        out = []
        for window in range(int(first), int(last) + 1):
            row, token = (int(x) for x in self.table[window])
            for i, runs in enumerate(self._packed(window)):
                if any(token + a < position + length and position < token + a + n for a, n in runs):
                    out.append(row + i)
        return np.array(out, np.int64)

    def partners(self, rows: np.ndarray, draws: Draws) -> None:
        return None

    def _pack(self, window: int) -> list[Runs]:
        return packed(self.lengths(window), self.length)


def packed(documents: np.ndarray, length: int) -> list[Runs]:
    """The rows of a window: runs (token of the window, tokens), in the order of the documents."""
    begins = (np.cumsum(documents) - documents).tolist()
    rows: list[Runs] = []
    rest: list[tuple[int, int]] = []
    for begin, n in zip(begins, documents.tolist()):
        whole = n // length
        rows += [[(begin + i * length, length)] for i in range(whole)]
        if n % length:
            rest.append((n % length, begin + whole * length))
    room: list[tuple[int, int]] = []  # (tokens free, row), ascending
    for n, begin in sorted(rest, key=lambda r: (-r[0], r[1])):
        place = bisect_left(room, (n, -1))
        if place < len(room):
            free, row = room.pop(place)
            rows[row].append((begin, n))
        else:
            free, row = length, len(rows)
            rows.append([(begin, n)])
        if free > n:
            insort(room, (free - n, row))
    return [sorted(runs) for runs in rows]


def _table(split: Split, length: int) -> np.ndarray:
    sizes = [(0, 0)]
    for window in range(split.windows):
        documents = split.window_lengths(window)
        sizes.append((len(packed(documents, length)), int(documents.sum())))
    return np.cumsum(np.array(sizes, np.int64), axis=0)


def _path(split: Split, length: int) -> Path:
    """Named by the content of the split too, so that another corpus in this folder has another one."""
    manifest = read_json(split.folder / "manifest.json")["shards"][split.name]
    digest = hashlib.blake2b(repr([(s["name"], s["documents"], s["tokens"]) for s in manifest]).encode(), digest_size=6)
    part = f"-{split.part}" if split.part else ""
    return split.folder / f"fit-{split.name}{part}-{length}-{digest.hexdigest()}.npy"


def _mapped(path: Path, lengths: Callable[[int], np.ndarray], length: int) -> Fit:
    return Fit(np.load(path, mmap_mode="r", allow_pickle=False), lengths, length)


def _kept(path: Path) -> np.ndarray | None:
    """The table of a file that is whole, else None: it is made again."""
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
        with path.open("rb") as file:
            file.seek(-DIGEST, os.SEEK_END)
            stated = file.read()
    except Exception:  # numpy parses Python and zip files on the way
        return None
    if not isinstance(table, np.memmap) or table.dtype != np.int64 or table.ndim != 2:
        return None
    return table if _digest(table) == stated else None


def _digest(table: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(table).data, digest_size=DIGEST).digest()


def _keep(path: Path, table: np.ndarray) -> np.ndarray:
    """The table as it is on the disk, or in memory where it cannot be written."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.save(file, table, allow_pickle=False)
            file.write(_digest(table))
        temporary.replace(path)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:  # a corpus that can only be read: it is made again the next time
        temporary.unlink(missing_ok=True)
        return table
