"""Every field of every model config changes the traced program, wherever it stands."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from pretrain.config import LossConfig, NextToken
from pretrain.errors import problems
from pretrain.models import config as c
from pretrain.models.transformer import Inputs, Transformer
from pretrain.objectives import Batch, build

NORM = c.NormConfig(kind="rms", eps=1e-5)
LAYER = c.NormConfig(kind="layer", eps=1e-6, bias=True)
OTHER = {
    c.NormConfig: {"kind": {"rms": "layer", "layer": "rms"}, "eps": 1e-2, "bias": {True: False, False: True}},
    c.LinearScaling: {"factor": 8.0},
    c.DynamicNtkScaling: {"factor": 8.0, "original_length": 4},
    c.YarnScaling: {"factor": 9.0, "original_length": 16, "beta_fast": 2.0, "beta_slow": 0.1, "attention_factor": 2.0},
    c.Llama3Scaling: {
        "factor": 3.0,
        "low_frequency_factor": 0.5,
        "high_frequency_factor": 7.0,
        "original_length": 99,
    },
    c.Rope: {"theta": 5e5, "fraction": 0.5, "scaling": c.LinearScaling(factor=3.0)},
    c.AttentionConfig: {
        "heads": 8,
        "kv_heads": 1,
        "head_dim": 16,
        "causal": {True: False, False: True},
        "window": 3,
        "position": lambda now: None if now else c.Rope(),
        "qk_norm": LAYER,
        "softcap": 7.0,
        "bias": True,
        "out_bias": True,
        "scale": 0.7,
    },
    c.MlpConfig: {"d_ff": 40, "activation": "relu", "gated": {True: False, False: True}, "bias": True},
    c.BlockConfig: {
        "mixer": c.AttentionConfig(heads=2, kv_heads=2, head_dim=8),
        "mlp": None,
        "cross": c.AttentionConfig(heads=4, kv_heads=4, head_dim=8, causal=False),
        "pre": None,
        "branch": NORM,
        "residual": LAYER,
        "parallel": True,
        "dropout": 0.3,
    },
    c.Remat: {"save": ("mlp_up",), "offload": ("mlp_up",)},
    c.StackConfig: {
        "pattern": (c.BlockConfig(mixer=c.AttentionConfig(heads=1, kv_heads=1, head_dim=8)),),
        "repeats": 3,
        "prefix": (c.BlockConfig(mixer=c.AttentionConfig(heads=1, kv_heads=1, head_dim=8)),),
        "suffix": (c.BlockConfig(mixer=c.AttentionConfig(heads=1, kv_heads=1, head_dim=8)),),
        "embed_norm": NORM,
        "final_norm": None,
        "remat": c.Remat(save=("mlp_down",)),
        "unroll": 2,
    },
    c.LearnedPositions: {"length": 20},
    c.SinusoidalPositions: {"theta": 77.0},
    c.EmbedConfig: {"positions": c.SinusoidalPositions(theta=3.0), "scale": 2.0, "dropout": 0.4},
    c.HeadConfig: {"tied": {True: False, False: True}, "bias": True, "softcap": 9.0, "scale": 0.5},
    c.InitConfig: {"kind": "small", "std": 0.3, "embed_std": 0.7, "residual": "wang"},
    LossConfig: {"chunk": 2, "z_loss": 0.3, "label_smoothing": 0.2},
}


def attention(scaling: c.RopeScaling | None = None, **more) -> c.AttentionConfig:
    return c.AttentionConfig(**{"heads": 4, "kv_heads": 2, "head_dim": 8, "position": c.Rope(scaling=scaling), **more})


def transformer(scaling: c.RopeScaling | None, positions, remat: c.Remat | None) -> c.TransformerConfig:
    mlp = c.MlpConfig(d_ff=24)
    block = c.BlockConfig(mixer=attention(scaling), mlp=mlp, pre=NORM)
    crossed = replace(block, cross=attention(position=None, causal=False), pre=LAYER)
    encoder = replace(block, mixer=attention(causal=True, position=None))
    return c.TransformerConfig(
        vocab_size=32,
        d_model=16,
        encoder=c.StackConfig(pattern=(encoder,), repeats=2, final_norm=NORM),
        decoder=c.StackConfig(pattern=(crossed,), repeats=2, prefix=(crossed,), final_norm=NORM, remat=remat),
        embed=c.EmbedConfig(positions=positions),
    )


BASES = {
    "linear": transformer(c.LinearScaling(factor=2.0), c.LearnedPositions(length=16), c.Remat(save=("query",))),
    "dynamic": transformer(c.DynamicNtkScaling(factor=2.0, original_length=6), c.SinusoidalPositions(), None),
    "yarn": transformer(c.YarnScaling(factor=4.0, original_length=64), None, None),
    "llama3": transformer(c.Llama3Scaling(original_length=64), None, None),
}


def program(config: c.TransformerConfig, loss: LossConfig) -> str:
    """The whole of a step before the optimizer: initialisation, objective, gradients."""
    ids = jax.ShapeDtypeStruct((2, 8), jnp.int32)

    def run(seed, tokens, segments, weights):
        model = Transformer(config, rngs=nnx.Rngs(seed))
        inputs = Inputs(tokens=tokens, segments=segments, encoder=Inputs(tokens=tokens))
        batch = Batch(inputs=inputs, targets=tokens, weights=weights)
        objective = build(NextToken(loss=loss))
        return jax.value_and_grad(lambda m: objective(m, batch, jax.random.key(1)).total)(model)

    weights = jax.ShapeDtypeStruct((2, 8), jnp.float32)
    return str(jax.make_jaxpr(run)(jax.random.key(0), ids, ids, weights))


def variants(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, the tree with that one field changed) for every field below `node`."""
    if isinstance(node, tuple):
        for i, item in enumerate(node):
            for where, new in variants(item, f"{path}.{i}"):
                yield where, (*node[:i], new, *node[i + 1 :])
    if not is_dataclass(node):
        return
    for f in fields(node):
        value, here = getattr(node, f.name), f"{path}.{f.name}".lstrip(".")
        if type(node) in OTHER:
            other = OTHER[type(node)][f.name]
            other = other[value] if isinstance(other, dict) else other(value) if callable(other) else other
            assert other != value, f"the table does not change {here}"
            yield here, replace(node, **{f.name: other})
        for where, new in variants(value, here):
            yield where, replace(node, **{f.name: new})


