"""Gemma (Gemma team 2024a), Gemma 2 (2024b) and the text models of Gemma 3 (2025)."""

from typing import Any

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    EmbedConfig,
    HeadConfig,
    LinearScaling,
    MlpConfig,
    NormConfig,
    Rope,
    StackConfig,
    TransformerConfig,
)

NORM = NormConfig(eps=1e-6, scale="zero")


def _gemma(
    *,
    vocab_size: int,
    d_model: int,
    layers: int,
    pattern: tuple[BlockConfig, ...],
    softcap: float | None = None,
) -> TransformerConfig:
    repeats, rest = divmod(layers, len(pattern))
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        embed=EmbedConfig(scale=d_model**0.5),
        decoder=StackConfig(pattern=pattern, repeats=repeats, suffix=pattern[:rest], final_norm=NORM),
        head=HeadConfig(tied=True, softcap=softcap),
    )


def _block(d_ff: int, branch: NormConfig | None, **mixer: Any) -> BlockConfig:
    mlp = MlpConfig(d_ff=d_ff, activation="gelu_tanh")
    return BlockConfig(mixer=AttentionConfig(**mixer), mlp=mlp, pre=NORM, branch=branch)


def gemma(
    *, d_model: int, layers: int, heads: int, kv_heads: int, d_ff: int, head_dim: int = 256, vocab_size: int = 256_000
) -> TransformerConfig:
    """Norms that start at zero, scaled embeddings, GeGLU."""
    block = _block(d_ff, None, heads=heads, kv_heads=kv_heads, head_dim=head_dim, position=Rope())
    return _gemma(vocab_size=vocab_size, d_model=d_model, layers=layers, pattern=(block,))


def gemma2(
    *,
    d_model: int,
    layers: int,
    heads: int,
    kv_heads: int,
    d_ff: int,
    head_dim: int = 256,
    divisor: int | None = None,
    window: int = 4096,
    vocab_size: int = 256_000,
) -> TransformerConfig:
    """Norms on both sides of a branch, soft-capped logits, a window in every other layer.

    `divisor`: whose square root divides q.k; None: head_dim.
    """
    scale = None if divisor is None else divisor**-0.5
    sizes: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "scale": scale}
    mixer = {**sizes, "position": Rope(), "softcap": 50.0}
    pattern = (_block(d_ff, NORM, **mixer, window=window), _block(d_ff, NORM, **mixer))
    return _gemma(vocab_size=vocab_size, d_model=d_model, layers=layers, pattern=pattern, softcap=30.0)


def gemma3(
    *,
    d_model: int,
    layers: int,
    heads: int,
    kv_heads: int,
    d_ff: int,
    head_dim: int = 256,
    divisor: int | None = None,
    window: int = 1024,
    factor: float | None = 8.0,
    vocab_size: int = 262_144,
) -> TransformerConfig:
    """Norms of queries and keys for soft-caps, five layers with a window and a short RoPE base for each without.

    `factor`: divides the angles of the layers without a window; None: nothing does.
    """
    scale = None if divisor is None else divisor**-0.5
    sizes: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "scale": scale}
    far = Rope(theta=1e6, scaling=None if factor is None else LinearScaling(factor=factor))
    local = _block(d_ff, NORM, **sizes, qk_norm=NORM, position=Rope(theta=1e4), window=window)
    pattern = (*(local,) * 5, _block(d_ff, NORM, **sizes, qk_norm=NORM, position=far))
    return _gemma(vocab_size=vocab_size, d_model=d_model, layers=layers, pattern=pattern)


def gemma_2b() -> TransformerConfig:
    return gemma(d_model=2048, layers=18, heads=8, kv_heads=1, d_ff=16384)


def gemma_7b() -> TransformerConfig:
    return gemma(d_model=3072, layers=28, heads=16, kv_heads=16, d_ff=24576)


def gemma2_2b() -> TransformerConfig:
    return gemma2(d_model=2304, layers=26, heads=8, kv_heads=4, d_ff=9216)


def gemma2_9b() -> TransformerConfig:
    return gemma2(d_model=3584, layers=42, heads=16, kv_heads=8, d_ff=14336)


def gemma2_27b() -> TransformerConfig:
    return gemma2(d_model=4608, layers=46, heads=32, kv_heads=16, d_ff=36864, head_dim=128, divisor=144)


def gemma3_270m() -> TransformerConfig:
    return gemma3(d_model=640, layers=18, heads=4, kv_heads=1, d_ff=2048, window=512, factor=None)


def gemma3_1b() -> TransformerConfig:
    return gemma3(d_model=1152, layers=26, heads=4, kv_heads=1, d_ff=6912, window=512, factor=None)


def gemma3_4b() -> TransformerConfig:
    return gemma3(d_model=2560, layers=34, heads=8, kv_heads=4, d_ff=10240)


def gemma3_12b() -> TransformerConfig:
    return gemma3(d_model=3840, layers=48, heads=16, kv_heads=8, d_ff=15360)


def gemma3_27b() -> TransformerConfig:
    return gemma3(d_model=5376, layers=62, heads=32, kv_heads=16, d_ff=21504, head_dim=128, divisor=168)
