"""Tiny random encoders of `transformers`: every architecture with its heads, and what their configs can change."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.models import convert, tree
from pretrain.models.config import TaskConfig
from pretrain.models.convert import engine
from pretrain.models.convert.folder import FAMILIES
from pretrain.models.transformer import Inputs, Transformer
from tests.parity.zoo import VOCAB, torch, transformers

BERT = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2}
BERT |= {"num_attention_heads": 4, "max_position_embeddings": 32, "layer_norm_eps": 1e-3, "pad_token_id": None}
ROBERTA = BERT | {"pad_token_id": 1, "type_vocab_size": 1}
DISTILBERT = {"vocab_size": VOCAB, "dim": 32, "hidden_dim": 44, "n_layers": 2, "n_heads": 4}
DISTILBERT |= {"max_position_embeddings": 32, "pad_token_id": None}
ELECTRA = BERT | {"embedding_size": 12}
MODERNBERT = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 7}
MODERNBERT |= {"num_attention_heads": 4, "local_attention": 10, "pad_token_id": None}
THREE = {"num_labels": 3}
LENGTH = 24
SENTENCE = TaskConfig(name="sentence", pool="mean", normalise=True)

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", BERT),
    "bert_pretraining": ("BertForPreTraining", BERT),
    "bert_masked": ("BertForMaskedLM", BERT | {"hidden_act": "gelu_new", "type_vocab_size": 3}),
    "bert_next_sentence": ("BertForNextSentencePrediction", BERT),
    "bert_label": ("BertForSequenceClassification", BERT | THREE),
    "bert_token": ("BertForTokenClassification", BERT | THREE),
    "bert_span": ("BertForQuestionAnswering", BERT),
    "roberta": ("RobertaModel", ROBERTA),
    "roberta_masked": ("RobertaForMaskedLM", ROBERTA | {"hidden_act": "relu"}),
    "roberta_masked_pad_3": ("RobertaForMaskedLM", ROBERTA | {"pad_token_id": 3}),
    "roberta_label": ("RobertaForSequenceClassification", ROBERTA | THREE),
    "roberta_token": ("RobertaForTokenClassification", ROBERTA | THREE),
    "roberta_span": ("RobertaForQuestionAnswering", ROBERTA),
    "distilbert": ("DistilBertModel", DISTILBERT),
    "distilbert_masked": ("DistilBertForMaskedLM", DISTILBERT | {"activation": "relu"}),
    "distilbert_label": ("DistilBertForSequenceClassification", DISTILBERT | THREE),
    "distilbert_token": ("DistilBertForTokenClassification", DISTILBERT | THREE),
    "distilbert_span": ("DistilBertForQuestionAnswering", DISTILBERT),
    "electra": ("ElectraModel", ELECTRA),
    "electra_wide": ("ElectraForPreTraining", ELECTRA | {"embedding_size": 32}),
    "electra_discriminator": ("ElectraForPreTraining", ELECTRA | {"hidden_act": "relu"}),
    "electra_generator": ("ElectraForMaskedLM", ELECTRA | {"hidden_act": "relu"}),
    "electra_label": ("ElectraForSequenceClassification", ELECTRA | THREE),
    "electra_token": ("ElectraForTokenClassification", ELECTRA | THREE),
    "electra_span": ("ElectraForQuestionAnswering", ELECTRA),
    "modernbert": ("ModernBertModel", MODERNBERT),
    "modernbert_masked": ("ModernBertForMaskedLM", MODERNBERT),
    "modernbert_biases": (
        "ModernBertForMaskedLM",
        MODERNBERT
        | {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "decoder_bias": False, "classifier_bias": True}
        | {"classifier_activation": "relu", "hidden_activation": "silu", "norm_eps": 1e-3}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "num_hidden_layers": 3}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 300.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
            }
        },
    ),
}


def built(architecture: str, settings: dict[str, Any]):
    model = getattr(transformers, architecture)
    config = model.config_class(**settings)
    config._attn_implementation = "eager"
    return model(config).eval()


def theirs(name: str, seed: int = 0):
    """The model in f32 with random weights everywhere, biases and norms too."""
    model = built(*MODELS[name])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
            else:
                p.copy_(torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5)
    return model


def tensor(x: np.ndarray):
    return torch.from_numpy(np.asarray(x).astype(np.int64))


def their_outputs(model, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Every output, and the last hidden state of models with a head too."""
    with torch.no_grad():
        out = model(**{name: tensor(x) for name, x in inputs.items()}, output_hidden_states=True)
    found = {name: x.numpy() for name, x in out.items() if hasattr(x, "numpy")}
    found.setdefault("last_hidden_state", out["hidden_states"][-1].numpy())
    return found


def reread(folder, architecture: str):
    """The model in a folder as `transformers` reads it, and what it found missing or too much."""
    model, info = getattr(transformers, architecture).from_pretrained(
        folder, dtype="float32", output_loading_info=True, attn_implementation="eager"
    )
    return model.eval(), info


class Loaded:
    """Their model, its folder and ours read from it; made once for each name."""

    def __init__(self, folders):
        self.folders, self.made = folders, {}

    def __call__(self, name: str):
        if name not in self.made:
            model, folder = theirs(name), self.folders.mktemp(name)
            model.save_pretrained(folder)
            self.made[name] = model, folder, convert.load(folder)[1]
        return self.made[name]


def tokens(rows: int = 3, length: int = LENGTH) -> np.ndarray:
    """Without the indices of padding that RoBERTa does not count."""
    return np.random.default_rng(0).integers(4, VOCAB, (rows, length), dtype=np.int32)


def types(name: str, tokens_BT: np.ndarray) -> np.ndarray | None:
    """Kinds of tokens, where the model has two or more."""
    kinds = MODELS[name][1].get("type_vocab_size", 2)
    if name.startswith(("distilbert", "modernbert")) or kinds < 2:
        return None
    return np.random.default_rng(1).integers(0, kinds, tokens_BT.shape, dtype=np.int32)


def answers(model: Transformer, architecture: str, **inputs) -> dict[str, np.ndarray]:
    family = next(f for f in FAMILIES if f.architecture == architecture)
    outputs = {"last_hidden_state": engine.hidden, **family.answers(model.config)}
    arrays: dict[str, Any] = {name: jnp.asarray(x) for name, x in inputs.items() if x is not None}

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(model, inputs):
        hidden_BTD = model(inputs).hidden_BTD
        return {name: answer(model, hidden_BTD) for name, answer in outputs.items()}

    return {name: np.asarray(y) for name, y in run(model, Inputs(**arrays)).items()}


def both(name: str, model, ours: Transformer) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    tokens_BT = tokens()
    types_BT = types(name, tokens_BT)
    more = {} if types_BT is None else {"token_type_ids": types_BT}
    theirs = their_outputs(model, input_ids=tokens_BT, **more)
    return theirs, answers(ours, MODELS[name][0], tokens=tokens_BT, types=types_BT)


def random(config) -> Transformer:
    rng = np.random.default_rng(0)
    return tree.like(tree.abstract(config), lambda _, p: jnp.asarray(0.3 * rng.normal(size=p.shape), p.dtype))
