"""Which part of the model the length of a gradient or an update comes from."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from pretrain.models import tree
from pretrain.models.transformer import Transformer

PLACES = ("prefix", "pattern", "suffix", "value")


def part_of(name: str) -> str:
    """The part a parameter belongs to: `decoder/pattern/0/mixer/query` is of decoder.mixer, all layers together."""
    words = [w for w in name.split("/")[:-1] if w not in PLACES and not w.isdigit()]
    return ".".join(words[:2]) or name.split("/")[0]


def by_part(kind: str, model: Transformer) -> dict[str, jax.Array]:
    """`kind`.PART -> f32 Euclidean norm of a tree with the structure of a model. One reduction an array."""
    squares: dict[str, list[jax.Array]] = {}
    for name, leaf in zip(tree.params(model), jax.tree.leaves(model), strict=True):
        squares.setdefault(f"{kind}.{part_of(name)}", []).append(jnp.sum(jnp.square(leaf.astype(jnp.float32))))
    return {name: jnp.sqrt(sum(found, jnp.float32(0))) for name, found in squares.items()}


def nested(values: Mapping[str, float], kind: str) -> dict[str, float]:
    """PART -> norm, of a line of metrics.jsonl."""
    return {name.removeprefix(f"{kind}."): x for name, x in values.items() if name.startswith(f"{kind}.")}
