"""The Transformer of Vaswani et al. 2017, "Attention Is All You Need"."""

from pretrain.models.config import (
    Activation,
    AttentionConfig,
    BlockConfig,
    EmbedConfig,
    HeadConfig,
    InitConfig,
    MlpConfig,
    NormConfig,
    SinusoidalPositions,
    StackConfig,
    TransformerConfig,
)


def original_transformer(
    *,
    vocab_size: int,
    d_model: int,
    layers: int,
    heads: int,
    d_ff: int,
    decoder_layers: int | None = None,
    activation: Activation = "relu",
    bias: bool = False,
    logits_bias: bool = False,
    pre_norm: bool = False,
    scaled: bool = True,
    dropout: float = 0.1,
) -> TransformerConfig:
    """LayerNorm after each branch, sinusoidal positions, one table for both embeddings and the head (section 3.4).

    Glorot and Bengio's initialisation and embeddings of standard deviation d_model ** -0.5 as in the authors' code
    (tensor2tensor); their epsilon was 1e-6, here it is torch's.

    Args:
        bias: Of the four maps of each attention, which equation 1 and the authors' code do not have.
        logits_bias: Of each word (Marian).
        pre_norm: LayerNorm before each branch instead and after the last layer, as in tensor2tensor's later releases.
        scaled: Embeddings are multiplied by sqrt(d_model).
    """
    norm = NormConfig(kind="layer", eps=1e-5, bias=True)
    mlp = MlpConfig(d_ff=d_ff, activation=activation, gated=False, bias=True)

    def attention(causal: bool) -> AttentionConfig:
        shape = {"heads": heads, "kv_heads": heads, "head_dim": d_model // heads}
        return AttentionConfig(**shape, causal=causal, bias=bias, out_bias=bias)

    def stack(layers: int, causal: bool, cross: AttentionConfig | None) -> StackConfig:
        around = {"pre": norm} if pre_norm else {"residual": norm}
        block = BlockConfig(mixer=attention(causal), cross=cross, mlp=mlp, dropout=dropout, **around)
        last = norm if pre_norm else None
        return StackConfig(pattern=(block,), repeats=layers, positions=SinusoidalPositions(), final_norm=last)

    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        embed=EmbedConfig(scale=d_model**0.5 if scaled else None, dropout=dropout),
        encoder=stack(layers, False, None),
        decoder=stack(decoder_layers or layers, True, attention(False)),
        head=HeadConfig(tied=True, bias=logits_bias),
        init=InitConfig(kind="xavier", embed_std=d_model**-0.5),
    )


def base() -> TransformerConfig:
    """63.0 million parameters with the paper's 37000 BPE words; table 3 says 65 million, which no vocabulary near 37000
    gives: the layers have 44.1 million, each thousand words 0.5."""
    return original_transformer(vocab_size=37000, d_model=512, layers=6, heads=8, d_ff=2048)


def big() -> TransformerConfig:
    """214.2 million parameters; table 3 says 213 million, for English to French with 32000 words it would be 209."""
    return original_transformer(vocab_size=37000, d_model=1024, layers=6, heads=16, d_ff=4096, dropout=0.3)
