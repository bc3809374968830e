"""Every family under every layout: traces, lays gradients as parameters, counts as stated, and sees no future."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain import configs
from pretrain.configs import gpt2, gpt3, llama, smollm
from pretrain.models import accounting, tree
from pretrain.models.transformer import Inputs, Transformer
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import PRESETS
from tests.guards.families import TINY

DECODERS = {name: config for name, config in TINY.items() if config.encoder is None}
MESHES = {"dp": MeshConfig(data=8, fsdp=1), "fsdp": MeshConfig(fsdp=8), "fsdp_tp": MeshConfig(data=2, fsdp=2, tensor=2)}
PUBLISHED = {
    llama.llama2_7b: 6738415616,
    llama.llama2_13b: 13015864320,
    llama.llama2_70b: 68976648192,
    llama.llama3_8b: 8030261248,
    smollm.smollm2_135m: 134515008,
    gpt2.small: 124439808,
    gpt2.medium: 354823168,
    gpt2.large: 774030080,
    gpt2.xl: 1557611200,
}


NEAR = ("gpt3", "gemma2", "gemma3", "phi3", "gptoss", "llama4")
"""Have layers that see only what is near."""


@pytest.mark.parametrize("rules", PRESETS)
@pytest.mark.parametrize("family", TINY)
def test_every_family_traces_under_every_layout_with_gradients_laid_as_parameters(family, rules):
    config, mesh = TINY[family], meshes.build(MESHES[rules])
    with place.use(mesh, PRESETS[rules]()):
        rows = jax.sharding.NamedSharding(mesh, place.spec("batch", None))
        ids = jax.ShapeDtypeStruct((8, 16), jnp.int32, sharding=rows)
        inputs = Inputs(tokens=ids, segments=ids, types=ids)
        if config.encoder and config.decoder:
            inputs = replace(inputs, encoder=Inputs(tokens=ids, segments=ids))
        model = jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
        grads = jax.eval_shape(jax.grad(everything), model, inputs)
    assert accounting.parameters(config).total == tree.size(model)
    for (name, param), g in zip(tree.params(model).items(), jax.tree.leaves(grads)):
        want, have = jax.tree.leaves(param)[0].sharding.spec, g.sharding.spec
        assert tuple(want) == tuple(have), name


def everything(model: Transformer, inputs: Inputs) -> jax.Array:
    """One number that hangs on all that a model can say."""
    config, out = model.config, model(inputs)
    total = sum(out.losses.values(), jnp.float32(0))
    if config.head:
        total += jnp.sum(model.logits(out.hidden_BTD))
    for name in model.tasks:
        total += jnp.sum(model.task(name, out.hidden_BTD, inputs.segments))
    if config.ahead:
        total += sum(jnp.sum(model.logits(h)) for h in model.ahead(out.hidden_BTD, inputs)[0])
    if config.generator:
        hidden_BTD, unembed = model.generated(inputs)
        total += jnp.sum(unembed(hidden_BTD))
    return total


def test_every_config_file_has_a_family_here():
    files = {p.stem for p in Path(configs.__file__).parent.glob("*.py")} - {"__init__"}
    variants = {"gemma", "olmo", "phi", "qwen", "smollm"}  # their releases differ
    same = {"mistral": "phi3", "distilbert": "bert", "marian": "original_transformer"}
    here = set(TINY) | set(same) | {v for v in variants if any(name.startswith(v) for name in TINY)}
    assert files <= here


@pytest.mark.parametrize("make", PUBLISHED, ids=lambda f: f"{f.__module__.rpartition('.')[2]}.{f.__name__}")
def test_published_parameter_counts_are_exact(make):
    assert tree.size(tree.abstract(make())) == PUBLISHED[make] == accounting.parameters(make()).total


def test_gpt3_has_175_billion_parameters():
    assert abs(accounting.parameters(gpt3.gpt3_175b()).total / 175e9 - 1) < 0.005


@pytest.mark.parametrize("family", DECODERS)
def test_no_token_sees_the_future_or_another_document(family):
    model = Transformer(DECODERS[family], rngs=nnx.Rngs(0))
    T, first = 12, 5
    segments = jnp.where(jnp.arange(T) < first, 1, 2)[None].at[0, -2:].set(0)
    positions = jnp.where(jnp.arange(T) < first, jnp.arange(T), jnp.arange(T) - first)[None]
    tokens = jax.random.randint(jax.random.key(0), (1, T), 0, 64)

    def hidden(noise_TD):
        noisy = nnx.clone(model)
        embed = noisy.embed
        noisy.embed = lambda tokens, types, dtype: embed(tokens, types, dtype) + noise_TD
        return noisy(Inputs(tokens=tokens, segments=segments, positions=positions)).hidden_BTD[0]

    probe_D = jax.random.normal(jax.random.key(1), (32,))
    quickly = {"xla_backend_optimization_level": 0}  # to compile
    jacobian = jax.jit(jax.jacobian(lambda n: hidden(n) @ probe_D), compiler_options=quickly)(jnp.zeros((T, 32)))
    reach = np.asarray(jnp.abs(jacobian).sum(-1) > 0)
    for t in range(T):
        for s in range(T):
            seen = s <= t and segments[0, s] == segments[0, t] and segments[0, t] != 0
            if family in NEAR:
                assert seen or not reach[t, s] or s == t
            else:
                assert reach[t, s] == (seen or s == t), (t, s)
