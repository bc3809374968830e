"""Documents side by side in the rows of a batch."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pretrain.data.config import Packing
from pretrain.data.fit import Fit
from pretrain.data.plan import Plan, Windows
from pretrain.data.rows import Batch, Raw
from pretrain.data.windows import Split


@dataclass(frozen=True)
class Packed:
    """Rows of `length` tokens in which each token but a document's last has its successor as target."""

    length: int
    packing: Packing = "split"

    @property
    def room(self) -> int:
        return self.length

    def plan(self, split: Split) -> Plan:
        return Fit.of(split, self.length) if self.packing == "fit" else Windows(split.tokens, self.length)

    def __call__(self, raw: Raw) -> Batch:
        return pack(raw.tokens, raw.starts, raw.lengths)


def segmented(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(segments, positions), int32 [B, T], of rows whose documents begin at `starts`, bool [B, T].

    Segments count from 1 in each row, 0 is padding; positions restart at each segment. A row's first token begins one.
    """
    B, T = starts.shape
    begins = starts.copy()
    begins[:, :1] = True
    first = np.flatnonzero(begins)  # token of all rows with which each segment begins
    sizes = np.empty_like(first)
    np.subtract(first[1:], first[:-1], out=sizes[:-1])
    sizes[-1:] = B * T - first[-1:]
    before = np.searchsorted(first, np.arange(B) * T)  # segments of the rows before each
    number = np.arange(1, len(first) + 1, dtype=np.int32) - before[first // max(T, 1)].astype(np.int32)
    segments = np.repeat(number, sizes).reshape(B, T)
    positions = (_places(B * T) - np.repeat(first.astype(np.int32), sizes)).reshape(B, T)
    if len(lengths) and lengths.min() < starts.shape[1]:
        exists = np.arange(T) < lengths[:, None]
        segments, positions = segments * exists, positions * exists
    return segments, positions


@lru_cache(maxsize=8)
def _places(n: int) -> np.ndarray:
    out = np.arange(n, dtype=np.int32)
    out.flags.writeable = False
    return out


def pack(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Batch:
    """Rows [B, T] from windows with a look-ahead token.

    tokens: int32 [B, T+1]; starts: bool [B, T+1], where a document begins; lengths: [B], tokens that exist.
    Returns int32 tokens, targets, positions, segments and float32 weights. A document's continuation at the start of a
    row is a segment too. A token whose successor is another document's has target 0 and weight 0.
    """
    T = tokens.shape[1] - 1
    segments, positions = segmented(starts[:, :T], lengths)
    inputs, targets, ends = tokens[:, :T].copy(), tokens[:, 1:].copy(), starts[:, 1:].copy()
    if len(lengths) and lengths.min() < T:
        padding = segments == 0
        inputs[padding] = 0
        ends |= padding
    last = np.flatnonzero(ends)
    weights = np.ones(ends.shape, np.float32)
    targets.reshape(-1)[last] = weights.reshape(-1)[last] = 0
    return {"tokens": inputs, "targets": targets, "positions": positions, "segments": segments, "weights": weights}


def moved_left(keep: np.ndarray, *arrays: np.ndarray, width: int | None = None) -> list[np.ndarray]:
    """What is kept of each row of arrays [B, N], without gaps, zeros behind; `width`: of the result, None: N."""
    B, N = keep.shape
    W = N if width is None else width
    place = np.cumsum(keep, axis=1) - 1
    if place.max(initial=0) >= W:
        raise ValueError(f"found {place.max() + 1} tokens in a row, expected at most {W}")
    to = (place + W * np.arange(B)[:, None])[keep]
    out = []
    for array in arrays:
        moved = np.zeros((B, W), array.dtype)
        moved.reshape(-1)[to] = array[keep]
        out.append(moved)
    return out


def counted(flags: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """int64 [B, T]: how many are set in each token's document."""
    B, T = flags.shape
    number = segments + np.arange(B)[:, None] * (T + 1)
    return np.bincount(number[flags], minlength=B * (T + 1))[number]
