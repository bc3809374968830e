"""Several parts of a corpus read side by side in exact proportions (its config: `config_mixture`).

In a stretch of constant weights, a fixed pattern deals the samples to the parts so that after any number of them each
part is less than one sample away from its share (a schedule of Baruah et al. 1996: every sample of a part has a window
of time, the earliest deadline goes first). A part's own samples are numbered through all stretches, so that another
weight from some step on changes nothing that was drawn before and repeats nothing after.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np

from pretrain.data.config_mixture import Mixture
from pretrain.data.order import Epochs
from pretrain.errors import UserError

PERIOD = 1 << 16
"""Samples of the longest pattern: weights that would need a longer one are rounded to multiples of 1 / PERIOD."""
STAIRS = 32
"""Of a weight that changes over many steps."""


@dataclass(frozen=True)
class Part:
    """A named part of a split: its rows are neighbours in the plan."""

    name: str
    first: int
    rows: int
    tokens: int


@dataclass(frozen=True)
class Stretch:
    """Samples from `begin` on with one pattern."""

    begin: int
    pattern: "Pattern"
    taken: tuple[int, ...]
    """Samples of each part before it."""


@dataclass(frozen=True)
class Pattern:
    turns: np.ndarray
    """int32 [period], whose turn it is."""
    ranks: np.ndarray
    """int64 [period], how many turns that part had before in the period."""
    counts: np.ndarray
    """int64 [parts], turns in a period."""

    def before(self, samples: int) -> np.ndarray:
        """Turns of each part among so many first samples."""
        periods, rest = divmod(samples, len(self.turns))
        return periods * self.counts + np.bincount(self.turns[:rest], minlength=len(self.counts))

    def reach(self, part: int, turns: int) -> int:
        """The number of samples with which a part has had so many turns."""
        periods, rest = divmod(turns - 1, int(self.counts[part]))
        return periods * len(self.turns) + int(np.flatnonzero(self.turns == part)[rest]) + 1


@lru_cache(maxsize=256)
def pattern(counts: tuple[int, ...]) -> Pattern:
    """The turns of parts that have so many each in a period."""
    total, taken = sum(counts), [0] * len(counts)
    turns, ranks = np.zeros(total, np.int32), np.zeros(total, np.int64)
    waiting = [(0, part) for part, n in enumerate(counts) if n]
    ready: list[tuple[int, int]] = []
    for t in range(total):
        while waiting and waiting[0][0] <= t:
            _, part = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(taken[part] + 1) * total // counts[part]), part))
        _, part = heapq.heappop(ready)
        turns[t], ranks[t] = part, taken[part]
        taken[part] += 1
        if taken[part] < counts[part]:
            heapq.heappush(waiting, (taken[part] * total // counts[part], part))
    return Pattern(turns, ranks, np.array(counts, np.int64))


def shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Turns of each part in the shortest period that has the weights' proportions, or nearly, where it would be longer
    than PERIOD."""
    exact = [Fraction(str(w)) for w in weights]
    unit = math.lcm(*(f.denominator for f in exact))
    counts = [int(f * unit) for f in exact]
    divisor = math.gcd(*counts)
    counts = [n // divisor for n in counts]
    if sum(counts) <= PERIOD:
        return tuple(counts)
    ideal = np.array(weights, float) / sum(weights) * PERIOD
    rounded = np.maximum(np.floor(ideal), np.array(weights) > 0).astype(np.int64)
    while (missing := PERIOD - int(rounded.sum())) != 0:
        place = np.argmax((ideal - rounded) * np.sign(missing))
        rounded[place] += np.sign(missing)
    return tuple(int(n) for n in rounded)


class Mixed:
    """The order of a run that reads several parts. Raises UserError for names that the corpus does not have."""

    def __init__(self, mixture: Mixture, parts: Sequence[Part], *, batch: int, seed: int, shuffle: bool):
        self.parts, self.mixture, self.batch = tuple(parts), mixture, batch
        self._orders = [Epochs(part.rows, f"{seed}:{part.name}", shuffle, part.first) for part in parts]
        _check_names(mixture, [part.name for part in parts])
        if empty := [part.name for part in parts if not part.rows]:
            raise UserError(f"data.mixture: the part {empty[0]} makes no row, expected some; prepare more text of it")

    @cached_property
    def stretches(self) -> list[Stretch]:
        """In order; the last one has no end, or no part has anything left."""
        return self._planned[0]

    @property
    def ends(self) -> int | None:
        return self._planned[1]

    @cached_property
    def _planned(self) -> tuple[list[Stretch], int | None]:
        steps = weights_over_steps(self.mixture, self.parts)
        limits = self._limits()
        taken, out = np.zeros(len(self.parts), np.int64), []
        for (step, weights), (until, _) in zip(steps, [*steps[1:], (None, None)]):
            at, end = step * self.batch, None if until is None else until * self.batch
            while end is None or at < end:
                now = np.where(taken < limits, weights, 0.0)
                if not now.any():
                    return out, at
                turns = pattern(shares(now.tolist()))
                out.append(Stretch(at, turns, tuple(taken.tolist())))
                left = [
                    turns.reach(i, int(limits[i] - taken[i]))
                    for i, w in enumerate(now)
                    if w and limits[i] < np.iinfo(np.int64).max
                ]
                stop = min([at + n for n in left] + ([] if end is None else [end]), default=None)
                if stop is None:
                    return out, None
                taken = taken + turns.before(stop - at)
                at = stop
        raise AssertionError("the last weights have no end")

    def _limits(self) -> np.ndarray:
        caps = {cap.name: cap.epochs for cap in self.mixture.caps}
        never = np.iinfo(np.int64).max
        return np.array([int(caps[p.name] * p.rows) if p.name in caps else never for p in self.parts])

    def turns(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(part, its own sample) of each."""
        begins = np.array([s.begin for s in self.stretches])
        if self.ends is not None and samples.size and int(samples.max()) >= self.ends:
            raise UserError(f"found sample {int(samples.max())}, the mixture ends with {self.ends}; raise its caps")
        places = np.searchsorted(begins, samples, "right") - 1
        parts, own = np.zeros(samples.shape, np.int64), np.zeros(samples.shape, np.int64)
        for place in np.unique(places):
            now, s = places == place, self.stretches[place]
            periods, rest = np.divmod(samples[now] - s.begin, len(s.pattern.turns))
            part = s.pattern.turns[rest]
            parts[now] = part
            own[now] = np.array(s.taken)[part] + periods * s.pattern.counts[part] + s.pattern.ranks[rest]
        return parts, own

    def rows(self, samples: np.ndarray) -> np.ndarray:
        parts, own = self.turns(samples)
        out = np.zeros(samples.shape, np.int64)
        for part in np.unique(parts):
            out[parts == part] = self._orders[part].rows(own[parts == part])
        return out

    def samples_of(self, rows: np.ndarray, until: int) -> np.ndarray:
        out, ends = [np.zeros(0, np.int64)], [*(s.begin for s in self.stretches[1:]), self.ends]
        for part, order in enumerate(self._orders):
            for s, end in zip(self.stretches, ends):
                stop = until if end is None else min(end, until)
                if s.begin >= stop or not s.pattern.counts[part]:
                    continue
                own = order.samples_of(rows, s.taken[part] + int(s.pattern.before(stop - s.begin)[part]))
                periods, ranks = np.divmod(own[own >= s.taken[part]] - s.taken[part], s.pattern.counts[part])
                out.append(s.begin + periods * len(s.pattern.turns) + np.flatnonzero(s.pattern.turns == part)[ranks])
        return np.sort(np.concatenate(out))


def weights_over_steps(mixture: Mixture, parts: Sequence[Part]) -> list[tuple[int, np.ndarray]]:
    """(first step, weight of each part), stairs where weights change slowly."""
    if not mixture.phases:
        return [(0, np.array([float(part.tokens) for part in parts]) ** (1 / mixture.temperature))]
    out: list[tuple[int, np.ndarray]] = []
    for phase in mixture.phases:
        given = {w.name: w.weight for w in phase.weights}
        new = np.array([given.get(part.name, 0.0) for part in parts])
        if phase.ramp:
            old, stairs = out[-1][1], min(STAIRS, phase.ramp)
            for i in range(1, stairs):
                mixed = old / old.sum() * (1 - i / stairs) + new / new.sum() * (i / stairs)
                out.append((phase.step + (i - 1) * phase.ramp // (stairs - 1), np.round(mixed, 3)))
            out.append((phase.step + phase.ramp, new))
        else:
            out.append((phase.step, new))
    return out


def continued(old: Mixture | None, new: Mixture | None, step: int) -> bool:
    """Whether both draw the same until `step`, so that a run may go on from there with the new one."""
    if old is None or new is None:
        return old == new

    def until(mixture: Mixture) -> Mixture:
        return replace(mixture, phases=tuple(p for p in mixture.phases if p.step < step))

    return bool(old.phases) and bool(new.phases) and until(old) == until(new)


def _check_names(mixture: Mixture, names: list[str]) -> None:
    asked = {w.name for phase in mixture.phases for w in phase.weights} | {cap.name for cap in mixture.caps}
    if unknown := sorted(asked - set(names)):
        raise UserError(
            f"data.mixture: found {', '.join(map(repr, unknown))}, expected names of the corpus: {', '.join(names)}; "
            "correct it, or add the source to data.corpus.source.parts"
        )
