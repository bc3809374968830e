"""A state as named arrays: the form in which it lies on disk."""

from typing import Any

import jax
import jax.numpy as jnp

from pretrain.errors import UserError
from pretrain.models.tree import word

Arrays = dict[str, Any]


def flatten(state: Any) -> Arrays:
    """Name -> array, as in `model/decoder/pattern/0/mixer/query`. Random keys become their integers."""
    out = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = "/".join(word(k) for k in path)
        out[name.removesuffix("/value")] = integers(leaf)
    return out


def unflatten(abstract: Any, nested: dict[str, Any]) -> Any:
    arrays = unnest(nested)
    structure, leaves = jax.tree.structure(abstract), jax.tree.leaves(abstract)
    restored = [typed(leaf, arrays[name]) for leaf, name in zip(leaves, flatten(abstract))]
    return jax.tree.unflatten(structure, restored)


def nest(arrays: Arrays) -> dict[str, Any]:
    """Folders of names, so that a checkpoint can be browsed."""
    out: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        here = out
        for folder in folders:
            here = here.setdefault(folder, {})
        here[last] = array
    return out


def unnest(nested: Any, path: str = "") -> Arrays:
    if not isinstance(nested, dict):
        return {path: nested}
    return {k: v for n, x in nested.items() for k, v in unnest(x, f"{path}/{n}" if path else n).items()}


def describe(arrays: Arrays) -> dict[str, list]:
    """Name -> [shape, type], in JSON values."""
    return {name: [list(a.shape), str(a.dtype)] for name, a in arrays.items()}


def differences(stored: dict[str, list], wanted: dict[str, list]) -> list[str]:
    """One line for every array that is missing, unexpected or of another shape or type."""
    lines = [f"{n}: missing in the checkpoint" for n in wanted if n not in stored]
    lines += [f"{n}: in the checkpoint, but nothing reads it" for n in stored if n not in wanted]
    for name in wanted:
        if name in stored and stored[name] != wanted[name]:
            (shape, dtype), (want_shape, want_dtype) = stored[name], wanted[name]
            lines.append(f"{name}: found {dtype}{shape}, expected {want_dtype}{want_shape}")
    return lines


def require_same(stored: dict[str, list], wanted: dict[str, list], where: str) -> None:
    """Orbax would cast a wrong type silently."""
    if lines := differences(stored, wanted):
        shown = lines[:8] + ([f"and {len(lines) - 8} more"] if len(lines) > 8 else [])
        raise UserError(*(f"{where}: {line}; restore it with the config that wrote it" for line in shown))


def integers(leaf: Any) -> Any:
    """A random key as its integers, anything else as it is."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)
    return jax.random.key_data(leaf)


def typed(leaf: Any, array: jax.Array) -> jax.Array:
    """`array` as a random key where `leaf` is one: what `integers` did, undone."""
    return jax.random.wrap_key_data(array) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else array
