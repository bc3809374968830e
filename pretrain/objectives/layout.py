"""Rows that read one text and write another, for an encoder with a decoder or for a decoder alone."""

from dataclasses import dataclass

import numpy as np

from pretrain.data.rows import Batch


@dataclass(frozen=True)
class Text:
    """What is read or written: int32 [B, N], and int64 [B], how many tokens of each row exist."""

    tokens: np.ndarray
    n: np.ndarray

    @property
    def there(self) -> np.ndarray:
        """bool [B, N]."""
        return np.arange(self.tokens.shape[1]) < self.n[:, None]


@dataclass(frozen=True)
class Beside:
    """The encoder reads rows of `source` tokens, the decoder writes rows of `target`, from the token `start` on."""

    source: int
    target: int
    start: int

    def __call__(self, read: Text, written: Text) -> Batch:
        there = fitted(written.there, self.target)
        targets = fitted(written.tokens, self.target) * there
        return {
            "encoder_tokens": fitted(read.tokens * read.there, self.source),
            "encoder_segments": fitted(read.there, self.source).astype(np.int32),
            "tokens": starting(targets, np.arange(self.target), self.start) * there,
            "segments": there.astype(np.int32),
            "targets": targets,
            "weights": there.astype(np.float32),
        }


@dataclass(frozen=True)
class Joined:
    """A decoder alone reads, seeing each token of what it reads from both sides, and writes what follows."""

    length: int

    def __call__(self, read: Text, written: Text) -> Batch:
        B, T = len(read.n), self.length + 1
        row, total = np.zeros((B, T), np.int32), read.n + written.n
        place = np.arange(T)
        row[place < read.n[:, None]] = read.tokens[read.there]
        row[(place >= read.n[:, None]) & (place < total[:, None])] = written.tokens[written.there]
        there = place[:-1] < total[:, None] - 1
        asked = there & (place[:-1] >= read.n[:, None] - 1)
        return {
            "tokens": row[:, :-1] * there,
            "segments": there.astype(np.int32),
            "prefix": (place[:-1] < read.n[:, None]).astype(np.int32) * there,
            "targets": row[:, 1:] * asked,
            "weights": asked.astype(np.float32),
        }


def fitted(x: np.ndarray, width: int) -> np.ndarray:
    """[B, width]: without what stands behind, or with zeros there."""
    return x[:, :width] if x.shape[1] >= width else np.pad(x, ((0, 0), (0, width - x.shape[1])))


def positions_of(segments: np.ndarray) -> np.ndarray:
    """int32 [B, N], the place of each token in its segment."""
    begins, place = np.ones(segments.shape, bool), np.arange(segments.shape[1], dtype=np.int32)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return (place - np.maximum.accumulate(np.where(begins, place, 0), axis=1)) * (segments > 0)


def starting(targets: np.ndarray, positions: np.ndarray, start: int) -> np.ndarray:
    """What a decoder reads to write the targets: each text moved to the right, `start` in front of it."""
    before = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    return np.where(positions == 0, np.int32(start), before)
