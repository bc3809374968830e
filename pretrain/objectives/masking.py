"""Rows in which some tokens are hidden and asked for (BERT, Devlin et al. 2019; ELECTRA, Clark et al. 2020)."""

from dataclasses import dataclass

import numpy as np

from pretrain.data.draws import Draws
from pretrain.data.pack import segmented
from pretrain.data.plan import Plan, Windows
from pretrain.data.rows import Batch, Raw
from pretrain.data.vocabulary import Vocabulary
from pretrain.data.windows import Split
from pretrain.objectives.config import Masking


@dataclass(frozen=True)
class Mask:
    """A rule of masking, resolved for a tokenizer."""

    config: Masking
    vocabulary: Vocabulary
    mask: int

    def questions(self, length: int) -> int:
        """Tokens asked for in a full row."""
        return max(1, int(length * self.config.rate + 0.5))

    def __call__(self, tokens: np.ndarray, starts: np.ndarray, segments: np.ndarray, draws: Draws) -> Batch:
        """New `tokens` [B, T] with `places`, `targets` and `weights` [B, K], in the order of the row.

        Of the tokens that are not special, the rate's share is chosen, at least one. Of those, `masked` become the
        mask, `random` a random token, the others stay.
        """
        c, K = self.config, self.questions(tokens.shape[1])
        free = (segments > 0) & ~self.vocabulary.is_special(tokens)
        free_B = free.sum(1)
        wanted_B = np.minimum(np.maximum((free_B * c.rate + 0.5).astype(np.int64), 1), np.minimum(free_B, K))
        if c.whole_words:
            chosen = _words(self.vocabulary.words(tokens, starts), free, wanted_B, draws)
        else:
            chosen = _tokens(free, wanted_B, draws)
        rows, at = np.nonzero(chosen)
        k = (np.cumsum(chosen, axis=1) - 1)[rows, at]
        places, weights = np.zeros((len(tokens), K), np.int32), np.zeros((len(tokens), K), np.float32)
        targets, tokens = np.zeros_like(places), tokens.copy()
        places[rows, k], weights[rows, k], targets[rows, k] = at, 1, tokens[rows, at]
        u = draws.uniform("replace", K)[rows, k]
        ordinary = self.vocabulary.ordinary
        drawn = ordinary[(draws.uniform("random token", K)[rows, k] * len(ordinary)).astype(np.int64)]
        kept = np.where(u < c.masked + c.random, drawn, tokens[rows, at])
        tokens[rows, at] = np.where(u < c.masked, self.mask, kept)
        return {"tokens": tokens, "targets": targets, "weights": weights, "places": places}


def _tokens(free: np.ndarray, wanted_B: np.ndarray, draws: Draws) -> np.ndarray:
    """So many of the free tokens of each row, all subsets equally likely."""
    rank = np.where(free, draws.uniform("chosen", free.shape[1]), 2.0)
    order = np.argsort(rank, axis=1, kind="stable")
    chosen = np.zeros_like(free)
    np.put_along_axis(chosen, order, np.arange(free.shape[1]) < wanted_B[:, None], axis=1)
    return chosen


def _words(begins: np.ndarray, free: np.ndarray, wanted_B: np.ndarray, draws: Draws) -> np.ndarray:
    """At most so many free tokens, all of each word they are of: words in random order, as long as they fit."""
    B, T = free.shape
    begins = begins & free
    word = np.cumsum(begins, axis=1) - 1
    word[~free] = T  # behind all others
    counts = np.zeros((B, T + 1), np.int64)
    np.add.at(counts, (np.arange(B)[:, None], word), 1)
    sizes = counts[:, :T]
    order = np.argsort(np.where(sizes > 0, draws.uniform("chosen", T), 2.0), axis=1, kind="stable")
    left, taken = wanted_B.copy(), np.zeros((B, T + 1), bool)
    rows = np.arange(B)
    for i in range(int((sizes > 0).sum(1).max(initial=0))):
        at = order[:, i]
        size = sizes[rows, at]
        fits = (size <= left) & (size > 0)
        taken[rows, at] = fits
        left -= size * fits
        if not left.any():
            break
    return np.take_along_axis(taken, word, axis=1)


@dataclass(frozen=True)
class MaskedRows:
    """Windows of the stream, documents apart, masked."""

    length: int
    mask: Mask

    @property
    def room(self) -> int:
        return self.length

    def plan(self, split: Split) -> Plan:
        return Windows(split.tokens, self.length)

    def __call__(self, raw: Raw) -> Batch:
        starts = raw.starts[:, : self.length]
        segments, positions = segmented(starts, raw.lengths)
        tokens = raw.tokens[:, : self.length] * (segments > 0)
        asked = self.mask(tokens, starts, segments, raw.draws)
        return {**asked, "positions": positions, "segments": segments}
