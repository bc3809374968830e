"""The real training step, compiled for a slice that is not here. A program: `python -m pretrain.plan.program`.

Runs in a process of its own, because the compilers take the process for their own: reads a request from stdin, one JSON
value, and writes the answer to the file that the request names.
"""

import json
import re
import sys
import time
from dataclasses import asdict
from typing import Any, cast

from pretrain.config import RunConfig
from pretrain.plan import chips
from pretrain.plan.chips import Slice
from pretrain.serial import decode


class AnyToken(dict):
    """A tokenizer's special tokens: every name is one."""

    def get(self, key, default=None):
        return 0


class AnyTokenizer:
    """Enough of a tokenizer for the shapes of rows, which depend on no text."""

    vocab_size, bos, eos, pad, unk, fingerprint = 8, 0, 0, 0, 0, ""
    specials = AnyToken()

    def bytes_of(self, ids) -> bytes:
        return b"a"


def batch_shapes(config: RunConfig) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Name -> (shape, dtype) of the arrays of a global batch."""
    from pretrain.data.rows import shapes
    from pretrain.objectives.transforms import transform

    tokenizer: Any = AnyTokenizer()
    rows = transform(config.objective, tokenizer, config.data.sequence_length, config.model)
    return {name: ((config.batch.rows, *shape), dtype) for name, (shape, dtype) in shapes(rows).items()}


def lower(config: RunConfig, mesh):
    """(the jitted step lowered for this mesh, bytes of each device's arguments by cause)."""
    import jax

    from pretrain.feed import layout
    from pretrain.job import compute_dtype
    from pretrain.objectives.batch import gathered
    from pretrain.objectives.build import build
    from pretrain.sharding import place
    from pretrain.sharding.rules import resolved
    from pretrain.state import abstract, make_optimizer
    from pretrain.step import make_step

    rules = resolved(config.rules)
    with place.use(mesh, rules, config.mesh.schedule):
        dtype = compute_dtype(config)
    optimizer = make_optimizer(config, dtype)
    with place.use(mesh, rules, config.mesh.schedule):
        state = abstract(config, optimizer, dtype, mesh)
        arrays = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=layout(mesh, len(shape)))
            for name, (shape, dtype) in batch_shapes(config).items()
        }
        batch = gathered(cast(Any, arrays))
        step = make_step(build(config.objective), optimizer, config.batch.accumulate, config.health)
        lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
    causes = {"parameters": state.model, "optimizer": state.optimizer, "batch": batch}
    return lowered, {name: bytes_a_device(tree) for name, tree in causes.items()}


def bytes_a_device(tree, *, host: bool = False) -> int:
    """Of arrays with layouts, in the device's memory or its host's, without the tiles into which a TPU pads them."""
    import math

    import jax

    from pretrain.state import HOST

    def of(s) -> int:
        if jax.numpy.issubdtype(s.dtype, jax.dtypes.prng_key):
            return 8
        sizes = dict(s.sharding.mesh.shape)
        flat = [a for axes in s.sharding.spec if axes for a in ((axes,) if isinstance(axes, str) else axes)]
        return s.dtype.itemsize * math.prod(s.shape) // math.prod(sizes[a] for a in flat)

    return sum(of(s) for s in jax.tree.leaves(tree) if (s.sharding.memory_kind == HOST) == host)


def compile_step(config: RunConfig, on: Slice, options: dict[str, Any], save: str | None) -> dict[str, Any]:
    import jax
    from jax.experimental import topologies

    from pretrain.sharding import mesh as meshes

    description = topologies.get_topology_desc(**on.described)
    mesh = meshes.build(config.mesh, list(description.devices))
    began = time.perf_counter()
    lowered, causes = lower(config, mesh)
    traced = time.perf_counter() - began
    began, spent = time.perf_counter(), time.process_time()
    facts: dict[str, Any] = {"causes": causes, "trace_seconds": traced, "jax": jax.__version__}
    try:
        compiled = lowered.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
        refused = refusal(str(error))
        if refused is None:
            raise
        return {**facts, "refused": refused, "compile_seconds": time.perf_counter() - began}
    facts |= {"compile_seconds": time.perf_counter() - began, "compile_cpu_seconds": time.process_time() - spent}
    if save is not None:
        _save(compiled, save)
    program = _read(compiled.as_text() or "", on, [device.process_index for device in mesh.devices.flat])
    return {**facts, "memory": _memory(compiled.memory_analysis()), "program": program}


def _read(text: str, on: Slice, nodes: list[int]) -> dict[str, Any]:
    from pretrain.plan import hlo, timeline

    if on.chip.gpu is None:
        return asdict(hlo.read(text))
    return {**asdict(hlo.read(text, nodes)), "seconds": asdict(timeline.read(text, on.chip, nodes))}


def refusal(message: str) -> dict[str, float] | None:
    """Bytes that the compiler asks for and has, where it says that a program does not fit."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    used = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", message, re.I)
    used = used or re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM[^(]*\(([\d.]+)([KMGT])\)", message)
    if used is None:
        return None
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return {"peak": float(used[1]) * unit[used[2].upper()], "limit": float(used[3]) * unit[used[4].upper()]}


def _memory(stats) -> dict[str, int]:
    """Bytes of one device, as the compiler plans them.

    `peak` is what it holds against the memory there is when it refuses a program; "temp" of its own statistics is
    more, as it counts what takes the place of donated arrays once more. Its own peak counts the host's memory too.
    """
    names = ("argument", "output", "alias", "temp", "generated_code")
    found = {name: getattr(stats, f"{name}_size_in_bytes") for name in names}
    there = {name: getattr(stats, f"host_{name}_size_in_bytes") for name in names}
    host = there["argument"] + there["output"] - there["alias"] + there["temp"]
    others = found["argument"] + found["output"] - found["alias"] + found["generated_code"]
    peak = stats.peak_memory_in_bytes - host if stats.peak_memory_in_bytes else others + found["temp"]
    return {**found, "temp": max(0, peak - others), "host": host, "peak": peak}


def _save(compiled, path: str) -> None:
    import pickle

    from jax.experimental import serialize_executable

    with open(path, "wb") as file:
        pickle.dump(serialize_executable.serialize(compiled), file)


def main() -> None:
    request = json.load(sys.stdin)
    config = decode(request["config"], RunConfig)
    facts = compile_step(config, chips.parse(request["topology"]), request["options"], request["save"])
    with open(request["answer"], "w") as file:
        json.dump(facts, file)


if __name__ == "__main__":
    main()
