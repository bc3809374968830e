"""RoBERTa (Liu et al. 2019): BERT without the next sentence, of byte pairs, whose positions begin after those of its
padding index.

The table of positions has 514 rows, of which a text uses 512. The published count of RoBERTa-base, 124,645,632, is that
of `RobertaModel` with a pooler that was never trained; without it and without the head it is 124,055,040.
"""

from dataclasses import replace

from pretrain.configs.bert import bert
from pretrain.models.config import (
    HeadConfig,
    InitConfig,
    LearnedPositions,
    NormConfig,
    TransformConfig,
    TransformerConfig,
)

OFFSET = 2
"""Padding has the index 1, and positions begin at the next row."""


def roberta(
    *, d_model: int, layers: int, heads: int, vocab_size: int = 50265, length: int = 512, dropout: float = 0.1
) -> TransformerConfig:
    config = bert(
        d_model=d_model,
        layers=layers,
        heads=heads,
        vocab_size=vocab_size,
        types=1,
        dropout=dropout,
    )
    norm = NormConfig(kind="layer", eps=1e-5, bias=True)
    block = replace(config.stack.pattern[0], residual=norm)
    positions = LearnedPositions(length=length, offset=OFFSET)
    return replace(
        config,
        encoder=replace(config.stack, pattern=(block,), positions=positions, embed_norm=norm),
        head=HeadConfig(tied=True, bias=True, transform=TransformConfig(norm=norm)),
        tasks=(),
        init=InitConfig(kind="normal", std=0.02),
    )


def base() -> TransformerConfig:
    return roberta(d_model=768, layers=12, heads=12)


def large() -> TransformerConfig:
    return roberta(d_model=1024, layers=24, heads=16)


def xlm_base() -> TransformerConfig:
    """XLM-R (Conneau et al. 2020): the same for a hundred languages."""
    return roberta(d_model=768, layers=12, heads=12, vocab_size=250002)


def xlm_large() -> TransformerConfig:
    return roberta(d_model=1024, layers=24, heads=16, vocab_size=250002)
