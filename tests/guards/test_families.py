"""Every family under every layout: traces, lays gradients as parameters, counts as stated, and sees no future."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain.configs import gpt2, gpt3, llama, smollm
from pretrain.models import accounting, tree
from pretrain.models.config import SinusoidalPositions
from pretrain.models.transformer import Inputs, Transformer
from pretrain.objectives.batch import Batch
from pretrain.objectives.build import build
from pretrain.objectives.config import NextToken
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import PRESETS

LLAMA = llama.llama(vocab_size=64, d_model=32, layers=2, heads=4, kv_heads=2, d_ff=48)
GPT2 = gpt2.gpt2(vocab_size=64, d_model=32, layers=2, heads=4, length=16)
FAMILIES = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "gpt3": gpt2.gpt2(vocab_size=64, d_model=32, layers=4, heads=4, length=16, window=3),
    "sinusoidal": replace(GPT2, decoder=replace(GPT2.decoder, positions=SinusoidalPositions())),
    "tied": llama.llama(vocab_size=64, d_model=32, layers=2, heads=4, d_ff=48, tied=True),
    "biased": llama.llama(vocab_size=64, d_model=32, layers=2, heads=4, d_ff=48, attention_bias=True, mlp_bias=True),
}
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


@pytest.mark.parametrize("rules", PRESETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_traces_under_every_layout_with_gradients_laid_as_parameters(family, rules):
    config, mesh = FAMILIES[family], meshes.build(MESHES[rules])
    objective = build(NextToken())

    def grad(model, batch):
        return jax.grad(lambda m: objective(m, batch, None).total)(model)

    with place.use(mesh, PRESETS[rules]()):
        rows = jax.sharding.NamedSharding(mesh, place.spec("batch", None))
        ids = jax.ShapeDtypeStruct((8, 16), jnp.int32, sharding=rows)
        weights = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=rows)
        model = jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
        grads = jax.eval_shape(
            grad, model, Batch(inputs=Inputs(tokens=ids, segments=ids), targets=ids, weights=weights)
        )
    for (name, param), g in zip(tree.params(model).items(), jax.tree.leaves(grads)):
        want, have = jax.tree.leaves(param)[0].sharding.spec, g.sharding.spec
        assert tuple(want) == tuple(have), name


@pytest.mark.parametrize("make", PUBLISHED, ids=lambda f: f"{f.__module__.rpartition('.')[2]}.{f.__name__}")
def test_published_parameter_counts_are_exact(make):
    assert tree.size(tree.abstract(make())) == PUBLISHED[make] == accounting.parameters(make()).total


def test_gpt3_has_175_billion_parameters():
    assert abs(accounting.parameters(gpt3.gpt3_175b()).total / 175e9 - 1) < 0.005


@pytest.mark.parametrize("family", FAMILIES)
def test_no_token_sees_the_future_or_another_document(family):
    model = Transformer(FAMILIES[family], rngs=nnx.Rngs(0))
    T, first = 12, 5
    segments = jnp.where(jnp.arange(T) < first, 1, 2)[None].at[0, -2:].set(0)
    positions = jnp.where(jnp.arange(T) < first, jnp.arange(T), jnp.arange(T) - first)[None]
    tokens = jax.random.randint(jax.random.key(0), (1, T), 0, 64)

    def hidden(noise_TD):
        noisy = nnx.clone(model)
        embed = noisy.embed
        noisy.embed = lambda tokens, positions, dtype: embed(tokens, positions, dtype) + noise_TD
        return noisy(Inputs(tokens=tokens, segments=segments, positions=positions)).hidden_BTD[0]

    probe_D = jax.random.normal(jax.random.key(1), (32,))
    jacobian = jax.jacobian(lambda n: hidden(n) @ probe_D)(jnp.zeros((T, 32)))
    reach = np.asarray(jnp.abs(jacobian).sum(-1) > 0)
    for t in range(T):
        for s in range(T):
            seen = s <= t and segments[0, s] == segments[0, t] and segments[0, t] != 0
            if family == "gpt3":
                assert seen or not reach[t, s] or s == t
            else:
                assert reach[t, s] == (seen or s == t), (t, s)
