"""From logits to the next token."""

import math

import jax
import jax.numpy as jnp

from pretrain.models.generate.config import Sampling


def pick(logits_BV: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """tokens_B, int32. A row's token depends on its place in the batch, the key and its own logits alone."""
    if sampling.greedy:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, filtered(logits_BV, sampling), axis=-1).astype(jnp.int32)


def filtered(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """The logits of the distribution that is sampled: tempered, -inf for tokens never drawn. Ties stay together."""
    logits_BV = logits_BV.astype(jnp.float32) / sampling.temperature
    top_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    least_B1 = jnp.full_like(top_B1, -jnp.inf)
    if sampling.top_k is not None or sampling.top_p is not None:
        kept_BN, _ = jax.lax.top_k(logits_BV, min(sampling.top_k or logits_BV.shape[-1], logits_BV.shape[-1]))
        least_B1 = kept_BN[:, -1:] if sampling.top_p is None else _nucleus(kept_BN, sampling.top_p)
    if sampling.min_p:
        least_B1 = jnp.maximum(least_B1, top_B1 + math.log(sampling.min_p))
    logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    return logits_BV if sampling.typical_p is None else _typical(logits_BV, sampling.typical_p)


def _nucleus(sorted_BN: jax.Array, top_p: float) -> jax.Array:
    """The least logit of each nucleus: a token is in it while those before it do not reach top_p."""
    probs_BN = jax.nn.softmax(sorted_BN, axis=-1)
    before_BN = jnp.cumsum(probs_BN, axis=-1) - probs_BN
    return jnp.min(jnp.where(before_BN < top_p, sorted_BN, jnp.inf), axis=-1, keepdims=True)


def _typical(logits_BV: jax.Array, mass: float) -> jax.Array:
    """Tokens nearest to the entropy: a token is kept while those before it do not reach `mass`."""
    probs_BV = jax.nn.softmax(logits_BV, axis=-1)
    surprise_BV = -jax.nn.log_softmax(logits_BV, axis=-1)
    entropy_B1 = jnp.sum(jnp.where(probs_BV > 0, probs_BV * surprise_BV, 0), axis=-1, keepdims=True)
    odd_BV = jnp.abs(surprise_BV - entropy_B1)
    order_BN = jnp.argsort(odd_BV, axis=-1)
    sorted_BN = jnp.take_along_axis(probs_BV, order_BN, axis=-1)
    before_BN = jnp.cumsum(sorted_BN, axis=-1) - sorted_BN
    odd_BN = jnp.take_along_axis(odd_BV, order_BN, axis=-1)
    most_B1 = jnp.max(jnp.where(before_BN < mass, odd_BN, -jnp.inf), axis=-1, keepdims=True)
    return jnp.where(odd_BV <= most_B1, logits_BV, -jnp.inf)


def logprobs(logits_BV: jax.Array, tokens_B: jax.Array) -> jax.Array:
    """logprobs_B of the tokens, under the distribution of the logits as they are."""
    chosen_B = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=-1)[:, 0]
    return chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)
