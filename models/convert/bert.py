"""BertModel and its heads (Devlin et al. 2019); and what later encoders share with them."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

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
    TaskConfig,
    TransformConfig,
    TransformerConfig,
)
from pretrain.models.convert import engine
from pretrain.models.convert.engine import Answer, Constant, Family
from pretrain.models.convert.fields import Fields, dense
from pretrain.models.convert.gpt2 import ACTIVATIONS, spelled
from pretrain.models.convert.rules import Rule, attention, linear, norm, output

LENGTH, EPS, DROPOUT, STD = 512, 1e-12, 0.1, 0.02
"""Of a config.json that does not say, as in `transformers`."""
SPAN = {"start_logits": engine.task("span", 0), "end_logits": engine.task("span", 1)}
POOLED = TaskConfig(name="pooled", pool="first", hidden="tanh")
NEXT_SENTENCE = TaskConfig(name="next_sentence", pool="first", labels=2, hidden="tanh")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """An architecture of a family: the heads on its encoder."""

    suffix: str
    head: bool = False
    """Of a masked language model."""
    task: TaskConfig | None = None
    labelled: bool = False
    """config.json says how many labels the task has."""
    outputs: Mapping[str, Answer]
    pipeline: str


def model(task: TaskConfig | None = None) -> Kind:
    """The encoder by itself, or with a pooler; config.json does not say which, the tensors do."""
    outputs: dict[str, Answer] = {"last_hidden_state": engine.hidden}
    outputs |= {"pooler_output": engine.task(task.name)} if task else {}
    return Kind(suffix="Model", task=task, outputs=outputs, pipeline="feature-extraction")


MASKED = Kind(suffix="ForMaskedLM", head=True, outputs={"logits": engine.logits}, pipeline="fill-mask")


def finer(hidden: Activation) -> tuple[Kind, ...]:
    """Of a row's label, of each token's and of an answer's span. `hidden`: of the layer before a row's labels."""
    label = TaskConfig(name="label", pool="first", labels=1, hidden=hidden)
    token, span = (TaskConfig(name=name, pool="token", labels=2) for name in ("token_label", "span"))
    suffixes = ("ForSequenceClassification", "ForTokenClassification")
    uses = ("text-classification", "token-classification")
    kinds = [
        Kind(suffix=s, task=t, labelled=True, outputs={"logits": engine.task(t.name)}, pipeline=use)
        for s, t, use in zip(suffixes, (label, token), uses)
    ]
    return (*kinds, Kind(suffix="ForQuestionAnswering", task=span, outputs=SPAN, pipeline="question-answering"))


KINDS = (
    model(POOLED),
    model(),
    Kind(
        suffix="ForPreTraining",
        head=True,
        task=NEXT_SENTENCE,
        outputs={"prediction_logits": engine.logits, "seq_relationship_logits": engine.task("next_sentence")},
        pipeline="fill-mask",
    ),
    MASKED,
    Kind(
        suffix="ForNextSentencePrediction",
        task=NEXT_SENTENCE,
        outputs={"logits": engine.task("next_sentence")},
        pipeline="text-classification",
    ),
    *finer("tanh"),
)


def layers(base: str) -> tuple[Rule, ...]:
    """The embeddings and the layers of BERT after the prefix `base`."""
    theirs, ours = base + "encoder.layer.{i}.", "encoder/{layer}/"
    maps = [f"{theirs}attention.{name}" for name in ("self.query", "self.key", "self.value", "output.dense")]
    return (
        Rule(base + "embeddings.word_embeddings.weight", "embed/tokens", "v d -> v d"),
        Rule(base + "embeddings.token_type_embeddings.weight", "embed/types", "n d -> n d"),
        Rule(base + "embeddings.position_embeddings.weight", "encoder/entry/positions", "t d -> t d"),
        *norm(base + "embeddings.LayerNorm", "encoder/entry/norm"),
        *attention(maps, ours + "mixer"),
        *norm(theirs + "attention.output.LayerNorm", ours + "mixer_norms/residual"),
        *linear(theirs + "intermediate.dense", ours + "mlp/up"),
        *linear(theirs + "output.dense", ours + "mlp/down"),
        *norm(theirs + "output.LayerNorm", ours + "mlp_norms/residual"),
    )


FINER = (
    *output("classifier", "tasks/label"),
    *output("classifier", "tasks/token_label"),
    *output("qa_outputs", "tasks/span"),
)
RULES = (
    *layers("bert."),
    *linear("cls.predictions.transform.dense", "head/transform"),
    *norm("cls.predictions.transform.LayerNorm", "head/norm"),
    Rule("cls.predictions.bias", "head/bias", "v -> v"),
    *linear("bert.pooler.dense", "tasks/pooled/hidden"),
    *linear("bert.pooler.dense", "tasks/next_sentence/hidden"),
    *linear("bert.pooler.dense", "tasks/label/hidden"),
    *output("cls.seq_relationship", "tasks/next_sentence"),
    *FINER,
)


def constants(base: str) -> tuple[Constant, ...]:
    """Buffers that older versions of `transformers` saved."""

    def row(config: TransformerConfig, _: int | None) -> np.ndarray | None:
        positions = config.encoder and config.encoder.positions
        if not isinstance(positions, LearnedPositions):
            return None
        return np.arange(positions.length + positions.offset)[None]

    return (
        Constant(base + "embeddings.position_ids", row, written=False),
        Constant(base + "embeddings.token_type_ids", lambda c, n: _zeros(row(c, n)), written=False),
    )


def _zeros(row: np.ndarray | None) -> np.ndarray | None:
    return None if row is None else 0 * row


def core(
    f: Fields,
    *,
    names: Mapping[str, str] | None = None,
    eps: float | None = None,
    types: int | None = None,
    offset: int = 0,
    width: int | None = None,
) -> TransformerConfig:
    """The encoder of config.json, without heads. `names`: what a family calls the fields of BERT.

    `eps`, `types`: where the family has but one. `offset`: rows of the table of positions before the first. `width`: of
    the embeddings.
    """

    def named(name: str) -> str:
        return (names or {}).get(name, name)

    vocab_size, d_model, layers = (f.size(named(n)) for n in ("vocab_size", "hidden_size", "num_hidden_layers"))
    heads, d_ff = f.size(named("num_attention_heads")), f.size(named("intermediate_size"))
    length = f.size("max_position_embeddings", LENGTH) - offset
    if length < 1:
        f.problems.append(
            f"{f.where}: max_position_embeddings is {length + offset}, expected more than {offset}, the positions "
            "before the first; correct it"
        )
    activation = f.choose(named("hidden_act"), ACTIVATIONS, "gelu")
    dropout, std = f.take(named("hidden_dropout_prob"), float, DROPOUT), f.take("initializer_range", float, STD)
    small: float = f.take("layer_norm_eps", float, EPS) if eps is None else eps
    kinds: int = f.size("type_vocab_size", 2) if types is None else types
    f.expect("position_embedding_type", "absolute")
    f.expect("is_decoder", False)
    f.expect("add_cross_attention", False)
    f.expect("tie_word_embeddings", True)
    f.skip(named("attention_probs_dropout_prob"), "gradient_checkpointing")  # of training
    f.skip("directionality", *(name for name in f.values if name.startswith("pooler_")))  # of a converter in 2019
    if d_model and heads and d_model % heads:
        f.problems.append(
            f"{f.where}: {named('hidden_size')} is {d_model}, expected a multiple of "
            f"{named('num_attention_heads')}={heads}; correct one"
        )
        heads = 1
    layer = NormConfig(kind="layer", eps=small, bias=True)
    shape: dict[str, Any] = {"heads": heads or 1, "kv_heads": heads or 1, "head_dim": (d_model or 1) // (heads or 1)}
    block = BlockConfig(
        mixer=AttentionConfig(**shape, causal=False, bias=True, out_bias=True),
        mlp=MlpConfig(d_ff=d_ff, activation=activation, gated=False, bias=True),
        residual=layer,
        dropout=dropout,
    )
    positions = LearnedPositions(length=length, offset=offset)
    return TransformerConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        embed=EmbedConfig(types=kinds, dropout=dropout, width=None if width == d_model else width),
        encoder=StackConfig(pattern=(block,), repeats=layers, positions=positions, embed_norm=layer),
        head=None,
        init=InitConfig(kind="truncated", std=std),
    )


def headed(
    kind: Kind,
    f: Fields,
    config: TransformerConfig,
    activation: Activation | None = None,
    rate: str = "classifier_dropout",
) -> TransformerConfig:
    """The same with the heads of its architecture. `activation`: of the head's dense layer; None: that of the MLPs.
    `rate`: the field of the tasks' dropout."""
    block = config.stack.pattern[0]
    dropout = f.take(rate, float, block.dropout)
    labels = _labels(f)
    head, tasks = None, ()
    if kind.head:
        layer = block.residual or NormConfig()
        own = activation or (block.mlp.activation if isinstance(block.mlp, MlpConfig) else "gelu")
        head = HeadConfig(tied=True, bias=True, transform=TransformConfig(activation=own, norm=layer))
    if kind.task is not None:
        task = replace(kind.task, labels=labels) if kind.labelled else kind.task
        tasks = (replace(task, dropout=dropout if task.labels else 0.0),)
    return replace(config, head=head, tasks=tasks)


