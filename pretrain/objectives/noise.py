"""Documents with noise in them, to be written as they were (BART, Lewis et al. 2020, section 2.2)."""

from dataclasses import dataclass

import numpy as np

from pretrain.data.draws import Draws
from pretrain.data.pack import counted, segmented
from pretrain.data.plan import Plan, Windows
from pretrain.data.rows import Batch, Raw
from pretrain.data.vocabulary import Vocabulary
from pretrain.data.windows import Split
from pretrain.objectives.config_writing import Denoising
from pretrain.objectives.layout import positions_of, starting


@dataclass(frozen=True)
class NoisyRows:
    """Windows of the stream, documents apart: the encoder reads each with noise, the decoder writes each anew.

    In this order: sentences are permuted, documents rotated, spans infilled, tokens deleted and masked. Special tokens
    stay where they are.
    """

    length: int
    config: Denoising
    vocabulary: Vocabulary
    mask: int
    start: int

    @property
    def room(self) -> int:
        return self.length

    def plan(self, split: Split) -> Plan:
        return Windows(split.tokens, self.length)

    def __call__(self, raw: Raw) -> Batch:
        starts, c, T = raw.starts[:, : self.length], self.config, self.length
        segments, positions = segmented(starts, raw.lengths)
        tokens, there = raw.tokens[:, :T] * (segments > 0), segments > 0
        text = there & ~self.vocabulary.is_special(tokens)
        draws = raw.draws
        order = self._permuted(tokens, starts, segments, positions, text, draws)
        noisy, text = np.take_along_axis(tokens, order, axis=1), np.take_along_axis(text, order, axis=1)
        noisy = noisy if c.rotate == 0 else _rotated(noisy, text, segments, positions, c.rotate, draws)
        hidden, inserted = infilled(text, segments, c.infill, c.mean, draws)
        u = np.where(text & ~hidden, draws.uniform("token", T), 1.0)
        deleted = _not_all(u < c.delete, segments, positions)
        noisy[(u >= c.delete) & (u < c.delete + c.mask_tokens)] = self.mask
        before = np.where(inserted, self.mask, -1)
        at = np.where(hidden, np.where(_first(hidden, segments), self.mask, -1), np.where(there & ~deleted, noisy, -1))
        read, read_segments = _emitted(before, at, segments)
        return {
            "encoder_tokens": read,
            "encoder_segments": read_segments,
            "encoder_positions": positions_of(read_segments),
            "tokens": starting(tokens, positions, self.start) * there,
            "segments": segments,
            "positions": positions,
            "targets": tokens,
            "weights": there.astype(np.float32),
        }

    def _permuted(self, tokens, starts, segments, positions, text, draws: Draws) -> np.ndarray:
        """int64 [B, T]: which token comes to each place when documents' sentences are permuted."""
        T = self.length
        place = np.arange(T)
        document = place - positions  # where it begins
        sentence = np.maximum.accumulate(np.where(self.vocabulary.sentences(tokens, starts), place, 0), axis=1)
        permuted = np.take_along_axis(draws.uniform("permute", T), document, axis=1) < self.config.permute
        rank = np.take_along_axis(draws.uniform("sentence", T), sentence, axis=1)
        # Special tokens lead or end their document; padding ends the row.
        rank = np.where(text, 1 + rank * permuted, np.where(positions == 0, 0, 3))
        return np.argsort(np.where(segments > 0, 4.0 * segments + rank, np.inf), axis=1, kind="stable")


def _rotated(tokens, text, segments, positions, rate: float, draws: Draws) -> np.ndarray:
    """Some documents begin with any of their tokens, the part before it behind."""
    T = tokens.shape[1]
    place, n = np.arange(T), counted(text, segments)
    document = place - positions
    before = np.cumsum(text, axis=1) - text
    q = before - np.take_along_axis(before, document, axis=1)  # number of the token in its document's text
    turned = np.take_along_axis(draws.uniform("rotate", T), document, axis=1) < rate
    by = (np.take_along_axis(draws.uniform("turn", T), document, axis=1) * n).astype(np.int64)
    source = np.where(text & turned, place - q + (q + by) % np.maximum(n, 1), place)
    return np.take_along_axis(tokens, source, axis=1)


