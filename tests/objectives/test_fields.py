"""Every field of every objective changes the batch or the loss."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, get_args

import jax
import numpy as np
import pytest
from flax import nnx

from pretrain.data.pipeline import Pipeline
from pretrain.data.rows import shapes
from pretrain.models import config as m
from pretrain.models.transformer import Transformer
from pretrain.objectives import config as c
from pretrain.objectives import config_masked, config_parts, config_writing
from pretrain.objectives.batch import gathered
from pretrain.objectives.build import build
from pretrain.objectives.transforms import transform
from tests.objectives.zoo import AHEAD, GENERATOR, JUDGE, LENGTH, REPLACED, TOKENIZER, both, decoder, encoder

FLIP = {True: False, False: True}
OTHER = {
    c.LossConfig: {"chunk": 5, "z_loss": 0.1, "label_smoothing": 0.2},
    c.NextToken: {"ahead": 0.7},
    c.PrefixLm: {},
    c.FillInTheMiddle: {
        "ahead": 0.7,
        "rate": 0.9,
        "spm": 0.1,
        "room": 12,
        "prefix": "[MASK]",
        "suffix": "[MASK]",
        "middle": "[MASK]",
    },
    c.Masking: {"rate": 0.3, "mask": "[SEP]", "masked": 0.5, "random": 0.15, "whole_words": FLIP},
    c.Sentences: {"kind": {"next": "order", "order": "next"}, "cls": "[MASK]", "sep": "[MASK]", "short": 0.6},
    c.MaskedLm: {"sentences": lambda now: None if now else c.Sentences()},
    c.ReplacedToken: {"weight": 7.0},
    c.SpanCorruption: {"rate": 0.3, "mean": 5.0, "sentinel": "<other_{}>", "start": "bos"},
    c.Denoiser: {"mode": None, "rate": 0.4, "mean": 2.0, "share": 9.0},
    c.Ul2: {"sentinel": "<other_{}>", "start": "bos"},
    c.Denoising: {
        "infill": 0.1,
        "mean": 9.0,
        "permute": 0.2,
        "rotate": 0.7,
        "delete": 0.3,
        "mask_tokens": 0.3,
        "mask": "[MASK]",
        "start": "bos",
    },
    c.SequencePairs: {
        "target_length": 30,
        "too_long": {"drop": "truncate", "truncate": "drop"},
        "bidirectional": FLIP,
        "start": "eos",
    },
}
BASES = {
    "next": (c.NextToken(), decoder(ahead=AHEAD)),
    "prefix": (c.PrefixLm(), decoder()),
    "middle": (c.FillInTheMiddle(), decoder(ahead=AHEAD)),
    "masked": (c.MaskedLm(sentences=c.Sentences()), encoder(**JUDGE)),
    "replaced": (c.ReplacedToken(), encoder(head=None, tasks=(REPLACED,), generator=GENERATOR)),
    "spans": (c.SpanCorruption(), both()),
    "mixture": (c.Ul2(), both()),
    "noise": (c.Denoising(permute=0.9), both()),
    "pairs": (c.SequencePairs(), both()),
    "pairs, decoder": (c.SequencePairs(), decoder()),
}
ONLY = {"pairs, decoder": {"bidirectional"}}
"""What is changed where the other fields are tried elsewhere."""


def test_the_table_knows_every_class_and_field_and_every_objective_is_tried():
    modules = (c, config_parts, config_masked, config_writing)
    classes = {
        k for module in modules for k in vars(module).values() if is_dataclass(k) and "objectives" in k.__module__
    }
    assert classes == set(OTHER)
    for cls in classes:
        own = {f.name for f in fields(cls) if f.name not in ("loss", "masking", "denoisers")}
        assert set(OTHER[cls]) == own, cls
    assert {type(objective) for objective, _ in BASES.values()} == set(get_args(c.Objective))


def variants(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, the tree with that one field changed)."""
    if isinstance(node, tuple):
        for i, item in enumerate(node):
            for where, new in variants(item, f"{path}.{i}"):
                yield where, (*node[:i], new, *node[i + 1 :])
    if not is_dataclass(node):
        return
    for f in fields(node):
        value, here = getattr(node, f.name), f"{path}.{f.name}".lstrip(".")
        if f.name in OTHER[type(node)]:
            other = OTHER[type(node)][f.name]
            other = other[value] if isinstance(other, dict) else other(value) if callable(other) else other
            assert other != value, f"the table does not change {here}"
            yield here, replace(node, **{f.name: other})
        for where, new in variants(value, here):
            yield where, replace(node, **{f.name: new})


def refused(objective: c.Objective, model: m.TransformerConfig) -> bool:
    from pretrain.data.config import CorpusConfig, DataConfig, JsonPairs

    data = DataConfig(corpus=CorpusConfig(source=JsonPairs(paths=("x",))), sequence_length=LENGTH)
    return not all(holds for holds, _ in objective.run_checks(model, data))


@cache
def abstract(model: m.TransformerConfig):
    return jax.eval_shape(lambda: Transformer(model, rngs=nnx.Rngs(0)))


def program(objective: c.Objective, model: m.TransformerConfig) -> str:
    rows = transform(objective, TOKENIZER, LENGTH, model)
    arrays = {name: jax.ShapeDtypeStruct((2, *shape), dtype) for name, (shape, dtype) in shapes(rows).items()}
    return str(jax.make_jaxpr(build(objective))(abstract(model), gathered(arrays), jax.random.key(0)))


def batches(split, objective: c.Objective, model: m.TransformerConfig) -> list[dict[str, np.ndarray]]:
    pipeline = Pipeline(split, transform(objective, TOKENIZER, LENGTH, model), batch=8)
    return [pipeline.rows(step) for step in range(4)]


def same(one: list[dict], other: list[dict]) -> bool:
    return all(a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a) for a, b in zip(one, other))


@pytest.mark.parametrize("name", BASES)
def test_every_field_changes_the_batch_or_the_loss(name, split):
    objective, model = BASES[name]
    assert not refused(objective, model)
    usual, traced, silent = batches(split, objective, model), program(objective, model), []
    for where, changed in variants(objective):
        if where not in ONLY.get(name, {where}) or refused(changed, model):
            continue
        if same(usual, batches(split, changed, model)) and program(changed, model) == traced:
            silent.append(where)
    assert not silent
