"""In which order a run reads the rows of its plan: arithmetic, so that no sample needs those before it.

Samples of a run count from 0; sample g is row g mod batch of step g // batch.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pretrain.data.permute import permute, unpermute


class Order(Protocol):
    @property
    def ends(self) -> int | None:
        """Samples that there are; None: no end."""
        ...

    def rows(self, samples: np.ndarray) -> np.ndarray:
        """int64, the row of the plan that each sample is."""
        ...

    def samples_of(self, rows: np.ndarray, until: int) -> np.ndarray:
        """int64, ascending: the samples below `until` that are one of these rows; the inverse of `rows`."""
        ...


@dataclass(frozen=True)
class Epochs:
    """All of `count` rows from `first` on, again and again, each time shuffled anew."""

    count: int
    seed: int | str
    shuffle: bool = True
    first: int = 0
    ends = None

    def rows(self, samples: np.ndarray) -> np.ndarray:
        epochs, places = np.divmod(samples, self.count)
        if self.shuffle:
            for epoch in set(epochs.tolist()):
                now = epochs == epoch
                places[now] = permute(places[now], self.count, seed=self.seed, epoch=epoch)
        return places + self.first

    def samples_of(self, rows: np.ndarray, until: int) -> np.ndarray:
        places = rows[(rows >= self.first) & (rows < self.first + self.count)] - self.first
        out = [np.zeros(0, np.int64)]
        for epoch in range(-(-until // self.count) if places.size else 0):
            back = unpermute(places, self.count, seed=self.seed, epoch=epoch) if self.shuffle else places
            out.append(epoch * self.count + back)
        found = np.sort(np.concatenate(out))
        return found[found < until]
