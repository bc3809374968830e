"""Copies of a run's state on each machine's own disk or in its memory, taken more often than checkpoints.

Every process writes what its devices hold, with nothing sent anywhere. After a restart a copy is used when it is newer
than the newest checkpoint, was written on the same layout, and its fingerprints are those of the state that was copied.
A machine that came back empty gets its parts from a replica on another one. A copy is never the only thing: what cannot
be made whole is passed over for the checkpoint before it.
"""

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from pretrain.checkpoint import layout
from pretrain.checkpoint.manifest import Progress
from pretrain.errors import UserError
from pretrain.models.convert import safetensors
from pretrain.sharding import fingerprint

KEPT = 2
"""Steps: a machine may die while some have written the newest and others have not."""
LISTED = 8
"""Steps that a process offers."""
WORD = 0xFFFFFFFF

Shapes = Mapping[str, jax.ShapeDtypeStruct]
Pieces = Mapping[str, safetensors.Tensor]
Devices = list[jax.Device]


class Facts(NamedTuple):
    """What a copy says beside its arrays."""

    tokens: int
    prints: tuple[int, ...]
    """Fingerprints of the whole arrays, in the order of their names."""


class LocalCopies:
    """The copies of one run; every process of the run calls every method but `close`.

    Args:
        folder: On this machine. Processes of one machine share it.
        identity: What tells this run from another one that used the folder; None: the run has no name yet.
    """

    def __init__(self, folder: Path, identity: Callable[[], str | None]):
        self._root, self._identity = folder, identity
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self.refused: list[tuple[int, str]] = []
        """Steps that `resume` passed over, and why."""

    def save(self, state: Any, progress: Progress) -> OSError | None:
        """Copies to host memory; a thread writes. Returns what went wrong with the copy before this one."""
        self._wait()
        error, self._error = self._error, None
        arrays = layout.flatten(state)
        found = fingerprint.parts(arrays)
        shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for name, a in arrays.items()}
        for array in arrays.values():
            array.copy_to_host_async()
        held: dict[str, safetensors.Tensor] = {}
        for name, array in arrays.items():
            for shard in array.addressable_shards:
                if (key := _key(name, shard.index)) not in held:
                    data = np.array(shard.data)  # a copy: the state is donated to the next step
                    held[key] = safetensors.Tensor(data.shape, data.dtype, lambda data=data: data)
        self._thread = threading.Thread(target=self._write, args=(held, shapes, found, progress), name="local-copy")
        self._thread.start()
        return error

    def resume(self, abstract: Any, after: int) -> tuple[Any, Progress] | None:
        """State and progress of the newest copy behind step `after` that proves itself; None: there is none."""
        shapes = layout.flatten(abstract)
        for step in self._offered(after):
            found, why = self._attempt(step, shapes)
            if found is not None:
                arrays, facts = found
                state = layout.unflatten(abstract, layout.nest(arrays))
                return state, Progress(step=step, tokens=facts.tokens)
            self.refused.append((step, why))
        return None

    def drop_from(self, step: int) -> None:
        """The copies of `step` and later ones are given up."""
        self._wait()
        for later in (s for s in self._steps() if s >= step):
            shutil.rmtree(self._folder / str(later), ignore_errors=True)

    def close(self, saved: int | None) -> None:
        """Ends the thread; what is no newer than the checkpoint of step `saved` goes."""
        self._wait()
        for step in self._steps():
            if saved is not None and step <= saved:
                shutil.rmtree(self._folder / str(step), ignore_errors=True)
        with suppress(OSError):
            self._folder.rmdir()

    # Writing

    @property
    def _folder(self) -> Path:
        return self._root / (self._identity() or "")

    def _write(self, held: Pieces, shapes: Shapes, found: jax.Array, progress: Progress) -> None:
        process = jax.process_index()
        try:
            parts, names = np.asarray(jax.device_get(found)), sorted(shapes)
            prints = [fingerprint.summed(parts[:, i], shapes[name]) for i, name in enumerate(names)]
            step = self._folder / str(progress.step)
            step.mkdir(parents=True, exist_ok=True)
            safetensors.write_file(step / f"{process}.safetensors", held)
            facts = {"tokens": progress.tokens, "prints": prints, "layout": layout.describe(dict(shapes))}
            safetensors.write_text(step / f"{process}.json", json.dumps(facts))
        except OSError as error:  # no room, no permission: the next copy tries again
            self._error = error
        for old in self._steps()[KEPT:]:
            with suppress(OSError):
                for name in (f"{process}.json", f"{process}.safetensors"):
                    (self._folder / str(old) / name).unlink(missing_ok=True)
                (self._folder / str(old)).rmdir()  # by the last process of this machine

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _steps(self) -> list[int]:
        """On this machine, newest first."""
        if self._identity() is None or not self._folder.is_dir():
            return []
        return sorted((int(p.name) for p in self._folder.iterdir() if p.name.isdigit()), reverse=True)

    # Reading

    def _offered(self, after: int) -> list[int]:
        """By any process, newest first."""
        mine = np.full(LISTED, -1, np.int32)
        newest = [s for s in self._steps() if s > after][:LISTED]
        mine[: len(newest)] = newest
        return sorted({int(s) for s in _gathered(mine).flat} - {-1}, reverse=True)

    def _attempt(self, step: int, shapes: Shapes) -> tuple[tuple[dict[str, jax.Array], Facts] | None, str]:
        pieces, own = self._read(step, shapes)
        facts = _agreed(own, len(shapes))
        if facts is None:
            return None, "it is of another model"
        devices = _devices(shapes)
        have = _everyones(pieces, shapes, devices)
        arrays = {}
        for i, (name, shape) in enumerate(sorted(shapes.items())):
            owners = [next((d for d in group if have[i, d]), None) for group in fingerprint.replicas(shape)]
            if None in owners:
                return None, f"no machine has all of {name}"
            arrays[name] = _assembled(name, shape, pieces, devices, have[i], {d for d in owners if d is not None})
        found = fingerprint.whole(arrays)
        bad = [name for name, want in zip(sorted(shapes), facts.prints) if found[name] != want]
        return (None, f"{bad[0]} has other bits than were copied") if bad else ((arrays, facts), "")

    def _read(self, step: int, shapes: Shapes) -> tuple[Pieces, Facts | None]:
        """What lies on this machine, of whichever processes; nothing where it is damaged or of another model."""
        pieces: dict[str, safetensors.Tensor] = {}
        facts = None
        folder = self._folder / str(step)
        for path in sorted(folder.glob("*.json")) if self._identity() else []:
            try:
                read = safetensors.read_json(path)
                if read["layout"] == layout.describe(dict(shapes)):
                    held = safetensors.read_file(path.with_suffix(".safetensors"))
                    facts = Facts(int(read["tokens"]), tuple(int(n) & WORD for n in read["prints"]))
                    pieces |= held
            except (OSError, UserError, KeyError, TypeError, ValueError):
                continue
        return pieces, facts


