"""MiniLM (Wang et al. 2020) as a sentence encoder (Reimers & Gurevych 2019): a small BERT whose mean over a sentence's
tokens, at length 1, is its embedding.

22,713,216 parameters in six layers are those of `BertModel`, with the pooler that the embedding does not use.
"""

from dataclasses import replace

from pretrain.configs.bert import bert, headless
from pretrain.models.config import TaskConfig, TransformerConfig


def sentence_encoder(config: TransformerConfig) -> TransformerConfig:
    """A BERT for sentences: `model.task("sentence", hidden_BTD, segments_BT)` is an embedding each."""
    config = headless(config)
    return replace(config, tasks=(*config.tasks, TaskConfig(name="sentence", pool="mean", normalise=True)))


def l6_h384() -> TransformerConfig:
    return sentence_encoder(bert(d_model=384, layers=6, heads=12))


def l12_h384() -> TransformerConfig:
    return sentence_encoder(bert(d_model=384, layers=12, heads=12))
