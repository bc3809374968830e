"""From a `MeshConfig` to a `jax.sharding.Mesh` whose axes are all Explicit."""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pretrain.errors import UserError
from pretrain.sharding.axes import MESH_AXES, MeshAxis

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What devices that work together do when; see `MeshConfig`."""

    ring: bool = False
    micro: int = 1
    rounds: int = 1
    kernels: str = "jax"


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices stand along each mesh axis; -1 on one axis takes the devices that remain."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    context: int = 1
    """Devices that share the tokens of a row."""
    expert: int = 1
    """Devices that share the experts of a mixture; each takes rows of its own too."""
    stage: int = 1
    """Stages of a pipeline: each device holds the layers of its stage."""
    dcn_data: int = 1
    """Slices, joined by the data centre's network: each holds a mesh as described here, with rows of its own."""
    attention: Literal["gather", "ring"] = "gather"
    """What devices of one `context` do for keys and values: collect all of them, or pass them round (Liu et al. 2023)
    where no bias depends on the distance."""
    kernels: Literal["jax", "tokamax"] = "jax"
    """Whose kernels mix whole rows and multiply by experts on a TPU."""
    micro: int = 1
    """Micro-batches in a pipeline, for each stage: 1 is as many as stages."""
    rounds: int = 1
    """Times that a micro-batch goes through all stages, whose layers are so many pieces each (interleaved)."""

    @property
    def schedule(self) -> Schedule:
        return Schedule(ring=self.attention == "ring", micro=self.micro, rounds=self.rounds, kernels=self.kernels)

    def checks(self) -> tuple[tuple[bool, str], ...]:
        sizes = {name: getattr(self, name) for name in MESH_AXES}
        free = [name for name, size in sizes.items() if size == -1]
        counts = {name: getattr(self, name) for name in ("dcn_data", "micro", "rounds")}
        return (
            *((n > 0, f"{name}={n}: expected a positive number") for name, n in counts.items()),
            (
                self.context != 1 or self.attention == "gather",
                f"attention={self.attention} with context=1: found whole rows, nothing to pass round; set context",
            ),
            *(
                (self.stage != 1 or n == 1, f"{name}={n} with stage=1: found no pipeline; set stage or {name}=1")
                for name, n in counts.items()
                if name != "dcn_data"
            ),
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
        sizes = {name: getattr(self, name) for name in MESH_AXES}
        inside, outside = divmod(devices, self.dcn_data)
        if outside:
            raise UserError(
                f"mesh.dcn_data={self.dcn_data} does not divide {devices} devices into slices; "
                f"choose {' or '.join(str(d) for d in range(1, min(devices, 64) + 1) if devices % d == 0)}"
            )
        fixed = math.prod(size for size in sizes.values() if size != -1)
        remaining, rest = divmod(inside, fixed)
        if rest or (remaining != 1 and -1 not in sizes.values()):
            raise UserError(_misfit(sizes, fixed, inside, self.dcn_data))
        sizes = {name: remaining if size == -1 else size for name, size in sizes.items()}
        return {**sizes, "data": sizes["data"] * self.dcn_data}


def require(config: MeshConfig) -> None:
    """Raises UserError where the package is missing whose kernels are asked for."""
    if config.kernels == "tokamax" and importlib.util.find_spec("tokamax") is None:
        raise UserError(
            "mesh.kernels=tokamax: found no tokamax, expected it beside Python 3.12 or newer; pip install "
            "'pretrain[tokamax]', or set mesh.kernels=jax"
        )


def build(config: MeshConfig, devices: "list[jax.Device] | None" = None) -> "jax.sharding.Mesh":
    """A mesh over the given devices (default: all of them), in an order that follows the physical topology."""
    import jax
    import numpy as np
    from jax.experimental import mesh_utils

    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    inside = tuple((shape | {"data": shape["data"] // config.dcn_data}).values())
    parts = slices(devices, config.dcn_data)
    grids = [mesh_utils.create_device_mesh(inside, part, allow_split_physical_axes=True) for part in parts]
    grid = np.concatenate(grids, axis=list(shape).index("data"))
    return jax.sharding.Mesh(grid, tuple(shape), axis_types=(jax.sharding.AxisType.Explicit,) * len(shape))


def slices(devices: "list[jax.Device]", count: int) -> "list[list[jax.Device]]":
    """The devices of each slice; those that know no slice, simulated ones and GPUs, are cut into runs of neighbours.

    Raises UserError where there are slices, and not so many.
    """
    if count == 1:
        return [devices]
    known: dict[int, list] = {}
    for device in devices:
        known.setdefault(getattr(device, "slice_index", 0) or 0, []).append(device)
    if len(known) == count:
        return [known[index] for index in sorted(known)]
    if len(known) > 1 or devices[0].platform == "tpu":
        raise UserError(f"mesh.dcn_data={count}: found {len(known)} slices; set mesh.dcn_data={len(known)}")
    size = len(devices) // count
    return [devices[i * size : (i + 1) * size] for i in range(count)]


def abstract(config: MeshConfig, devices: int) -> "jax.sharding.AbstractMesh":
    """The same mesh over so many devices that need not exist: enough for shapes and layouts."""
    import jax

    shape = config.shape(devices)
    kinds = (jax.sharding.AxisType.Explicit,) * len(shape)
    return jax.sharding.AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=kinds)


def _misfit(sizes: Mapping[str, int], fixed: int, devices: int, slices: int) -> str:
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
    each = "" if slices == 1 else f" in each of {slices} slices"
    return f"mesh {product} is {fixed} devices, there are {devices}{each}; choices: {choices}"
