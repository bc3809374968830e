"""Span corruption (T5, Raffel et al. 2020) and mixtures of it (UL2, Tay et al. 2022)."""

from dataclasses import dataclass

import numpy as np

from pretrain.data.draws import Draws
from pretrain.data.pack import moved_left
from pretrain.data.plan import Plan, Windows
from pretrain.data.rows import Batch, Raw
from pretrain.data.windows import Split
from pretrain.objectives.layout import Beside, Joined, Text
from pretrain.objectives.lengths import Denoises, hidden


@dataclass(frozen=True)
class SpanRows:
    """Windows of the stream, each read as one text as in T5, corrupted by one of the denoisers."""

    room: int
    denoisers: tuple[Denoises, ...]
    shares: tuple[float, ...]
    """Of the rows, for each denoiser."""
    modes: tuple[int | None, ...]
    """The token that a denoiser's input begins with."""
    sentinels: np.ndarray
    """int32, in the order of the spans."""
    eos: int
    layout: Beside | Joined

    def plan(self, split: Split) -> Plan:
        return Windows(split.tokens, self.room)

    def __call__(self, raw: Raw) -> Batch:
        chosen, noise = self._chosen(raw), np.zeros((len(raw.lengths), self.room), bool)
        for d, n in sorted({(d, n) for d, n in zip(chosen.tolist(), raw.lengths.tolist()) if n > 1}):
            rows = (chosen == d) & (raw.lengths == n)
            noise[rows, :n] = noise_mask(n, self.denoisers[d], raw.draws[rows])
        tokens, there = raw.tokens[:, :-1], (np.arange(self.room) < raw.lengths[:, None]) & (raw.lengths > 1)[:, None]
        lead = np.array([-1 if m is None else m for m in self.modes])[chosen]
        read = self._ended(*_with_sentinels(tokens, there & ~noise, there & noise, self.sentinels), lead)
        written = self._ended(*_with_sentinels(tokens, noise, there & ~noise, self.sentinels), np.full(len(lead), -1))
        return self.layout(read, written)

    def _chosen(self, raw: Raw) -> np.ndarray:
        """The denoiser of each row."""
        ends = np.cumsum(self.shares) / sum(self.shares)
        return np.searchsorted(ends[:-1], raw.draws.uniform("denoiser", 1)[:, 0], "right")

    def _ended(self, tokens: np.ndarray, n: np.ndarray, lead: np.ndarray) -> Text:
        """With eos behind and, where `lead` is an id, that in front; rows without a token stay so."""
        row, at = np.zeros((len(n), tokens.shape[1] + 2), np.int32), np.arange(len(n))
        plain = lead < 0
        row[plain, :-2], row[~plain, 1:-1], row[~plain, 0] = tokens[plain], tokens[~plain], lead[~plain]
        end = n + ~plain
        row[at, end] = self.eos
        return Text(row, (end + 1) * (n > 0))


def _with_sentinels(tokens, kept: np.ndarray, gone: np.ndarray, sentinels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is kept of each row, each run that is gone a sentinel in its place; and how many tokens that is."""
    first = gone.copy()
    first[:, 1:] &= ~gone[:, :-1]
    number = np.minimum(np.cumsum(first, axis=1) - 1, len(sentinels) - 1)
    values = np.where(first, sentinels[number], tokens)
    (out,) = moved_left(kept | first, values)
    return out, (kept | first).sum(1)


def noise_mask(n: int, denoiser: Denoises, draws: Draws) -> np.ndarray:
    """bool [B, n]: the tokens that are hidden. Each row begins with a token that stays and ends with one that does not.

    With a mean length, the numbers of hidden tokens and of spans are exact and all divisions into spans equally likely
    (T5's `random_spans_noise_mask`); without, one span reaches to the end, and any length is as likely.
    """
    many, spans = hidden(n, denoiser)
    if denoiser.mean is None:
        last = 1 + draws.below("last", np.full((len(draws.keys), 1), many))
        return np.arange(n) >= n - last
    stay, go = divided(n - many, spans, draws, "stay"), divided(many, spans, draws, "go")
    edges = np.cumsum(np.stack([stay, go], axis=2).reshape(len(stay), -1), axis=1)[:, :-1]
    begins = np.zeros((len(edges), n), np.int64)
    np.put_along_axis(begins, edges, 1, axis=1)
    return np.cumsum(begins, axis=1) % 2 == 1


def divided(items: int, parts: int, draws: Draws, name: str) -> np.ndarray:
    """int64 [B, parts]: sizes of at least 1 that add up to `items`, all divisions equally likely."""
    order = np.argsort(draws.uniform(name, items - 1), axis=1, kind="stable")[:, : parts - 1]
    cuts = np.sort(order + 1, axis=1)
    edges = np.pad(cuts, ((0, 0), (1, 1)), constant_values=((0, 0), (0, items)))
    return np.diff(edges, axis=1)
