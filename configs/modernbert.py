"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): BERT's task for an encoder with norms before each branch, gated
layers without biases, rotary positions, and windows in two of three layers.

Counts of `ModernBertModel`, without the head: base 149,014,272, large 394,781,696.
"""

from dataclasses import replace

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    InitConfig,
    MlpConfig,
    NormConfig,
    Rope,
    StackConfig,
    TransformConfig,
    TransformerConfig,
)


def modernbert(
    *,
    d_model: int,
    layers: int,
    heads: int,
    d_ff: int,
    vocab_size: int = 50368,
    window: int = 65,
    theta: float = 160_000.0,
    local_theta: float = 10_000.0,
) -> TransformerConfig:
    """Layers 0, 3, 6, ... see the whole text, the others `window - 1` = 64 tokens to each side; layer 0 reads the
    embeddings, which have a norm of their own, as they are.

    Raises ValueError unless `layers` is 1 more than a multiple of 3.
    """
    periods, rest = divmod(layers - 1, 3)
    if rest:
        raise ValueError(f"layers={layers}: expected 1 more than a multiple of 3, as 22 or 28")
    norm = NormConfig(kind="layer", eps=1e-5)
    mixer = AttentionConfig(
        heads=heads, kv_heads=heads, head_dim=d_model // heads, causal=False, position=Rope(theta=theta)
    )
    mlp = MlpConfig(d_ff=d_ff, activation="gelu", gated=True)
    whole = BlockConfig(mixer=mixer, mlp=mlp, pre=norm)
    local = replace(whole, mixer=replace(mixer, window=window, position=Rope(theta=local_theta)))
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        encoder=StackConfig(
            prefix=(replace(whole, mixer_pre=False),),
            pattern=(local, local, whole),
            repeats=periods,
            embed_norm=norm,
            final_norm=norm,
        ),
        head=HeadConfig(tied=True, bias=True, transform=TransformConfig(bias=False, norm=norm)),
        init=InitConfig(kind="truncated", std=0.02),
    )


def base() -> TransformerConfig:
    return modernbert(d_model=768, layers=22, heads=12, d_ff=1152)


def large() -> TransformerConfig:
    return modernbert(d_model=1024, layers=28, heads=16, d_ff=2624)
