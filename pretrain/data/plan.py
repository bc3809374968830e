"""Which runs of the token stream make the rows of an epoch: arithmetic, so that any row is found without the others."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pretrain.data.draws import Draws

Runs = list[tuple[int, int]]
"""(position in the stream, tokens), in the order of the row."""


class Plan(Protocol):
    @property
    def rows(self) -> int:
        """Of an epoch."""
        ...

    def runs(self, row: int) -> Runs: ...

    def partners(self, rows: np.ndarray, draws: Draws) -> np.ndarray | None:
        """Another row for each, drawn at random, to be read beside it; None: rows are read alone."""
        ...


@dataclass(frozen=True)
class Windows:
    """The stream cut every `length` tokens: each token is in exactly one row."""

    tokens: int
    length: int

    @property
    def rows(self) -> int:
        return -(-self.tokens // self.length)

    def runs(self, row: int) -> Runs:
        position = row * self.length
        return [(position, min(self.length, self.tokens - position))]

    def partners(self, rows: np.ndarray, draws: Draws) -> None:
        return None


class Chunks:
    """Rows of one document each: every document cut every `length` tokens, its last row shorter (Devlin et al. 2019).

    Memory: 16 bytes a document. Rows have partners from other documents where `paired`.
    """

    def __init__(self, documents: np.ndarray, length: int, *, paired: bool = False):
        """`documents`: tokens of each, in the order of the stream."""
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

    def partners(self, rows: np.ndarray, draws: Draws) -> np.ndarray | None:
        if not self.paired:
            return None
        documents = np.searchsorted(self._rows, rows, "right") - 1
        first, own = self._rows[documents], self._rows[documents + 1] - self._rows[documents]
        other = draws.below("partner", (self.rows - own)[:, None])[:, 0]
        return other + own * (other >= first)
