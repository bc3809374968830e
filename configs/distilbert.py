"""DistilBERT (Sanh et al. 2019): every second layer of BERT-base, without types of tokens and pooler.

66,362,880 parameters are those of `DistilBertModel`, without the head.
"""

from dataclasses import replace

from pretrain.configs.bert import CASED, UNCASED, bert
from pretrain.models.config import TransformerConfig


def distilbert(*, layers: int = 6, vocab_size: int = UNCASED, dropout: float = 0.1) -> TransformerConfig:
    config = bert(d_model=768, layers=layers, heads=12, vocab_size=vocab_size, types=0, dropout=dropout)
    return replace(config, tasks=())


def base() -> TransformerConfig:
    return distilbert()


def base_cased() -> TransformerConfig:
    return distilbert(vocab_size=CASED)
