"""From a `MeshConfig` to a `jax.sharding.Mesh` whose axes are all Explicit."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from pretrain.errors import UserError
from pretrain.sharding.axes import MESH_AXES, MeshAxis

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices stand along each mesh axis; -1 on one axis takes the devices that remain."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def checks(self) -> tuple[tuple[bool, str], ...]:
        sizes = {f.name: getattr(self, f.name) for f in fields(self)}
        free = [name for name, size in sizes.items() if size == -1]
        return (
            *(
                (size == -1 or size > 0, f"{name}={size}: expected a number of devices, or -1 for the remaining ones")
                for name, size in sizes.items()
            ),
            (
                len(free) < 2,
                f"{' and '.join(free)} are all -1: only one can take the remaining devices; size the others",
            ),
        )

    def shape(self, devices: int) -> dict[MeshAxis, int]:
        """The size of every mesh axis on so many devices. Raises UserError when the sizes do not multiply to them."""
        sizes = {name: getattr(self, name, 1) for name in MESH_AXES}
        fixed = math.prod(size for size in sizes.values() if size != -1)
        remaining, rest = divmod(devices, fixed)
        if rest or (remaining != 1 and -1 not in sizes.values()):
            raise UserError(_misfit(sizes, fixed, devices))
        return {name: remaining if size == -1 else size for name, size in sizes.items()}


def build(config: MeshConfig, devices: "list[jax.Device] | None" = None) -> "jax.sharding.Mesh":
    """A mesh over the given devices (default: all of them), in an order that follows the physical topology."""
    import jax
    from jax.experimental import mesh_utils

    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    grid = mesh_utils.create_device_mesh(tuple(shape.values()), devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(grid, tuple(shape), axis_types=(jax.sharding.AxisType.Explicit,) * len(shape))


def abstract(config: MeshConfig, devices: int) -> "jax.sharding.AbstractMesh":
    """The same mesh over so many devices that need not exist: enough for shapes and layouts."""
    import jax

    shape = config.shape(devices)
    kinds = (jax.sharding.AxisType.Explicit,) * len(shape)
    return jax.sharding.AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=kinds)


def _misfit(sizes: Mapping[str, int], fixed: int, devices: int) -> str:
    named = [(name, size) for name, size in sizes.items() if size not in (1, -1)]
    product = " x ".join(f"{name}={size}" for name, size in named) or "every axis = 1"
    pair = [name for name, _ in named][-2:] or ["fsdp"]
    if len(pair) == 1:
        choices = f"{pair[0]}={devices}"
    else:
        other = math.prod(size for name, size in named if name not in pair)
        room = devices // other if devices % other == 0 else devices
        divisors = [d for d in range(1, room + 1) if room % d == 0]
        choices = ", ".join(f"{pair[0]}={room // d} x {pair[1]}={d}" for d in divisors[:4])
    if devices == 1:
        return f"mesh {product} is {fixed} devices, there is 1; choices: {choices}, or --simulate {fixed} on this CPU"
    return f"mesh {product} is {fixed} devices, there are {devices}; choices: {choices}"
