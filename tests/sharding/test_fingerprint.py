"""One number for an array, whatever its layout; another one after any changed bit."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.sharding import fingerprint, place
from pretrain.sharding import mesh as meshes
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import PRESETS

RNG = np.random.default_rng(0)
ARRAYS = {
    "f32": RNG.standard_normal((8, 6, 4)).astype(np.float32),
    "bf16": np.asarray(jnp.asarray(RNG.standard_normal((16, 4)), jnp.bfloat16)),
    "int": RNG.integers(-9, 9, (5,), np.int32),
    "small": RNG.integers(0, 9, (8, 3), np.uint8),
    "truth": np.array([True, False, True]),
    "scalar": np.float32(2.5),
}
LAYOUTS = {"f32": jax.P("data", None, "tensor"), "bf16": jax.P(("data", "fsdp")), "small": jax.P("fsdp")}


def placed(mesh):
    shardings = {name: jax.NamedSharding(mesh, LAYOUTS.get(name, jax.P())) for name in ARRAYS}
    return {name: jax.device_put(jnp.asarray(x), shardings[name]) for name, x in ARRAYS.items()}


@pytest.fixture(scope="module")
def mesh():
    return meshes.build(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])


def test_the_mesh_and_the_device_do_not_change_a_fingerprint(mesh):
    by_numpy = {name: fingerprint.of_host(np.asarray(x)) for name, x in ARRAYS.items()}
    assert fingerprint.whole({name: jnp.asarray(x) for name, x in ARRAYS.items()}) == by_numpy
    with place.use(mesh, PRESETS["fsdp_tp"]()):
        assert fingerprint.whole(placed(mesh)) == by_numpy


def test_any_flipped_bit_and_any_swap_changes_it():
    array = ARRAYS["f32"].reshape(-1)
    usual = fingerprint.of_host(array)
    for i in RNG.integers(0, array.size, 40):
        bits = array.view(np.uint32).copy()
        bits[i] ^= np.uint32(1) << np.uint32(RNG.integers(32))
        assert fingerprint.of_host(bits) != usual
    signs = array.view(np.uint32).copy()
    signs[[3, 7]] ^= np.uint32(1 << 31)
    swapped = array.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert usual not in {fingerprint.of_host(signs), fingerprint.of_host(swapped)}


def test_replicas_of_a_part_are_known_and_one_that_differs_is_seen(mesh):
    arrays = placed(mesh)
    assert fingerprint.replicas(arrays["scalar"]) == [list(range(8))]
    assert sorted(map(len, fingerprint.replicas(arrays["f32"]))) == [2, 2, 2, 2]
    shards = [np.array(s.data) for s in arrays["scalar"].addressable_shards]
    shards[5] = shards[5].view(np.uint32) ^ np.uint32(1)
    devices = [s.device for s in arrays["scalar"].addressable_shards]
    pieces = [jax.device_put(jnp.asarray(s.view(np.float32)), d) for s, d in zip(shards, devices)]
    arrays["scalar"] = jax.make_array_from_single_device_arrays((), arrays["scalar"].sharding, pieces)
    with place.use(mesh, PRESETS["fsdp_tp"]()):
        found = np.asarray(fingerprint.parts(arrays))[:, sorted(arrays).index("scalar")]
    usual = Counter(found.tolist()).most_common(1)[0][0]
    assert [d for d, n in zip(mesh.devices.flat, found) if n != usual] == [devices[5]]
