"""An optimizer as a value: what moves the parameters, how fast, and which parameters are treated differently.

Nothing here imports jax. `pretrain.errors.check` collects the `checks` of the whole tree.
"""

import re
from dataclasses import dataclass
from typing import Literal

Checks = tuple[tuple[bool, str], ...]
StateDtype = Literal["float32", "bfloat16"]
"""Of the operands of a matrix product."""
Stored = Literal["float32", "bfloat16", "bfloat16_stochastic"]
"""How a moment is stored. Arithmetic is f32 always. bfloat16 halves the memory and forgets changes below 0.4%;
bfloat16_stochastic rounds up or down at random, in proportion, so that on average nothing is forgotten (Gupta et al.
2015)."""


def _is_decay(name: str, value: float) -> tuple[bool, str]:
    return 0 <= value < 1, f"{name}={value}: expected a decay in [0, 1); 0.9 to 0.999 is usual"


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled decay (Loshchilov & Hutter 2019), torch.optim.AdamW's arithmetic."""

    b1: float = 0.9
    b2: float = 0.95
    """0.95 as in GPT-3 and Llama; torch's own default is 0.999."""
    eps: float = 1e-8
    first_dtype: Stored = "float32"
    second_dtype: Stored = "float32"
    """bfloat16 stops following the gradient when 1 - b2 is below 0.004; bfloat16_stochastic does not."""

    def checks(self) -> Checks:
        return (
            _is_decay("b1", self.b1),
            _is_decay("b2", self.b2),
            (self.eps > 0, f"eps={self.eps}: expected a positive number; 1e-8 is usual"),
        )


@dataclass(frozen=True, kw_only=True)
class Momentum:
    """A running mean of Adafactor's updates, as large as the parameters."""

    b1: float = 0.9
    dtype: Stored = "float32"

    def checks(self) -> Checks:
        return (_is_decay("b1", self.b1),)