def test_the_table_knows_every_class_and_field():
    classes = [k for k in vars(c).values() if is_dataclass(k) and k is not c.TransformerConfig]
    for cls in [*classes, LossConfig]:
        assert set(OTHER[cls]) == {f.name for f in fields(cls)}, cls


@pytest.mark.parametrize("base", BASES)
def test_every_model_field_changes_the_program(base):
    config, loss = BASES[base], LossConfig(chunk=4)
    usual = program(config, loss)
    silent = []
    for where, changed in variants(config):
        if base != "linear" and ".position" not in where and not where.startswith("embed"):
            continue  # the same in every base
        if where.endswith(".cross") and where.startswith("encoder"):
            continue  # an encoder has nothing to attend across to
        if where.rpartition(".")[0].endswith(".cross") and where.rpartition(".")[2] in ("causal", "window", "position"):
            assert list(problems(changed)), f"{where} does nothing, and nobody refuses it"
            continue
        if program(changed, loss) == usual:
            silent.append(where)
    assert not silent


def test_sizes_and_losses_change_the_program():
    config, loss = BASES["linear"], LossConfig(chunk=4)
    usual = program(config, loss)
    assert program(replace(config, vocab_size=40), loss) != usual
    assert program(replace(config, d_model=24), loss) != usual
    for where, changed in variants(loss):
        assert program(config, changed) != usual, where
