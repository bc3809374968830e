"""A transformer as a value. Every family is one `TransformerConfig`; nothing here imports jax."""

from dataclasses import dataclass, field
from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]


Checks = tuple[tuple[bool, str], ...]
"""What must hold, and what to say when it does not. `pretrain.errors.check` collects them from a whole tree."""


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016), computed in f32."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5
    bias: bool = False


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


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's piecewise scaling by wavelength (Llama team 2024)."""

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192


RopeScaling = LinearScaling | DynamicNtkScaling | YarnScaling | Llama3Scaling


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions (Su et al. 2021) in the half-split layout of Hugging Face."""

    theta: float = 10_000.0
    fraction: float = 1.0
    """Share of head_dim that is rotated."""
    scaling: RopeScaling | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Multi-head (kv_heads = heads), grouped-query (fewer) or multi-query (1) attention."""

    heads: int
    kv_heads: int
    head_dim: int
    causal: bool = True
    window: int | None = None
    """Sliding window: a token sees itself and the window - 1 tokens before it."""
    position: Rope | None = None
    qk_norm: NormConfig | None = None
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap) (Gemma 2)."""
    bias: bool = False
    out_bias: bool = False
    scale: float | None = None
    """Multiplies q.k; None: head_dim ** -0.5."""

    def checks(self) -> Checks:
        divisors = [k for k in range(1, self.heads + 1) if self.heads % k == 0]
        return (
            (
                self.heads > 0 and self.kv_heads in divisors,
                f"kv_heads={self.kv_heads} does not divide heads={self.heads}; choose one of {divisors}",
            ),
            (self.head_dim > 0, f"head_dim={self.head_dim}: expected a positive width; set it to d_model / heads"),
            (
                self.window is None or self.window > 0,
                f"window={self.window}: expected at least 1, or None",
            ),
            (
                self.position is None or int(self.head_dim * self.position.fraction) % 2 == 0,
                f"head_dim={self.head_dim} rotates {self.position and int(self.head_dim * self.position.fraction)} "
                "dimensions, RoPE turns pairs; choose an even number",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class MlpConfig:
    """Two matrices around an activation, or three with a gate (GLU variants, Shazeer 2020)."""

    d_ff: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False

    def checks(self) -> Checks:
        return ((self.d_ff > 0, f"d_ff={self.d_ff}: expected a positive width; 4 * d_model is usual without a gate"),)


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One layer. The three norm slots hold every placement: `pre` (GPT-2, Llama), `pre` + `branch` (Gemma 2),
    `branch` (OLMo 2), `residual` (BERT, BART, the original Transformer)."""

    mixer: AttentionConfig
    mlp: MlpConfig | None = None
    cross: AttentionConfig | None = None
    """Attention to the encoder's output, between the mixer and the MLP."""
    pre: NormConfig | None = None
    branch: NormConfig | None = None
    residual: NormConfig | None = None
    parallel: bool = False
    """Mixer and MLP read the same normalised input (GPT-J)."""
    dropout: float = 0.0
    """Of every branch before it joins the residual stream, in training only."""

    def checks(self) -> Checks:
        order = self.cross and (self.cross.causal or self.cross.window or self.cross.position)
        return (
            (0 <= self.dropout < 1, f"dropout={self.dropout}: expected a probability below 1; 0.1 is usual"),
            (not order, "cross: another text has no order to this one; set causal=False, window=None, position=None"),
        )


TENSORS = ("query", "key", "value", "attention", "attention_out", "mlp_up", "mlp_gate", "mlp_down")
"""The tensors of a block that have a name, in the order in which they are computed."""


@dataclass(frozen=True, kw_only=True)
class Remat:
    """Which named tensors of a block the backward pass keeps; the others are computed again."""

    save: tuple[str, ...] = ()
    offload: tuple[str, ...] = ()
    """Kept in host memory."""

    def checks(self) -> Checks:
        both, unknown = set(self.save) & set(self.offload), sorted({*self.save, *self.offload} - {*TENSORS})
        return (
            (not both, f"save and offload both name {sorted(both)}; expected each name once, remove it from one"),
            (
                not unknown,
                f"save or offload names {unknown}, which no block computes; choose from {', '.join(TENSORS)}",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """`prefix`, then `repeats` periods of `pattern` (one compiled period, scanned), then `suffix`."""

    pattern: tuple[BlockConfig, ...]
    repeats: int
    prefix: tuple[BlockConfig, ...] = ()
    suffix: tuple[BlockConfig, ...] = ()
    embed_norm: NormConfig | None = None
    final_norm: NormConfig | None = None
    remat: Remat | None = None
    """None: keep everything."""
    unroll: int = 1
    """Periods of the pattern in one round of the scan: more is faster on CPU, and compiles longer."""

    def checks(self) -> Checks:
        return (
            (self.unroll > 0, f"unroll={self.unroll}: expected 1 or more periods"),
            (self.repeats >= 0, f"repeats={self.repeats}: expected 0 or more periods of the pattern"),
            (
                bool(self.prefix or self.suffix or (self.pattern and self.repeats)),
                "a stack without layers: expected a prefix, a suffix or a repeated pattern; set pattern and repeats",
            ),
        )

    @property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """Every layer in order."""
        return self.prefix + self.pattern * self.repeats + self.suffix


@dataclass(frozen=True, kw_only=True)
class LearnedPositions:
    length: int


@dataclass(frozen=True, kw_only=True)
class SinusoidalPositions:
    """Vaswani et al. 2017, section 3.5, sines in the first half of the features and cosines in the second."""

    theta: float = 10_000.0


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    positions: LearnedPositions | SinusoidalPositions | None = None
    scale: float | None = None
    """Multiplies token embeddings."""
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """From hidden states to logits."""

    tied: bool = False
    """The embedding table is the head (Press & Wolf 2017)."""
    bias: bool = False
    softcap: float | None = None
    scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """How weights start. Vectors start at 1 (norm scales) and 0 (biases)."""

    kind: Literal["normal", "fan_in", "small"] = "normal"
    """normal: std; fan_in: fan_in ** -0.5, truncated at 2 sigma (LeCun et al. 1998);
    small: sqrt(2 / (5 d_model)) (Nguyen & Salazar 2019)."""
    std: float = 0.02
    embed_std: float | None = None
    """Of embedding tables; None: std."""
    residual: Literal["none", "depth", "wang"] = "none"
    """Of the matrices that write to the residual stream. depth: divided by sqrt(branches) (GPT-2);
    wang: 2 / (layers sqrt(d_model)) (GPT-NeoX)."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Encoder-only, decoder-only or both."""

    vocab_size: int
    d_model: int
    decoder: StackConfig | None = None
    encoder: StackConfig | None = None
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    init: InitConfig = field(default_factory=InitConfig)

    def checks(self) -> Checks:
        stacks = [s for s in (self.encoder, self.decoder) if s]
        cross = [b.cross for s in stacks for b in s.blocks if b.cross]
        return (
            (self.vocab_size > 0, f"vocab_size={self.vocab_size}: expected a positive number; use the tokenizer's"),
            (self.d_model > 0, f"d_model={self.d_model}: expected a positive width"),
            (bool(stacks), "a transformer without encoder and decoder: expected at least one; set decoder"),
            (
                not cross or self.encoder is not None,
                "cross attention without an encoder to attend to; set encoder",
            ),
        )

    @property
    def stack(self) -> StackConfig:
        """The stack whose output the head reads."""
        stack = self.decoder or self.encoder
        assert stack is not None
        return stack