@dataclass(frozen=True, kw_only=True)
class Adafactor:
    """Second moments as one row and one column per matrix (Shazeer & Stern 2018)."""

    decay_exponent: float = 0.8
    """The second moment's decay at update t is 1 - t ** -decay_exponent."""
    eps: float = 1e-30
    """Added to squared gradients."""
    factored_from: int = 128
    """Matrices with both sides at least this long are factored; all else keeps a full second moment."""
    clip_rms: float | None = 1.0
    """Updates with a larger root mean square are scaled down to it."""
    minimum_scale: float | None = 1e-3
    """The rate is relative to the parameter's root mean square, or to this if larger; None: an absolute rate."""
    momentum: Momentum | None = None

    def checks(self) -> Checks:
        return (
            (self.decay_exponent > 0, f"decay_exponent={self.decay_exponent}: expected a positive number, as 0.8"),
            (self.eps > 0, f"eps={self.eps}: expected a positive number; 1e-30 is usual"),
            (self.factored_from > 0, f"factored_from={self.factored_from}: expected a length, as 128"),
            (self.clip_rms is None or self.clip_rms > 0, f"clip_rms={self.clip_rms}: expected 1.0, or None for none"),
            (
                self.minimum_scale is None or self.minimum_scale > 0,
                f"minimum_scale={self.minimum_scale}: expected 1e-3, or None for an absolute rate",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Lion:
    """The sign of an interpolated momentum (Chen et al. 2023); wants a tenth of AdamW's rate, ten times its decay."""

    b1: float = 0.9
    """Interpolates momentum and gradient in the update."""
    b2: float = 0.99
    """Decay of the stored momentum."""
    first_dtype: Stored = "float32"

    def checks(self) -> Checks:
        return (_is_decay("b1", self.b1), _is_decay("b2", self.b2))


TABLES = r"(^|/)(embed|head|positions?)(/|$)"
"""Embeddings, head and positions."""


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Momentum made orthogonal by Newton-Schulz (Jordan 2024) for matrices, AdamW for all else, with one rate."""

    momentum: float = 0.95
    nesterov: bool = True
    iterations: int = 5
    scale: Literal["match_rms", "spectral"] = "match_rms"
    """match_rms: 0.2 sqrt(max(in, out)), AdamW's usual update size, so both share one rate (Moonlight, Liu et al. 2025,
    eq. 4). spectral: sqrt(max(1, out / in)) (Jordan 2024), with a rate of its own, around 0.02."""
    iteration_dtype: StateDtype = "float32"
    """Of the matrix products; bfloat16 is Jordan's choice on accelerators."""
    first_dtype: Stored = "float32"
    rest: AdamW = AdamW()
    """For vectors, and for the matrices that `tables` names."""
    tables: str = TABLES
    """A regular expression, as of a group: matrices that are looked up (Jordan 2024; Moonlight, section 2.2)."""

    def checks(self) -> Checks:
        return (
            _is_decay("momentum", self.momentum),
            (self.iterations > 0, f"iterations={self.iterations}: expected at least 1; 5 is usual"),
            (_compiles(self.tables), f"tables={self.tables!r} is no regular expression; escape with a backslash"),
        )


Kind = AdamW | Adafactor | Lion | Muon


def _is_warmup(steps: int, least: int = 0) -> tuple[bool, str]:
    return steps >= least, f"warmup_steps={steps}: expected at least {least}; 1% of all steps is usual"


def _is_fraction(name: str, value: float) -> tuple[bool, str]:
    return 0 <= value <= 1, f"{name}={value}: expected a fraction in [0, 1]; 0.1 is usual"


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Warm-up, then the peak."""

    warmup_steps: int

    def checks(self) -> Checks:
        return (_is_warmup(self.warmup_steps),)


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Warm-up, then a straight line to the last step."""

    warmup_steps: int
    final_fraction: float = 0.0
    """Of the peak, which the step after the last would have."""

    def checks(self) -> Checks:
        return (_is_warmup(self.warmup_steps), _is_fraction("final_fraction", self.final_fraction))


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Warm-up, then half a cosine to the last step (Loshchilov & Hutter 2017, without restarts)."""

    warmup_steps: int
    final_fraction: float = 0.1
    """Of the peak, which the step after the last would have."""

    def checks(self) -> Checks:
        return (_is_warmup(self.warmup_steps), _is_fraction("final_fraction", self.final_fraction))


@dataclass(frozen=True, kw_only=True)
class DecaySteps:
    steps: int

    def checks(self) -> Checks:
        return ((self.steps > 0, f"steps={self.steps}: expected at least 1"),)


@dataclass(frozen=True, kw_only=True)
class DecayFraction:
    """Of all steps, warm-up included."""

    fraction: float

    def checks(self) -> Checks:
        return (_is_fraction("fraction", self.fraction),)


@dataclass(frozen=True, kw_only=True)
class WSD:
    """Warm-up, stable, decay (Hu et al. 2024): a run can be extended from any point before its decay."""

    warmup_steps: int
    decay: DecaySteps | DecayFraction = DecayFraction(fraction=0.1)
    shape: Literal["linear", "cosine", "1-sqrt"] = "1-sqrt"
    """1-sqrt: Hägele et al. 2024, section 3."""
    final_fraction: float = 0.0
    """Of the peak, which the step after the last would have."""

    def checks(self) -> Checks:
        return (_is_warmup(self.warmup_steps), _is_fraction("final_fraction", self.final_fraction))

    def decay_steps(self, total_steps: int) -> int:
        match self.decay:
            case DecaySteps(steps=steps):
                return steps
            case DecayFraction(fraction=fraction):
                return max(1, round(fraction * total_steps))


@dataclass(frozen=True, kw_only=True)
class InverseSqrt:
    """Warm-up, then falling as 1 / sqrt(step) for ever (Vaswani et al. 2017, section 5.3, scaled to the peak)."""

    warmup_steps: int

    def checks(self) -> Checks:
        return (_is_warmup(self.warmup_steps, least=1),)


Schedule = Cosine | WSD | Linear | InverseSqrt | Constant


@dataclass(frozen=True, kw_only=True)
class Group:
    """How the parameters whose path contains `pattern` differ from the rest. The first group that matches wins."""

    pattern: str
    """A regular expression searched for in paths like decoder/pattern/0/mixer/query."""
    lr_scale: float = 1.0
    weight_decay: float | None = None
    """None: the optimizer's."""
    kind: Kind | None = None
    """None: the optimizer's."""
    frozen: bool = False
    """Neither moved nor given any state."""

    def checks(self) -> Checks:
        settings = (self.lr_scale, self.weight_decay, self.kind)
        return (
            (
                _compiles(self.pattern),
                f"pattern={self.pattern!r} is no regular expression; escape with a backslash",
            ),
            (
                self.lr_scale > 0,
                f"lr_scale={self.lr_scale}: expected above 0; use frozen=True to stop a group",
            ),
            (
                self.weight_decay is None or self.weight_decay >= 0,
                f"weight_decay={self.weight_decay}: expected at least 0, or None for the optimizer's",
            ),
            (
                not self.frozen or settings == (1.0, None, None),
                "frozen=True with lr_scale, weight_decay or kind, which a frozen group does not use; leave them out",
            ),
        )


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


VECTORS = r"(^|/)(scale|bias|sinks|\w+_bias|\w*norm\w*)(/|$)"
"""Norms, biases and other vectors, stacked along the layers or not."""

DECAY_GROUPS = (
    Group(pattern=VECTORS, weight_decay=0.0),
    Group(pattern=""),
)
"""Matrices decay, vectors do not."""


ADAPTER_GROUPS = (
    Group(pattern=r"/(a|b|magnitude)$", weight_decay=0.0),
    Group(pattern="", frozen=True),
)
"""Only adapters move (Hu et al. 2021)."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """One update: clip the global norm, find each parameter's direction by its kind, add the decay, times the rate."""

    kind: Kind = AdamW()
    schedule: Schedule
    peak_lr: float
    weight_decay: float = 0.1
    """Decoupled: every step takes learning_rate * weight_decay of the parameter away (torch's meaning)."""
    clip_norm: float | None = 1.0
    """Gradients of a larger global norm are scaled down to it."""
    groups: tuple[Group, ...] = DECAY_GROUPS
    offload: bool = False
    """What is remembered of each parameter lies in the hosts' memory between updates. Devices compute them: it is moved
    twice every step (unlike ZeRO-Offload, Ren et al. 2021, whose hosts compute)."""

    def checks(self) -> Checks:
        return (
            (self.peak_lr > 0, f"peak_lr={self.peak_lr}: expected a positive rate; 3e-4 is usual"),
            (self.weight_decay >= 0, f"weight_decay={self.weight_decay}: expected at least 0; 0.1 is usual"),
            (
                self.clip_norm is None or self.clip_norm > 0,
                f"clip_norm={self.clip_norm}: expected a positive norm; 1.0 is usual, None clips nothing",
            ),
            (bool(self.groups), 'groups is empty: expected every parameter in one; Group(pattern="") takes them all'),
        )

    def step_checks(self, total_steps: int) -> Checks:
        """What must hold between the schedule and the length of the run."""
        warmup = self.schedule.warmup_steps
        match self.schedule:
            case Cosine() | Linear():
                message = f"schedule.warmup_steps={warmup} leaves nothing of steps={total_steps} to decay"
                return ((warmup < total_steps, f"{message}; expected fewer, use at most {max(0, total_steps - 1)}"),)
            case WSD():
                decay = self.schedule.decay_steps(total_steps)
                message = f"schedule warms up for {warmup} and decays for {decay} of steps={total_steps}"
                return ((warmup + decay <= total_steps, f"{message}; expected both to fit, shorten one"),)
            case InverseSqrt() | Constant():
                return ()
