"""One step of a small model on a mesh: its loss and its gradients, beside those of one device."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
from flax import nnx

from pretrain.models import tree
from pretrain.models.config import TransformerConfig
from pretrain.models.transformer import Inputs, Transformer
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import PRESETS
from tests.multidevice.test_families import FAMILIES, batches, loss

ROWS = ("batch", "length")
QUICK = {"xla_backend_optimization_level": 0}


def deep(layers: int) -> TransformerConfig:
    """One mixture after another: everything that a stage has to carry along."""
    config = FAMILIES["mixtral"]
    return replace(config, decoder=replace(config.decoder, repeats=layers))


ALL = {**FAMILIES, "4 layers": deep(4), "8 layers": deep(8)}


def step(
    config: TransformerConfig, mesh: MeshConfig, rules: str = "fsdp_tp", devices: int = 8, key: jax.Array | None = None
):
    """(loss, gradient of each parameter by name); with a key as in training."""
    built = meshes.build(mesh, jax.devices()[:devices])
    with place.use(built, PRESETS[rules](), mesh.schedule):
        rows = jax.sharding.NamedSharding(built, place.spec("batch", None))
        layouts = tree.shardings(tree.abstract(config), built)
        model = jax.jit(lambda: Transformer(config, rngs=nnx.Rngs(0)), out_shardings=layouts)()
        arrays = tuple(jax.device_put(a, rows) for a in batches(1)[0])

        def run(model, arrays):
            tokens, positions, segments, _, types, source, targets = arrays
            inputs = Inputs(tokens=tokens, positions=positions, segments=segments, types=types)
            if config.encoder and config.decoder:
                inputs = replace(inputs, encoder=Inputs(tokens=source, positions=positions, segments=segments))
            return loss(model, inputs, targets, key)

        value, grads = jax.jit(jax.value_and_grad(run), compiler_options=QUICK)(model, arrays)
        return float(value), {name: np.asarray(jax.device_get(g[...])) for name, g in tree.params(grads).items()}


@cache
def alone(name: str):
    return step(ALL[name], MeshConfig(fsdp=1), "dp", 1)


def check(name: str, mesh: MeshConfig, rules: str = "fsdp_tp", bound: float = 1e-5) -> None:
    value, grads = step(ALL[name], mesh, rules)
    want, wanted = alone(name)
    np.testing.assert_allclose(value, want, rtol=bound)
    wrong = {leaf: distance(g, wanted[leaf]) for leaf, g in grads.items() if distance(g, wanted[leaf]) > bound}
    assert not wrong, wrong


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6))
