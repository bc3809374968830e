"""Layers on the devices of several stages: the step of one device, whatever the schedule."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain.models.transformer import Inputs, Transformer
from pretrain.sharding import mesh as meshes
from pretrain.sharding import pipeline, place
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import fsdp_tp
from tests.multidevice import dims

SCHEDULES = [(2, 1, 1), (2, 2, 1), (2, 3, 2), (4, 1, 1), (4, 2, 2), (4, 4, 1), (2, 1, 4), (4, 1, 4)]


@pytest.mark.parametrize(("stages", "micro", "rounds"), SCHEDULES)
def test_every_row_passes_every_layer_in_order(stages, micro, rounds):
    """A layer that is no sum and does not commute with the others, beside a number that belongs to the row."""
    layers, rows = 16, stages * micro * 2
    config = MeshConfig(fsdp=1, stage=stages, micro=micro, rounds=rounds)
    w = jax.random.uniform(jax.random.key(0), (layers, 3), minval=0.5)
    x, own = jax.random.normal(jax.random.key(1), (rows, 3)), jnp.arange(rows) / rows

    def layer(x, w, own):
        return jnp.sin(w * x) + own[:, None] * x

    def work(w, x, own, micro):
        def step(x, w):
            return layer(x, w, own), jnp.sum(x)

        return jax.lax.scan(step, x, w)

    def alone(w, x):
        counts = []
        for one in w:
            counts.append(jnp.sum(x))
            x = layer(x, one, own)
        return x, jnp.stack(counts)

    mesh = meshes.build(config, jax.devices()[:stages])
    with place.use(mesh, fsdp_tp(), config.schedule):

        def weighed(w, x, own):
            x, own = place.constrain(x, "batch", None), place.constrain(own, "batch")
            y, counts = pipeline.run(work, place.staged(w), x, own, lambda tick: tick)
            return jnp.sum(jnp.cos(y)), (y, counts)

        whole = jax.device_put((w, x, own), jax.sharding.NamedSharding(mesh, jax.P()))
        grads, found = jax.jit(jax.grad(weighed, (0, 1), has_aux=True), compiler_options=dims.QUICK)(*whole)
    wanted = jax.jit(alone)(w, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)
    wanted = jax.jit(jax.grad(lambda w, x: jnp.sum(jnp.cos(alone(w, x)[0])), (0, 1)))(w, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), grads, wanted)


@pytest.mark.slow
def test_dropout_draws_anew_for_every_layer_and_micro_batch():
    base = dims.FAMILIES["mixtral"]
    block = replace(base.decoder.pattern[0], mlp=None, dropout=0.5)
    config = replace(base, decoder=replace(base.decoder, pattern=(block,), repeats=2))
    mesh = MeshConfig(fsdp=1, stage=2)
    with place.use(meshes.build(mesh, jax.devices()[:2]), fsdp_tp(), mesh.schedule):
        model = jax.jit(lambda: Transformer(config, rngs=nnx.Rngs(0)))()
        tokens = jnp.broadcast_to(jnp.arange(8), (4, 8))
        run = jax.jit(lambda model, key: model(Inputs(tokens=tokens), key=key).hidden_BTD)
        one, two = np.asarray(run(model, jax.random.key(0))), np.asarray(run(model, jax.random.key(1)))
    assert not np.allclose(one, two)
    rows = one.reshape(4, -1)
    assert all(not np.allclose(rows[i], rows[j]) for i in range(4) for j in range(i))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("8 layers", {"data": 2, "stage": 4}),
        ("8 layers", {"data": 2, "stage": 2, "micro": 2, "tensor": 2, "rounds": 2}),
        ("8 layers", {"stage": 2, "expert": 2, "context": 2, "rounds": 4, "attention": "ring"}),
        ("8 layers", {"fsdp": 2, "stage": 4, "rounds": 2}),
        ("t5", {"fsdp": 2, "stage": 2, "tensor": 2}),
        ("bert", {"stage": 2, "context": 4}),
        ("deepseek", {"fsdp": 2, "stage": 2, "expert": 2}),
    ],
)
def test_stages_give_the_step_of_one_device(name, mesh):
    dims.check(name, replace(MeshConfig(fsdp=1), **mesh))