def infilled(
    text: np.ndarray, segments: np.ndarray, rate: float, mean: float, draws: Draws
) -> tuple[np.ndarray, np.ndarray]:
    """(hidden, inserted), bool [B, T]: tokens hidden in spans, and tokens before which a mask is put although none is.

    Span lengths are Poisson and add up to the rate's share of the row's text; spans of length 0 hide nothing. Spans lie
    anywhere, at least one token of text apart; one that reaches into another document becomes two.
    """
    B, T = text.shape
    n_B = text.sum(1)
    many_B = (n_B * rate + 0.5).astype(np.int64)
    lengths, there = _span_lengths(many_B, n_B, mean, draws, int(2 * T * rate / mean) + 32)
    kept_B = n_B - lengths.sum(1)
    slot = np.where(np.arange(T + 1) <= kept_B[:, None], draws.uniform("slot", T + 1), 2.0)
    slot = np.argsort(slot, axis=1, kind="stable")[:, : lengths.shape[1]]
    slot = np.sort(np.where(there[:, : slot.shape[1]], slot, T + 1), axis=1)
    lengths, there = lengths[:, : slot.shape[1]], there[:, : slot.shape[1]]
    begin = slot + np.cumsum(lengths, axis=1) - lengths  # counted in tokens of text
    rows = np.broadcast_to(np.arange(B)[:, None], begin.shape)
    edges = np.zeros((B, 2 * T + 2), np.int64)
    np.add.at(edges, (rows[there], begin[there]), 1)
    np.add.at(edges, (rows[there], (begin + lengths)[there]), -1)
    empty = there & (lengths == 0)
    alone = np.zeros((B, 2 * T + 2), bool)
    alone[rows[empty], begin[empty]] = True
    number = np.cumsum(text, axis=1) - 1
    hidden = text & np.take_along_axis(np.cumsum(edges, axis=1) > 0, number, axis=1)
    inserted = text & np.take_along_axis(alone, number, axis=1)
    free_B = hidden.sum(1) - _first(hidden, segments).sum(1)  # places that hidden tokens leave
    return hidden, inserted & (np.cumsum(inserted, axis=1) <= free_B[:, None])


def _span_lengths(many_B, n_B, mean: float, draws: Draws, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(lengths, there) [B, most]: the first lengths that add up to so many tokens, as there are places for them."""
    lengths = _poisson(mean, draws.uniform("length", most))
    before = np.cumsum(lengths, axis=1) - lengths
    lengths = np.minimum(lengths, np.maximum(many_B[:, None] - before, 0))
    there = (before < many_B[:, None]) & (np.arange(most) <= (n_B - many_B)[:, None])
    return lengths * there, there


def _poisson(mean: float, u: np.ndarray) -> np.ndarray:
    """The distribution's quantiles."""
    p, table = np.exp(-mean), []
    while len(table) < mean or p > 2.0**-60:
        table.append(p)
        p *= mean / len(table)
    return np.searchsorted(np.cumsum(table)[:-1], u, "right")


def _first(hidden: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Where a run of hidden tokens begins; another document begins another."""
    first = hidden.copy()
    first[:, 1:] &= ~(hidden[:, :-1] & (segments[:, 1:] == segments[:, :-1]))
    return first


def _not_all(deleted: np.ndarray, segments: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Without the first token of a document of which nothing would be left."""
    if not deleted.any():
        return deleted
    nothing = counted(~deleted & (segments > 0), segments) == 0
    return deleted & ~(nothing & (positions == 0))


def _emitted(before: np.ndarray, at: np.ndarray, segments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two tokens for each place, in order, those below 0 left out: (tokens, segments), int32 [B, T]."""
    B, T = at.shape
    both = np.stack([before, at], axis=2).reshape(B, 2 * T)
    there = both >= 0
    to = np.cumsum(there, axis=1) - 1
    rows, places = np.nonzero(there)
    tokens, out = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    tokens[rows, to[rows, places]] = both[rows, places]
    out[rows, to[rows, places]] = segments[rows, places // 2]
    return tokens, out
