"""BERT (Devlin et al. 2019): an encoder that learns masked words and whether a sentence follows another.

As trained, with both heads. The counts that are published for `BertModel` are without the masked words' head and the
two labels of the next sentence: `headless` of these.
"""

from dataclasses import replace

from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    EmbedConfig,
    HeadConfig,
    InitConfig,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    StackConfig,
    TaskConfig,
    TransformConfig,
    TransformerConfig,
)

UNCASED, CASED, MULTILINGUAL_CASED = 30522, 28996, 119547
"""Pieces of the published vocabularies."""


def bert(
    *,
    d_model: int,
    layers: int,
    heads: int,
    d_ff: int | None = None,
    vocab_size: int = UNCASED,
    length: int = 512,
    types: int = 2,
    dropout: float = 0.1,
) -> TransformerConfig:
    """LayerNorm after each branch and after the embeddings, learned positions, types of tokens, GELU."""
    norm = NormConfig(kind="layer", eps=1e-12, bias=True)
    mixer = AttentionConfig(
        heads=heads, kv_heads=heads, head_dim=d_model // heads, causal=False, bias=True, out_bias=True
    )
    block = BlockConfig(
        mixer=mixer,
        mlp=MlpConfig(d_ff=d_ff or 4 * d_model, activation="gelu", gated=False, bias=True),
        residual=norm,
        dropout=dropout,
    )
    positions = LearnedPositions(length=length)
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        embed=EmbedConfig(types=types, dropout=dropout),
        encoder=StackConfig(pattern=(block,), repeats=layers, positions=positions, embed_norm=norm),
        head=HeadConfig(tied=True, bias=True, transform=TransformConfig(norm=norm)),
        tasks=(TaskConfig(name="next_sentence", pool="first", labels=2, hidden="tanh", dropout=dropout),),
        init=InitConfig(kind="truncated", std=0.02),
    )


def headless(config: TransformerConfig) -> TransformerConfig:
    """The same encoder for finer work: hidden states, and the first one through a dense layer (BERT's pooler)."""
    return replace(config, head=None, tasks=(TaskConfig(name="pooled", pool="first", hidden="tanh"),))


def tiny() -> TransformerConfig:
    """Turc et al. 2019, as the next ones up to `medium`."""
    return bert(d_model=128, layers=2, heads=2)


def mini() -> TransformerConfig:
    return bert(d_model=256, layers=4, heads=4)


def small() -> TransformerConfig:
    return bert(d_model=512, layers=4, heads=8)


def medium() -> TransformerConfig:
    return bert(d_model=512, layers=8, heads=8)


def base() -> TransformerConfig:
    return bert(d_model=768, layers=12, heads=12)


def base_cased() -> TransformerConfig:
    return bert(d_model=768, layers=12, heads=12, vocab_size=CASED)


def base_multilingual_cased() -> TransformerConfig:
    return bert(d_model=768, layers=12, heads=12, vocab_size=MULTILINGUAL_CASED)


def large() -> TransformerConfig:
    return bert(d_model=1024, layers=24, heads=16)
