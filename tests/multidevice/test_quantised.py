"""Products in 8 bits on eight devices: the scales, and so the numbers, of one."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from pretrain.models.config import Rope
from pretrain.sharding.mesh import MeshConfig
from tests.multidevice import dims
from tests.multidevice.test_families import FAMILIES, HEADS, decoder

MODELS = {**FAMILIES, "llama": decoder(replace(HEADS, position=Rope()))}
KINDS = ("int8", "int8_forward", "fp8", "fp8_forward")


def step(kind: str, family: str, mesh: MeshConfig, rules: str, devices: int):
    """(loss, gradient of each parameter by name) of a step in training."""
    config = MODELS[family]
    config = replace(config, decoder=replace(config.decoder, matmul=kind))
    return dims.step(config, mesh, rules, devices, key=jax.random.key(3))


def check(kind: str, family: str, mesh: MeshConfig, rules: str, bound: float):
    value, grads = step(kind, family, mesh, rules, 8)
    want, wanted = step(kind, family, MeshConfig(fsdp=1), "dp", 1)
    exact, _ = step("float", family, MeshConfig(fsdp=1), "dp", 1)
    assert want != exact
    np.testing.assert_allclose(value, want, rtol=bound)
    wrong = {leaf: d for leaf, g in grads.items() if (d := dims.distance(g, wanted[leaf])) > bound}
    wrong = {leaf: d for leaf, d in wrong.items() if not in_one_column(grads[leaf], wanted[leaf])}
    assert not wrong, wrong


def in_one_column(g: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether they differ in what one number brings about: in the gradient of a matrix, for one output, all inputs.

    Layouts add up in different orders. A number whose last bit decides between two of 8 bits may fall either way.
    """
    off = np.argwhere(np.abs(g - wanted) > 1e-6 * np.linalg.norm(wanted))
    return sum(len(set(index)) > 1 for index in off.T) <= 1


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * ("forward" in k)) for k in KINDS])
def test_fully_sharded_and_tensor_parallel_steps_are_those_of_one_device(kind):
    check(kind, "llama", MeshConfig(fsdp=4, tensor=2), "fsdp_tp", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8_forward", "fp8"])
@pytest.mark.parametrize(
    ("family", "mesh"),
    [
        ("llama", MeshConfig(fsdp=2, context=2, tensor=2)),
        ("llama", MeshConfig(fsdp=4, stage=2)),
        ("mixtral", MeshConfig(fsdp=2, expert=2, tensor=2)),
        ("deepseek", MeshConfig(fsdp=4, tensor=2)),
        ("odd", MeshConfig(fsdp=2, tensor=2, data=2)),
    ],
)
def test_other_layouts_and_families_too(kind, family, mesh):
    """Stochastic rounding draws anew for each micro-batch of a pipeline, so not int8."""
    check(kind, family, mesh, "fsdp_tp", 1e-3)
