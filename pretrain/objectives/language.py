"""Losses of the tokens of a vocabulary."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from pretrain.loss import chunked_cross_entropy
from pretrain.models.transformer import Transformer
from pretrain.objectives.batch import Batch, Loss, Objective
from pretrain.objectives.config import FillInTheMiddle, LossConfig, NextToken
from pretrain.sharding import place

READ = ("batch", "length", "features")


def cross_entropy(config: LossConfig, unembed: Any, hidden_BKD: jax.Array, targets_BK, weights_BK) -> Loss:
    total, weight, metrics = chunked_cross_entropy(
        lambda unembed, h_BkD: unembed(h_BkD),
        unembed,
        place.constrain(hidden_BKD, *READ),
        targets_BK,
        weights_BK,
        chunk=config.chunk,
        z_loss=config.z_loss,
        label_smoothing=config.label_smoothing,
    )
    return Loss(total=total, weight=weight, metrics=metrics)


def with_layers(loss: Loss, layers: dict[str, jax.Array]) -> Loss:
    """The loss with those that the model's layers have of their own (`Output.losses`), which are means over tokens."""
    sums = {name: value * loss.weight for name, value in layers.items()}
    metrics = {name: value for name, value in sums.items() if not name.startswith("_")}
    return replace(loss, total=loss.total + sum(sums.values()), metrics={**loss.metrics, **metrics})


def asked(config) -> Objective:
    """The targets where the batch asks for them."""

    def loss(model: Transformer, batch: Batch, key: jax.Array | None) -> Loss:
        out = model(batch.inputs, key=key)
        loss = cross_entropy(config.loss, model.unembed(), out.hidden_BTD, batch.targets, batch.weights)
        return with_layers(loss, out.losses)

    return loss


def next_token(config: NextToken | FillInTheMiddle) -> Objective:
    def loss(model: Transformer, batch: Batch, key: jax.Array | None) -> Loss:
        out = model(batch.inputs, key=key)
        loss = cross_entropy(config.loss, model.unembed(), out.hidden_BTD, batch.targets, batch.weights)
        loss = with_layers(loss, out.losses)
        return loss if model.config.ahead is None else _with_ahead(config, model, batch, key, out.hidden_BTD, loss)

    return loss


def _with_ahead(
    config: NextToken | FillInTheMiddle, model: Transformer, batch: Batch, key, hidden_BTD: jax.Array, loss: Loss
) -> Loss:
    """Adds weight / depth times the cross-entropy of each depth (DeepSeek-V3, arXiv:2412.19437, equations 24 and 25).

    Depth d asks at token t for the target of token t + d + 1, where that is in the same document.
    """
    hidden, layers = model.ahead(hidden_BTD, batch.inputs, key=None if key is None else jax.random.fold_in(key, 1))
    total, metrics = loss.total, {}
    for d, hidden_BTD in enumerate(hidden):
        targets_BT, weights_BT = _later(batch.targets, d + 1), _later(batch.weights, d + 1)
        if (segments_BT := batch.inputs.segments) is not None:
            weights_BT = weights_BT * (_later(segments_BT, d + 1) == segments_BT)
        more = cross_entropy(config.loss, model.unembed(), hidden_BTD, targets_BT, weights_BT)
        total = total + config.ahead / len(hidden) * more.total
        metrics[f"nll_ahead_{d + 1}"] = more.metrics["nll"]
    return with_layers(replace(loss, total=total, metrics={**loss.metrics, **metrics}), layers)


def _later(x_BT: jax.Array, places: int) -> jax.Array:
    """Each row moved to the left, zeros at its end."""
    return jnp.pad(x_BT[:, places:], ((0, 0), (0, places)))
