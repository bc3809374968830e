"""RobertaModel and its heads (Liu et al. 2019); XLM-R under its own name."""

from collections.abc import Mapping
from typing import Any

from pretrain.models.config import LearnedPositions, TransformerConfig
from pretrain.models.convert import bert
from pretrain.models.convert.bert import Kind
from pretrain.models.convert.fields import Fields
from pretrain.models.convert.rules import Rule, linear, norm, output

PAD = 1
"""Padding's index of a config.json that does not say, as in `transformers`."""

KINDS = (bert.model(bert.POOLED), bert.model(), bert.MASKED, *bert.finer("tanh"))


def rules(base: str) -> tuple[Rule, ...]:
    return (
        *bert.layers(base),
        *linear(base + "pooler.dense", "tasks/pooled/hidden"),
        *linear("lm_head.dense", "head/transform"),
        *norm("lm_head.layer_norm", "head/norm"),
        Rule("lm_head.bias", "head/bias", "v -> v"),
        *linear("classifier.dense", "tasks/label/hidden"),
        *output("classifier.out_proj", "tasks/label"),
        *output("classifier", "tasks/token_label"),
        *output("qa_outputs", "tasks/span"),
    )


def config_from_hf(kind: Kind, values: Mapping[str, Any]) -> TransformerConfig:
    """Positions begin after the index of padding."""
    f = Fields(values, "Roberta" + kind.suffix)
    offset = (f.positive("pad_token_id", PAD, int, above=-1) or 0) + 1
    config = bert.headed(kind, f, bert.core(f, offset=offset), "gelu")
    f.finish()
    return config


def config_to_hf(kind: Kind, config: TransformerConfig, length: int | None = None) -> dict:
    """`length` says nothing here: the table of positions does."""
    positions = config.stack.positions
    offset = positions.offset if isinstance(positions, LearnedPositions) else 0
    return bert.written(kind, config, "Roberta" + kind.suffix, "roberta") | {"pad_token_id": offset - 1}


ROBERTA = bert.families(
    "Roberta",
    "roberta",
    KINDS,
    rules("roberta."),
    config_from_hf,
    config_to_hf,
    ignored=(bert.POOLER,),
    optional=(bert.POOLER,),
    fixed=("pad_token_id",),
    aliases=(
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    ),
)
