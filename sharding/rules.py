"""One table says where every logical axis lives: `stored` for parameters at rest, `used` for whatever computes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pretrain.errors import UserError
from pretrain.sharding.axes import AXES, MESH_AXES, Axis, MeshAxis

MeshAxes = tuple[MeshAxis, ...]
Table = Mapping[Axis, MeshAxes]


@dataclass(frozen=True, kw_only=True)
class AxisRules:
    """Logical axis -> mesh axes. FSDP is a parameter stored one way and used another; the gather moves between."""

    stored: Table = field(default_factory=dict)
    used: Table = field(default_factory=dict)

    def checks(self) -> tuple[tuple[bool, str], ...]:
        entries = [(t, axis, m) for t in ("stored", "used") for axis, to in getattr(self, t).items() for m in to]
        return (
            *(
                (axis in AXES, f"{table}: {axis!r} is no logical axis; choose from {', '.join(AXES)}")
                for table, axis, _ in entries
            ),
            *(
                (m in MESH_AXES, f"{table}.{axis}: {m!r} is no mesh axis; choose from {', '.join(MESH_AXES)}")
                for table, axis, m in entries
            ),
        )


def assign(axes: tuple[Axis | None, ...], table: Table, sizes: Mapping[str, int]) -> tuple[MeshAxes, ...]:
    """The mesh axes of each dimension; mesh axes of size 1 are dropped, so that one device needs no layout at all.

    Raises UserError when two dimensions of one array ask for the same mesh axis.
    """
    placed = tuple(tuple(m for m in table.get(a, ()) if sizes.get(m, 1) > 1) if a else () for a in axes)
    seen: dict[str, Axis | None] = {}
    for axis, mesh_axes in zip(axes, placed):
        for m in mesh_axes:
            if m in seen:
                raise UserError(
                    f"rules put {seen[m]!r} and {axis!r} of an array ({', '.join(map(str, axes))}) on mesh axis {m!r}; "
                    f"remove {m!r} from one of them"
                )
            seen[m] = axis
    return placed


EXPERT: Table = {"expert": ("expert",)}
ROWS: Table = {"batch": ("data", "stage", "fsdp", "expert"), "length": ("context",), "sequence": ("context",)}
LAYERS: Table = {"layers": ("stage",), **EXPERT}
USED: Table = {**ROWS, **EXPERT}
"""In all presets: rows over every axis that holds other weights, their tokens over `context`."""
SHARDED: Table = {**LAYERS, "embed": ("fsdp", "context"), "latent": ("fsdp", "context")}
MEGATRON: Table = {"vocab": ("tensor",), "kv_heads": ("tensor",), "mlp": ("tensor",)}


def dp() -> AxisRules:
    """Data parallel: parameters whole on every device, but for experts and pipeline stages."""
    return AxisRules(stored=LAYERS, used=USED)


def fsdp() -> AxisRules:
    """Fully sharded (ZeRO-3, Rajbhandari et al. 2020): parameters and optimizer state cut along d_model at rest."""
    return AxisRules(stored=SHARDED, used=USED)


def fsdp_tp() -> AxisRules:
    """FSDP with Megatron's column/row-parallel matmuls (Shoeybi et al. 2019), the residual stream cut along the
    sequence between them (Korthikanti et al. 2022)."""
    used = {**USED, **MEGATRON, "sequence": ("context", "tensor")}
    return AxisRules(stored={**SHARDED, **MEGATRON}, used=used)


PRESETS = {"dp": dp, "fsdp": fsdp, "fsdp_tp": fsdp_tp}


def resolved(rules: str | AxisRules) -> AxisRules:
    """Those of a preset's name, or what is given."""
    return PRESETS[rules]() if isinstance(rules, str) else rules
