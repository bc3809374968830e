"""What a run does about losses that jump, hardware that miscounts and processes that hang. No jax here."""

from dataclasses import dataclass, field

Checks = tuple[tuple[bool, str], ...]


@dataclass(frozen=True, kw_only=True)
class Warn:
    """A spike is an event and nothing else."""


@dataclass(frozen=True, kw_only=True)
class Skip:
    """The update of a spike, or of a batch that is not finite, is left out (SkipStepOptimizer of OLMo-core)."""

    in_a_row: int = 10
    """More of them one after another stop the run."""

    def checks(self) -> Checks:
        return ((self.in_a_row > 0, f"in_a_row={self.in_a_row}: expected a positive number of steps"),)


@dataclass(frozen=True, kw_only=True)
class Rewind:
    """Back to a checkpoint before the spike, on without the batches around it (PaLM, Chowdhery et al. 2022, 5.1)."""

    back: int = 100
    """From the newest checkpoint at least so many steps before the spike."""
    skip: int = 200
    """Batches left out from there on: those before the spike, the spike's and later ones. PaLM: 200 to 500."""
    most: int = 10
    """More spikes than this stop the run."""

    def checks(self) -> Checks:
        return (
            (self.back > 0, f"back={self.back}: expected a positive number of steps"),
            (
                self.skip >= self.back,
                f"skip={self.skip}: would train on the spike again; expected back={self.back} or more",
            ),
            (self.most > 0, f"most={self.most}: expected a positive number of spikes"),
        )


@dataclass(frozen=True, kw_only=True)
class LowerLr:
    """The learning rate times `factor` in the steps after a spike."""

    factor: float = 0.1
    steps: int = 100

    def checks(self) -> Checks:
        return (
            (0 <= self.factor < 1, f"factor={self.factor}: expected 0 or more, below 1"),
            (self.steps > 0, f"steps={self.steps}: expected a positive number of steps"),
        )


@dataclass(frozen=True, kw_only=True)
class Stop:
    """The run stops before the spike is saved."""


Policy = Warn | Skip | Rewind | LowerLr | Stop


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    policy: Policy = field(default_factory=Warn)
    """What a spike leads to."""
    window: int = 128
    """Steps whose losses and gradient norms say what is usual; half of them are seen before anything is judged."""
    sigmas: float = 6.0
    """Standard deviations above the mean of the window that make a spike. Both defaults are those of OLMo-core."""
    compare_every: int | None = 100
    """Steps between comparisons of fingerprints, across replicas and across the pause before a step; None: none."""
    recompute_every: int | None = 1000
    """Steps between those that are computed twice and must be equal bit for bit; None: none."""
    hang_seconds: float | None = 1800.0
    """So long without a finished step, and the process writes all stacks and ends with code 75; compiling, evaluating,
    saving and restoring have four times as long. None: it waits."""

    def checks(self) -> Checks:
        every = {"compare_every": self.compare_every, "recompute_every": self.recompute_every}
        return (
            (self.window > 1, f"window={self.window}: expected at least 2 steps"),
            (self.sigmas > 0, f"sigmas={self.sigmas}: expected a positive number"),
            *(
                (n is None or n > 0, f"{name}={n}: expected a positive number of steps, or None")
                for name, n in every.items()
            ),
            (
                self.hang_seconds is None or self.hang_seconds > 0,
                f"hang_seconds={self.hang_seconds}: expected a positive number, or None",
            ),
        )
