"""Rows for a decoder alone that are more than packed documents: prefixes, and middles filled in."""

from dataclasses import dataclass

import numpy as np

from pretrain.data.pack import Packed, counted, pack, segmented
from pretrain.data.plan import Plan, Windows
from pretrain.data.rows import Batch, Raw
from pretrain.data.vocabulary import Vocabulary
from pretrain.data.windows import Split
from pretrain.objectives.config import FillInTheMiddle

MARKS = 4
"""Tokens that a document gets: before each of its parts, and eos where it has none."""
FAR = 1e9
"""The key of what is left out."""


class PrefixRows(Packed):
    """Documents side by side; a random first part of each is seen from both sides, nothing asked of it.

    The part is 1 to n - 1 tokens of a document's n, each number as likely (Raffel et al. 2020, section 3.2.3).
    """

    def __call__(self, raw: Raw) -> Batch:
        batch = pack(raw.tokens, raw.starts, raw.lengths)
        segments, positions = batch["segments"], batch["positions"]
        first = np.arange(self.length) - positions
        drawn = np.take_along_axis(raw.draws.uniform("prefix", self.length), first, axis=1)
        n = 1 + (drawn * np.maximum(counted(segments > 0, segments) - 1, 0)).astype(np.int64)
        weights = batch["weights"] * (positions >= n - 1)
        return {
            **batch,
            "prefix": ((positions < n) & (segments > 0)).astype(np.int32),
            "targets": batch["targets"] * (weights > 0),
            "weights": weights,
        }


@dataclass(frozen=True)
class MiddleRows:
    """Windows of the stream, documents apart, in some of which the middle stands last (Bavarian et al. 2022).

    PSM is <prefix> p <suffix> s <middle> m eos; SPM is <prefix> <suffix> s <middle> p m eos (section 3, where both
    are trained). The cuts are between tokens, where the paper cuts between characters.
    """

    length: int
    config: FillInTheMiddle
    vocabulary: Vocabulary
    marks: tuple[int, int, int, int]
    """Ids of prefix, suffix, middle and eos."""

    @property
    def room(self) -> int:
        return self.length - self.config.room

    def plan(self, split: Split) -> Plan:
        return Windows(split.tokens, self.room)

    def __call__(self, raw: Raw) -> Batch:
        segments, positions = segmented(raw.starts[:, :-1], raw.lengths)
        tokens, cut = raw.tokens[:, :-1], self._cut(raw, segments, positions)
        own = np.where(segments > 0, 10.0 * segments + np.where(cut.moved, cut.part, 0.0), FAR)
        slots, keys = self._marks(segments, positions, cut)
        keys, every = np.concatenate([own, keys], axis=1), np.concatenate([tokens, slots], axis=1)
        order = np.argsort(keys, axis=1, kind="stable")[:, : self.length]
        keys = np.take_along_axis(keys, order, axis=1)
        there = keys < FAR
        n = there.sum(1)
        out, starts = np.zeros((len(n), self.length + 1), np.int32), np.ones((len(n), self.length + 1), bool)
        out[:, :-1] = np.take_along_axis(every, order, axis=1) * there
        document = keys // 10
        starts[:, 1:-1] = document[:, 1:] != document[:, :-1]
        rows, last = np.arange(len(n)), np.maximum(raw.lengths - 1, 0)
        out[rows, n] = raw.tokens[rows, raw.lengths]
        starts[rows, n] = raw.starts[rows, raw.lengths] | cut.moved[rows, last]
        return pack(out, starts, n)

    def _cut(self, raw: Raw, segments: np.ndarray, positions: np.ndarray) -> "Cut":
        c, T, draws = self.config, self.room, raw.draws
        first = np.arange(T) - positions

        def drawn(name: str) -> np.ndarray:
            """One number for each document, at each of its tokens."""
            return np.take_along_axis(draws.uniform(name, T), first, axis=1)

        is_special = self.vocabulary.is_special(raw.tokens[:, :-1])
        last = np.ones(segments.shape, bool)
        last[:, :-1] = segments[:, 1:] != segments[:, :-1]
        lead, tail = is_special & (positions == 0), is_special & last
        text = (segments > 0) & ~lead & ~tail
        n, before = counted(text, segments), np.cumsum(text, axis=1) - text
        q = before - np.take_along_axis(before, first, axis=1)
        moved = (n >= 3) & (drawn("fill") < c.rate) & (segments > 0)
        begins = moved & (positions == 0)
        moved &= np.take_along_axis(np.cumsum(begins, axis=1), first, axis=1) <= c.room // MARKS
        ends = np.sort([(drawn(name) * (n + 1)).astype(np.int64) for name in ("a", "b")], axis=0)
        suffix_first = drawn("order") < c.spm
        part = np.where(q < ends[0], np.where(suffix_first, 3.4, 1.5), np.where(q < ends[1], 3.5, 2.5))
        part = np.where(lead, 0.0, np.where(tail, 4.0, part))
        return Cut(moved=moved, part=part, ended=counted(tail, segments) > 0)

    def _marks(self, segments: np.ndarray, positions: np.ndarray, cut: "Cut") -> tuple[np.ndarray, np.ndarray]:
        """(tokens, keys) [B, room]: the marks of each document that is cut, and where they go."""
        B, count = len(segments), self.config.room // MARKS
        tokens = np.broadcast_to(np.array(self.marks, np.int32), (B, count, MARKS))
        keys = np.full((B, count, MARKS), FAR)
        begins = cut.moved & (positions == 0)
        rows, at = np.nonzero(begins)
        number = (np.cumsum(begins, axis=1) - 1)[rows, at]
        keys[rows, number] = 10.0 * segments[rows, at, None] + np.array([1.0, 2.0, 3.0, 4.0])
        keys[rows, number, 3] = np.where(cut.ended[rows, at], FAR, keys[rows, number, 3])
        return tokens.reshape(B, -1), keys.reshape(B, -1)


@dataclass(frozen=True)
class Cut:
    """Of each token, [B, T]."""

    moved: np.ndarray
    """Whether its document is one that is cut."""
    part: np.ndarray
    """Where it goes in its document: by the first digit, after the mark of that number."""
    ended: np.ndarray
    """Whether its document ends with a special token."""
