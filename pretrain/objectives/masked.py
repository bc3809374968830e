"""The loss of hidden tokens, and of what a row is."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from pretrain.models.transformer import Transformer
from pretrain.objectives.batch import Batch, Loss, Objective
from pretrain.objectives.config_masked import SENTENCE_TASK, MaskedLm
from pretrain.objectives.language import cross_entropy, with_layers
from pretrain.sharding import place


def masked_lm(config: MaskedLm) -> Objective:
    def loss(model: Transformer, batch: Batch, key: jax.Array | None) -> Loss:
        out = model(batch.inputs, key=key)
        hidden_BKD = at(out.hidden_BTD, batch.places)
        loss = cross_entropy(config.loss, model.unembed(), hidden_BKD, batch.targets, batch.weights)
        loss = with_layers(loss, out.losses)
        if config.sentences is None:
            return loss
        key = None if key is None else jax.random.fold_in(key, 1)
        return with_labels(loss, model.task(SENTENCE_TASK, out.hidden_BTD, batch.inputs.segments, key), batch)

    return loss


def at(hidden_BTD: jax.Array, places_BK: jax.Array | None) -> jax.Array:
    """hidden_BKD: what stands at these places of each row, so that the head reads nothing else."""
    if places_BK is None:
        return hidden_BTD
    return jnp.take_along_axis(place.constrain(hidden_BTD, "batch", None, "features"), places_BK[..., None], axis=1)


def with_labels(loss: Loss, logits_BC: jax.Array, batch: Batch) -> Loss:
    """Adds each row's classification, which weighs as much as the row's tokens, so that sums stay exact.

    Where all rows ask for as many tokens, the loss is the sum of the two means, as in BERT. Labels below 0 ask nothing.
    """
    labels_B = batch.labels
    if labels_B is None:
        raise ValueError(
            "found rows without labels, expected a class of each; use a transform that makes sentence pairs"
        )
    weights_B = jnp.sum(batch.weights, axis=1) * (labels_B >= 0)
    hot_BC = labels_B[:, None] == jnp.arange(logits_BC.shape[1])
    label_B = jnp.sum(jnp.where(hot_BC, logits_BC, 0.0), axis=1)
    nll = jnp.sum(weights_B * (jax.nn.logsumexp(logits_BC, axis=1) - label_B))
    right = jnp.sum(weights_B * (label_B == jnp.max(logits_BC, axis=1)))
    return replace(
        loss, total=loss.total + nll, metrics={**loss.metrics, "sentence_nll": nll, "sentence_correct": right}
    )
