"""ELECTRA (Clark et al. 2020): an encoder that says of each word whether a small generator beside it has replaced it.

The generators are those of the paper, a quarter (base: a third) as wide as the discriminator; the one released beside
ELECTRA-small is as wide as it. Generator and discriminator share the tables of tokens and types; positions and the norm
of the embeddings, which the original code shares too, are each one's own, as in the released checkpoints.

Counts of `ElectraModel`, the discriminator without its head: small 13,483,008, base 108,891,648, large 334,092,288.
Where 13,548,800 and 109,482,240 are given for small and base, a pooler is counted that ELECTRA does not have.
"""

from dataclasses import replace

from pretrain.configs.bert import UNCASED, bert
from pretrain.models.config import EmbedConfig, GeneratorConfig, TaskConfig, TransformerConfig


def electra(
    *,
    d_model: int,
    layers: int,
    heads: int,
    generator_d_model: int,
    width: int | None = None,
    vocab_size: int = UNCASED,
    dropout: float = 0.1,
) -> TransformerConfig:
    """`width`: of the embeddings; None: d_model. Generator and discriminator have heads of the same size."""
    encoder = bert(d_model=d_model, layers=layers, heads=heads, vocab_size=vocab_size, dropout=dropout)
    small = bert(d_model=generator_d_model, layers=layers, heads=generator_d_model * heads // d_model, dropout=dropout)
    assert small.encoder
    assert small.head
    return replace(
        encoder,
        embed=EmbedConfig(types=2, dropout=dropout, width=width),
        head=None,
        tasks=(TaskConfig(name="replaced", pool="token", labels=1, hidden="gelu"),),
        generator=GeneratorConfig(d_model=generator_d_model, encoder=small.encoder, head=small.head),
    )


def small() -> TransformerConfig:
    return electra(d_model=256, layers=12, heads=4, generator_d_model=64, width=128)


def base() -> TransformerConfig:
    return electra(d_model=768, layers=12, heads=12, generator_d_model=256)


def large() -> TransformerConfig:
    return electra(d_model=1024, layers=24, heads=16, generator_d_model=256)
