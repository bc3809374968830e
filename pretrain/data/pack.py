"""Windows as rows of a batch: "concatenate and split" packing.

Another packing is another function from (places in the stream, T) to these arrays.
"""

import numpy as np

Batch = dict[str, np.ndarray]
INTEGERS = ("tokens", "targets", "positions", "segments")


def pack(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Batch:
    """Rows [B, T] from windows with a look-ahead token.

    tokens: int32 [B, T+1]; starts: bool [B, T+1], where a document begins; lengths: [B], tokens that exist.
    Returns int32 tokens, targets, positions, segments and float32 weights. Segments count from 1 in each row, 0 is
    padding; positions restart at each segment, also at a document's continuation at the start of a row. A token whose
    successor is another document's has target 0 and weight 0.
    """
    B, T = len(tokens), tokens.shape[1] - 1
    begins = starts[:, :T].copy()
    begins[:, 0] = True
    place = np.arange(T, dtype=np.int32)
    segments = np.cumsum(begins, axis=1, dtype=np.int32)
    positions = place - np.maximum.accumulate(np.where(begins, place, 0), axis=1, dtype=np.int32)
    weights = ~starts[:, 1:]
    inputs = tokens[:, :T]
    if B and lengths.min() < T:
        exists = place < lengths[:, None]
        weights = weights & exists
        segments, positions, inputs = segments * exists, positions * exists, inputs * exists
    return {
        "tokens": np.ascontiguousarray(inputs),
        "targets": tokens[:, 1:] * weights,
        "positions": positions,
        "segments": segments,
        "weights": weights.astype(np.float32),
    }


def padding(rows: int, length: int) -> Batch:
    """Rows without a token."""
    batch: Batch = {name: np.zeros((rows, length), np.int32) for name in INTEGERS}
    return {**batch, "weights": np.zeros((rows, length), np.float32)}