def _key(name: str, index: tuple[slice, ...]) -> str:
    """A part of an array, by its place in the whole."""
    return f"{name}@" + ",".join(f"{s.start or 0}:{'' if s.stop is None else s.stop}" for s in index)


def _gathered(mine: np.ndarray) -> np.ndarray:
    """[processes, ...]; all of them must ask."""
    if jax.process_count() == 1:
        return mine[None]
    return np.asarray(multihost_utils.process_allgather(mine))


def _agreed(own: Facts | None, arrays: int) -> Facts | None:
    """The facts of the first process that has some."""
    row = np.zeros(3 + arrays, np.uint32)
    if own is not None and len(own.prints) == arrays:
        row[:] = [1, own.tokens & WORD, own.tokens >> 32, *own.prints]
    found = next((r for r in _gathered(row) if r[0]), None)
    if found is None:
        return None
    return Facts(int(found[1]) | int(found[2]) << 32, tuple(int(n) for n in found[3:]))


def _devices(shapes: Shapes) -> Devices:
    """In the order in which `fingerprint.replicas` counts them."""
    sharding = next(iter(shapes.values())).sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        return list(np.asarray(sharding.mesh.devices).flat)
    return list(sharding.device_set)


def _everyones(pieces: Pieces, shapes: Shapes, devices: Devices) -> np.ndarray:
    """bool [arrays, devices]: whether the process of a device can read the part that the device holds."""
    own = [i for i, d in enumerate(devices) if d.process_index == jax.process_index()]
    mine = np.zeros((len(shapes), len(own)), bool)
    for row, (name, shape) in enumerate(sorted(shapes.items())):
        places = shape.sharding.devices_indices_map(tuple(shape.shape))
        for column, i in enumerate(own):
            piece = pieces.get(_key(name, places[devices[i]]))
            mine[row, column] = piece is not None and _fits(piece, shape)
    have = np.zeros((len(shapes), len(devices)), bool)
    for columns, table in zip(_gathered(np.array(own, np.int32)), _gathered(mine)):
        have[:, columns] = table
    return have


