"""Integers that one changed bit changes: of every array on every device, and of whole arrays whatever their layout.

A fingerprint is the wrap-around sum over elements of a mix of their bits and their place in the whole array, so that it
does not depend on the order of the sum, on the mesh or on who holds which part. For one place the mix is a bijection
(the finaliser of MurmurHash3, Appleby 2011): one changed element always changes the sum, more than one stay unseen with
probability 2^-32.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.sharding.place import fetch

WEYL = 0x9E3779B9  # 2^32 over the golden ratio: neighbours in place are far apart before they are mixed
Arrays = Mapping[str, jax.Array]


@jax.jit
def parts(arrays: Arrays) -> jax.Array:
    """uint32 [devices, arrays], whole on every device: of the part that each device of the mesh in use holds.

    Arrays in the order of their names, devices in that of the mesh. Every process of the mesh must call it.
    """
    return _parts(fetch([arrays[name] for name in sorted(arrays)]))


def replicas(array: jax.Array | jax.ShapeDtypeStruct) -> list[list[int]]:
    """Which devices, by their place in the mesh, hold the same part of an array."""
    sharding = array.sharding
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return [[0]]
    groups: dict[str, list[int]] = {}
    held = sharding.devices_indices_map(tuple(array.shape))
    for i, device in enumerate(sharding.mesh.devices.flat):
        groups.setdefault(str(held[device]), []).append(i)
    return list(groups.values())


def whole(arrays: Arrays) -> dict[str, int]:
    """Name -> fingerprint of the whole array, the same on every mesh. Every process must call it."""
    found = np.asarray(jax.device_get(parts(arrays)))
    return {name: summed(found[:, i], arrays[name]) for i, name in enumerate(sorted(arrays))}


def summed(of_devices: np.ndarray, array: jax.Array | jax.ShapeDtypeStruct) -> int:
    """From the fingerprints of an array's parts to that of the array: each part once."""
    return sum(int(of_devices[group[0]]) for group in replicas(array)) & 0xFFFFFFFF


def of_host(array: np.ndarray) -> int:
    """What `whole` says of the same array, by numpy."""
    bits = np.ascontiguousarray(array).reshape(-1)
    size = bits.dtype.itemsize
    bits = bits.view(np.dtype(f"u{size}" if size < 4 else "u4"))
    total = 0
    for at in range(0, bits.size, 1 << 22):
        part = bits[at : at + (1 << 22)].astype(np.uint32)
        place = (np.arange(at, at + part.size, dtype=np.uint64) & 0xFFFFFFFF).astype(np.uint32)
        total += int(mix(part, place, np.uint32).sum(dtype=np.uint64))
    return total & 0xFFFFFFFF


def _parts(arrays: list[jax.Array]) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return jnp.stack([_sum(x, [0] * x.ndim, x.shape) for x in arrays])[None]
    specs = [jax.typeof(x).sharding.spec for x in arrays]

    def here(*shards: jax.Array) -> jax.Array:
        own = [_sum(x, _begin(x, spec), whole.shape) for x, spec, whole in zip(shards, specs, arrays)]
        return jnp.stack(own)[None]

    every = jax.P(mesh.axis_names)
    found = jax.shard_map(here, in_specs=tuple(specs), out_specs=every, check_vma=False)(*arrays)
    return jax.sharding.reshard(found, jax.P())


def _begin(shard: jax.Array, spec) -> list:
    """Where, in each dimension of the whole array, this device's part begins."""
    at = []
    for size, axes in zip(shard.shape, (*spec, *[None] * shard.ndim)):
        names = axes if isinstance(axes, tuple) else () if axes is None else (axes,)
        at.append(jax.lax.axis_index(names) * size if names else 0)
    return at


def _sum(x: jax.Array, begin: list, shape: tuple[int, ...]) -> jax.Array:
    bits = _bits(x)
    place = jnp.zeros(bits.shape, jnp.uint32)
    words = math.prod(bits.shape[x.ndim :])  # 2 for 64-bit types, else 1
    stride = words
    for d in reversed(range(x.ndim)):
        place = place + (_iota(bits, d) + jnp.asarray(begin[d], jnp.uint32)) * np.uint32(stride & 0xFFFFFFFF)
        stride *= shape[d]
    if words > 1:
        place = place + _iota(bits, x.ndim)
    mixed = mix(bits, place, jnp.uint32)
    if mixed.ndim:  # XLA on CPU vectorises a sum over the first axis, not one over all: ten times faster
        mixed = jax.lax.optimization_barrier(jnp.sum(mixed, axis=0, dtype=jnp.uint32))
    return jnp.sum(mixed, dtype=jnp.uint32)


def mix(bits, place, u):
    """The finaliser of MurmurHash3, of uint32 `bits` at `place`; `u`: the uint32 of jax or of numpy."""
    h = bits + place * u(WEYL)
    h = (h ^ (h >> u(16))) * u(0x85EBCA6B)
    h = (h ^ (h >> u(13))) * u(0xC2B2AE35)
    return h ^ (h >> u(16))


def _iota(x: jax.Array, dimension: int) -> jax.Array:
    return jax.lax.broadcasted_iota(jnp.uint32, x.shape, dimension)


def _bits(x: jax.Array) -> jax.Array:
    """uint32; of 64-bit types two in a last dimension."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    size = x.dtype.itemsize
    kind = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
