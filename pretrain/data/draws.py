"""Random numbers of a row from its key alone, whatever rows are drawn beside it, and on every version of numpy."""

import functools
import hashlib

import numpy as np

from pretrain.data.permute import mix

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, SplitMix64's step (Steele et al. 2014)


def row_keys(seed: int, samples: np.ndarray, purpose: str) -> np.ndarray:
    """uint64 keys of samples of a run; another purpose gives others."""
    return mix(_word(f"{purpose}:{seed}") + GOLDEN * np.asarray(samples).astype(np.uint64))


@functools.lru_cache(maxsize=256)
def _word(name: str) -> np.uint64:
    return np.frombuffer(hashlib.blake2b(name.encode(), digest_size=8).digest(), "<u8")[0]


class Draws:
    """A table of numbers for each row and name. Number j of a name does not depend on how many are drawn."""

    def __init__(self, keys: np.ndarray):
        self.keys = keys

    def __getitem__(self, rows) -> "Draws":
        return Draws(self.keys[rows])

    def uniform(self, name: str, n: int) -> np.ndarray:
        """float64 [B, n] in [0, 1), multiples of 2^-53."""
        streams = mix(self.keys ^ _word(name))
        bits = mix(streams[:, None] + GOLDEN * np.arange(1, n + 1, dtype=np.uint64))
        return (bits >> np.uint64(11)) * 2.0**-53

    def below(self, name: str, limits: np.ndarray) -> np.ndarray:
        """int64, in [0, limit) for each limit of [B, n]."""
        return (self.uniform(name, limits.shape[1]) * limits).astype(np.int64)
