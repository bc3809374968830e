"""Every field of every model config changes the traced program, wherever it stands."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain.errors import problems
from pretrain.models import config as c
from pretrain.models import tree
from pretrain.models.transformer import Inputs, Transformer

NORM = c.NormConfig(kind="rms", eps=1e-5)
LAYER = c.NormConfig(kind="layer", eps=1e-6, bias=True)
FLIP = {True: False, False: True}
SMALL = c.BlockConfig(mixer=c.AttentionConfig(heads=1, kv_heads=1, head_dim=8))
TWO_KINDS = {"fan_in": "small", "normal": "fan_in"}
OTHER = {
    c.NormConfig: {
        "kind": {"rms": "layer", "layer": "rms"},
        "eps": 1e-2,
        "bias": FLIP,
        "scale": {"one": "zero", "zero": "none"},
    },
    c.LinearScaling: {"factor": 8.0},
    c.DynamicNtkScaling: {"factor": 8.0, "original_length": 4},
    c.YarnScaling: {
        "factor": 9.0,
        "original_length": 16,
        "beta_fast": 2.0,
        "beta_slow": 0.1,
        "attention_factor": 2.0,
        "truncate": FLIP,
    },
    c.Llama3Scaling: {
        "factor": 3.0,
        "low_frequency_factor": 0.5,
        "high_frequency_factor": 7.0,
        "original_length": 99,
    },
    c.LongRopeScaling: {
        "short_factors": (1.0, 2.0, 3.0, 5.0),
        "long_factors": (1.0, 2.0, 3.0, 6.0),
        "original_length": 5,
        "attention_factor": 1.7,
    },
    c.Rope: {"theta": 5e5, "fraction": 0.5, "interleaved": FLIP, "scaling": c.LinearScaling(factor=3.0)},
    c.Alibi: {"max_bias": 4.0},
    c.RelativeBias: {"buckets": 8, "max_distance": 200, "shared": FLIP},
    c.QueryGrowth: {"floor": 3.0, "scale": 0.3},
    c.AttentionConfig: {
        "heads": 8,
        "kv_heads": 1,
        "head_dim": 16,
        "causal": FLIP,
        "window": 3,
        "chunk": 3,
        "position": lambda now: None if now else c.Rope(),
        "qk_norm": lambda now: c.NormConfig(eps=0.1) if now else LAYER,
        "qk_norm_over": {"head": "all", "all": "head"},
        "growth": lambda now: None if now else c.QueryGrowth(floor=2.0),
        "softcap": 7.0,
        "sinks": FLIP,
        "bias": FLIP,
        "out_bias": True,
        "scale": 0.7,
    },
    c.MlaConfig: {
        "heads": 3,
        "query_rank": None,
        "kv_rank": 5,
        "nope_dim": 7,
        "rope_dim": 6,
        "value_dim": 9,
        "position": c.Rope(theta=3.0),
        "norm": LAYER,
        "causal": FLIP,
        "bias": FLIP,
        "scale": 0.3,
    },
    c.MlpConfig: {
        "d_ff": 40,
        "activation": "relu",
        "gated": FLIP,
        "bias": True,
        "clamp": 3.0,
        "up_offset": 1.0,
    },
    c.RouterConfig: {
        "top_k": 2,
        "score": {"softmax": "sigmoid", "sigmoid": "softmax"},
        "normalise": FLIP,
        "scale": 3.0,
        "bias": FLIP,
        "groups": 1,
        "top_groups": 2,
        "group_score": {"max": "top2", "top2": "max"},
        "on_input": FLIP,
        "balance_rate": None,
        "balance_loss": 0.5,
        "z_loss": 0.7,
    },
    c.MoeConfig: {
        "experts": 8,
        "router": c.RouterConfig(top_k=3),
        "expert": c.MlpConfig(d_ff=9),
        "shared": None,
        "capacity": 1.5,
    },
    c.BlockConfig: {
        "mixer": c.AttentionConfig(heads=2, kv_heads=2, head_dim=8),
        "mlp": None,
        "cross": c.AttentionConfig(heads=4, kv_heads=4, head_dim=8, causal=False),
        "pre": None,
        "branch": NORM,
        "residual": LAYER,
        "mixer_pre": FLIP,
        "parallel": {"no": "one_norm", "one_norm": "two_norms", "two_norms": "no"},
        "dropout": 0.3,
    },
    c.Remat: {"save": ("mlp_up",), "offload": ("mlp_up",)},
    c.StackConfig: {
        "pattern": (SMALL,),
        "repeats": 3,
        "prefix": (SMALL,),
        "suffix": (SMALL,),
        "positions": c.SinusoidalPositions(theta=3.0),
        "embed_norm": NORM,
        "final_norm": lambda now: None if now else NORM,
        "remat": c.Remat(save=("mlp_down",)),
        "unroll": 2,
        "matmul": "int8_forward",
    },
    c.LearnedPositions: {"length": 20, "offset": 2},
    c.SinusoidalPositions: {"theta": 77.0},
    c.EmbedConfig: {"scale": 2.0, "dropout": 0.4, "types": 3, "width": 12},
    c.TransformConfig: {"activation": "relu", "bias": FLIP, "norm": NORM},
    c.HeadConfig: {
        "tied": FLIP,
        "bias": True,
        "softcap": 9.0,
        "scale": 0.5,
        "transform": lambda now: None if now else c.TransformConfig(),
    },
    c.TaskConfig: {
        "name": "another",
        "pool": {"first": "last", "token": "mean", "mean": "first", "last": "token"},
        "labels": 5,
        "hidden": "relu",
        "dropout": 0.3,
        "bias": FLIP,
        "normalise": FLIP,
    },
    c.GeneratorConfig: {
        "d_model": 20,
        "encoder": c.StackConfig(pattern=(SMALL,), repeats=1),
        "head": c.HeadConfig(tied=True, bias=True, transform=c.TransformConfig()),
    },
    c.AheadConfig: {"depth": 2, "block": SMALL, "norm": LAYER},
    c.LoraConfig: {"pattern": "mixer/value$", "rank": 3, "alpha": 7.0, "dora": FLIP},
    c.InitConfig: {"kind": TWO_KINDS, "std": 0.3, "embed_std": 0.7, "residual": "wang"},
}


def attention(scaling: c.RopeScaling | None = None, **more) -> c.AttentionConfig:
    return c.AttentionConfig(**{"heads": 4, "kv_heads": 2, "head_dim": 8, "position": c.Rope(scaling=scaling), **more})


def transformer(mixer, positions=None, remat: c.Remat | None = None) -> c.TransformerConfig:
    """An encoder and a decoder."""
    block = c.BlockConfig(mixer=mixer, mlp=c.MlpConfig(d_ff=24), pre=NORM)
    crossed = replace(block, cross=attention(position=None, causal=False), pre=LAYER)
    encoder = replace(block, mixer=attention(position=None))
    return c.TransformerConfig(
        vocab_size=32,
        d_model=16,
        encoder=c.StackConfig(pattern=(encoder,), repeats=2, positions=positions, final_norm=NORM),
        decoder=c.StackConfig(pattern=(crossed,), repeats=2, final_norm=NORM, remat=remat),
    )


def decoder(mixer, mlp=None, positions=None, **more) -> c.TransformerConfig:
    block = c.BlockConfig(mixer=mixer, mlp=mlp, pre=NORM)
    stack = c.StackConfig(pattern=(block,), repeats=2, positions=positions, final_norm=NORM)
    return c.TransformerConfig(vocab_size=32, d_model=16, decoder=stack, **more)


ROUTER = c.RouterConfig(top_k=1, groups=3, top_groups=1, score="sigmoid", balance_rate=0.1, balance_loss=0.1)
MIXTURE = c.MoeConfig(experts=6, router=ROUTER, expert=c.MlpConfig(d_ff=8), shared=c.MlpConfig(d_ff=4))
LATENT = c.MlaConfig(heads=2, query_rank=6, kv_rank=8, nope_dim=6, rope_dim=4, value_dim=5)
LONG = c.LongRopeScaling(
    short_factors=(1.0, 2.0, 3.0, 4.0), long_factors=(2.0, 3.0, 4.0, 5.0), original_length=6, attention_factor=1.2
)
HEADS = c.BlockConfig(mixer=c.AttentionConfig(heads=4, kv_heads=2, head_dim=8), mlp=c.MlpConfig(d_ff=9), pre=NORM)
JUDGED = c.TransformerConfig(
    vocab_size=32,
    d_model=16,
    encoder=c.StackConfig(pattern=(HEADS,), repeats=1, positions=c.LearnedPositions(length=16)),
    embed=c.EmbedConfig(types=2, width=16),
    head=c.HeadConfig(tied=True, transform=c.TransformConfig()),
    tasks=(
        c.TaskConfig(name="a", labels=2, hidden="tanh"),
        c.TaskConfig(name="b", pool="token", labels=1),
        c.TaskConfig(name="c", pool="mean", normalise=True),
    ),
    generator=c.GeneratorConfig(
        d_model=12,
        encoder=c.StackConfig(pattern=(HEADS,), repeats=1),
        head=c.HeadConfig(tied=True, transform=c.TransformConfig(activation="silu")),
    ),
)
FIRST = {
    "linear": transformer(
        attention(c.LinearScaling(factor=2.0)),
        positions=c.LearnedPositions(length=16),
        remat=c.Remat(save=("query",)),
    ),
}
"""Changed in every field."""
REST = {
    "dynamic": decoder(attention(c.DynamicNtkScaling(factor=2.0, original_length=6))),
    "yarn": decoder(attention(c.YarnScaling(factor=4.0, original_length=4096))),
    "llama3": decoder(attention(c.Llama3Scaling(original_length=64))),
    "longrope": decoder(attention(LONG)),
    "alibi": decoder(attention(position=c.Alibi())),
    "relative": decoder(attention(position=c.RelativeBias())),
    "own relative": decoder(attention(position=c.RelativeBias(shared=False), qk_norm=NORM, growth=c.QueryGrowth())),
    "waves": decoder(attention(position=None), positions=c.SinusoidalPositions()),
    "latent": decoder(LATENT),
    "mixture": decoder(attention(), MIXTURE),
    "judged": JUDGED,
    "ahead": decoder(attention(), ahead=c.AheadConfig(depth=1, block=HEADS)),
    "adapted": decoder(attention(), adapters=(c.LoraConfig(pattern="mixer/query$"),)),
}
"""Changed below the dataclasses named here, which stand nowhere else."""
ONLY = {
    "dynamic": "scaling",
    "yarn": "scaling",
    "llama3": "scaling",
    "longrope": "scaling",
    "alibi": "position",
    "relative": "position",
    "own relative": "mixer",
    "waves": "positions",
    "latent": "mixer",
    "mixture": "mlp",
    "judged": "",
    "ahead": "ahead",
    "adapted": "adapters",
}


def program(config: c.TransformerConfig, gradients: bool = False) -> str:
    """Initialisation and everything a model can say; the gradients too, where they alone can differ."""
    ids = jax.ShapeDtypeStruct((2, 8), jnp.int32)

    def said(model: Transformer, inputs: Inputs):
        out = model(inputs, key=jax.random.key(1))
        sums = [jnp.sum(out.hidden_BTD), *out.losses.values()]
        sums += [jnp.sum(model.logits(out.hidden_BTD))] if config.head else []
        sums += [jnp.sum(model.task(t.name, out.hidden_BTD, inputs.segments, jax.random.key(2))) for t in config.tasks]
        if config.ahead:
            further, losses = model.ahead(out.hidden_BTD, inputs, key=jax.random.key(3))
            sums += [*map(jnp.sum, further), *losses.values()]
        if config.generator:
            hidden, unembed = model.generated(inputs, key=jax.random.key(4))
            sums.append(jnp.sum(unembed(hidden)))
        return sum(sums)

    def run(seed, tokens, segments):
        model = Transformer(config, rngs=nnx.Rngs(seed))
        encoder = Inputs(tokens=tokens) if config.encoder and config.decoder else None
        inputs = Inputs(tokens=tokens, segments=segments, types=segments, encoder=encoder)
        return (jax.grad(said) if gradients else said)(model, inputs)

    jaxpr = jax.make_jaxpr(run)(jax.random.key(0), ids, ids)
    constants = [np.asarray(x).tolist() for x in jaxpr.consts]
    return f"{jaxpr}\n{constants}\n{names_and_rates(config)}"


def names_and_rates(config: c.TransformerConfig) -> list:
    """What a model is besides its program: names of parameters and tasks, and what moves without an optimizer."""
    tasks = [(task.name, None) for task in config.tasks]
    return tasks + [(name, p.sign_rate) for name, p in tree.params(tree.abstract(config)).items()]


def variants(node: Any, below: str = "", path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, the tree with that one field changed) for every field under a field called `below`."""
    if isinstance(node, tuple):
        for i, item in enumerate(node):
            for where, new in variants(item, below, f"{path}.{i}"):
                yield where, (*node[:i], new, *node[i + 1 :])
    if not is_dataclass(node):
        return
    for f in fields(node):
        value, here = getattr(node, f.name), f"{path}.{f.name}".lstrip(".")
        if type(node) in OTHER and f".{below}" in f".{path}.":
            other = OTHER[type(node)][f.name]
            other = other[value] if isinstance(other, dict) else other(value) if callable(other) else other
            assert other != value, f"the table does not change {here}"
            yield here, replace(node, **{f.name: other})
        for where, new in variants(value, below, here):
            yield where, replace(node, **{f.name: new})


