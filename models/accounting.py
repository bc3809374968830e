"""What a model costs, by arithmetic on its config: parameters, FLOPs, bytes. Nothing here imports jax."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    LearnedPositions,
    MlaConfig,
    MlpConfig,
    MoeConfig,
    NormConfig,
    RelativeBias,
    Remat,
    StackConfig,
    TaskConfig,
    TransformerConfig,
)

Mixer = AttentionConfig | MlaConfig

BACKWARD = 2
"""Every matrix product is differentiated by two of its size: one for its input, one for its weight."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    embedding: int
    """Tables of tokens, types and positions; also the head's matrix where it is tied."""
    attention: int
    mlp: int
    """Experts and their routers too."""
    norms: int
    head: int
    """Heads of tasks too."""
    others: int = 0
    """Modules that predict further ahead, and a generator."""

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
    """Exact, by part, without adapters. Biases belong to the part they stand in."""
    return _parameters(config, active=False)


def active_parameters(config: TransformerConfig) -> int:
    """Those that one token uses: all of a dense model, of a mixture the experts it visits."""
    return _parameters(config, active=True).total


def _parameters(config: TransformerConfig, active: bool) -> Parameters:
    D, V, W = config.d_model, config.vocab_size, config.embed.width or config.d_model
    stacks = list(_stacks(config))
    layers = [block for stack in stacks for block in stack.blocks]
    tables = V + config.embed.types + sum(_positions(stack) for stack in stacks)
    widen = sum(W * D + D for _ in stacks) if W != D else 0
    others = sum(_ahead(config, active) for _ in range(config.ahead.depth)) if config.ahead else 0
    if config.generates is not None:
        others += _parameters(config.generates, active).total - (V + config.embed.types) * W
    return Parameters(
        embedding=tables * W + widen,
        attention=sum(_mixers(b, D) for b in layers) + sum(_shared_bias(stack) for stack in stacks),
        mlp=sum(_mlp(b.mlp, D, active) + _mlp_biases(b.mlp, D, active) for b in layers if b.mlp),
        norms=sum(_norm(s.embed_norm, W) + _norm(s.final_norm, D) for s in stacks) + sum(_norms(b, D) for b in layers),
        head=(_head(config.head, V, D, W) if config.head else 0) + sum(_task(t, D) for t in config.tasks),
        others=others,
    )


def _positions(stack: StackConfig) -> int:
    positions = stack.positions
    return positions.length + positions.offset if isinstance(positions, LearnedPositions) else 0


def _shared_bias(stack: StackConfig) -> int:
    block = stack.relative
    return block.mixer.position.buckets * block.mixer.heads if block else 0  # type: ignore


def _mixers(b: BlockConfig, D: int) -> int:
    return sum(_attention(a, D) + _attention_biases(a, D) for a in (b.mixer, b.cross) if a)


def _head(head: HeadConfig, V: int, D: int, W: int) -> int:
    t = head.transform
    transform = D * W + (W if t.bias else 0) + _norm(t.norm, W) if t else 0
    return (0 if head.tied else V * W) + (V if head.bias else 0) + transform


def _task(task: TaskConfig, D: int) -> int:
    labels = (D + task.bias) * task.labels if task.labels else 0
    return labels + (D * D + D if task.hidden else 0)


def _ahead(config: TransformerConfig, active: bool) -> int:
    assert config.ahead is not None
    D, b = config.d_model, config.ahead.block
    mlp = _mlp(b.mlp, D, active) + _mlp_biases(b.mlp, D, active) if b.mlp else 0
    return 2 * D * D + 3 * _norm(config.ahead.norm, D) + _mixers(b, D) + mlp + _norms(b, D)


