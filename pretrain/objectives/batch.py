"""What goes into an objective and what comes out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from pretrain.models.transformer import Inputs, Transformer


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of text and what is asked about them: K questions a row, T where each token is one."""

    inputs: Inputs
    targets: jax.Array
    """int32 [B, K], ids of the tokens asked for."""
    weights: jax.Array
    """f32 [B, K], 0 where nothing is asked."""
    places: jax.Array | None = None
    """int32 [B, K], the token of the row at which each is asked; None: K is T, each at its own."""
    labels: jax.Array | None = None
    """int32 [B], the class of each row."""


def tokens_read(inputs: Inputs) -> jax.Array:
    """f32, tokens of all stacks that are no padding."""
    there = jnp.ones_like(inputs.tokens) if inputs.segments is None else inputs.segments > 0
    here = jnp.sum(there, dtype=jnp.float32)
    return here if inputs.encoder is None else here + tokens_read(inputs.encoder)


def gathered(arrays: Mapping[str, jax.Array]) -> Batch:
    """Arrays by name as a batch: those of `Batch` and `Inputs`, the encoder's as encoder_tokens and so on."""
    rest: dict[str, Any] = dict(arrays)
    asked: dict[str, Any] = {name: rest.pop(name, None) for name in ("targets", "weights", "places", "labels")}
    encoder = {name: rest.pop(name) for name in list(rest) if name.startswith("encoder_")}
    source = Inputs(**{name.removeprefix("encoder_"): array for name, array in encoder.items()}) if encoder else None
    return Batch(inputs=Inputs(**rest, encoder=source), **asked)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Loss:
    """Sums, never means: adding the losses of micro-batches and devices is exact."""

    total: jax.Array
    weight: jax.Array
    metrics: dict[str, jax.Array]


Objective = Callable[[Transformer, Batch, jax.Array | None], Loss]
"""Pure; the key is of dropout and sampling, None outside training."""
