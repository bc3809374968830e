"""A run small enough to be computed on eight simulated devices, with every mechanism of the one it is made from."""

from dataclasses import fields, is_dataclass, replace
from math import gcd
from typing import Any

from pretrain.config import BatchConfig, RunConfig
from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    EmbedConfig,
    GeneratorConfig,
    LearnedPositions,
    MlaConfig,
    MlpConfig,
    MoeConfig,
    Remat,
    StackConfig,
    TaskConfig,
    TransformerConfig,
)

WIDTH, HEAD, VOCABULARY, LENGTH, ROWS, REPEATS = 32, 8, 64, 32, 16, 2
EXPERTS, WIDE, NARROW = 8, 48, 16


def shrunk(config: RunConfig) -> RunConfig:
    """Narrower, shorter, with fewer layers and experts: the same kinds of blocks, masks, norms, routers, objective.

    Kept: queries for each key up to 4, two repeats of the pattern, prefix and suffix, windows and chunks (shorter than
    the row where they were), groups of experts, remat. Dropout is 0, as it draws anew on every layout; products are in
    float, as the last bits of an f32 number decide to which of 8 bits it is rounded.
    """
    model = _model(config.model, LENGTH / config.data.sequence_length)
    return replace(
        config,
        model=model,
        data=replace(config.data, sequence_length=LENGTH, lengths=()),
        batch=BatchConfig(rows=ROWS),
        compute="float32",
    )


def _model(model: TransformerConfig, shorter: float) -> TransformerConfig:
    return replace(_small(model, shorter), vocab_size=VOCABULARY, d_model=WIDTH)


def _small(node: Any, shorter: float) -> Any:
    """Every part of a config in its small form."""
    if isinstance(node, tuple):
        return tuple(_small(item, shorter) for item in node)
    if not is_dataclass(node) or isinstance(node, Remat):
        return node
    new: Any = replace(node, **{f.name: _small(getattr(node, f.name), shorter) for f in fields(node)})  # type: ignore
    small = _SMALL.get(type(node))
    return small(new, shorter) if small else new


def _attention(c: AttentionConfig, shorter: float) -> AttentionConfig:
    groups = min(c.heads // c.kv_heads, 4)
    near = {name: max(2, round(n * shorter)) for name in ("window", "chunk") if (n := getattr(c, name))}
    return replace(c, kv_heads=2, heads=2 * groups, head_dim=HEAD, **near)


def _latent(c: MlaConfig, _: float) -> MlaConfig:
    rank = None if c.query_rank is None else 12
    return replace(c, heads=2, query_rank=rank, kv_rank=NARROW, nope_dim=HEAD, rope_dim=4, value_dim=HEAD)


def _mixture(c: MoeConfig, _: float) -> MoeConfig:
    router, experts = c.router, min(c.experts, EXPERTS)
    groups = gcd(router.groups, 4)
    small = replace(router, groups=groups, top_groups=min(router.top_groups, groups))
    top_k = min(router.top_k, 2, experts // groups * small.top_groups)
    shared = None if c.shared is None else replace(c.shared, d_ff=NARROW)
    return replace(
        c, experts=experts, router=replace(small, top_k=top_k), expert=replace(c.expert, d_ff=NARROW), shared=shared
    )


def _stack(c: StackConfig, _: float) -> StackConfig:
    repeats = REPEATS if c.repeats else 0
    return replace(c, repeats=repeats, prefix=c.prefix[:1], suffix=c.suffix[:1], unroll=1, matmul="float")


_SMALL: dict[type, Any] = {
    AttentionConfig: _attention,
    BlockConfig: lambda c, _: replace(c, dropout=0.0),
    TaskConfig: lambda c, _: replace(c, dropout=0.0),
    MlaConfig: _latent,
    MlpConfig: lambda c, _: replace(c, d_ff=WIDE),
    MoeConfig: _mixture,
    StackConfig: _stack,
    EmbedConfig: lambda c, _: replace(c, width=None if c.width is None else NARROW, dropout=0.0),
    LearnedPositions: lambda c, _: replace(c, length=2 * LENGTH),
    GeneratorConfig: lambda c, _: replace(c, d_model=NARROW),
}