def flops_per_token(config: TransformerConfig, sequence_length: int) -> float:
    """Of one token forward and backward, in a row of one document of this length.

    Counted: two for every multiply-add of a matrix product, the head's too, a tied one's too; of causal or windowed
    attention only what a token sees. Not counted: the embedding's look-up, element-wise work, recomputation.
    An encoder before a decoder counts as reading as many tokens.
    """
    D = config.d_model
    forward = 2 * D * config.vocab_size if config.head else 0
    for stack in _stacks(config):
        for block in stack.blocks:
            forward += weight_flops(block, D)
            forward += _mix_flops(block.mixer, _seen(block.mixer, sequence_length))
            forward += _mix_flops(block.cross, sequence_length) if block.cross else 0
    return (1 + BACKWARD) * forward


def weight_flops(block: BlockConfig, D: int) -> float:
    """Of one token forward: all products with weights of a layer."""
    return 2.0 * (sum(_attention(a, D) for a in (block.mixer, block.cross) if a) + _mlp(block.mlp, D, active=True))


def eight_bit_flops(block: BlockConfig, D: int) -> float:
    """Those that a stack's `matmul` puts in 8 bits: all but experts' and routers'."""
    return weight_flops(replace(block, mlp=block.mlp.shared) if isinstance(block.mlp, MoeConfig) else block, D)


def cache_bytes_per_token(config: TransformerConfig, value_bytes: int = 2) -> int:
    """What one token leaves in every layer of the stack that decodes: keys and values, or their latent."""

    def kept(a: Mixer) -> int:
        return a.kv_rank + a.rope_dim if isinstance(a, MlaConfig) else 2 * a.kv_heads * a.head_dim

    return sum(kept(b.mixer) for b in config.stack.blocks) * value_bytes


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
    sizes = [_query_key_value(a) for a in attention]
    wide, gates = _hidden(block.mlp)
    return {
        "query": sum(q for q, _, _, _ in sizes),
        "key": sum(k for _, k, _, _ in sizes),
        "value": sum(v for _, _, v, _ in sizes),
        "attention": sum(o for _, _, _, o in sizes),
        "attention_out": len(attention) * d_model,
        "mlp_up": wide,
        "mlp_gate": gates,
        "mlp_down": _writes(block.mlp) * d_model,
    }


def _query_key_value(a: Mixer) -> tuple[int, int, int, int]:
    if isinstance(a, MlaConfig):
        return a.heads * (a.nope_dim + a.rope_dim), a.rope_dim, a.kv_rank, a.heads * a.value_dim
    return (a.heads * a.head_dim, a.kv_heads * a.head_dim, a.kv_heads * a.head_dim, a.heads * a.head_dim)


def _hidden(mlp: MlpConfig | MoeConfig | None) -> tuple[int, int]:
    """Widths of the inner layer and of its gate that one token fills."""
    if mlp is None:
        return 0, 0
    if isinstance(mlp, MlpConfig):
        return mlp.d_ff, mlp.d_ff if mlp.gated else 0
    parts = [_hidden(mlp.expert)] * mlp.router.top_k + [_hidden(mlp.shared)]
    return sum(up for up, _ in parts), sum(gate for _, gate in parts)


def _writes(mlp: MlpConfig | MoeConfig | None) -> int:
    """Results of the width of the residual stream."""
    return 0 if mlp is None else 1 + (isinstance(mlp, MoeConfig) and mlp.shared is not None)


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
    branches = 1 + (block.cross is not None) + (block.mlp is not None and block.parallel == "no")
    product = _hidden(block.mlp)[0]
    return sum(tensors(block, d_model).values()) + product + 2 * branches * d_model


def _stacks(config: TransformerConfig) -> Iterable[StackConfig]:
    return [stack for stack in (config.encoder, config.decoder) if stack]


def _attention(a: Mixer, D: int) -> int:
    """Matrices."""
    if isinstance(a, MlaConfig):
        queries = a.query_rank or D
        down = D * (a.kv_rank + a.rope_dim) + (D * a.query_rank if a.query_rank else 0)
        up = a.heads * (queries * (a.nope_dim + a.rope_dim) + a.kv_rank * (a.nope_dim + a.value_dim))
        return down + up + a.heads * a.value_dim * D
    return 2 * (a.heads + a.kv_heads) * a.head_dim * D


