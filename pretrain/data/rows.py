"""What an objective makes of text: from runs of the token stream to the rows of a batch."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from pretrain.data.draws import Draws
from pretrain.data.plan import Plan
from pretrain.data.windows import Split

Batch = dict[str, np.ndarray]
"""Arrays of int32 or float32 whose first dimension is the rows; `objectives.batch.gathered` knows their names."""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """Rows as they are stored."""

    tokens: np.ndarray
    """int32 [B, room + 1], each row with the token that follows it in the stream."""
    starts: np.ndarray
    """bool [B, room + 1], where a document begins; the end of a shard counts as one."""
    lengths: np.ndarray
    """int64 [B], tokens that exist."""
    draws: Draws
    others: "Raw | None" = None
    """The rows' partners, where the plan has them."""

    def __getitem__(self, rows) -> "Raw":
        """Some of the rows."""
        others = None if self.others is None else self.others[rows]
        return Raw(
            tokens=self.tokens[rows],
            starts=self.starts[rows],
            lengths=self.lengths[rows],
            draws=self.draws[rows],
            others=others,
        )


class Transform(Protocol):
    """A pure function that can be pickled. A row depends on its own part of `raw` alone."""

    @property
    def room(self) -> int:
        """Tokens of the stream that a row can hold."""
        ...

    def plan(self, split: Split) -> Plan: ...

    def __call__(self, raw: Raw) -> Batch:
        """The same arrays, with the same shapes but for the number of rows, whatever `raw` holds."""
        ...


def read(split: Split, plan: Plan, room: int, rows: np.ndarray, keys: np.ndarray) -> Raw:
    """The rows of a plan with these numbers; `keys` [B] decide what is drawn for them."""
    draws = Draws(keys)
    partners = plan.partners(rows, draws)
    others = None if partners is None else _read(split, plan, room, partners, draws)
    return _read(split, plan, room, rows, draws, others)


def _read(split: Split, plan: Plan, room: int, rows: np.ndarray, draws: Draws, others: Raw | None = None) -> Raw:
    tokens, starts = np.zeros((len(rows), room + 1), np.int32), np.zeros((len(rows), room + 1), bool)
    lengths = np.zeros(len(rows), np.int64)
    for b, row in enumerate(rows):
        at = 0
        for position, n in plan.runs(int(row)):
            starts[b, at] = at > 0  # a run is of other text than the one before it
            at += split.fill(position, tokens[b, at : at + n + 1], starts[b, at : at + n + 1])
        lengths[b] = at
    return Raw(tokens=tokens, starts=starts, lengths=lengths, draws=draws, others=others)


def cut(raw: Raw, choices: tuple[int, ...]) -> Raw:
    """The same text, documents cut at every multiple of a length, which is drawn for each row."""
    drawn = np.array(choices)[raw.draws.below("length", np.full((len(raw.lengths), 1), len(choices)))]
    places = np.arange(raw.starts.shape[1])
    return replace(raw, starts=raw.starts | ((places % drawn == 0) & (places > 0) & (places < raw.lengths[:, None])))


def shapes(transform: Transform) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of each array of a row, without the dimension of the rows."""
    return {name: (a.shape[1:], a.dtype) for name, a in transform(_nothing(transform.room)).items()}


def _nothing(room: int) -> Raw:
    """A row without a token."""
    raw = Raw(
        tokens=np.zeros((1, room + 1), np.int32),
        starts=np.zeros((1, room + 1), bool),
        lengths=np.zeros(1, np.int64),
        draws=Draws(np.zeros(1, np.uint64)),
    )
    return Raw(**{**vars(raw), "others": raw})
