"""A transformer as a value. Every family is one `TransformerConfig`; nothing here imports jax."""

from dataclasses import dataclass, field
from typing import Literal

from pretrain.models.config_mixers import (
    Alibi,
    AttentionConfig,
    Checks,
    DynamicNtkScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MlaConfig,
    NormConfig,
    QueryGrowth,
    RelativeBias,
    Rope,
    RopeScaling,
    YarnScaling,
)
from pretrain.models.config_mlps import Activation, LoraConfig, MlpConfig, MoeConfig, RouterConfig

__all__ = [
    "Activation",
    "Alibi",
    "AttentionConfig",
    "Checks",
    "DynamicNtkScaling",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "LoraConfig",
    "MlaConfig",
    "MlpConfig",
    "MoeConfig",
    "NormConfig",
    "QueryGrowth",
    "RelativeBias",
    "Rope",
    "RopeScaling",
    "RouterConfig",
    "YarnScaling",
]


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One layer. The three norm slots hold every placement: `pre` (GPT-2, Llama), `pre` + `branch` (Gemma 2),
    `branch` (OLMo 2), `residual` (BERT, BART, the original Transformer)."""

    mixer: AttentionConfig | MlaConfig
    mlp: MlpConfig | MoeConfig | None = None
    cross: AttentionConfig | None = None
    """Attention to the encoder's output, between the mixer and the MLP."""
    pre: NormConfig | None = None
    branch: NormConfig | None = None
    residual: NormConfig | None = None
    mixer_pre: bool = True
    """False: the mixer reads the residual stream as it is, without `pre` (ModernBERT's first layer)."""
    parallel: Literal["no", "one_norm", "two_norms"] = "no"
    """Mixer and MLP read the same input, normalised once for both (GPT-J) or for each (GPT-NeoX)."""
    dropout: float = 0.0
    """Of every branch before it joins the residual stream, in training only."""

    def checks(self) -> Checks:
        order = self.cross and (self.cross.causal or self.cross.window or self.cross.chunk or self.cross.position)
        return (
            (0 <= self.dropout < 1, f"dropout={self.dropout}: expected a probability below 1; 0.1 is usual"),
            (
                not order,
                "cross: another text has no order to this one; set causal=False, window, chunk and position to None",
            ),
            (
                self.mixer_pre or (self.pre is not None and self.parallel != "one_norm"),
                "mixer_pre=False: there is no norm of its own to leave out; set pre, or mixer_pre=True",
            ),
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
class LearnedPositions:
    length: int
    """Positions from 0 that a token may have."""
    offset: int = 0
    """Rows of the table before position 0, which no token uses (OPT, BART, RoBERTa: 2)."""


@dataclass(frozen=True, kw_only=True)
class SinusoidalPositions:
    """Vaswani et al. 2017, section 3.5, sines in the first half of the features and cosines in the second."""

    theta: float = 10_000.0


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """`prefix`, then `repeats` periods of `pattern` (one compiled period, scanned), then `suffix`."""

    pattern: tuple[BlockConfig, ...]
    repeats: int
    prefix: tuple[BlockConfig, ...] = ()
    suffix: tuple[BlockConfig, ...] = ()
    positions: LearnedPositions | SinusoidalPositions | None = None
    """Added to the embeddings of the tokens."""
    embed_norm: NormConfig | None = None
    final_norm: NormConfig | None = None
    remat: Remat | None = None
    """None: keep everything."""
    unroll: int = 1
    """Periods of the pattern in one round of the scan: more is faster on CPU, and compiles longer."""
    matmul: Literal["float", "int8", "int8_forward", "fp8", "fp8_forward"] = "float"
    """Type in which the layers multiply activations by weights while training, through qwix. fp8: e4m3, gradients e5m2;
    int8 rounds gradients stochastically. `_forward`: gradients in the compute type. Parameters stay float32; routers,
    experts, attention scores, embeddings and heads stay in the compute type."""

    def checks(self) -> Checks:
        return (
            (
                1 <= self.unroll <= max(self.repeats, 1),
                f"unroll={self.unroll}: expected 1 to {max(self.repeats, 1)} periods, the pattern's repeats",
            ),
            (self.repeats >= 0, f"repeats={self.repeats}: expected 0 or more periods of the pattern"),
            (
                bool(self.prefix or self.suffix or (self.pattern and self.repeats)),
                "a stack without layers: expected a prefix, a suffix or a repeated pattern; set pattern and repeats",
            ),
        )

    @property
    def periods(self) -> tuple[BlockConfig, ...]:
        """Every kind of layer once: the pattern is not repeated."""
        return self.prefix + self.pattern + self.suffix

    @property
    def relative(self) -> BlockConfig | None:
        """The first block that reads the stack's shared table of relative biases."""
        for block in self.periods:
            position = getattr(block.mixer, "position", None)
            if isinstance(position, RelativeBias) and position.shared:
                return block
        return None

    @property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """Every layer in order."""
        return self.prefix + self.pattern * self.repeats + self.suffix


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """From token ids to vectors; encoder and decoder share the table."""

    scale: float | None = None
    """Multiplies token embeddings."""
    dropout: float = 0.0
    types: int = 0
    """Kinds of tokens with a vector each, added to their embeddings (BERT: sentence A and B)."""
    width: int | None = None
    """Of the embeddings, where a matrix widens them to d_model before the first layer (ELECTRA); None: d_model."""

    def checks(self) -> Checks:
        return (
            (0 <= self.dropout < 1, f"dropout={self.dropout}: expected a probability below 1; 0.1 is usual"),
            (self.types >= 0, f"types={self.types}: expected 0 or more kinds of tokens"),
            (self.width is None or self.width > 0, f"width={self.width}: expected a positive width, or None"),
        )


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """A dense layer between the last hidden state and the head's table (Devlin et al. 2019)."""

    activation: Activation = "gelu"
    bias: bool = True
    norm: NormConfig = field(default_factory=lambda: NormConfig(kind="layer", eps=1e-12, bias=True))


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """From hidden states to logits."""

    tied: bool = False
    """The embedding table is the head (Press & Wolf 2017)."""
    bias: bool = False
    softcap: float | None = None
    scale: float | None = None
    """Multiplies the logits (T5: d_model ** -0.5 where tied)."""
    transform: TransformConfig | None = None


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Another head: of a class, a span, a value, a sentence's embedding."""

    name: str
    pool: Literal["token", "first", "last", "mean"] = "first"
    """What it reads: every token, the first, the last or the mean of a row."""
    labels: int | None = None
    """Outputs; None: the pooled vector itself."""
    hidden: Activation | None = None
    """A dense layer of d_model with this activation before the outputs (BERT's pooler: tanh)."""
    dropout: float = 0.0
    bias: bool = True
    """Of the outputs."""
    normalise: bool = False
    """To length 1."""

    def checks(self) -> Checks:
        return (
            (self.name.isidentifier(), f"name={self.name!r}: expected a word of letters, digits and underscores"),
            (self.bias or self.labels is not None, "bias=False: without labels there are no outputs; leave bias out"),
            (self.labels is None or self.labels > 0, f"labels={self.labels}: expected at least 1, or None"),
            (0 <= self.dropout < 1, f"dropout={self.dropout}: expected a probability below 1; 0.1 is usual"),
        )


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """A smaller encoder beside the model that proposes tokens for it to judge (ELECTRA, Clark et al. 2020). It shares
    the model's embeddings."""

    d_model: int
    encoder: StackConfig
    head: HeadConfig = field(default_factory=lambda: HeadConfig(tied=True))


@dataclass(frozen=True, kw_only=True)
class AheadConfig:
    """Modules that predict tokens further ahead, one after another (DeepSeek-V3, arXiv:2412.19437, section 2.2)."""

    depth: int
    block: BlockConfig
    norm: NormConfig = field(default_factory=NormConfig)

    def checks(self) -> Checks:
        return ((self.depth > 0, f"depth={self.depth}: expected at least 1 further token"),)


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """How weights start. Vectors start at 1 (norm scales) and 0 (biases)."""

    kind: Literal["normal", "truncated", "fan_in", "small", "xavier", "t5"] = "normal"
    """normal: std; truncated: std, cut at 2 sigma (BERT); fan_in: fan_in ** -0.5, cut at 2 sigma (LeCun et al. 1998);
    small: sqrt(2 / (5 d_model)) (Nguyen & Salazar 2019); xavier: sqrt(2 / (fan_in + fan_out)) (Glorot & Bengio 2010);
    t5: fan_in ** -0.5, and head_dim ** -0.5 more for queries that no scale divides (Raffel et al. 2020)."""
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
    head: HeadConfig | None = field(default_factory=HeadConfig)
    """None: hidden states are all it gives, to tasks."""
    tasks: tuple[TaskConfig, ...] = ()
    generator: GeneratorConfig | None = None
    ahead: AheadConfig | None = None
    adapters: tuple[LoraConfig, ...] = ()
    """The first whose pattern is found in a matrix's name adapts it."""
    init: InitConfig = field(default_factory=InitConfig)

    def checks(self) -> Checks:
        stacks = [s for s in (self.encoder, self.decoder) if s]
        reading = self.decoder.periods if self.decoder else ()
        others = [*(self.encoder.periods if self.encoder else ()), *((self.ahead.block,) if self.ahead else ())]
        others += self.generator.encoder.periods if self.generator else ()
        names = [task.name for task in self.tasks]
        return (
            (self.vocab_size > 0, f"vocab_size={self.vocab_size}: expected a positive number; use the tokenizer's"),
            (self.d_model > 0, f"d_model={self.d_model}: expected a positive width"),
            (bool(stacks), "a transformer without encoder and decoder: expected at least one; set decoder"),
            (
                not any(b.cross for b in reading) or self.encoder is not None,
                "cross attention without an encoder to attend to; set encoder",
            ),
            (
                not any(b.cross for b in others),
                "cross attention outside the decoder: nothing else reads an encoder; set cross=None there",
            ),
            (
                self.embed.width in (None, self.d_model) or self.head is None or self.head.transform is not None,
                f"embed.width={self.embed.width}: the head needs head.transform to come down from {self.d_model}",
            ),
            (len(set(names)) == len(names), f"tasks: found the names {names}, expected each once"),
            (self.ahead is None or self.decoder is not None, "ahead predicts what a decoder will read; set decoder"),
            *(
                (holds, f"generator: {message}")
                for holds, message in (self.generates.checks() if self.generates else ())
            ),
        )

    @property
    def stack(self) -> StackConfig:
        """The stack whose output the head reads."""
        stack = self.decoder or self.encoder
        assert stack is not None
        return stack

    @property
    def matmuls(self) -> set[str]:
        """Types in which its stacks multiply while training."""
        stacks = [self.encoder, self.decoder, self.generator and self.generator.encoder]
        return {stack.matmul for stack in stacks if stack}

    @property
    def generates(self) -> "TransformerConfig | None":
        """The generator as a model of its own, without the tables it shares."""
        g = self.generator
        if g is None:
            return None
        embed = EmbedConfig(**{**vars(self.embed), "width": self.embed.width or self.d_model})
        return TransformerConfig(
            vocab_size=self.vocab_size, d_model=g.d_model, encoder=g.encoder, embed=embed, head=g.head, init=self.init
        )