def _attention_biases(a: Mixer, D: int) -> int:
    """And what else is no matrix: sinks, a table of relative biases."""
    if isinstance(a, MlaConfig):
        return ((a.query_rank or 0) + a.kv_rank + a.rope_dim + D) if a.bias else 0
    own = a.position.buckets * a.heads if isinstance(a.position, RelativeBias) and not a.position.shared else 0
    biases = ((a.heads + 2 * a.kv_heads) * a.head_dim if a.bias else 0) + (D if a.out_bias else 0)
    return biases + own + (a.heads if a.sinks else 0)


def _mlp(m: MlpConfig | MoeConfig | None, D: int, active: bool) -> int:
    if m is None:
        return 0
    if isinstance(m, MoeConfig):
        visited = m.router.top_k if active else m.experts
        return m.experts * D + visited * _mlp(m.expert, D, active) + _mlp(m.shared, D, active)
    return (3 if m.gated else 2) * m.d_ff * D


def _mlp_biases(m: MlpConfig | MoeConfig | None, D: int, active: bool) -> int:
    if m is None:
        return 0
    if isinstance(m, MoeConfig):
        router = m.experts * (m.router.bias + (m.router.balance_rate is not None))
        visited = m.router.top_k if active else m.experts
        return router + visited * _mlp_biases(m.expert, D, active) + _mlp_biases(m.shared, D, active)
    return ((2 if m.gated else 1) * m.d_ff + D) if m.bias else 0


def _norm(norm: NormConfig | None, width: int) -> int:
    return 0 if norm is None else width * ((norm.scale != "none") + norm.bias)


def _norms(block: BlockConfig, D: int) -> int:
    alone = block.mlp is not None and block.parallel == "no"
    branches = 1 + (block.cross is not None) + alone
    around = branches * sum(_norm(n, D) for n in (block.pre, block.branch, block.residual))
    around -= 0 if block.mixer_pre else _norm(block.pre, D)
    around += _norm(block.pre, D) if block.mlp and block.parallel == "two_norms" else 0
    return around + sum(_inner_norms(a) for a in (block.mixer, block.cross) if a)


def _inner_norms(a: Mixer) -> int:
    if isinstance(a, MlaConfig):
        return _norm(a.norm, (a.query_rank or 0) + a.kv_rank)
    if a.qk_norm_over == "all":
        return _norm(a.qk_norm, (a.heads + a.kv_heads) * a.head_dim)
    return 2 * _norm(a.qk_norm, a.head_dim)


def _mix_flops(a: Mixer, seen: float) -> float:
    """Scores and the weighted sum of values."""
    if isinstance(a, MlaConfig):
        return 2 * a.heads * (a.nope_dim + a.rope_dim + a.value_dim) * seen
    return 2 * 2 * a.heads * a.head_dim * seen


def _seen(a: Mixer, T: int) -> float:
    """Keys that a token sees, on average over a row of T tokens."""
    window, chunk = getattr(a, "window", None), getattr(a, "chunk", None)
    if chunk is not None and chunk < T:
        whole, rest = divmod(T, chunk)
        parts = [(chunk, whole * chunk / T), (rest, rest / T)]
        return sum(_within(a.causal, window, n) * share for n, share in parts if n)
    return _within(a.causal, window, T)


def _within(causal: bool, window: int | None, T: int) -> float:
    behind = _behind(T if window is None else min(window, T), T)
    return behind if causal else 2 * behind - 1  # the token itself once


def _behind(w: int, T: int) -> float:
    """The mean of min(t, w) over t = 1 ... T."""
    return (w * (w + 1) / 2 + (T - w) * w) / T
