"""Which tensor was the first that is not finite: of the state, the batch, the forward pass or the gradients.

The step is not run again as it was compiled: the forward pass is traced with its layers one after another and a flag
behind every module, the gradients with a flag for every parameter.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.extend.core import get_opaque_trace_state

from pretrain.checkpoint import layout
from pretrain.feed import HostBatch
from pretrain.models import tree
from pretrain.models.transformer import Transformer, unrolled
from pretrain.objectives.batch import Batch, Objective
from pretrain.state import TrainState
from pretrain.step import mean_gradients

SHOWN = 8
"""Names in a finding before the number of the others."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Tensors that are not finite, the first of them first."""

    where: str
    """state, batch, forward or gradients."""
    names: tuple[str, ...]

    def __str__(self) -> str:
        more = f" and {len(self.names) - SHOWN} more" if len(self.names) > SHOWN else ""
        return f"{self.where}: {', '.join(self.names[:SHOWN])}{more}"


def examine(objective: Objective, state: TrainState, batch: Batch, accumulate: int) -> Finding | None:
    """What the step after `state` meets first that is not finite; None: every tensor alone is.

    What comes later follows from it and is not looked at. Every process must call it.
    """
    stages: tuple[tuple[str, Callable[[], dict[str, Any]]], ...] = (
        ("state", lambda: _finite(_floats(state))),
        ("batch", lambda: _batch(state.model, batch)),
        ("forward", lambda: _forward(objective, state, batch)),
        ("gradients", lambda: _gradients(objective, state, batch, accumulate)),
    )
    for where, flags in stages:
        found = flags()
        fine = jax.device_get(list(found.values()))  # of a dict it would sort the names
        if bad := tuple(name for name, is_fine in zip(found, fine) if not is_fine):
            return Finding(where=where, names=bad)
    return None


def keep(run: epath.Path, step: int, batch: HostBatch, process: int, facts: dict[str, Any]) -> epath.Path:
    """Writes this process's rows of a batch, and the first process what is known, to RUN/failed/STEP."""
    folder = run / "failed" / str(step)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"batch-{process}.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **batch)
    if process == 0:
        (folder / "facts.json").write_text(json.dumps(facts, indent=1, default=str))
    return folder


def _floats(state: TrainState) -> dict[str, jax.Array]:
    arrays = {n: x for n, x in layout.flatten(state).items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return dict(sorted(arrays.items(), key=lambda item: not item[0].startswith("model/")))


@jax.jit
def _all_finite(arrays: list[jax.Array]) -> list[jax.Array]:
    return [jnp.all(jnp.isfinite(x)) for x in arrays]


def _finite(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return dict(zip(arrays, _all_finite(list(arrays.values()))))


def _batch(model: Transformer, batch: Batch) -> dict[str, jax.Array]:
    """Ids outside the vocabulary, and weights."""
    size = model.config.vocab_size
    tokens = {"tokens": batch.inputs.tokens}
    if batch.inputs.encoder is not None:
        tokens["encoder_tokens"] = batch.inputs.encoder.tokens
    there = jax.jit(lambda x: jnp.all((x >= 0) & (x < size)))
    flags = {f"{name}, an id that is not from 0 to {size - 1}": there(ids) for name, ids in tokens.items()}
    return flags | _finite({"weights": batch.weights})


def _forward(objective: Objective, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
    names: list[str] = []

    def run(model: Transformer, batch: Batch, key: jax.Array) -> list[jax.Array]:
        flags: list[jax.Array] = []
        outer = get_opaque_trace_state(convention="nnx")
        names.clear()

        def note(name: str, out: Any) -> None:
            if get_opaque_trace_state(convention="nnx") != outer:
                return  # inside a scan of its own: the module around it is noted
            arrays = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
            names.append(name)
            flags.append(jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in arrays])) if arrays else jnp.bool_(True))

        plain = _plain(model)
        with _listening(plain, note):
            loss = objective(plain, batch, key)
        names.append("loss (the modules before it are finite: the head or the sum)")
        flags.append(jnp.isfinite(loss.total))
        return flags

    key = jax.random.fold_in(state.key, state.step)
    flags = jax.jit(run)(state.model, batch, key)
    return _merged(names, jax.device_get(flags))


def _merged(names: list[str], flags: list[Any]) -> dict[str, Any]:
    """In the order of the calls; a module that is called twice is bad when one call was."""
    out: dict[str, Any] = {}
    for name, fine in zip(names, flags):
        out[name] = out.get(name, True) and bool(fine)
    bad = [name for name, fine in out.items() if not fine]
    return {name: fine for name, fine in out.items() if not (name.startswith("loss (") and bad != [name])}


def _plain(model: Transformer) -> Transformer:
    """Layers one by one, nothing computed twice."""
    out = unrolled(model)
    for name in ("encoder", "decoder"):
        if (stack := getattr(out, name)) is not None:
            stack.config = replace(stack.config, remat=None)
            out.config = replace(out.config, **{name: stack.config})
    return out


@contextlib.contextmanager
def _listening(model: Transformer, note: Callable[[str, Any], None]) -> Iterator[None]:
    names = {id(module): name for name, module in _modules(model, "")}
    kinds = {
        type(module): type(module).__call__ for _, module in _modules(model, "") if "__call__" in dir(type(module))
    }

    def wrapped(original: Any, self: nnx.Module, *args: Any, **more: Any) -> Any:
        out = original(self, *args, **more)
        if name := names.get(id(self)):
            note(name, out)
        return out

    for kind, original in kinds.items():
        own = partial(wrapped, original)
        kind.__call__ = lambda self, *args, _own=own, **more: _own(self, *args, **more)  # type: ignore
    try:
        yield
    finally:
        for kind, original in kinds.items():
            kind.__call__ = original


def _modules(node: Any, path: str) -> Iterator[tuple[str, nnx.Module]]:
    """Every module below, by its path; layers of an unrolled stack as layer/N."""
    if isinstance(node, nnx.Module) and path:
        yield path, node
    if isinstance(node, nnx.Variable):
        return
    inner = dict(enumerate(node)) if isinstance(node, nnx.List) else vars(node) if isinstance(node, nnx.Module) else {}
    for key, child in inner.items():
        if isinstance(child, nnx.Module) and not str(key).startswith("_"):
            yield from _modules(child, f"{path}/{'layer' if key == 'prefix' else key}".lstrip("/"))


def _gradients(objective: Objective, state: TrainState, batch: Batch, accumulate: int) -> dict[str, jax.Array]:
    def run(state: TrainState, batch: Batch) -> list[jax.Array]:
        grads, _ = mean_gradients(objective, state, batch, accumulate)
        return [jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]

    return dict(zip(tree.params(state.model), jax.jit(run)(state, batch)))
