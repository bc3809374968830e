"""DistilBertModel and its heads (Sanh et al. 2019): BERT's layers under other names."""

from collections.abc import Mapping
from typing import Any

from pretrain.models.config import TransformerConfig
from pretrain.models.convert import bert
from pretrain.models.convert.bert import Kind
from pretrain.models.convert.fields import Fields
from pretrain.models.convert.rules import Rule, attention, linear, norm

NAMES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout": "seq_classif_dropout",
}
"""Of BERT's fields."""
KINDS = (bert.model(), bert.MASKED, *bert.finer("relu"))

_theirs, _ours = "distilbert.transformer.layer.{i}.", "encoder/{layer}/"
_maps = [f"{_theirs}attention.{name}_lin" for name in ("q", "k", "v", "out")]
RULES = (
    Rule("distilbert.embeddings.word_embeddings.weight", "embed/tokens", "v d -> v d"),
    Rule("distilbert.embeddings.position_embeddings.weight", "encoder/entry/positions", "t d -> t d"),
    *norm("distilbert.embeddings.LayerNorm", "encoder/entry/norm"),
    *attention(_maps, _ours + "mixer"),
    *norm(_theirs + "sa_layer_norm", _ours + "mixer_norms/residual"),
    *linear(_theirs + "ffn.lin1", _ours + "mlp/up"),
    *linear(_theirs + "ffn.lin2", _ours + "mlp/down"),
    *norm(_theirs + "output_layer_norm", _ours + "mlp_norms/residual"),
    *linear("vocab_transform", "head/transform"),
    *norm("vocab_layer_norm", "head/norm"),
    Rule("vocab_projector.bias", "head/bias", "v -> v"),
    *linear("pre_classifier", "tasks/label/hidden"),
    *bert.FINER,
)


def config_from_hf(kind: Kind, values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, "DistilBert" + kind.suffix)
    f.skip("sinusoidal_pos_embds", "qa_dropout", "tie_weights_")  # of the start; of training
    config = bert.headed(kind, f, bert.core(f, names=NAMES, eps=bert.EPS, types=0), rate=NAMES["classifier_dropout"])
    f.finish()
    return config


def config_to_hf(kind: Kind, config: TransformerConfig, length: int | None = None) -> dict:
    """`length` says nothing here: the table of positions does."""
    fields = bert.written(kind, config, "DistilBert" + kind.suffix, "distilbert", NAMES)
    return {name: value for name, value in fields.items() if name not in ("type_vocab_size", "layer_norm_eps")}


DISTILBERT = bert.families(
    "DistilBert",
    "distilbert",
    KINDS,
    RULES,
    config_from_hf,
    config_to_hf,
    aliases=(("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),),
)
