"""Rows of whole pairs of texts, one read and one written (translation)."""

from dataclasses import dataclass

import numpy as np

from pretrain.data.pack import moved_left, segmented
from pretrain.data.plan import Pairs, Plan
from pretrain.data.rows import Batch, Raw
from pretrain.data.windows import Split
from pretrain.objectives.layout import positions_of, starting


@dataclass(frozen=True)
class PairRows:
    """The encoder reads the sources of a row, the decoder writes their targets; segment n of both is pair n."""

    read: int
    written: int
    start: int
    eos: int
    truncate: bool

    @property
    def room(self) -> int:
        return self.read + self.written

    def plan(self, split: Split) -> Plan:
        return Pairs(
            split.document_lengths(), read=self.read, written=self.written, total=self.room, truncate=self.truncate
        )

    def __call__(self, raw: Raw) -> Batch:
        tokens, pair, is_target = _sides(raw, self.eos)
        sources = moved_left((pair > 0) & ~is_target, tokens, pair, width=self.read)
        targets, segments = moved_left((pair > 0) & is_target, tokens, pair, width=self.written)
        positions = positions_of(segments)
        return {
            "encoder_tokens": sources[0],
            "encoder_segments": sources[1],
            "encoder_positions": positions_of(sources[1]),
            "tokens": starting(targets, positions, self.start) * (segments > 0),
            "segments": segments,
            "positions": positions,
            "targets": targets,
            "weights": (segments > 0).astype(np.float32),
        }


@dataclass(frozen=True)
class JoinedPairRows:
    """A decoder alone reads each source, of which nothing is asked, and writes its target behind it."""

    length: int
    eos: int
    truncate: bool
    bidirectional: bool
    """A source is seen from both sides."""

    @property
    def room(self) -> int:
        return self.length

    def plan(self, split: Split) -> Plan:
        lengths, most = split.document_lengths(), self.length
        return Pairs(lengths, read=most, written=most, total=most, truncate=self.truncate)

    def __call__(self, raw: Raw) -> Batch:
        tokens, segments, is_target = _sides(raw, self.eos)
        asked = np.zeros(segments.shape, bool)
        asked[:, :-1] = is_target[:, 1:] & (segments[:, 1:] == segments[:, :-1])
        following = np.pad(tokens[:, 1:], ((0, 0), (0, 1)))
        batch = {
            "tokens": tokens,
            "segments": segments,
            "positions": positions_of(segments),
            "targets": following * asked,
            "weights": asked.astype(np.float32),
        }
        return {**batch, "prefix": ((segments > 0) & ~is_target).astype(np.int32)} if self.bidirectional else batch


def _sides(raw: Raw, eos: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, pair from 1, is a target) of each place, [B, room]; every text ends with eos, those that are cut too."""
    starts = raw.starts[:, :-1]
    text, _ = segmented(starts, raw.lengths)
    ends = np.arange(starts.shape[1]) == raw.lengths[:, None] - 1
    ends[:, :-1] |= starts[:, 1:]
    tokens = np.where(ends, eos, raw.tokens[:, :-1]) * (text > 0)
    return tokens.astype(np.int32), (text + 1) // 2, (text > 0) & (text % 2 == 0)