def _labels(f: Fields) -> int:
    """As many as have names, or are counted."""
    f.skip("id2label", "label2id")
    names = f.values.get("id2label")
    return len(names) if isinstance(names, dict) and names else f.size("num_labels", 2)


def written(
    kind: Kind, config: TransformerConfig, architecture: str, model_type: str, names: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """config.json of `core` and `headed`."""
    block, mixer, mlp = dense(config, architecture, "encoder")
    positions, layer = config.stack.positions, block.residual or NormConfig()
    rows = positions.length + positions.offset if isinstance(positions, LearnedPositions) else LENGTH
    fields = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": len(config.stack.blocks),
        "num_attention_heads": mixer.heads,
        "intermediate_size": mlp.d_ff,
        "hidden_act": spelled(mlp.activation),
        "hidden_dropout_prob": block.dropout,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": rows,
        "type_vocab_size": config.embed.types,
        "layer_norm_eps": layer.eps,
        "initializer_range": config.init.std,
        "tie_word_embeddings": True,
    }
    fields = {(names or {}).get(name, name): value for name, value in fields.items()}
    task = next(iter(config.tasks), None)
    if kind.labelled and task and task.labels:
        words = [f"LABEL_{n}" for n in range(task.labels)]
        fields |= {"id2label": dict(enumerate(words)), "label2id": {word: n for n, word in enumerate(words)}}
    if kind.task and task and task.dropout != block.dropout:
        fields[(names or {}).get("classifier_dropout", "classifier_dropout")] = task.dropout
    return {"architectures": [architecture], "model_type": model_type, **fields}


