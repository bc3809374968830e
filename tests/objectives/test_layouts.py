"""Every objective traces under every layout, with gradients laid as parameters."""

import jax
import pytest
from flax import nnx

from pretrain.data.rows import shapes
from pretrain.models import tree
from pretrain.models.transformer import Transformer
from pretrain.objectives.batch import gathered
from pretrain.objectives.build import build
from pretrain.objectives.replaced import LOGITS, sample
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import PRESETS
from pretrain.step import gradients
from tests.objectives.zoo import CASES

MESHES = {"dp": MeshConfig(data=8, fsdp=1), "fsdp": MeshConfig(fsdp=8), "fsdp_tp": MeshConfig(data=2, fsdp=2, tensor=2)}


@pytest.mark.parametrize("rules", MESHES)
@pytest.mark.parametrize("name", CASES)
def test_every_objective_traces_under_every_layout(name, rules):
    case, mesh = CASES[name], meshes.build(MESHES[rules])
    objective = build(case.objective)

    def array(shape, dtype):
        spec = place.spec("batch", *[None] * len(shape))
        return jax.ShapeDtypeStruct((16, *shape), dtype, sharding=jax.sharding.NamedSharding(mesh, spec))

    def grad(model, batch):
        return gradients(objective, model, batch, jax.random.key(0), 2)[0]

    with place.use(mesh, PRESETS[rules]()):
        batch = gathered({name: array(*stated) for name, stated in shapes(case.transform()).items()})
        model = jax.eval_shape(lambda: Transformer(case.model, rngs=nnx.Rngs(0)))
        grads = jax.eval_shape(grad, model, batch)
    for (name, param), g in zip(tree.params(model).items(), jax.tree.leaves(grads)):
        assert tuple(jax.tree.leaves(param)[0].sharding.spec) == tuple(g.sharding.spec), name


def test_the_generator_says_the_same_on_any_layout():
    hidden = jax.random.normal(jax.random.key(1), (8, 10, 16))
    table = jax.random.normal(jax.random.key(2), (16, 64))

    def said(hidden, table):
        return sample(lambda h: place.project(h, table, *LOGITS), hidden, jax.random.key(0), 4)

    alone = jax.jit(said)(hidden, table)
    mesh = meshes.build(MESHES["fsdp_tp"])
    with place.use(mesh, PRESETS["fsdp_tp"]()):
        put = [
            jax.device_put(x, jax.sharding.NamedSharding(mesh, place.spec(*axes)))
            for x, axes in ((hidden, ("batch", None, None)), (table, (None, "vocab")))
        ]
        spread = jax.jit(said)(*put)
    assert (alone == spread).all()
