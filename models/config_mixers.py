"""What mixes tokens, as values: norms, positions, attention. Import them from `pretrain.models.config`."""

from dataclasses import dataclass, field
from typing import Literal

Checks = tuple[tuple[bool, str], ...]
"""What must hold, and what to say when it does not. `pretrain.errors.check` collects them from a whole tree."""


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016), computed in f32."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5
    bias: bool = False
    scale: Literal["one", "zero", "none"] = "one"
    """one: multiplies, starts at 1; zero: 1 + scale multiplies, starts at 0 (Gemma); none: nothing (Llama 4)."""

    def checks(self) -> Checks:
        return (
            (
                self.scale != "none" or not self.bias,
                "bias=True: a norm without a scale has no bias; set bias=False or scale='one'",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023): every angle divided by `factor`."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class DynamicNtkScaling:
    """The base grows once a sequence is longer than `original_length` (bloc97 2023, dynamic NTK-aware scaling)."""

    factor: float
    original_length: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): interpolate slow dimensions, keep fast ones, and sharpen attention."""

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    """Multiplies cos and sin; None: 0.1 ln(factor) + 1 (section 3.4)."""
    truncate: bool = True
    """The ramp begins and ends at whole dimensions."""


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's piecewise scaling by wavelength (Llama team 2024)."""

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024): every angle divided by a searched factor, one set for rows that reach beyond
    `original_length` and one for the others."""

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_length: int
    attention_factor: float
    """Multiplies cos and sin."""


RopeScaling = LinearScaling | DynamicNtkScaling | YarnScaling | Llama3Scaling | LongRopeScaling


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions (Su et al. 2021)."""

    theta: float = 10_000.0
    fraction: float = 1.0
    """Share of head_dim that is rotated, its first dimensions."""
    interleaved: bool = False
    """Pairs are neighbours (GPT-J, DeepSeek); otherwise dimension i turns with i + half (Llama)."""
    scaling: RopeScaling | None = None

    def checks(self) -> Checks:
        return ((0 < self.fraction <= 1, f"fraction={self.fraction}: expected above 0, at most 1"),)


@dataclass(frozen=True, kw_only=True)
class Alibi:
    """Every head subtracts its slope times the distance (Press et al. 2022)."""

    max_bias: float = 8.0
    """Slopes run from 2 ** (-max_bias / heads) to 2 ** -max_bias."""


@dataclass(frozen=True, kw_only=True)
class RelativeBias:
    """A learned number a head and bucket of distances (Raffel et al. 2020, section 2.1), for both directions where the
    attention is not causal."""

    buckets: int = 32
    max_distance: int = 128
    """Distances from here on share the last bucket."""
    shared: bool = True
    """One table for all layers of the stack (T5); otherwise each layer has its own (UMT5)."""

    def checks(self) -> Checks:
        return (
            (
                self.buckets >= 4 and self.buckets % 4 == 0,
                f"buckets={self.buckets}: expected a multiple of 4, half of them for each direction; 32 is usual",
            ),
            (
                self.max_distance > self.buckets // 2,
                f"max_distance={self.max_distance}: expected more than buckets / 2; 128 is usual",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class QueryGrowth:
    """Queries grow with the position, by 1 + scale ln(1 + floor((position + 1) / floor)) (Llama 4's layers without
    positions)."""

    floor: float = 8192.0
    scale: float = 0.1


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Multi-head (kv_heads = heads), grouped-query (fewer) or multi-query (1) attention."""

    heads: int
    kv_heads: int
    head_dim: int
    causal: bool = True
    window: int | None = None
    """Sliding window: a token sees itself and tokens less than so far away."""
    chunk: int | None = None
    """A token sees only tokens of its own chunk of so many positions (Llama 4)."""
    position: Rope | Alibi | RelativeBias | None = None
    qk_norm: NormConfig | None = None
    qk_norm_over: Literal["head", "all"] = "head"
    """Each head by itself (Qwen 3, Gemma 3), or all of them together (OLMo 2)."""
    growth: QueryGrowth | None = None
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap) (Gemma 2)."""
    sinks: bool = False
    """A learned logit a head that takes part in the softmax and gives nothing (gpt-oss; Xiao et al. 2024)."""
    bias: bool = False
    out_bias: bool = False
    scale: float | None = None
    """Multiplies q.k; None: head_dim ** -0.5."""

    def checks(self) -> Checks:
        divisors = [k for k in range(1, min(self.heads, 256) + 1) if self.heads % k == 0]  # to list
        turned = self.rotary and int(self.head_dim * min(self.rotary[0].fraction, 1.0))
        scaling = self.rotary and self.rotary[0].scaling
        factors = scaling and getattr(scaling, "short_factors", None)
        return (
            (
                self.heads > 0 and self.kv_heads > 0 and self.heads % self.kv_heads == 0,
                f"kv_heads={self.kv_heads} does not divide heads={self.heads}; choose one of {divisors}",
            ),
            (self.head_dim > 0, f"head_dim={self.head_dim}: expected a positive width; set it to d_model / heads"),
            (self.window is None or self.window > 0, f"window={self.window}: expected at least 1, or None"),
            (self.chunk is None or self.chunk > 0, f"chunk={self.chunk}: expected at least 1, or None"),
            (
                self.qk_norm is not None or self.qk_norm_over == "head",
                f"qk_norm_over={self.qk_norm_over!r} without a norm of queries and keys; set qk_norm",
            ),
            (
                not turned or turned % 2 == 0,
                f"head_dim={self.head_dim} rotates {turned} dimensions, RoPE turns pairs; choose an even number",
            ),
            (
                not factors or len(factors) == len(scaling.long_factors) == (turned or 0) // 2,  # type: ignore
                f"LongRoPE has {len(factors or ())} factors, expected one for each of {(turned or 0) // 2} pairs",
            ),
        )

    @property
    def rotary(self) -> tuple[Rope, int] | None:
        """The kind of rotary position and the width it turns."""
        return (self.position, self.head_dim) if isinstance(self.position, Rope) else None


@dataclass(frozen=True, kw_only=True)
class MlaConfig:
    """Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434, section 2.1): keys and values of all heads are
    read from one small latent, positions from one rotary key that the heads share."""

    heads: int
    query_rank: int | None
    """Width of the queries' latent; None: queries come from the residual stream."""
    kv_rank: int
    nope_dim: int
    """Of a query and key, the part without position."""
    rope_dim: int
    value_dim: int
    position: Rope = field(default_factory=lambda: Rope(interleaved=True))
    norm: NormConfig = field(default_factory=NormConfig)
    """Of both latents."""
    causal: bool = True
    bias: bool = False
    """Of the maps down to the latents."""
    scale: float | None = None
    """Multiplies q.k; None: (nope_dim + rope_dim) ** -0.5."""

    def checks(self) -> Checks:
        sizes = {n: getattr(self, n) for n in ("heads", "kv_rank", "nope_dim", "rope_dim", "value_dim")}
        return (
            *((size > 0, f"{name}={size}: expected a positive number") for name, size in sizes.items()),
            (
                self.query_rank is None or self.query_rank > 0,
                f"query_rank={self.query_rank}: expected a positive width, or None",
            ),
            (self.rope_dim % 2 == 0, f"rope_dim={self.rope_dim}: RoPE turns pairs; choose an even number"),
        )

    @property
    def rotary(self) -> tuple[Rope, int]:
        return self.position, self.rope_dim
