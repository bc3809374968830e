"""Loss and gradients of one step on every mesh, beside those of one device."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.certify.shrink import shrunk
from pretrain.config import RunConfig
from pretrain.errors import UserError, check
from pretrain.feed import Feed
from pretrain.mesh_checks import mesh_problems
from pretrain.models import tree
from pretrain.objectives.build import build
from pretrain.plan.program import batch_shapes
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.processes import start
from pretrain.sharding.rules import resolved
from pretrain.state import create, make_optimizer
from pretrain.step import gradients

DEVICES = 8
AXES = ("data", "fsdp", "tensor", "context", "expert", "stage")
TOLERANCE = 1e-5
"""Relative difference that another order of sums in f32 leaves."""
QUICKLY = {"xla_backend_optimization_level": 0}
"""Unoptimised code compiles several times faster, and the step is tiny."""


def simulate() -> None:
    """Eight devices of this CPU, where no process has chosen its devices yet."""
    with suppress(RuntimeError):  # jax has its devices
        start(None, DEVICES)
    if jax.device_count() < DEVICES:
        raise UserError(f"found {jax.device_count()} devices, expected {DEVICES}; run certify in a process of its own")


def legal(config: RunConfig, devices: int = DEVICES) -> Iterator[MeshConfig]:
    """Every way to put so many devices on the axes that the run allows; rows that devices share, both ways."""
    for sizes in _factors(devices, len(AXES)):
        named = dict(zip(AXES, sizes))
        for attention in ("gather", "ring") if named["context"] > 1 else ("gather",):
            mesh = MeshConfig(**named, attention=attention)
            if not mesh_problems(replace(config, mesh=mesh, rules="fsdp_tp"), devices):
                yield mesh


def _factors(n: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (n,)
        return
    for d in (d for d in range(n, 0, -1) if n % d == 0):
        yield from ((d, *rest) for rest in _factors(n // d, parts - 1))


def certify(config: RunConfig, chosen: list[MeshConfig] | None, tell: Callable[[dict[str, Any]], None]) -> list[dict]:
    """One row a mesh, told as soon as it is known: largest relative differences, and where."""
    small = replace(shrunk(config), rules="fsdp_tp", evals=replace(config.evals, translations=0))
    check(small.model)
    wanted, want = step(replace(small, rules="dp"), MeshConfig(fsdp=1), 1)
    rows = []
    for mesh in legal(small) if chosen is None else chosen:
        if found := mesh_problems(replace(small, mesh=mesh), DEVICES):
            raise UserError(*found)
        grads, loss = step(small, mesh, DEVICES)
        apart = {name: distance(grads[name], wanted[name]) for name in wanted}
        worst = max(apart, key=lambda name: (not np.isfinite(apart[name]), apart[name]))
        of_loss = abs(loss - want) / abs(want)
        row = {
            "mesh": {axis: n for axis, n in mesh.shape(DEVICES).items() if n > 1},
            "attention": mesh.attention if mesh.context > 1 else None,
            "loss": of_loss,
            "gradient": apart[worst],
            "where": worst,
            "equal": bool(of_loss <= TOLERANCE and apart[worst] <= TOLERANCE),
        }
        tell(row)
        rows.append(row)
    return rows


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """Of two gradients in their norm, relative to it; one that is 0 but for rounding has none."""
    norm = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(found - wanted)) / max(norm, 1e-6)


def step(config: RunConfig, mesh: MeshConfig, devices: int) -> tuple[dict[str, np.ndarray], float]:
    """(gradients by name, loss): sums over a batch of made-up rows, divided by its weight."""
    built, objective = meshes.build(mesh, jax.devices()[:devices]), build(config.objective)
    optimizer = make_optimizer(config, jnp.dtype("float32"))
    with place.use(built, resolved(config.rules), mesh.schedule):
        model = create(config, optimizer, jnp.dtype("float32"), built).model
        batch = Feed(built, config.batch.rows).on_device(made_up(config))

        def run(model, batch):
            return gradients(objective, model, batch, jax.random.key(0), 1)

        grads, loss = jax.jit(run, compiler_options=QUICKLY)(model, batch)
        values = {name: np.asarray(jax.device_get(g[...])) for name, g in tree.params(grads).items()}
        weight = max(float(loss.weight), 1.0)
        return {name: g / weight for name, g in values.items()}, float(loss.total) / weight


def made_up(config: RunConfig) -> dict[str, np.ndarray]:
    """Rows of two documents and some padding, in the arrays of the run's objective."""
    rng, rows = np.random.default_rng(0), config.batch.rows
    arrays = {}
    shapes = batch_shapes(config)
    lengths = {name: shape[1] for name, (shape, _) in shapes.items() if len(shape) > 1}
    row = lengths["tokens"]
    for name, (shape, dtype) in shapes.items():
        length = shape[1] if len(shape) > 1 else 1
        t = np.arange(length)[None]
        cut = np.broadcast_to(rng.integers(length // 4, max(length // 2, length // 4 + 1), (rows, 1)), (rows, 1))
        if "segments" in name or "positions" in name:
            cut = length // 4 + np.arange(rows)[:, None] % max(length // 4, 1)
        second, there = t >= cut, t < length - 2
        kind = name.removeprefix("encoder_")
        made: Any = {
            "segments": np.where(second, 2, 1) * there,
            "positions": np.where(second, t - cut, t),
            "prefix": (np.where(second, t - cut, t) < 3) & there,
            "types": second & there,
            "places": np.sort(rng.random((rows, row)).argsort(1)[:, :length], axis=1),
            "weights": rng.random((rows, length)) < 0.8,
            "labels": rng.integers(0, 2, shape),
        }.get(kind, rng.integers(0, config.model.vocab_size, shape))
        arrays[name] = np.ascontiguousarray(np.broadcast_to(made, shape), dtype=dtype)
    return arrays
