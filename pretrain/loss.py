"""Cross-entropy in chunks of the row, fused with the head, so that the logits of a batch never exist whole.

Sums, never means: over micro-batches, hosts and chunks they add up exactly.

A head is any differentiable `head(params, hidden_BtD) -> logits_BtV`, t tokens of each row. Its gradient is made during
the forward pass, chunk by chunk, where the logits are still at hand; the backward pass only multiplies it by the
cotangent (the idea of Liger kernel's fused linear cross-entropy, Hsu et al. 2024, arXiv:2410.10989).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pretrain.sharding import place

Params = Any
Head = Callable[[Params, jax.Array], jax.Array]
Metrics = dict[str, jax.Array]


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """What is summed over the tokens, each times its weight. The defaults are the plain negative log-likelihood."""

    chunk: int = 32
    """Tokens of each row whose logits exist at once."""
    z_loss: float = 0.0
    """Weight of log(Z)^2, Z the softmax's denominator (PaLM, Chowdhery et al. 2022, section 5: 1e-4)."""
    label_smoothing: float = 0.0
    """Share e of the target spread over the whole vocabulary, as in torch: (1 - e) one-hot + e / V."""
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap) (Gemma 2, arXiv:2408.00118, section 2)."""


def chunked_cross_entropy(
    head: Head,
    params: Params,
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    chunk: int = 32,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
) -> tuple[jax.Array, jax.Array, Metrics]:
    """(loss_sum, weight_sum, metrics), scalars in f32; only loss_sum passes a gradient, to `params` and `hidden_BTD`.

    Metrics, sums too: "nll" (without smoothing and z-loss), "z_loss" (as added to the loss), "correct" (weight of the
    tokens whose target has the largest logit). Parameter gradients add up in f32. Only the length is cut in chunks, so
    that the batch may be sharded over devices; the vocabulary too.
    """
    terms = CrossEntropy(chunk=chunk, z_loss=z_loss, label_smoothing=label_smoothing, softcap=softcap)
    weights_BT = weights_BT.astype(jnp.float32)
    chunked: Any = _chunked  # custom_vjp hides the pair it returns
    loss_sum, metrics = chunked(head, terms, params, hidden_BTD, targets_BT, weights_BT)
    return loss_sum, jnp.sum(weights_BT), metrics


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(head: Head, terms: CrossEntropy, params, hidden_BTD, targets_BT, weights_BT) -> Any:
    def step(sums, chunk):
        hidden_BtD, targets_Bt, weights_Bt = chunk
        total, _ = _sums_and_gradient(terms, head(params, hidden_BtD), targets_Bt, weights_Bt)
        return jax.tree.map(jnp.add, sums, total), None

    sums, _ = jax.lax.scan(step, _zero_sums(), cut(terms.chunk, hidden_BTD, targets_BT, weights_BT))
    return sums


def _forward(head: Head, terms: CrossEntropy, params, hidden_BTD, targets_BT, weights_BT):
    def step(carry, chunk):
        sums, dparams = carry
        hidden_BtD, targets_Bt, weights_Bt = chunk
        logits_BtV, pull = jax.vjp(head, params, hidden_BtD)
        total, dlogits_BtV = _sums_and_gradient(terms, logits_BtV, targets_Bt, weights_Bt)
        dparams_chunk, dhidden_BtD = pull(dlogits_BtV.astype(logits_BtV.dtype))
        dparams = jax.tree.map(lambda a, b: a + b.astype(a.dtype), dparams, dparams_chunk)
        return (jax.tree.map(jnp.add, sums, total), dparams), dhidden_BtD

    zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), params)
    chunks = cut(terms.chunk, hidden_BTD, targets_BT, weights_BT)
    (sums, dparams), dhidden_nBtD = jax.lax.scan(step, (_zero_sums(), zeros), chunks)
    dparams = jax.tree.map(lambda d, p: d.astype(p.dtype), dparams, params)
    dhidden_BTD = join(dhidden_nBtD, hidden_BTD.shape[1])
    if place.platform() == "tpu":  # else the sums in f32 are kept until all layers are differentiated, then cast
        dparams, dhidden_BTD = jax.lax.optimization_barrier((dparams, dhidden_BTD))
    return sums, (dparams, dhidden_BTD)


def _backward(head: Head, terms: CrossEntropy, gradients, cotangents):
    scale = cotangents[0]
    dparams, dhidden_BTD = jax.tree.map(lambda d: (d * scale).astype(d.dtype), gradients)
    return dparams, dhidden_BTD, None, None


_chunked.defvjp(_forward, _backward)


def _zero_sums() -> tuple[jax.Array, Metrics]:
    return jnp.zeros(()), {name: jnp.zeros(()) for name in ("nll", "z_loss", "correct")}


def _sums_and_gradient(terms: CrossEntropy, logits_BtV: jax.Array, targets_Bt: jax.Array, weights_Bt: jax.Array):
    """((loss, metrics), the loss's gradient with respect to the logits in f32).

    With p the softmax, z = log Z, q = (1 - e) one-hot + e / V: the loss is z - sum(q x) + a z^2, its gradient
    (1 + 2 a z) p - q.
    """
    x_BtV = logits_BtV.astype(jnp.float32)
    if terms.softcap is not None:
        x_BtV = terms.softcap * jnp.tanh(x_BtV / terms.softcap)
    vocab = x_BtV.shape[-1]
    # A comparison with iota, not a gather or scatter: the vocabulary may be sharded.
    hot_BtV = targets_Bt[..., None] == jax.lax.broadcasted_iota(targets_Bt.dtype, x_BtV.shape, x_BtV.ndim - 1)
    max_Bt = jnp.max(x_BtV, axis=-1)
    exp_BtV = jnp.exp(x_BtV - max_Bt[..., None])
    sum_Bt = jnp.sum(exp_BtV, axis=-1)
    z_Bt = max_Bt + jnp.log(sum_Bt)
    label_Bt = jnp.sum(jnp.where(hot_BtV, x_BtV, 0.0), axis=-1)
    e, a = terms.label_smoothing, terms.z_loss
    wanted_Bt = label_Bt if e == 0 else (1 - e) * label_Bt + e / vocab * jnp.sum(x_BtV, axis=-1)
    z_loss = jnp.sum(weights_Bt * a * z_Bt**2)
    metrics = {
        "nll": jnp.sum(weights_Bt * (z_Bt - label_Bt)),
        "z_loss": z_loss,
        "correct": jnp.sum(weights_Bt * (label_Bt == max_Bt)),
    }
    p_weight_Bt = weights_Bt * (1 + 2 * a * z_Bt) / sum_Bt
    q_BtV = jnp.where(hot_BtV, 1 - e + e / vocab, e / vocab)
    dx_BtV = exp_BtV * p_weight_Bt[..., None] - q_BtV * weights_Bt[..., None]
    if terms.softcap is not None:
        dx_BtV = dx_BtV * (1 - (x_BtV / terms.softcap) ** 2)
    return (jnp.sum(weights_Bt * (z_Bt - wanted_Bt)) + z_loss, metrics), dx_BtV


def cut(chunk: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """[B, T, ...] as [n, B, chunk, ...]; the last chunk is filled up with tokens of weight 0.

    Where devices share the tokens of a row, each puts as many of its own into every chunk.
    """
    length = arrays[0].shape[1]
    if (hands := _hands(chunk, length)) is not None:
        return tuple(place.deal_tokens(x, hands) for x in arrays)

    def cut(x: jax.Array) -> jax.Array:
        t = min(chunk, length)
        x = jnp.pad(x, [(0, 0), (0, -length % t)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, t, *x.shape[2:]), 1, 0)

    return tuple(cut(x) for x in arrays)


def _hands(chunk: int, length: int) -> int | None:
    """Chunks of a row that devices share; None where each has whole rows."""
    devices = place.devices("length")
    if devices == 1 or length % devices:
        return None
    own = length // devices
    return next(n for n in range(1, own + 1) if own % n == 0 and length // n <= max(chunk, devices))


def join(x_nBtD: jax.Array, length: int) -> jax.Array:
    n, B, t = x_nBtD.shape[:3]
    if n * t == length and place.devices("length") > 1 and t % place.devices("length") == 0:
        return place.gather_tokens(x_nBtD)
    return jnp.moveaxis(x_nBtD, 0, 1).reshape(B, n * t, *x_nBtD.shape[3:])[:, :length]
