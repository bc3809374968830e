"""How much of each part of a corpus a run reads, and when: values only."""

from dataclasses import dataclass

Checks = tuple[tuple[bool, str], ...]


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Of a named source; only the ratios matter."""

    name: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Cap:
    """A named source is read at most so many times; then the others share its place."""

    name: str
    epochs: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Weights from a step on, until the next phase; a source that is not named rests."""

    weights: tuple[Weight, ...]
    step: int = 0
    """Finished steps before it."""
    ramp: int = 0
    """Steps over which the weights move from those before to these, linearly, in at most 32 stairs."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Rows of the sources of `Sources` side by side, in exact proportions."""

    phases: tuple[Phase, ...] = ()
    """None: weights by size, see `temperature`."""
    temperature: float = 1.0
    """Without phases a source of n tokens weighs n ** (1 / temperature): above 1, small ones come more often
    (Devlin's multilingual BERT; Xue et al. 2021, section 3.1)."""
    caps: tuple[Cap, ...] = ()

    def checks(self) -> Checks:
        steps = [phase.step for phase in self.phases]
        weights = [[w.weight for w in phase.weights] for phase in self.phases]
        names = [[w.name for w in phase.weights] for phase in self.phases] + [[cap.name for cap in self.caps]]
        ends = [phase.step + phase.ramp for phase in self.phases]
        return (
            (self.temperature > 0, f"temperature={self.temperature}: expected a positive number; 1 is by size"),
            (not steps or steps[0] == 0, f"phases.0.step={steps[:1]}: expected 0, where the run begins"),
            (
                all(a <= b and s < b for a, s, b in zip(ends, steps, steps[1:])),
                f"phases: found steps {steps}, expected each after the one before and its ramp",
            ),
            (
                all(phase.ramp >= 0 for phase in self.phases) and not (self.phases and self.phases[0].ramp),
                "phases: found a ramp below 0 or in the first phase, expected weights to come from; set it to 0",
            ),
            (
                all(w >= 0 for row in weights for w in row) and all(any(row) for row in weights),
                "phases: found weights below 0 or none above it, expected a positive one in each phase",
            ),
            (all(len(set(row)) == len(row) for row in names), "found a name twice, expected each once"),
            (all(cap.epochs > 0 for cap in self.caps), "caps: found epochs of 0 or less, expected a positive number"),
            (
                not self.phases or self.temperature == 1,
                f"temperature={self.temperature}: phases give the weights; leave one of them out",
            ),
        )
