"""The loss of telling replaced tokens from those of the text (ELECTRA, Clark et al. 2020, section 2)."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from pretrain.loss import cut, join
from pretrain.models.transformer import Inputs, Transformer
from pretrain.objectives.batch import Batch, Loss, Objective
from pretrain.objectives.config import ReplacedToken
from pretrain.objectives.config_masked import REPLACED_TASK
from pretrain.objectives.language import cross_entropy, with_layers
from pretrain.objectives.masked import at
from pretrain.sharding import place

LOGITS = ("batch", "length", "vocab")


def replaced_token(config: ReplacedToken) -> Objective:
    def loss(model: Transformer, batch: Batch, key: jax.Array | None) -> Loss:
        keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))
        loss, tokens_BT, replaced_BT = generate(config, model, batch, keys[0])
        out = model(replace(batch.inputs, tokens=tokens_BT), key=keys[1])
        loss = with_layers(loss, out.losses)
        logits_BT = model.task(REPLACED_TASK, out.hidden_BTD, batch.inputs.segments, keys[2])[..., 0]
        return _with_judgement(config, loss, logits_BT, replaced_BT, batch)

    return loss


def generate(config: ReplacedToken, model: Transformer, batch: Batch, key) -> tuple[Loss, jax.Array, jax.Array]:
    """(the generator's loss, the text with what it says at every place that is asked for, where that is wrong).

    Without a key, as in evaluation, what it says is always the same.
    """
    dropout, sampling = (None, jax.random.key(0)) if key is None else jax.random.split(key)
    hidden_BTD, unembed = model.generated(batch.inputs, key=dropout)
    hidden_BKD = at(hidden_BTD, batch.places)
    loss = cross_entropy(config.loss, unembed, hidden_BKD, batch.targets, batch.weights)
    said_BK = sample(unembed, jax.lax.stop_gradient(hidden_BKD), sampling, config.loss.chunk)
    text_BT = put(batch.inputs, batch, batch.targets)
    tokens_BT = put(batch.inputs, batch, said_BK)
    return loss, tokens_BT, tokens_BT != text_BT


def sample(unembed: Any, hidden_BKD: jax.Array, key: jax.Array, chunk: int) -> jax.Array:
    """int32 [B, K], a token drawn at each place from the head's distribution; logits exist for a chunk at a time."""

    def draw(_, numbered):
        number, (hidden_BkD,) = numbered
        logits_BkV = jax.lax.stop_gradient(unembed(hidden_BkD))
        noise = jax.random.fold_in(key, number)
        layout = None if place.whole() else place.spec_of(logits_BkV.shape, *LOGITS)
        noise_BkV = jax.random.gumbel(noise, logits_BkV.shape, logits_BkV.dtype, out_sharding=layout)
        return None, jnp.argmax(logits_BkV + noise_BkV, axis=-1).astype(jnp.int32)

    chunks = cut(chunk, hidden_BKD)
    _, drawn_nBk = jax.lax.scan(draw, None, (jnp.arange(len(chunks[0])), chunks))
    return place.constrain(join(drawn_nBk, hidden_BKD.shape[1]), "batch", None)


def put(inputs: Inputs, batch: Batch, values_BK: jax.Array) -> jax.Array:
    """The tokens with these values at the places that are asked for."""
    place_T1 = jnp.arange(inputs.tokens.shape[1])[:, None]
    places_BK = jnp.arange(batch.targets.shape[1])[None] if batch.places is None else batch.places
    there_BTK = (places_BK[:, None] == place_T1) & (batch.weights > 0)[:, None]
    value_BT = jnp.sum(jnp.where(there_BTK, values_BK[:, None], 0), axis=-1)
    return jnp.where(jnp.any(there_BTK, axis=-1), value_BT, inputs.tokens)


def _with_judgement(config: ReplacedToken, loss: Loss, logits_BT, replaced_BT, batch: Batch) -> Loss:
    """Adds the mean binary cross-entropy of each row, times the weight and the row's masks, so that sums stay exact.

    Where all rows have as many masks, the loss is the generator's mean plus the weight times the mean of all tokens.
    """
    there_BT = jnp.ones_like(logits_BT) if batch.inputs.segments is None else batch.inputs.segments > 0
    share_BT = there_BT * (jnp.sum(batch.weights, axis=1) / jnp.maximum(jnp.sum(there_BT, axis=1), 1))[:, None]
    nll_BT = jax.nn.softplus(jnp.where(replaced_BT, -logits_BT, logits_BT))
    nll, right = jnp.sum(share_BT * nll_BT), jnp.sum(share_BT * ((logits_BT > 0) == replaced_BT))
    metrics = {"replaced_nll": nll, "replaced_correct": right, "replaced": jnp.sum(share_BT * replaced_BT)}
    return replace(loss, total=loss.total + config.weight * nll, metrics={**loss.metrics, **metrics})
