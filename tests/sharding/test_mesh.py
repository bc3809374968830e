import pytest

from pretrain.errors import UserError
from pretrain.sharding.mesh import MeshConfig


def misfit(devices: int, **sizes: int) -> str:
    with pytest.raises(UserError) as error:
        MeshConfig(**sizes).shape(devices)
    return str(error.value)


def test_a_free_axis_takes_the_devices_that_remain():
    assert MeshConfig(data=2, fsdp=-1, tensor=2).shape(8)["fsdp"] == 2


def test_a_mesh_that_does_not_fit_names_those_that_do():
    assert misfit(8, data=3, fsdp=2) == (
        "mesh data=3 x fsdp=2 is 6 devices, there are 8; "
        "choices: data=8 x fsdp=1, data=4 x fsdp=2, data=2 x fsdp=4, data=1 x fsdp=8"
    )


def test_on_one_device_more_can_be_simulated():
    assert misfit(1, tensor=8) == (
        "mesh tensor=8 is 8 devices, there is 1; choices: tensor=1, or --simulate 8 on this CPU"
    )
