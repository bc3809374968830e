"""Rows [CLS] A [SEP] B [SEP] with a label: does B follow A (BERT), or are they in order (ALBERT)?"""

from dataclasses import dataclass

import numpy as np

from pretrain.data.draws import Draws
from pretrain.data.pack import moved_left
from pretrain.data.plan import Chunks, Plan
from pretrain.data.rows import Batch, Raw
from pretrain.data.windows import Split
from pretrain.objectives.config import Sentences
from pretrain.objectives.masking import Mask

FRAME = 3
"""Tokens of a row that are not text."""


@dataclass(frozen=True)
class SentenceRows:
    """A row is a part of one document, cut in two between sentences, at random where it has no second sentence.

    next: label 1 in half of the rows, whose B is of another document, from the beginning of a sentence on (Devlin et
    al. 2019, appendix A.2). order: label 1 in half of the rows, whose halves are exchanged (Lan et al. 2020, section
    3.1). A row that cannot be cut has a B of another document, or no label.
    """

    length: int
    config: Sentences
    mask: Mask
    cls: int
    sep: int

    @property
    def room(self) -> int:
        return self.length - FRAME

    def plan(self, split: Split) -> Plan:
        return Chunks(split.document_lengths(), self.room, paired=self.config.kind == "next")

    def __call__(self, raw: Raw) -> Batch:
        text, n = self._text(raw)
        n = _shortened(n, self.room, self.config.short, raw.draws)
        cut = self._cut(text, n, "cut", raw.draws)
        one = raw.draws.uniform("label", 1)[:, 0] < 0.5
        zeros = np.zeros_like(n)
        if self.config.kind == "next":
            assert raw.others is not None
            other, m = self._text(raw.others)
            begin = self._cut(other, m, "other", raw.draws, first=0)
            one |= n < 2
            labels = one.astype(np.int32)
            a_begin, a_n = zeros, np.where(n < 2, n, cut)
            b_begin = np.where(one, self.room + begin, cut)
            b_n = np.where(one, np.minimum(m - begin, self.room - a_n), n - cut)
            text = np.concatenate([text, other], axis=1)
        else:
            one &= n >= 2
            labels = np.where(n < 2, -1, one).astype(np.int32)
            a_begin, a_n = np.where(one, cut, zeros), np.where(one, n - cut, cut)
            b_begin, b_n = np.where(one, zeros, cut), np.where(one, cut, n - cut)
        return self._framed(text, (a_begin, a_n), (b_begin, b_n), labels, n, raw.draws)

    def _text(self, raw: Raw) -> tuple[np.ndarray, np.ndarray]:
        """The rows' tokens without bos and eos, and how many."""
        there = np.arange(self.room) < raw.lengths[:, None]
        keep = there & ~self.mask.vocabulary.is_special(raw.tokens[:, : self.room])
        (text,) = moved_left(keep, raw.tokens[:, : self.room])
        return text, keep.sum(1)

    def _cut(self, text: np.ndarray, n: np.ndarray, name: str, draws: Draws, first: int = 1) -> np.ndarray:
        """Where a random sentence begins, from `first` to n - 1; any token where none does."""
        place = np.arange(self.room)
        begins = self.mask.vocabulary.sentences(text, np.zeros(text.shape, bool))
        begins &= (place >= first) & (place < n[:, None])
        rank = np.where(begins, draws.uniform(name, self.room), -1.0)
        anywhere = first + draws.below(f"{name} anywhere", np.maximum(n - first, 1)[:, None])[:, 0]
        return np.where(begins.any(1), rank.argmax(1), np.minimum(anywhere, n))

    def _framed(self, text: np.ndarray, a, b, labels: np.ndarray, n: np.ndarray, draws: Draws) -> Batch:
        (a_begin, a_n), (b_begin, b_n) = ((x[:, None] for x in part) for part in (a, b))
        p = np.arange(self.length)
        in_a, in_b = (p >= 1) & (p <= a_n), (p >= a_n + 2) & (p < a_n + 2 + b_n)
        at = np.where(in_a, a_begin + p - 1, 0) + np.where(in_b, b_begin + p - a_n - 2, 0)
        tokens = np.take_along_axis(text, at, axis=1)
        tokens = np.where(in_a | in_b, tokens, np.where(p == 0, self.cls, self.sep))
        there = (p < a_n + b_n + FRAME) & (n[:, None] > 0)
        segments = there.astype(np.int32)
        first = (p == 1) | (p == a_n + 2)
        asked = self.mask((tokens * there).astype(np.int32), first, segments * (in_a | in_b), draws)
        types = (there & (p >= a_n + 2)).astype(np.int32)
        return {**asked, "segments": segments, "types": types, "labels": labels}


def _shortened(n: np.ndarray, room: int, rate: float, draws: Draws) -> np.ndarray:
    """Some rows are cut to a random length, so that a model trained on full rows knows short ones (Devlin et al.)."""
    short = draws.uniform("short", 1)[:, 0] < rate
    limit = 2 + draws.below("limit", np.full((len(n), 1), max(room - 1, 1)))[:, 0]
    return np.where(short, np.minimum(n, limit), n)
