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
