"""The text models of Llama 4 (Meta 2025)."""

from dataclasses import replace
from math import lcm
from typing import Any

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    Llama3Scaling,
    MlpConfig,
    MoeConfig,
    NormConfig,
    QueryGrowth,
    Rope,
    RopeScaling,
    RouterConfig,
    StackConfig,
    TransformerConfig,
)


def llama4(
    *,
    d_model: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    d_ff: int,
    d_ff_dense: int,
    experts: int,
    every: int,
    qk_norm: bool,
    vocab_size: int = 202_048,
    chunk: int = 8192,
    theta: float = 5e5,
    scaling: RopeScaling | None = None,
    growth: QueryGrowth | None = None,
    balance_loss: float = 0.0,
) -> TransformerConfig:
    """Three layers with rotary positions that see their own chunk, then one that sees everything without positions, its
    queries growing with the distance from the start.

    Every `every`-th layer is a mixture whose one expert of width `d_ff` and a shared one of the same width add up; the
    others are plain, `d_ff_dense` wide. `qk_norm`: of the layers with positions.
    """
    norm = NormConfig(eps=1e-5)
    near = AttentionConfig(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        chunk=chunk,
        position=Rope(theta=theta, interleaved=True, scaling=scaling),
        qk_norm=replace(norm, scale="none") if qk_norm else None,
    )
    far = replace(near, chunk=None, position=None, qk_norm=None, growth=growth or QueryGrowth())
    expert = MlpConfig(d_ff=d_ff)
    router = RouterConfig(top_k=1, score="sigmoid", normalise=False, on_input=True, balance_loss=balance_loss)
    mixture = MoeConfig(experts=experts, router=router, expert=expert, shared=expert)
    period = lcm(4, every)
    pattern = tuple(
        BlockConfig(
            mixer=near if (i + 1) % 4 else far,
            mlp=MlpConfig(d_ff=d_ff_dense) if (i + 1) % every else mixture,
            pre=norm,
        )
        for i in range(period)
    )
    repeats, rest = divmod(layers, period)
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        decoder=StackConfig(pattern=pattern, repeats=repeats, suffix=pattern[:rest], final_norm=norm),
        head=HeadConfig(),
    )


HEADS = {"heads": 40, "kv_heads": 8, "head_dim": 128}
SIZES: dict[str, Any] = {"d_model": 5120, "layers": 48, **HEADS, "d_ff": 8192, "d_ff_dense": 16384}


def scout() -> TransformerConfig:
    """Llama-4-Scout-17B-16E."""
    scaling = Llama3Scaling(factor=16.0, high_frequency_factor=1.0)
    return llama4(**SIZES, experts=16, every=1, qk_norm=True, scaling=scaling)


def maverick() -> TransformerConfig:
    """Llama-4-Maverick-17B-128E."""
    return llama4(**SIZES, experts=128, every=2, qk_norm=False)
