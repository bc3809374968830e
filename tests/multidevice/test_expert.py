"""Experts on several devices: tokens go to them and come back, and the step is that of one device."""

from dataclasses import replace

import pytest

from pretrain.sharding.mesh import MeshConfig
from tests.multidevice import dims


@pytest.mark.slow
def test_experts_on_other_devices_give_the_step_of_one_device():
    dims.check("mixtral", MeshConfig(fsdp=2, expert=2, tensor=2))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"expert": 8}, {"expert": 4, "fsdp": 2}, {"expert": 2, "context": 2, "tensor": 2}])
@pytest.mark.parametrize("name", ["mixtral", "deepseek", "odd"])
def test_every_mixture_gives_the_step_of_one_device(name, mesh):
    dims.check(name, replace(MeshConfig(fsdp=1), **mesh))
