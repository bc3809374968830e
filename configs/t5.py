"""T5 (Raffel et al. 2020), its release 1.1 with the gated layers of Shazeer 2020, mT5 (Xue et al. 2021) and UMT5 (Chung
et al. 2023).

Release 1.1 and mT5 have a head of their own. `transformers` 5 builds them tied and counts vocab_size * d_model
parameters less, but reads a checkpoint's head where there is one; the counts here are those of the checkpoints.
"""

from pretrain.models.config import (
    Activation,
    AttentionConfig,
    BlockConfig,
    EmbedConfig,
    HeadConfig,
    InitConfig,
    MlpConfig,
    NormConfig,
    RelativeBias,
    StackConfig,
    TransformerConfig,
)


def t5(
    *,
    d_model: int,
    d_ff: int,
    layers: int,
    heads: int,
    head_dim: int = 64,
    vocab_size: int = 32128,
    decoder_layers: int | None = None,
    activation: Activation = "relu",
    gated: bool = False,
    tied: bool = True,
    scaled: bool | None = None,
    shared_bias: bool = True,
    dropout: float = 0.0,
) -> TransformerConfig:
    """RMSNorm before each branch, relative biases, no scale of q.k and no bias anywhere.

    Args:
        scaled: Logits are multiplied by d_model ** -0.5; None: where the head is tied.
        shared_bias: One table of relative biases a stack; False: one a layer (UMT5).
    """
    norm = NormConfig(kind="rms", eps=1e-6)
    mlp = MlpConfig(d_ff=d_ff, activation=activation, gated=gated)

    def attention(causal: bool, position: RelativeBias | None) -> AttentionConfig:
        shape = {"heads": heads, "kv_heads": heads, "head_dim": head_dim}
        return AttentionConfig(**shape, causal=causal, position=position, scale=1.0)

    def stack(layers: int, causal: bool, cross: AttentionConfig | None) -> StackConfig:
        mixer = attention(causal, RelativeBias(shared=shared_bias))
        block = BlockConfig(mixer=mixer, cross=cross, mlp=mlp, pre=norm, dropout=dropout)
        return StackConfig(pattern=(block,), repeats=layers, final_norm=norm)

    scaled = tied if scaled is None else scaled
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        embed=EmbedConfig(dropout=dropout),
        encoder=stack(layers, False, None),
        decoder=stack(decoder_layers or layers, True, attention(False, None)),
        head=HeadConfig(tied=tied, scale=d_model**-0.5 if scaled else None),
        init=InitConfig(kind="t5", embed_std=1.0),
    )


def t5_1_1(*, d_model: int, d_ff: int, layers: int, heads: int, vocab_size: int = 32128) -> TransformerConfig:
    """Release 1.1: a gated GELU, a head of its own, and no dropout in pretraining."""
    own = {"activation": "gelu_tanh", "gated": True, "tied": False}
    return t5(d_model=d_model, d_ff=d_ff, layers=layers, heads=heads, vocab_size=vocab_size, **own)


def umt5(*, d_model: int, d_ff: int, layers: int, heads: int, vocab_size: int = 256384) -> TransformerConfig:
    own = {"activation": "gelu_tanh", "gated": True, "shared_bias": False}
    return t5(d_model=d_model, d_ff=d_ff, layers=layers, heads=heads, vocab_size=vocab_size, **own)


def small() -> TransformerConfig:
    return t5(d_model=512, d_ff=2048, layers=6, heads=8, dropout=0.1)


def base() -> TransformerConfig:
    return t5(d_model=768, d_ff=3072, layers=12, heads=12, dropout=0.1)


def large() -> TransformerConfig:
    return t5(d_model=1024, d_ff=4096, layers=24, heads=16, dropout=0.1)


def t5_3b() -> TransformerConfig:
    """Its heads together are four times as wide as the residual stream."""
    return t5(d_model=1024, d_ff=16384, layers=24, heads=32, head_dim=128, dropout=0.1)


def t5_11b() -> TransformerConfig:
    return t5(d_model=1024, d_ff=65536, layers=24, heads=128, head_dim=128, dropout=0.1)


def t5_1_1_small() -> TransformerConfig:
    return t5_1_1(d_model=512, d_ff=1024, layers=8, heads=6)


def t5_1_1_base() -> TransformerConfig:
    return t5_1_1(d_model=768, d_ff=2048, layers=12, heads=12)


def t5_1_1_large() -> TransformerConfig:
    return t5_1_1(d_model=1024, d_ff=2816, layers=24, heads=16)


def t5_1_1_xl() -> TransformerConfig:
    return t5_1_1(d_model=2048, d_ff=5120, layers=24, heads=32)


def t5_1_1_xxl() -> TransformerConfig:
    return t5_1_1(d_model=4096, d_ff=10240, layers=24, heads=64)


def mt5_small() -> TransformerConfig:
    return t5_1_1(d_model=512, d_ff=1024, layers=8, heads=6, vocab_size=250112)


def mt5_base() -> TransformerConfig:
    return t5_1_1(d_model=768, d_ff=2048, layers=12, heads=12, vocab_size=250112)


def mt5_large() -> TransformerConfig:
    return t5_1_1(d_model=1024, d_ff=2816, layers=24, heads=16, vocab_size=250112)


def mt5_xl() -> TransformerConfig:
    return t5_1_1(d_model=2048, d_ff=5120, layers=24, heads=32, vocab_size=250112)


def mt5_xxl() -> TransformerConfig:
    return t5_1_1(d_model=4096, d_ff=10240, layers=24, heads=64, vocab_size=250112)


def umt5_small() -> TransformerConfig:
    return umt5(d_model=512, d_ff=1024, layers=8, heads=6)


def umt5_base() -> TransformerConfig:
    return umt5(d_model=768, d_ff=2048, layers=12, heads=12)


def umt5_xl() -> TransformerConfig:
    return umt5(d_model=2048, d_ff=5120, layers=24, heads=32)


def umt5_xxl() -> TransformerConfig:
    return umt5(d_model=4096, d_ff=10240, layers=24, heads=64)
