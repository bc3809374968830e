"""datatrove's rules of repeated n-grams, with the same verdicts, several times as fast.

Most documents are far below the limits. An upper bound of what an n-gram rule counts, from sorted hashes, settles it
for them; only where the bound is above the limit does datatrove's own loop count.
"""

from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters import GopherRepetitionFilter
from datatrove.utils.text import split_into_words

from pretrain.data.permute import mix

FEW = 60  # words up to which the loops are faster
ODD = 0x9E3779B97F4A7C15  # invertible modulo 2^64
INVERSE = pow(ODD, -1, 1 << 64)


class Repetition(GopherRepetitionFilter):
    def __init__(self, **limits: Any):
        super().__init__(**limits)
        self._top, self._all = tuple(self.top_n_grams), tuple(self.dup_n_grams)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        self.top_n_grams = self.dup_n_grams = ()
        verdict = super().filter(doc)  # paragraphs and lines
        if verdict is not True:
            return verdict
        words = split_into_words(doc.text, self.language)
        self.top_n_grams, self.dup_n_grams = self._top, self._all
        if len(words) > FEW:
            grams, size = _Grams(words), len(doc.text)
            self.top_n_grams = tuple((n, limit) for n, limit in self._top if grams.most_common(n) > limit * size)
            self.dup_n_grams = tuple((n, limit) for n, limit in self._all if grams.repeated(n) > limit * size)
            if not self.top_n_grams and not self.dup_n_grams:
                return True
        return super().filter(doc)


class _Grams:
    def __init__(self, words: list[str]):
        codes = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
        self.ends = np.cumsum([0, *map(len, words)])
        powers = np.full(len(codes), ODD, np.uint64)
        powers[:1] = 1
        self._sums = np.zeros(len(words) + 1, np.uint64)
        sums = np.cumsum(mix(codes + np.uint64(1)) * np.cumprod(powers))
        self._sums[1:] = np.where(self.ends[1:] > 0, sums[np.maximum(self.ends[1:] - 1, 0)], 0)
        back = np.full(len(codes) + 1, INVERSE, np.uint64)
        back[0] = 1
        self._back = np.cumprod(back)[self.ends]

    def _hashes(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the characters of each run of n words, and how many characters that are."""
        hashes = (self._sums[n:] - self._sums[:-n]) * self._back[:-n]
        return hashes, self.ends[n:] - self.ends[:-n]

    def most_common(self, n: int) -> int:
        """At least the characters of all copies of the most frequent run, with a blank between two words."""
        hashes, sizes = self._hashes(n)
        if not len(hashes):
            return 0
        _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        most = counts.max()
        return int(most * (sizes[counts[inverse] == most].max() + n - 1))

    def repeated(self, n: int) -> int:
        """At least the characters of runs that stood before: of all words in such a run."""
        hashes, _ = self._hashes(n)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        again = order[1:][ordered[1:] == ordered[:-1]]
        edges = np.zeros(len(self.ends), np.int64)
        edges[again] = 1  # at most one run begins at a word
        edges[again + n] -= 1
        return int(np.diff(self.ends)[np.cumsum(edges)[:-1] > 0].sum())
