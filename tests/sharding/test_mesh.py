import math
from dataclasses import replace

import jax
import pytest

from pretrain import presets
from pretrain.errors import UserError, problems
from pretrain.mesh_checks import mesh_problems
from pretrain.sharding import mesh as meshes
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


def test_slices_multiply_the_data_axis_and_keep_their_devices_together():
    config = MeshConfig(data=2, fsdp=2, dcn_data=2)
    devices = jax.devices()[:8]
    mesh = meshes.build(config, devices)
    assert mesh.shape["data"] == 4
    assert mesh.shape["fsdp"] == 2
    halves = mesh.devices.reshape(2, 4)
    assert [{d.id for d in half} for half in halves] == [{d.id for d in devices[:4]}, {d.id for d in devices[4:]}]


def test_slices_that_do_not_divide_the_devices_are_refused():
    assert misfit(8, fsdp=1, dcn_data=3) == (
        "mesh.dcn_data=3 does not divide 8 devices into slices; choose 1 or 2 or 4 or 8"
    )


def test_what_no_axis_reads_is_refused():
    found = list(problems(MeshConfig(attention="ring", micro=2, rounds=2), "mesh"))
    assert found == [
        "mesh.attention=ring with context=1: found whole rows, nothing to pass round; set context",
        "mesh.micro=2 with stage=1: found no pipeline; set stage or micro=1",
        "mesh.rounds=2 with stage=1: found no pipeline; set stage or rounds=1",
    ]


REFUSED = {
    "smoke": [
        (
            {"context": 3},
            "mesh.context=3 does not divide data.sequence_length=256; choose 1 or 2 or 4 or 8 or 16 or 32",
        ),
        ({"expert": 2}, "mesh.expert=2: found a model without experts; use fsdp=2 instead"),
        ({"stage": 5}, "mesh.stage=5 does not divide model.decoder.repeats=4; choose 1 or 2 or 4"),
        ({"stage": 4, "rounds": 3}, "mesh.rounds=3 and stage=4: expected one to divide the other; choose 1, 2 or 4"),
        (
            {"stage": 2, "micro": 3},
            "batch.rows / accumulate = 8 is not a multiple of stage x micro = 6; nearest 6 or 12",
        ),
    ],
    "smoke_mixtral": [({"expert": 3}, "mesh.expert=3 does not divide experts=8; choose 1 or 2 or 4 or 8")],
}


@pytest.mark.parametrize(("name", "sizes", "message"), [(n, *case) for n, cases in REFUSED.items() for case in cases])
def test_a_mesh_that_a_model_cannot_be_laid_out_on_says_what_it_could(name, sizes, message):
    config = replace(presets.load_run(f"runs.{name}"), mesh=MeshConfig(fsdp=1, **sizes))
    devices = math.prod(n for axis, n in sizes.items() if axis not in ("micro", "rounds"))
    assert message in mesh_problems(config, devices)


def test_kernels_of_a_package_that_is_missing_are_asked_for_in_vain(monkeypatch):
    meshes.require(MeshConfig())
    monkeypatch.setattr(meshes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mesh\.kernels=tokamax: found no tokamax, .*; pip install 'pretrain\[tokamax"):
        meshes.require(MeshConfig(kernels="tokamax"))
