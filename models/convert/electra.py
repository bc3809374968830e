"""ElectraForPreTraining, the discriminator, and ElectraForMaskedLM, the generator (Clark et al. 2020).

A model with both is written as the first, with the second in the folder `generator` inside: see `generator`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pretrain.models.config import TaskConfig, TransformerConfig
from pretrain.models.convert import bert, engine
from pretrain.models.convert.bert import Kind
from pretrain.models.convert.fields import Fields
from pretrain.models.convert.rules import Rule, linear, norm, output

WIDTH = 128
"""Of the embeddings of a config.json that does not say, as in `transformers`."""
REPLACED = TaskConfig(name="replaced", pool="token", labels=1, hidden="gelu")
PRETRAINING = Kind(
    suffix="ForPreTraining",
    task=REPLACED,
    outputs={"logits": engine.task("replaced", 0)},
    pipeline="token-classification",
)
KINDS = (bert.model(), PRETRAINING, bert.MASKED, *bert.finer("gelu"))
RULES = (
    *bert.layers("electra."),
    *linear("electra.embeddings_project", "encoder/entry/widen"),
    *linear("discriminator_predictions.dense", "tasks/replaced/hidden"),
    *output("discriminator_predictions.dense_prediction", "tasks/replaced"),
    *linear("generator_predictions.dense", "head/transform"),
    *norm("generator_predictions.LayerNorm", "head/norm"),
    Rule("generator_lm_head.bias", "head/bias", "v -> v"),
    *linear("classifier.dense", "tasks/label/hidden"),
    *output("classifier.out_proj", "tasks/label"),
    *output("classifier", "tasks/token_label"),
    *output("qa_outputs", "tasks/span"),
)


def config_from_hf(kind: Kind, values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, "Electra" + kind.suffix)
    f.skip(*(name for name in values if name.startswith("summary_")))  # of another head
    core = bert.core(f, width=f.size("embedding_size", WIDTH))
    config = bert.headed(kind, f, core, "gelu")
    f.finish()
    if kind is PRETRAINING:
        hidden = getattr(config.stack.pattern[0].mlp, "activation", "gelu")
        config = replace(config, tasks=(replace(config.tasks[0], hidden=hidden, dropout=0.0),))
    return config


def config_to_hf(kind: Kind, config: TransformerConfig, length: int | None = None) -> dict:
    """`length` says nothing here: the table of positions does."""
    fields = bert.written(kind, config, "Electra" + kind.suffix, "electra")
    return fields | {"embedding_size": config.embed.width or config.d_model}


ELECTRA = bert.families(
    "Electra",
    "electra",
    KINDS,
    RULES,
    config_from_hf,
    config_to_hf,
    aliases=(("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),),
)
