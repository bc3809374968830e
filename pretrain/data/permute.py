"""A shuffle without memory: a permutation of [0, n) that is computed where it is asked for."""

import functools
import hashlib
from collections.abc import Callable

import numpy as np

ROUNDS = 8  # four look uniform from 8 bits on; small n needs more
FEW = 64  # values that are faster one by one: an operation of numpy costs as much as one on 30 numbers of Python
M1, M2, WORD = 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53, (1 << 64) - 1


@functools.lru_cache(maxsize=256)
def _round_keys(seed: int | str, epoch: int) -> np.ndarray:
    digest = hashlib.blake2b(f"{seed}:{epoch}".encode(), digest_size=8 * 8).digest()
    return np.frombuffer(digest, "<u8")


def mix(x: np.ndarray) -> np.ndarray:
    """MurmurHash3's 64-bit finaliser: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(33))) * np.uint64(M1)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(M2)
    return x ^ (x >> np.uint64(33))


def _scramble(x: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """A bijection of [0, 2^bits): an alternating Feistel network, whose halves may differ in width."""
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    low, high = x & low_mask, x >> low_bits
    for i in range(0, ROUNDS, 2):
        high = high ^ (mix(low ^ keys[i]) & high_mask)
        low = low ^ (mix(high ^ keys[i + 1]) & low_mask)
    return (high << low_bits) | low


def _unscramble(x: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """The inverse of `_scramble`: its rounds from the last to the first."""
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    low, high = x & low_mask, x >> low_bits
    for i in range(ROUNDS - 2, -1, -2):
        low = low ^ (mix(high ^ keys[i + 1]) & low_mask)
        high = high ^ (mix(low ^ keys[i]) & high_mask)
    return (high << low_bits) | low


def permute(index: np.ndarray | int, n: int, *, seed: int | str, epoch: int) -> np.ndarray:
    """The places of `index` (values in [0, n)) in the permutation that (seed, epoch) keys; int64, exactly a bijection.

    The network permutes the next power of two; a value that falls outside [0, n) is sent through again until it falls
    inside ("cycle walking", Black and Rogaway 2002), which is fewer than two passes on average.
    """
    return _walk(_scramble, index, n, seed, epoch)


def unpermute(place: np.ndarray | int, n: int, *, seed: int | str, epoch: int) -> np.ndarray:
    """The indices that `permute` sends to `place` (values in [0, n)); int64."""
    return _walk(_unscramble, place, n, seed, epoch)


def _walk(network: Callable, index: np.ndarray | int, n: int, seed: int | str, epoch: int) -> np.ndarray:
    bits = max(n - 1, 0).bit_length()
    keys = _round_keys(seed, epoch)
    x = np.array(index, np.uint64, ndmin=1)
    if x.size and int(x.max()) >= n:
        raise IndexError(f"index {int(x.max())} is outside [0, {n})")
    if network is _scramble and x.size <= FEW:
        plain = keys.tolist()
        places = [_place(i, n, bits, plain) for i in x.ravel().tolist()]
        return np.array(places, np.int64).reshape(np.shape(index))
    out = network(x, bits, keys)
    while (outside := out >= n).any():
        out[outside] = network(out[outside], bits, keys)
    return out.astype(np.int64).reshape(np.shape(index))


def _place(x: int, n: int, bits: int, keys: list[int]) -> int:
    """`_scramble` of one number until it is below n, without numpy."""
    low_bits = bits // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    while True:
        low, high = x & low_mask, x >> low_bits
        for i in range(0, ROUNDS, 2):
            y = low ^ keys[i]
            y = (y ^ (y >> 33)) * M1 & WORD
            y = (y ^ (y >> 33)) * M2 & WORD
            high ^= (y ^ (y >> 33)) & high_mask
            y = high ^ keys[i + 1]
            y = (y ^ (y >> 33)) * M1 & WORD
            y = (y ^ (y >> 33)) * M2 & WORD
            low ^= (y ^ (y >> 33)) & low_mask
        x = (high << low_bits) | low
        if x < n:
            return x
