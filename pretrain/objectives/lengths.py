"""How long the rows of span corruption are: arithmetic that configs check and transforms fill. Imports no numpy."""

from collections.abc import Sequence
from typing import Protocol

SENTINELS = 100
"""A tokenizer gets at least as many, as T5's, so that it fits other lengths too."""


class Denoises(Protocol):
    """How a row is corrupted: `mean` tokens a span; None is one span at the end, of up to twice the rate."""

    @property
    def rate(self) -> float: ...
    @property
    def mean(self) -> float | None: ...
    @property
    def mode(self) -> str | None: ...


def hidden(tokens: int, denoiser: Denoises) -> tuple[int, int]:
    """(tokens hidden, spans) of a row, at most: exact where `mean` is given (Raffel et al. 2020, T5's
    `random_spans_noise_mask`). At least one token is hidden and at least one stays."""
    if denoiser.mean is None:
        return min(max(round(2 * tokens * denoiser.rate), 1), tokens - 1), 1
    many = min(max(round(tokens * denoiser.rate), 1), tokens - 1)
    return many, min(max(round(many / denoiser.mean), 1), many, tokens - many)


def lengths(tokens: int, denoiser: Denoises) -> tuple[int, int, int]:
    """The longest input, target and both together of a row: spans become sentinels, each side ends with eos."""
    many, spans = hidden(tokens, denoiser)
    lead = 0 if denoiser.mode is None else 1
    fewest = 1 if denoiser.mean is None else many
    both = lead + tokens + 2 * spans + 2
    return lead + tokens - fewest + spans + 1, many + spans + 1, both


def raw_tokens(length: int, denoisers: Sequence[Denoises], *, encoder: bool) -> int:
    """The most tokens of text whose corrupted input fits an encoder of `length`, or whose input and target together fit
    a decoder of `length`; at least 2."""

    def fits(tokens: int) -> bool:
        needed = (lengths(tokens, d) for d in denoisers)
        return all(inputs <= length if encoder else both - 1 <= length for inputs, _, both in needed)

    tokens = max(2, length // 2 - 4)
    while fits(tokens + 1):
        tokens += 1
    if encoder and any(d.rate == 0.5 and lengths(tokens, d)[1] > length for d in denoisers):
        tokens -= 1  # as T5's `random_spans_helper`: at this rate a target one longer than the input would be a pity
    return tokens


def target_length(length: int, denoisers: Sequence[Denoises]) -> int:
    """Of the decoder beside an encoder of `length`: 114 for T5's 512."""
    return max(lengths(raw_tokens(length, denoisers, encoder=True), d)[1] for d in denoisers)


def spans(length: int, denoisers: Sequence[Denoises], *, encoder: bool) -> int:
    """The most sentinels that a row needs."""
    return max(hidden(raw_tokens(length, denoisers, encoder=encoder), d)[1] for d in denoisers)