def config_from_hf(kind: Kind, values: Mapping[str, Any]) -> TransformerConfig:
    f = Fields(values, "Bert" + kind.suffix)
    config = headed(kind, f, core(f))
    f.finish()
    return config


def config_to_hf(kind: Kind, config: TransformerConfig, length: int | None = None) -> dict:
    """`length` says nothing here: the table of positions does."""
    return written(kind, config, "Bert" + kind.suffix, "bert")


def found(config: TransformerConfig, names: Collection[str]) -> TransformerConfig:
    """Without the pooler that a checkpoint does not have; with the next sentence that one of masked words has too."""

    def has(name: str) -> bool:
        return any(n.endswith(name) for n in names)

    if config.head is not None and not config.tasks and has("cls.seq_relationship.weight"):
        rate = config.stack.blocks[0].dropout
        return replace(config, tasks=(replace(NEXT_SENTENCE, dropout=rate),))
    if not has("pooler.dense.weight"):
        return replace(config, tasks=tuple(task for task in config.tasks if task.name != POOLED.name))
    return config


def families(
    prefix: str,
    model_type: str,
    kinds: tuple[Kind, ...],
    rules: tuple[Rule, ...],
    read: Callable[[Kind, Mapping[str, Any]], TransformerConfig],
    write: Callable[[Kind, TransformerConfig, int | None], dict],
    **more: Any,
) -> tuple[Family, ...]:
    """One for each architecture; they share the table."""
    base = f"{model_type}."
    shared = {"rules": rules, "base": base, "constants": constants(base), "legacy": LEGACY, "refine": found, **more}
    return tuple(
        Family(
            architecture=prefix + kind.suffix,
            model_type=model_type,
            from_hf=partial(read, kind),
            to_hf=partial(write, kind),
            bare=kind.suffix == "Model",
            outputs=kind.outputs,
            pipeline=kind.pipeline,
            **shared,
        )
        for kind in kinds
    )


POOLER = r"(\w+\.)?pooler\.dense\.(weight|bias)"
"""What `transformers` gives an encoder that may do without; it reads over one where it has no place for it."""
LEGACY = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
BERT = families(
    "Bert",
    "bert",
    KINDS,
    RULES,
    config_from_hf,
    config_to_hf,
    ignored=(POOLER,),
    optional=(POOLER,),
    aliases=(
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
)
