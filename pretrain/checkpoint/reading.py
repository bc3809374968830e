"""Arrays of a checkpoint, each compared with the fingerprint that its manifest holds."""

import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from pretrain.checkpoint import layout, manifest
from pretrain.checkpoint.manifest import Manifest
from pretrain.errors import UserError
from pretrain.sharding import fingerprint

TRANSIENT = ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Too many open files", "Permission denied")
"""Errors of the machine or the network: they say nothing about the bytes of a checkpoint."""


def restore(step: epath.Path, facts: Manifest, abstract: Any) -> Any:
    """`abstract` with numbers, on its layout, whatever mesh wrote them. Talks to no other process.

    Raises UserError where names, shapes or types of `abstract` are not those of the checkpoint, and whatever Orbax
    raises on files that it cannot read.
    """
    arrays = layout.flatten(abstract)
    layout.require_same(described(facts), layout.describe(arrays), f"checkpoint {step.name}")
    return layout.unflatten(abstract, _read(step, layout.nest(arrays)))


def described(facts: Manifest) -> dict[str, list]:
    return {name: [shape, dtype] for name, (shape, dtype, _) in facts.arrays.items()}


def altered(facts: Manifest, state: Any) -> list[str]:
    """Names of the arrays of a whole state whose bits are not those that were saved. Every process must call it."""
    return damaged(facts, fingerprint.whole(layout.flatten(state)))


def damaged(facts: Manifest, found: Mapping[str, int]) -> list[str]:
    """Names of the arrays whose bits are not those that were saved."""
    return [name for name, value in found.items() if facts.arrays[name][2] != value]


def read_part(step: epath.Path, abstract: Any) -> Any:
    """Only the arrays that `abstract` names, on its layout.

    Raises UserError where they differ from what was saved, in shape, type or any bit.
    """
    arrays, facts = layout.flatten(abstract), manifest.read(step)
    stored = {name: shape for name, shape in described(facts).items() if name.split("/")[0] in abstract}
    layout.require_same(stored, layout.describe(arrays), f"checkpoint {step.name}")
    try:
        _require_room(arrays)
        nested = _read(step, layout.nest(arrays), partial=True)
    except Exception as error:
        raise UserError(_sentence(step, reason(error))) from None
    bad = damaged(facts, {name: fingerprint.of_host(np.asarray(a)) for name, a in layout.unnest(nested).items()})
    if bad:
        raise UserError(_sentence(step, listed(bad)))
    return layout.unflatten(abstract, nested)


def verify(step: epath.Path) -> list[str]:
    """What is wrong with a checkpoint, each in one line: its manifest, its files, every array that is not as saved."""
    try:
        facts = manifest.read(step)
    except UserError as error:
        return [f"{step.name}: {manifest.complaint(error)}"]
    wrong, sizes = manifest.wrong_files(step, facts), _stored(step)
    for name, (shape, dtype, value) in facts.arrays.items():
        lies = name in sizes and sizes[name] != shape  # nothing is made room for that is not as it was saved
        problem = f"is stored as {sizes[name]}, expected {shape}" if lies else _wrong(step, name, [shape, dtype], value)
        if problem:
            wrong.append(f"{name}: {problem}")
    return [f"{step.name}: {line}" for line in wrong]


def _stored(step: epath.Path) -> dict[str, list[int]]:
    """The shapes that the array files themselves state; none where Orbax cannot read them."""
    try:
        found: Any = ocp.PyTreeCheckpointHandler().metadata(step.resolve())
        return {name: list(a.shape) for name, a in layout.unnest(dict(found.tree)).items()}
    except Exception:
        return {}


def _wrong(step: epath.Path, name: str, wanted: list, value: int) -> str:
    whole = layout.nest({name: ocp.RestoreArgs(restore_type=np.ndarray)})
    try:
        target = layout.nest({name: jax.ShapeDtypeStruct(wanted[0], np.dtype(wanted[1]))})
        _require_room(target)
        args = ocp.args.PyTreeRestore(target, restore_args=whole, partial_restore=True)
        found = layout.unnest(_found(ocp.PyTreeCheckpointHandler().restore(step.resolve(), args=args)))[name]
    except Exception as error:  # whatever Orbax and TensorStore raise on damaged files
        return f"cannot be read ({reason(error)})"
    if [list(found.shape), str(found.dtype)] != wanted:
        return f"found {found.dtype}{list(found.shape)}, expected {wanted[1]}{wanted[0]}"
    return "" if fingerprint.of_host(found) == value else "its bits are not those that were saved"


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"


def is_transient(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(word in str(error) for word in TRANSIENT)


def listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}: other bits than were saved"


def _sentence(step: epath.Path, what: str) -> str:
    return f"checkpoint {step.name} is damaged ({what}), expected what a save wrote; choose another with --step"


def _read(step: epath.Path, target: dict[str, Any], *, partial: bool = False) -> dict[str, Any]:
    """By the handler itself: its checkpointer would wait for the other processes, of which one may have failed."""
    args = ocp.args.PyTreeRestore(
        target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=partial
    )
    return _found(ocp.PyTreeCheckpointHandler().restore(step.resolve(), args=args))


def _found(arrays: Any) -> Any:
    """Orbax leaves what a damaged tree does not name as it was asked for, a shape without numbers."""
    for name, array in layout.unnest(arrays).items():
        if not isinstance(array, np.ndarray | jax.Array):
            raise ValueError(f"{name} was not found")
    return arrays


def _require_room(arrays: Any) -> None:
    """Raises ValueError for more than this machine can hold, whatever a file says of itself."""
    needed = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(arrays))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ValueError(f"it takes {needed / 1e9:.1f} GB, this machine has {memory / 1e9:.1f}")
