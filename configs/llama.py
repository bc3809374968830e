"""Llama (Touvron et al. 2023a, 2023b; Llama team 2024) and models of the same architecture."""

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    HeadConfig,
    Llama3Scaling,
    MlpConfig,
    NormConfig,
    Rope,
    RopeScaling,
    StackConfig,
    TransformerConfig,
)


def llama(
    *,
    vocab_size: int,
    d_model: int,
    layers: int,
    heads: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    d_ff: int,
    theta: float = 10_000.0,
    scaling: RopeScaling | None = None,
    eps: float = 1e-5,
    tied: bool = False,
    attention_bias: bool = False,
    mlp_bias: bool = False,
) -> TransformerConfig:
    """RMSNorm before each branch, rotary positions, SwiGLU."""
    norm = NormConfig(kind="rms", eps=eps)
    attention = AttentionConfig(
        heads=heads,
        kv_heads=kv_heads or heads,
        head_dim=head_dim or d_model // heads,
        position=Rope(theta=theta, scaling=scaling),
        bias=attention_bias,
        out_bias=attention_bias,
    )
    mlp = MlpConfig(d_ff=d_ff, activation="silu", gated=True, bias=mlp_bias)
    block = BlockConfig(mixer=attention, mlp=mlp, pre=norm)
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        decoder=StackConfig(pattern=(block,), repeats=layers, final_norm=norm),
        head=HeadConfig(tied=tied),
    )


def llama1_7b() -> TransformerConfig:
    return llama(vocab_size=32000, d_model=4096, layers=32, heads=32, d_ff=11008, eps=1e-6)


def llama1_13b() -> TransformerConfig:
    return llama(vocab_size=32000, d_model=5120, layers=40, heads=40, d_ff=13824, eps=1e-6)


def llama1_33b() -> TransformerConfig:
    return llama(vocab_size=32000, d_model=6656, layers=60, heads=52, d_ff=17920, eps=1e-6)


def llama1_65b() -> TransformerConfig:
    return llama(vocab_size=32000, d_model=8192, layers=80, heads=64, d_ff=22016, eps=1e-5)


def llama2_7b() -> TransformerConfig:
    return llama(vocab_size=32000, d_model=4096, layers=32, heads=32, d_ff=11008)


def llama2_13b() -> TransformerConfig:
    return llama(vocab_size=32000, d_model=5120, layers=40, heads=40, d_ff=13824)


def llama2_70b() -> TransformerConfig:
    return llama(vocab_size=32000, d_model=8192, layers=80, heads=64, kv_heads=8, d_ff=28672)


def llama3_8b() -> TransformerConfig:
    return llama(vocab_size=128256, d_model=4096, layers=32, heads=32, kv_heads=8, d_ff=14336, theta=5e5)


def llama3_70b() -> TransformerConfig:
    return llama(vocab_size=128256, d_model=8192, layers=80, heads=64, kv_heads=8, d_ff=28672, theta=5e5)


def llama3_405b() -> TransformerConfig:
    """Of release 3.1, the only one with this size: 131072 tokens of context by Llama-3 scaling."""
    return llama(
        vocab_size=128256,
        d_model=16384,
        layers=126,
        heads=128,
        kv_heads=8,
        d_ff=53248,
        theta=5e5,
        scaling=Llama3Scaling(factor=8.0),
    )
