"""Which runs of the token stream make the rows of an epoch: arithmetic, so that any row is found without the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pretrain.data.draws import Draws
from pretrain.errors import UserError

Runs = list[tuple[int, int]]
"""(position in the stream, tokens), in the order of the row."""


class Plan(Protocol):
    @property
    def rows(self) -> int:
        """Of an epoch."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of it, a sentence each."""
        ...

    def runs(self, row: int) -> Runs: ...

    def rows_of(self, position: int, length: int) -> np.ndarray:
        """int64, ascending: the rows whose runs hold any of the `length` (> 0) tokens from `position` on."""
        ...

    def partners(self, rows: np.ndarray, draws: Draws) -> np.ndarray | None:
        """Another row for each, drawn at random, to be read beside it; None: rows are read alone."""
        ...


@dataclass(frozen=True)
class Windows:
    """The stream cut every `length` tokens: each token is in exactly one row."""

    tokens: int
    length: int
    notes = ()

    @property
    def rows(self) -> int:
        return -(-self.tokens // self.length)

    def runs(self, row: int) -> Runs:
        position = row * self.length
        return [(position, min(self.length, self.tokens - position))]

    def rows_of(self, position: int, length: int) -> np.ndarray:
        return np.arange(position // self.length, (position + length - 1) // self.length + 1)

    def partners(self, rows: np.ndarray, draws: Draws) -> None:
        return None


class Joined:
    """The plans of the parts of a stream, one behind the other: no row holds text of two parts."""

    def __init__(self, plans: Sequence[Plan], tokens: Sequence[int]):
        """`tokens`: of the stream of each part."""
        self.plans = tuple(plans)
        self.first = np.cumsum([0, *(plan.rows for plan in plans)])
        """Row with which each part begins, and the number of rows."""
        self._begins = np.cumsum([0, *tokens])

    @property
    def rows(self) -> int:
        return int(self.first[-1])

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(note for plan in self.plans for note in plan.notes))

    def runs(self, row: int) -> Runs:
        part = self._part(row)
        begin = int(self._begins[part])
        return [(begin + position, n) for position, n in self.plans[part].runs(row - int(self.first[part]))]

    def rows_of(self, position: int, length: int) -> np.ndarray:
        out, end = [], position + length
        for plan, first, begin, stop in zip(self.plans, self.first, self._begins.tolist(), self._begins[1:].tolist()):
            if max(position, begin) < min(end, stop):
                here = max(position, begin)
                out.append(first + plan.rows_of(here - begin, min(end, stop) - here))
        return np.concatenate(out)

    def partners(self, rows: np.ndarray, draws: Draws) -> np.ndarray | None:
        out, parts = np.zeros(len(rows), np.int64), np.searchsorted(self.first, rows, "right") - 1
        for part in np.unique(parts):
            now = parts == part
            found = self.plans[part].partners(rows[now] - self.first[part], draws[now])
            if found is None:
                return None
            out[now] = found + self.first[part]
        return out

    def _part(self, row: int) -> int:
        return int(np.searchsorted(self.first, row, "right")) - 1


class Chunks:
    """Rows of one document each: every document cut every `length` tokens, its last row shorter (Devlin et al. 2019).

    Memory: 16 bytes a document. Rows have partners from other documents where `paired`.
    """

    notes = ()

    def __init__(self, documents: np.ndarray, length: int, *, paired: bool = False):
        """`documents`: tokens of each, in the order of the stream. Raises UserError where one has no other."""
        if paired and len(documents) < 2:
            raise UserError(
                f"found {len(documents)} documents, expected 2 for rows with text of another; prepare more text, or "
                "set objective.sentences.kind=order"
            )
        self.length, self.paired = length, paired
        self._ends = np.cumsum(np.append(0, documents))
        self._rows = np.cumsum(np.append(0, -(-documents // length)))  # entry i: first row of document i

    @property
    def rows(self) -> int:
        return int(self._rows[-1])

    def runs(self, row: int) -> Runs:
        document = int(np.searchsorted(self._rows, row, "right")) - 1
        begin = int(self._ends[document]) + (row - int(self._rows[document])) * self.length
        return [(begin, min(self.length, int(self._ends[document + 1]) - begin))]

    def rows_of(self, position: int, length: int) -> np.ndarray:
        tokens = np.array([position, position + length - 1])
        documents = np.searchsorted(self._ends, tokens, "right") - 1
        first, last = self._rows[documents] + (tokens - self._ends[documents]) // self.length
        return np.arange(first, last + 1)

    def partners(self, rows: np.ndarray, draws: Draws) -> np.ndarray | None:
        if not self.paired:
            return None
        documents = np.searchsorted(self._rows, rows, "right") - 1
        first, own = self._rows[documents], self._rows[documents + 1] - self._rows[documents]
        other = draws.below("partner", (self.rows - own)[:, None])[:, 0]
        return other + own * (other >= first)


class Pairs:
    """Rows of whole pairs, as many neighbours as fit, nothing cut ("next fit").

    Documents 2 i and 2 i + 1 are a pair: what is read and what is written. A row has room for `read` and `written`
    tokens of each kind and for `total` of both. A pair that fits no row is left out, or cut to the room (`truncate`).
    Memory: 32 bytes a pair.
    """

    def __init__(self, documents: np.ndarray, *, read: int, written: int, total: int, truncate: bool):
        """`documents`: tokens of each, in the order of the stream."""
        sizes = documents.reshape(-1, 2)
        fitted = np.minimum(sizes, [read, written])
        first = np.minimum(fitted[:, 0], np.maximum(total - fitted[:, 1], total // 2))
        fitted = np.stack([first, np.minimum(fitted[:, 1], total - first)], axis=1)
        whole = (fitted == sizes).all(axis=1)
        kept = np.ones(len(sizes), bool) if truncate else whole
        self._begins = (np.cumsum(documents).reshape(-1, 2) - sizes)[kept]
        self._sizes = fitted[kept]
        self.pairs, self.too_long, self.truncate = len(sizes), int((~whole).sum()), truncate
        self._rows = _next_fit(self._sizes, (read, written, total))

    @property
    def rows(self) -> int:
        return len(self._rows) - 1

    @property
    def notes(self) -> tuple[str, ...]:
        """What became of pairs that are too long."""
        if not self.too_long:
            return ()
        done = "cut to their room" if self.truncate else "left out"
        return (f"{self.too_long} of {self.pairs} pairs are longer than a row and {done}",)

    def runs(self, row: int) -> Runs:
        runs: Runs = []
        pairs = slice(self._rows[row], self._rows[row + 1])
        for begin, n in zip(self._begins[pairs].reshape(-1).tolist(), self._sizes[pairs].reshape(-1).tolist()):
            if runs and sum(runs[-1]) == begin:
                runs[-1] = (runs[-1][0], runs[-1][1] + n)
            else:
                runs.append((begin, n))
        return runs

    def rows_of(self, position: int, length: int) -> np.ndarray:
        begins, ends = self._begins.reshape(-1), (self._begins + self._sizes).reshape(-1)
        texts = slice(np.searchsorted(ends, position, "right"), np.searchsorted(begins, position + length))
        held = np.arange(len(begins))[texts][self._sizes.reshape(-1)[texts] > 0]
        return np.unique(np.searchsorted(self._rows, held // 2, "right") - 1)

    def partners(self, rows: np.ndarray, draws: Draws) -> None:
        return None


def _next_fit(sizes: np.ndarray, room: tuple[int, int, int]) -> np.ndarray:
    """int64, the first pair of each row, and the number of pairs at the end."""
    columns = np.concatenate([sizes, sizes.sum(axis=1, keepdims=True)], axis=1)
    sums = np.concatenate([np.zeros((1, 3), np.int64), np.cumsum(columns, axis=0)])
    ends = np.min([np.searchsorted(s, s[:-1] + r, "right") - 1 for s, r in zip(sums.T, room)], axis=0).tolist()
    rows = [0]
    while rows[-1] < len(sizes):
        rows.append(ends[rows[-1]])
    return np.array(rows)