def refused(config: c.TransformerConfig) -> bool:
    return bool(list(problems(config)))


def silent(config: c.TransformerConfig, below: str) -> list[str]:
    """Fields that change nothing and that no check refuses either."""
    usual, found = {gradients: program(config, gradients) for gradients in (False, True)}, []
    for where, changed in variants(config, below and f"{below}."):
        if not refused(changed):
            try:
                gradients = "remat" in where
                same = program(changed, gradients) == usual[gradients]
            except Exception as error:
                raise AssertionError(f"{where} breaks the model") from error
            found += [where] if same else []
    return found


def test_the_table_knows_every_class_and_field():
    classes = [k for k in vars(c).values() if is_dataclass(k) and k is not c.TransformerConfig]
    for cls in classes:
        assert set(OTHER[cls]) == {f.name for f in fields(cls)}, cls


def test_every_class_is_changed_somewhere():
    seen = {type(node) for config in (FIRST | REST).values() for node in nodes(config)}
    classes = {k for k in vars(c).values() if is_dataclass(k)}
    assert seen == classes


def nodes(node: Any) -> Iterator[Any]:
    if isinstance(node, tuple):
        for item in node:
            yield from nodes(item)
    if is_dataclass(node):
        yield node
        for f in fields(node):
            yield from nodes(getattr(node, f.name))


@pytest.mark.parametrize("base", FIRST | REST)
def test_every_model_field_changes_the_program(base):
    assert not silent((FIRST | REST)[base], ONLY.get(base, ""))


def test_sizes_change_the_program():
    config = FIRST["linear"]
    usual = program(config)
    assert program(replace(config, vocab_size=40)) != usual
    assert program(replace(config, d_model=24)) != usual
