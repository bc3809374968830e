"""Every field of a mesh changes the traced program."""

import importlib.util
from dataclasses import fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from pretrain.configs.llama import llama
from pretrain.errors import UserError
from pretrain.models.layers.kernels import Mask, attention
from pretrain.models.transformer import Inputs, Transformer
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import fsdp_tp
from tests.guards.families import LLAMA, TINY

DENSE = llama(**{**LLAMA, "layers": 4})
OTHER: dict[str, tuple[MeshConfig, Any]] = {
    "data": (MeshConfig(), 2),
    "fsdp": (MeshConfig(data=-1, fsdp=2), 4),
    "tensor": (MeshConfig(), 2),
    "context": (MeshConfig(), 2),
    "expert": (MeshConfig(), 2),
    "stage": (MeshConfig(), 2),
    "dcn_data": (MeshConfig(), 2),
    "attention": (MeshConfig(context=2), "ring"),
    "micro": (MeshConfig(stage=2, fsdp=1, data=-1), 2),
    "rounds": (MeshConfig(stage=2), 2),
}
"""Field -> a mesh and another value of the field in it."""


def program(mesh: MeshConfig, model: Any = DENSE) -> str:
    built = meshes.build(mesh, jax.devices()[:8])
    with place.use(built, fsdp_tp(), mesh.schedule):
        rows = jax.sharding.NamedSharding(built, place.spec("batch", None))
        ids = jax.ShapeDtypeStruct((32, 16), jnp.int32, sharding=rows)
        made = jax.eval_shape(lambda: Transformer(model, rngs=nnx.Rngs(0)))
        text = str(jax.make_jaxpr(lambda m, t: m(Inputs(tokens=t, segments=t)).hidden_BTD)(made, ids))
        return f"{text} {[leaf.sharding for leaf in jax.tree.leaves(made)]}"


def test_the_table_knows_every_field():
    assert {*OTHER, "kernels"} == {f.name for f in fields(MeshConfig)}


def test_whose_kernels_they_are_changes_the_program_or_is_refused():
    if importlib.util.find_spec("tokamax") is None:
        with pytest.raises(UserError, match="found no tokamax"):
            meshes.require(MeshConfig(kernels="tokamax"))
        return

    def traced(mesh: MeshConfig) -> str:
        q, k = jnp.zeros((1, 128, 1, 1, 64)), jnp.zeros((1, 128, 1, 64))
        with place.use(meshes.build(mesh, jax.devices()[:1]), fsdp_tp(), mesh.schedule):
            mix = partial(attention, mask=Mask(), scale=1.0, implementation="splash")
            return str(jax.make_jaxpr(mix)(q, k, k))

    assert traced(MeshConfig()) != traced(MeshConfig(kernels="tokamax"))


@pytest.mark.parametrize("name", OTHER)
def test_every_field_of_a_mesh_changes_the_program(name):
    mesh, value = OTHER[name]
    model = TINY["mixtral"] if name == "expert" else DENSE
    assert program(replace(mesh, **{name: value}), model) != program(mesh, model)
