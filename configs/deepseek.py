"""DeepSeek-V2 (DeepSeek-AI 2024a, arXiv:2405.04434) and DeepSeek-V3 (2024b, arXiv:2412.19437)."""

import math
from dataclasses import replace
from typing import Any

from pretrain.models.config import (
    AheadConfig,
    BlockConfig,
    HeadConfig,
    MlaConfig,
    MlpConfig,
    MoeConfig,
    NormConfig,
    Rope,
    RouterConfig,
    StackConfig,
    TransformerConfig,
    YarnScaling,
)


def deepseek(
    *,
    vocab_size: int,
    d_model: int,
    layers: int,
    dense_layers: int,
    heads: int,
    query_rank: int | None,
    kv_rank: int = 512,
    nope_dim: int = 128,
    rope_dim: int = 64,
    value_dim: int = 128,
    d_ff: int,
    d_ff_dense: int,
    experts: int,
    shared: int,
    router: RouterConfig,
    factor: float | None = None,
    mscale: float = 1.0,
    ahead: int = 0,
) -> TransformerConfig:
    """Latent attention; `dense_layers` plain MLPs of width `d_ff_dense`, then mixtures of experts of width `d_ff` with
    `shared` more that every token visits.

    `factor`: YaRN beyond 4096 tokens, whose share of the softmax's temperature is `mscale`. `ahead`: modules that
    predict further tokens.
    """
    norm = NormConfig(eps=1e-6)
    scaling = scale = None
    if factor is not None:
        scaling = YarnScaling(factor=factor, original_length=4096, attention_factor=1.0)
        magnitude = 0.1 * mscale * math.log(factor) + 1.0
        scale = (nope_dim + rope_dim) ** -0.5 * magnitude * magnitude
    mixer = MlaConfig(
        heads=heads,
        query_rank=query_rank,
        kv_rank=kv_rank,
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        value_dim=value_dim,
        position=Rope(interleaved=True, scaling=scaling),
        norm=norm,
        scale=scale,
    )
    expert, wide = MlpConfig(d_ff=d_ff), MlpConfig(d_ff=shared * d_ff)
    mixture = MoeConfig(experts=experts, router=router, expert=expert, shared=wide if shared else None)
    block = BlockConfig(mixer=mixer, mlp=mixture, pre=norm)
    dense = replace(block, mlp=MlpConfig(d_ff=d_ff_dense))
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        decoder=StackConfig(
            prefix=(dense,) * dense_layers, pattern=(block,), repeats=layers - dense_layers, final_norm=norm
        ),
        head=HeadConfig(),
        ahead=AheadConfig(depth=ahead, block=block, norm=norm) if ahead else None,
    )


def v2_lite() -> TransformerConfig:
    return deepseek(
        vocab_size=102_400,
        d_model=2048,
        layers=27,
        dense_layers=1,
        heads=16,
        query_rank=None,
        d_ff=1408,
        d_ff_dense=10944,
        experts=64,
        shared=2,
        router=RouterConfig(top_k=6, normalise=False),
        factor=40.0,
        mscale=0.707,
    )


def v2() -> TransformerConfig:
    router = RouterConfig(top_k=6, normalise=False, scale=16.0, groups=8, top_groups=3)
    return deepseek(
        vocab_size=102_400,
        d_model=5120,
        layers=60,
        dense_layers=1,
        heads=128,
        query_rank=1536,
        d_ff=1536,
        d_ff_dense=12288,
        experts=160,
        shared=2,
        router=router,
        factor=40.0,
        mscale=0.707,
    )


def v3(*, ahead: int = 0, factor: float | None = 40.0) -> TransformerConfig:
    """`ahead`: 1 as it was trained; the published count of 671B is without. `factor`: None as it was trained at first,
    with 4096 tokens."""
    return deepseek(
        vocab_size=129_280,
        d_model=7168,
        layers=61,
        dense_layers=3,
        heads=128,
        query_rank=1536,
        d_ff=2048,
        d_ff_dense=18432,
        experts=256,
        shared=1,
        router=v3_router(top_k=8, groups=8, top_groups=4, scale=2.5),
        factor=factor,
        ahead=ahead,
    )


def v3_router(**sizes: Any) -> RouterConfig:
    """Sigmoid scores, a balancing bias of the choice alone, groups as good as their two best experts."""
    return RouterConfig(**{"score": "sigmoid", "group_score": "top2", "balance_rate": 1e-3, **sizes})
