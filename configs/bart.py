"""BART (Lewis et al. 2020) and mBART (Liu et al. 2020)."""

from pretrain.models.config import (
    Activation,
    AttentionConfig,
    BlockConfig,
    EmbedConfig,
    HeadConfig,
    InitConfig,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    StackConfig,
    TransformerConfig,
)

OFFSET = 2
"""Rows of the table of positions that fairseq kept for its padding index."""


def bart(
    *,
    d_model: int,
    layers: int,
    heads: int,
    d_ff: int | None = None,
    vocab_size: int = 50265,
    length: int = 1024,
    decoder_layers: int | None = None,
    activation: Activation = "gelu",
    pre_norm: bool = False,
    scaled: bool = False,
    dropout: float = 0.1,
) -> TransformerConfig:
    """LayerNorm after each branch and after the embeddings, learned positions of each stack, biases, a tied head.

    Args:
        pre_norm: LayerNorm before each branch instead and after the last layer (mBART).
        scaled: Embeddings are multiplied by sqrt(d_model) (mBART).
    """
    norm = NormConfig(kind="layer", eps=1e-5, bias=True)
    mlp = MlpConfig(d_ff=d_ff or 4 * d_model, activation=activation, gated=False, bias=True)

    def attention(causal: bool) -> AttentionConfig:
        shape = {"heads": heads, "kv_heads": heads, "head_dim": d_model // heads}
        return AttentionConfig(**shape, causal=causal, bias=True, out_bias=True)

    def stack(layers: int, causal: bool, cross: AttentionConfig | None) -> StackConfig:
        around = {"pre": norm} if pre_norm else {"residual": norm}
        block = BlockConfig(mixer=attention(causal), cross=cross, mlp=mlp, dropout=dropout, **around)
        return StackConfig(
            pattern=(block,),
            repeats=layers,
            positions=LearnedPositions(length=length, offset=OFFSET),
            embed_norm=norm,
            final_norm=norm if pre_norm else None,
        )

    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        embed=EmbedConfig(scale=d_model**0.5 if scaled else None, dropout=dropout),
        encoder=stack(layers, False, None),
        decoder=stack(decoder_layers or layers, True, attention(False)),
        head=HeadConfig(tied=True),
        init=InitConfig(kind="normal", std=0.02),
    )


def base() -> TransformerConfig:
    return bart(d_model=768, layers=6, heads=12)


def large() -> TransformerConfig:
    return bart(d_model=1024, layers=12, heads=16)


def mbart_large() -> TransformerConfig:
    """cc25, of 25 languages."""
    return bart(d_model=1024, layers=12, heads=16, vocab_size=250027, pre_norm=True, scaled=True)


def mbart50_large() -> TransformerConfig:
    """Of 50 languages (Tang et al. 2020)."""
    return bart(d_model=1024, layers=12, heads=16, vocab_size=250054, pre_norm=True, scaled=True)