def _fits(piece: safetensors.Tensor, shape: jax.ShapeDtypeStruct) -> bool:
    return piece.shape == shape.sharding.shard_shape(tuple(shape.shape)) and piece.dtype == shape.dtype


def _assembled(
    name: str, shape: jax.ShapeDtypeStruct, pieces: Pieces, devices: Devices, have: np.ndarray, owners: set[int]
) -> jax.Array:
    """Of what the machines hold; where a device lacks its part, of the parts of `owners`, which replicas get too."""
    whole, sharding = tuple(shape.shape), shape.sharding
    places, part = sharding.devices_indices_map(whole), sharding.shard_shape(whole)
    sends, shards = not have.all(), []
    for i, device in enumerate(devices):
        if device.process_index != jax.process_index():
            continue
        reads = i in owners if sends else True
        data = pieces[_key(name, places[device])].read() if reads else np.zeros(part, shape.dtype)
        memory = None if sends else sharding.memory_kind
        where = jax.sharding.SingleDeviceSharding(device, memory_kind=memory)
        shards.append(jax.device_put(data[None] if sends else data, where))
    if not sends:
        return jax.make_array_from_single_device_arrays(whole, sharding, shards)
    mesh = sharding.mesh
    apart = jax.sharding.NamedSharding(mesh, jax.P(mesh.axis_names))
    sent = _sent(jax.make_array_from_single_device_arrays((len(devices), *part), apart, shards), sharding)
    return jax.device_put(sent, sharding)


def _sent(parts: jax.Array, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """[devices, ...], zeros but for one device of each group of replicas, to an array: sums of integers are exact."""
    used = [a for axes in sharding.spec for a in (axes if isinstance(axes, tuple) else (axes,))]
    copies = tuple(a for a in sharding.mesh.axis_names if a not in used)

    def here(part: jax.Array) -> jax.Array:
        one = part[0]
        if one.dtype == jnp.bool_:
            return jax.lax.psum(one.astype(jnp.uint32), copies).astype(jnp.bool_)
        size = one.dtype.itemsize
        bits = jax.lax.bitcast_convert_type(one, {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32))
        summed = jax.lax.psum(bits.astype(jnp.uint32), copies).astype(bits.dtype)
        return jax.lax.bitcast_convert_type(summed, one.dtype)

    mesh = sharding.mesh
    move = jax.shard_map(here, mesh=mesh, in_specs=jax.P(mesh.axis_names), out_specs=sharding.spec, check_vma=False)
    return jax.jit(move)(parts)
