"""A part of a run computed again from its checkpoint and held against its log."""

import math
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from pretrain import job, untrusted
from pretrain import run as runs
from pretrain.checkpoint import manifest, reading
from pretrain.config import RunConfig
from pretrain.data.corpus import open_corpus
from pretrain.errors import UserError
from pretrain.feed import Feed, HostBatch, train_batches
from pretrain.health import spikes, triage
from pretrain.metrics.sinks import read_lines
from pretrain.objectives.build import build
from pretrain.objectives.transforms import rows_of
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place
from pretrain.sharding.processes import start
from pretrain.sharding.rules import resolved
from pretrain.state import TrainState, abstract, make_optimizer
from pretrain.step import make_step, pass_over

Line = dict[str, Any]
UNEQUAL = ("step", "time", "tokens", "step_seconds", "tokens_per_second", "data_wait_seconds", "own_seconds")
"""What a line of the log says beside the numbers of its step."""


def replay(run: epath.Path, step: int) -> dict[str, Any]:
    """Steps from the newest checkpoint before `step` to `step`, on this process's devices.

    "differences": [step, name, logged, found] of every number that is not bit for bit the logged one; "first": what was
    not finite first in `step`, if anything was. Raises UserError where the run logged no such step.
    """
    config = runs.read_config(run)
    logged = _logged(run, step)
    start(None, config.simulate)
    job.cache_compilations()
    computed, _, _ = job.on_devices(config, config, run)
    mesh = meshes.build(config.mesh)
    with place.use(mesh, resolved(config.rules), config.mesh.schedule):
        feed, objective = Feed(mesh, config.batch.rows), build(config.objective)
        begin, state, compute = _begin(computed, run, step, mesh, objective)
        out = {"run": str(run), "step": step, "from": begin, "compared": 0, "differences": []}
        first = None
        for at, batch in zip(range(begin + 1, step + 1), _batches(config, run, feed, begin, step)):
            on_device = feed.on_device(batch)
            state, metrics = compute(at)(state, on_device)
            values: Line = {name: float(value) for name, value in jax.device_get(metrics).items()}
            values["batch_hash"] = feed.hash(batch)
            if at in logged:
                out["compared"] += 1
                out["differences"] += [[at, *found] for found in _differences(logged[at], values)]
        if not math.isfinite(values.get("loss", 0.0)):  # such a step left the state as it was
            first = triage.examine(objective, state, on_device, computed.batch.accumulate)
        return {**out, "first": first and str(first), "values": values}


def _begin(config: RunConfig, run: epath.Path, step: int, mesh, objective):
    """(step of the checkpoint, its state, number of a step -> what computes it)."""
    dtype = job.compute_dtype(config)
    optimizer = make_optimizer(config, dtype)
    folder = run / "checkpoints"
    begin = max((n for n in manifest.numbered(folder) if n < step), default=0)
    if begin:
        state = _restored(folder / str(begin), abstract(config, optimizer, dtype, mesh))
    else:
        state, _ = job.fresh(config, optimizer, dtype, mesh)
    decisions = spikes.read(run)
    usual = jax.jit(make_step(objective, optimizer, config.batch.accumulate, config.health), donate_argnums=0)
    passed = jax.jit(pass_over, donate_argnums=0)

    def compute(at: int):
        return passed if any(d.first <= at <= d.last for d in decisions) else usual

    return begin, state, compute


def _restored(step: epath.Path, shapes: TrainState) -> TrainState:
    facts = manifest.read(step)
    state = reading.restore(step, facts, shapes)
    if bad := reading.altered(facts, state):
        raise UserError(f"{step}: {reading.listed(bad)} are not as they were saved; pretrain doctor shows the others")
    return state


def _batches(config: RunConfig, run: epath.Path, feed: Feed, begin: int, stop: int) -> Iterator[HostBatch]:
    split, _, tokenizer = open_corpus(config.prepared(), str(run / "data"), prepare=False)
    pipeline = job.pipeline(config, split, rows_of(config, tokenizer))
    return train_batches(pipeline, feed, begin, stop, config.data)


def _logged(run: epath.Path, step: int) -> dict[int, Line]:
    """The last line of each step up to this one."""
    lines = {x["step"]: x for x in read_lines(run / "metrics.jsonl") if isinstance(x.get("step"), int)}
    failed = run / "failed" / str(step) / "facts.json"
    if failed.exists():
        try:
            facts = untrusted.load(failed)
            lines[step] = {"step": step, "batch_hash": facts["batch_hash"], **facts["values"]}
        except (ValueError, OSError, TypeError, KeyError) as error:
            raise UserError(
                f"{failed}: not readable ({type(error).__name__}), expected what a failed step left; remove its folder"
            ) from None
    if step not in lines:
        near = sorted(lines, key=lambda n: abs(n - step))[:1]
        raise UserError(
            f"step={step}: found no such step in {run}/metrics.jsonl, expected a logged one; "
            + (f"the nearest is {near[0]}" if near else "train the run first")
        )
    return {n: line for n, line in lines.items() if n <= step}


def _differences(line: Line, values: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    names = [n for n in line if n in values and n not in UNEQUAL]
    return [(n, line[n], values[n]) for n in names if not _same(line[n], values[n])]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return a == b or (a != a and b != b)
