"""What a model costs, by arithmetic on its config: parameters, FLOPs, bytes. Nothing here imports jax."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    Remat,
    StackConfig,
    TransformerConfig,
)

BACKWARD = 2
"""Every matrix product is differentiated by two of its size: one for its input, one for its weight."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    embedding: int
    """Token table and learned positions; also the head's matrix where it is tied."""
    attention: int
    mlp: int
    norms: int
    head: int

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on all devices together."""

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    """Kept for the backward pass, and those of the one period that is being differentiated."""
    logits: int
    """Of the chunk of tokens whose logits exist at the same time, with their gradient, f32."""

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


def parameters(config: TransformerConfig) -> Parameters:
    """Exact, by part. Biases belong to the part they stand in."""
    D, V, positions = config.d_model, config.vocab_size, config.embed.positions
    layers = [block for stack in _stacks(config) for block in stack.blocks]
    outer = [norm for stack in _stacks(config) for norm in (stack.embed_norm, stack.final_norm)]
    return Parameters(
        embedding=V * D + (positions.length * D if isinstance(positions, LearnedPositions) else 0),
        attention=sum(_attention(a, D) + _attention_biases(a, D) for b in layers for a in (b.mixer, b.cross) if a),
        mlp=sum(_mlp(b.mlp, D) + _mlp_biases(b.mlp, D) for b in layers if b.mlp),
        norms=sum(_norm(n, D) for n in outer) + sum(_block_norms(b, D) for b in layers),
        head=(0 if config.head.tied else V * D) + (V if config.head.bias else 0),
    )


def active_parameters(config: TransformerConfig) -> int:
    """Those that one token uses: all of a dense model."""
    return parameters(config).total


def flops_per_token(config: TransformerConfig, sequence_length: int) -> float:
    """Of one token forward and backward, in a row of one document of this length.

    Counted: two for every multiply-add of a matrix product, the head's too, a tied one's too; of causal or windowed
    attention only what a token sees. Not counted: the embedding's look-up, element-wise work, recomputation.
    An encoder before a decoder counts as reading as many tokens.
    """
    D = config.d_model
    forward = 2 * D * config.vocab_size
    for stack in _stacks(config):
        for block in stack.blocks:
            forward += 2 * sum(_attention(a, D) for a in (block.mixer, block.cross) if a)
            forward += 2 * (_mlp(block.mlp, D) if block.mlp else 0)
            forward += _mix_flops(block.mixer, _seen(block.mixer, sequence_length))
            forward += _mix_flops(block.cross, sequence_length) if block.cross else 0
    return (1 + BACKWARD) * forward


def cache_bytes_per_token(config: TransformerConfig, value_bytes: int = 2) -> int:
    """Keys and values of one token in every layer of the stack that decodes."""
    return sum(2 * b.mixer.kv_heads * b.mixer.head_dim for b in config.stack.blocks) * value_bytes


def memory(
    config: TransformerConfig,
    *,
    rows: int,
    sequence_length: int,
    chunk: int | None = None,
    compute_bytes: int = 2,
    parameter_bytes: int = 4,
    optimizer_bytes: int = 8,
) -> Memory:
    """Of one training step; a guide for choosing, where the compiler's own plan is the last word.

    Args:
        rows: Of a micro-batch.
        chunk: Tokens of each row whose logits exist at the same time; None: all.
        optimizer_bytes: For each parameter: 8 is AdamW in f32, 4 Lion or Muon, about 0 Adafactor.

    Attention is taken to keep no [T, T] matrix, as blockwise kernels do not.
    """
    total, tokens = parameters(config).total, rows * sequence_length
    kept = sum(_kept(stack, config.d_model) for stack in _stacks(config)) * compute_bytes * tokens
    logits = 2 * 4 * config.vocab_size * rows * min(chunk or sequence_length, sequence_length)
    return Memory(
        parameters=total * parameter_bytes,
        optimizer=total * optimizer_bytes,
        gradients=total * parameter_bytes,
        activations=kept,
        logits=logits,
    )


def tensors(block: BlockConfig, d_model: int) -> dict[str, int]:
    """Numbers a token leaves in each tensor that `Remat` can name."""
    attention = [a for a in (block.mixer, block.cross) if a]
    wide = block.mlp.d_ff if block.mlp else 0
    return {
        "query": sum(a.heads * a.head_dim for a in attention),
        "key": sum(a.kv_heads * a.head_dim for a in attention),
        "value": sum(a.kv_heads * a.head_dim for a in attention),
        "attention": sum(a.heads * a.head_dim for a in attention),
        "attention_out": len(attention) * d_model,
        "mlp_up": wide,
        "mlp_gate": wide if block.mlp and block.mlp.gated else 0,
        "mlp_down": d_model if block.mlp else 0,
    }


def _kept(stack: StackConfig, d_model: int) -> int:
    """Numbers a token leaves on the devices: what `remat` saves, and once everything of the period being recomputed."""
    if stack.remat is None:
        return sum(_everything(b, d_model) for b in stack.blocks)
    saved = sum(_saved(b, stack.remat, d_model) for b in stack.blocks)
    inputs = (len(stack.prefix) + stack.repeats + len(stack.suffix)) * d_model
    periods = [stack.pattern, *((b,) for b in stack.prefix + stack.suffix)]
    return saved + inputs + max(sum(_everything(b, d_model) for b in period) for period in periods)


def _saved(block: BlockConfig, remat: Remat, d_model: int) -> int:
    return sum(size for name, size in tensors(block, d_model).items() if name in remat.save)


def _everything(block: BlockConfig, d_model: int) -> int:
    """The named tensors, the product of gate and up, and for each branch its input and the input normalised."""
    branches = 1 + (block.cross is not None) + (block.mlp is not None and not block.parallel)
    product = block.mlp.d_ff if block.mlp else 0
    return sum(tensors(block, d_model).values()) + product + 2 * branches * d_model


def _stacks(config: TransformerConfig) -> Iterable[StackConfig]:
    return [stack for stack in (config.encoder, config.decoder) if stack]


def _attention(a: AttentionConfig, D: int) -> int:
    return 2 * (a.heads + a.kv_heads) * a.head_dim * D


def _attention_biases(a: AttentionConfig, D: int) -> int:
    return ((a.heads + 2 * a.kv_heads) * a.head_dim if a.bias else 0) + (D if a.out_bias else 0)


def _mlp(m: MlpConfig, D: int) -> int:
    return (3 if m.gated else 2) * m.d_ff * D


def _mlp_biases(m: MlpConfig, D: int) -> int:
    return ((2 if m.gated else 1) * m.d_ff + D) if m.bias else 0


def _norm(norm: NormConfig | None, width: int) -> int:
    return 0 if norm is None else width * (2 if norm.bias else 1)


def _block_norms(block: BlockConfig, D: int) -> int:
    branches = 1 + (block.cross is not None) + (block.mlp is not None and not block.parallel)
    around = sum(_norm(n, D) for n in (block.pre, block.branch, block.residual))
    return branches * around + sum(2 * _norm(a.qk_norm, a.head_dim) for a in (block.mixer, block.cross) if a)


def _mix_flops(a: AttentionConfig, seen: float) -> float:
    """Scores and the weighted sum of values."""
    return 2 * 2 * a.heads * a.head_dim * seen


def _seen(a: AttentionConfig, T: int) -> float:
    """Keys that a token sees, on average over a row of T tokens."""
    if not a.causal:
        if a.window is None or a.window >= T:
            return T
        ahead = (T - 1) / 2  # and the token itself with those less than a window behind it
        return ahead + _behind(a.window, T)
    return _behind(T if a.window is None else min(a.window, T), T)


def _behind(w: int, T: int) -> float:
    """The mean of min(t, w) over t = 1 ... T."""
    return (w * (w + 1) / 2 + (T - w) * w) / T
