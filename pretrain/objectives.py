"""What a model learns from a batch. An objective is a pure function (model, batch, key) -> Loss."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from pretrain.config import NextToken
from pretrain.loss import chunked_cross_entropy
from pretrain.models.transformer import Inputs, Transformer
from pretrain.sharding import place


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Batch:
    inputs: Inputs
    targets: jax.Array
    """int32 [B, T]"""
    weights: jax.Array
    """f32 [B, T], 0 where nothing is asked."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Loss:
    """Sums, never means: adding the losses of micro-batches and devices is exact."""

    total: jax.Array
    weight: jax.Array
    metrics: dict[str, jax.Array]


Objective = Callable[[Transformer, Batch, jax.Array | None], Loss]


def build(config: NextToken) -> Objective:
    def next_token(model: Transformer, batch: Batch, key: jax.Array | None) -> Loss:
        hidden_BTD = place.constrain(model(batch.inputs, key=key).hidden_BTD, "batch", "length", "features")
        total, weight, metrics = chunked_cross_entropy(
            lambda unembed, h_BTD: unembed(h_BTD),
            model.unembed(),
            hidden_BTD,
            batch.targets,
            batch.weights,
            chunk=config.loss.chunk,
            z_loss=config.loss.z_loss,
            label_smoothing=config.loss.label_smoothing,
        )
        return Loss(total=total, weight=weight, metrics=metrics)

    return next_token
