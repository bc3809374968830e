"""A mixture of experts: a router sends each token to a few of many MLPs (Shazeer et al. 2017).

N = tokens of one device, n = (token, choice) pairs sorted by expert.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.models.config import MoeConfig, RouterConfig
from pretrain.models.init import Init, at_rest, weight
from pretrain.models.layers.grouped import grouped_matmul, there
from pretrain.models.layers.mlp import Mlp, activate
from pretrain.sharding import expert, place

READ = ("batch", "length", "features")
CHOICE = ("batch", "length", None)
Losses = dict[str, jax.Array]
Load = dict[str, jax.Array]
"""Sums over tokens, from which a layer's losses are made: those of parts of a batch add up to those of all of it."""


class Moe(nnx.Module):
    def __init__(self, config: MoeConfig, d_model: int, init: Init):
        e, E, wide, narrow = config.expert, config.experts, ("mlp", config.expert.d_ff), ("embed", d_model)
        router = config.router
        self.config = config
        self.router = init.matrix(narrow, (None, E))
        self.router_bias = init.vector(0.0, (None, E)) if router.bias else None
        rate = router.balance_rate
        self.balance = None if rate is None else init.vector(0.0, (None, E), sign_rate=rate)
        self.up = init.matrix(narrow, wide, experts=E)
        self.gate = init.matrix(narrow, wide, experts=E) if e.gated else None
        self.down = init.matrix(wide, narrow, experts=E, residual=True)
        self.up_bias = init.vector(0.0, ("expert", E), wide) if e.bias else None
        self.gate_bias = init.vector(0.0, ("expert", E), wide) if e.bias and e.gated else None
        self.down_bias = init.vector(0.0, ("expert", E), ("features", d_model)) if e.bias else None
        self.shared = Mlp(config.shared, d_model, init) if config.shared else None

    def __call__(self, x_BTD: jax.Array, segments_BT: jax.Array | None) -> tuple[jax.Array, Load]:
        """(y_BTD, load): the load is counted over the tokens that are not padding."""
        c, dtype = self.config, x_BTD.dtype
        x_BTD = place.constrain(x_BTD, *READ)
        there_BT = jnp.ones(x_BTD.shape[:2], bool) if segments_BT is None else segments_BT != 0
        logits_BTE = place.project(
            x_BTD.astype(jnp.float32), weight(self.router, jnp.float32), *CHOICE, dtype=jnp.float32
        )
        if self.router_bias is not None:
            logits_BTE = logits_BTE + weight(self.router_bias, jnp.float32)
        balance_E = None if self.balance is None else weight(self.balance, jnp.float32)
        routed = place.local(lambda x, b: route(c.router, x, b), (CHOICE, (None,)), (CHOICE, CHOICE))
        weights_BTK, ids_BTK = routed(logits_BTE, balance_E)
        wide, narrow = ("expert", None, "mlp"), ("expert", "mlp", None)
        used = {"up": wide, "gate": wide, "down": narrow, "down_bias": ("expert", None)}
        used |= dict.fromkeys(("up_bias", "gate_bias"), ("expert", "mlp"))
        have = {name: at_rest(p, dtype, axes) for name, axes in used.items() if (p := getattr(self, name)) is not None}

        def experts(x, weights, ids, there, *arrays):
            w = dict(zip(have, arrays, strict=True))
            visit = _everyone if c.capacity is None else _up_to_capacity
            return place.sum_over(visit(c, x, weights.astype(dtype), ids, there, w), "mlp")

        length = "length" if c.capacity is None else None  # places are shared by the tokens of a row
        read, choice, row = ("batch", length, "features"), ("batch", length, None), ("batch", length)
        axes = (read, choice, choice, row, *(axes for _, axes in have.values()))
        arrays = [array for array, _ in have.values()]
        y_BTD = place.local(experts, axes, read)(x_BTD, weights_BTK, ids_BTK, there_BT, *arrays)
        y_BTD = checkpoint_name(place.constrain(y_BTD, "batch", "sequence", "features"), "mlp_down")
        if self.shared is not None:
            y_BTD = y_BTD + self.shared(x_BTD)
        return y_BTD, load(c, logits_BTE, ids_BTK, there_BT)

    def losses(self, load: Load) -> Losses:
        return losses(self.config, load, None if self.balance is None else weight(self.balance, jnp.float32))

    def fuse(self) -> None:
        if self.shared is not None:
            self.shared.fuse()


def route(c: RouterConfig, logits_NE: jax.Array, balance_E: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """(weights, experts), [..., top_k] each."""
    scores = jax.nn.softmax(logits_NE, axis=-1) if c.score == "softmax" else jax.nn.sigmoid(logits_NE)
    choice = scores if balance_E is None else scores + jax.lax.stop_gradient(balance_E)
    if c.groups > 1:
        grouped = choice.reshape(*choice.shape[:-1], c.groups, -1)
        best = jax.lax.top_k(grouped, 1 if c.group_score == "max" else min(2, grouped.shape[-1]))[0].sum(-1)
        _, kept = jax.lax.top_k(best, c.top_groups)
        open_ = jnp.any(kept[..., None] == jnp.arange(c.groups), axis=-2)
        choice = jnp.where(open_[..., None], grouped, -jnp.inf).reshape(choice.shape)
    _, ids = jax.lax.top_k(choice, c.top_k)
    weights = jnp.take_along_axis(scores, ids, axis=-1)
    if c.normalise:
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20)
    return weights * c.scale, ids


def load(c: MoeConfig, logits_BTE, ids_BTK, there_BT) -> Load:
    """Of one layer: what its losses need."""
    router = c.router
    there_BT1 = there_BT[..., None].astype(jnp.float32)
    out: Load = {"tokens": jnp.sum(there_BT1)}
    if router.balance_loss or router.balance_rate is not None:
        hot_BTKE = (ids_BTK[..., None] == jnp.arange(c.experts)) * there_BT1[..., None]
        out["chosen_E"] = jnp.sum(hot_BTKE, axis=(0, 1, 2))
    if router.balance_loss:
        scores = jax.nn.softmax(logits_BTE, axis=-1)
        if router.score == "sigmoid":
            scores = jax.nn.sigmoid(logits_BTE)
            scores = scores / jnp.sum(scores, axis=-1, keepdims=True)
        out["scores_E"] = jnp.sum(scores * there_BT1, axis=(0, 1))
    if router.z_loss:
        z_BT = jax.nn.logsumexp(logits_BTE, axis=-1)
        out["z"] = jnp.sum(jnp.square(z_BT) * there_BT)
    return out


def losses(c: MoeConfig, load: Load, balance_E: jax.Array | None) -> Losses:
    """Each a mean over tokens, times its weight; see `RouterConfig`. "_balance" is 0, its gradient what the balancing
    bias is moved by."""
    router, tokens = c.router, jnp.maximum(load["tokens"], 1)
    out: Losses = {}
    if "chosen_E" in load:
        share_E = load["chosen_E"] / (tokens * router.top_k)
        if router.balance_loss:
            out["balance"] = router.balance_loss * c.experts * jnp.sum(share_E * load["scores_E"]) / tokens
        if balance_E is not None:
            out["_balance"] = _against(balance_E, share_E - 1 / c.experts)
    if router.z_loss:
        out["router_z"] = router.z_loss * load["z"] / tokens
    return out


@jax.custom_vjp
def _against(balance_E: jax.Array, excess_E: jax.Array) -> jax.Array:
    """0, with the gradient `excess_E`: descending it moves the bias against the load."""
    return 0 * jnp.sum(balance_E)  # made of it, so that under vmap each layer has its own


_against.defvjp(lambda b, excess: (_against(b, excess), excess), lambda excess, g: (g * excess, None))


def _into(c: MoeConfig, w: dict, product, biased) -> expert.Hidden:
    """The first half of an expert's work: `product(kernel)` and `biased(y, name)` say how experts and tokens meet."""
    names = ("up", "gate") if c.expert.gated else ("up",)
    return {f"mlp_{name}": biased(product(w[name]), f"{name}_bias") for name in names}


def _activate(c: MoeConfig, hidden: expert.Hidden) -> jax.Array:
    return activate(c.expert, hidden["mlp_up"], hidden.get("mlp_gate"))


def _everyone(c: MoeConfig, x_BTD, weights_BTK, ids_BTK, there_BT, w) -> jax.Array:
    """No token is dropped: pairs sorted by expert, one grouped product for each matrix.

    Pairs are counted choice by choice: sums over choices are then sums over a leading dimension, which a TPU does not
    have to pad.
    """
    k, D = c.router.top_k, x_BTD.shape[-1]
    x_ND, ids_n, weights_n = x_BTD.reshape(-1, D), *(_by_choice(x).reshape(-1) for x in (ids_BTK, weights_BTK))
    pair_n = jnp.argsort(ids_n, stable=True)
    seat_kN = jnp.argsort(pair_n).reshape(k, -1)

    def bias_of(bias_E, expert_m, sizes_E):
        return jnp.where(there(expert_m, sizes_E), bias_E[expert_m], 0)  # what comes back for others is no number

    def into(w, x_mD, weights_m, expert_m, sizes_E):
        def biased(y, name):
            return y + bias_of(w[name], expert_m, sizes_E) if name in w else y

        x_mD = x_mD * weights_m[:, None] if c.router.on_input else x_mD
        return _into(c, w, lambda kernel: grouped_matmul(x_mD, kernel, sizes_E), biased)

    def out_of(w, hidden, weights_m, expert_m, sizes_E):
        # Weighed before the product: gradients of the router's weights then need no result of an expert.
        h_mF = _activate(c, hidden) if c.router.on_input else _activate(c, hidden) * weights_m[:, None]
        y_mD = grouped_matmul(h_mF, w["down"], sizes_E)
        if "down_bias" not in w:
            return y_mD
        # once, not by every device that holds a slice of the experts
        bias_mD = bias_of(w["down_bias"] / place.devices("mlp"), expert_m, sizes_E)
        return y_mD + (bias_mD if c.router.on_input else bias_mD * weights_m[:, None])

    work, most = expert.Work(into=into, out_of=out_of), len(x_ND) * min(k, len(w["up"]))  # k different experts a token
    x_n = _sent(expert.in_tiles(x_ND), pair_n, seat_kN)
    y_n = expert.visit(work, w, x_n, weights_n[pair_n], ids_n[pair_n], c.experts, most)
    return _returned(y_n, pair_n, seat_kN).reshape(x_BTD.shape)


def _by_choice(x_BTK: jax.Array) -> jax.Array:
    return x_BTK.reshape(-1, x_BTK.shape[-1]).T


@jax.custom_vjp
def _sent(x_N: jax.Array, pair_n: jax.Array, seat_kN: jax.Array) -> jax.Array:
    """x_n: the rows of the pairs in this order. Each has one seat: the gradient too is gathered, not scattered."""
    return x_N[pair_n % len(x_N)]


@jax.custom_vjp
def _returned(y_n: jax.Array, pair_n: jax.Array, seat_kN: jax.Array) -> jax.Array:
    """y_N: the sums over the pairs of each token, from their seats. Either is the other's gradient."""
    return jnp.sum(y_n[seat_kN], axis=0)


_sent.defvjp(lambda *a: (_sent(*a), a[1:]), lambda seats, dx_n: (_returned(dx_n, *seats), None, None))
_returned.defvjp(lambda *a: (_returned(*a), a[1:]), lambda seats, dy_N: (_sent(dy_N, *seats), None, None))


def _up_to_capacity(c: MoeConfig, x_BTD, weights_BTK, ids_BTK, there_BT, w) -> jax.Array:
    """Each expert takes so many tokens of a row, first choices first; others pass by (Lepikhin et al. 2020, GShard)."""
    B, T, k = ids_BTK.shape
    E, C = c.experts, min(T, math.ceil(T * k / c.experts * (c.capacity or 1)))
    hot_BkTE = (ids_BTK.swapaxes(1, 2)[..., None] == jnp.arange(E)) & there_BT[:, None, :, None]
    before = jnp.cumsum(hot_BkTE.reshape(B, k * T, E), axis=1).reshape(B, k, T, E) - 1
    place_BTK = jnp.sum(jnp.where(hot_BkTE, before, 0), axis=-1).swapaxes(1, 2)
    seat_BTKC = (place_BTK[..., None] == jnp.arange(C)) & there_BT[..., None, None]
    taken_BTKEC = (hot_BkTE.transpose(0, 2, 1, 3)[..., None] & seat_BTKC[:, :, :, None]).astype(x_BTD.dtype)
    send_BTEC = jnp.sum(taken_BTKEC, axis=2)
    bring_BTEC = jnp.einsum("BTKEC,BTK->BTEC", taken_BTKEC, weights_BTK)
    x_BECD = jnp.einsum("BTEC,BTD->BECD", bring_BTEC if c.router.on_input else send_BTEC, x_BTD)
    x_BECD = expert.scatter(x_BECD)

    def biased(y, name):
        return y + w[name][:, None] if name in w else y

    hidden = expert.named(_into(c, w, lambda kernel: jnp.einsum("BECD,EDF->BECF", x_BECD, kernel), biased))
    y_BECD = jnp.einsum("BECF,EFD->BECD", _activate(c, hidden), w["down"])
    if "down_bias" in w:
        y_BECD = y_BECD + w["down_bias"][:, None] / place.devices("mlp")
    y_BECD = expert.collect(y_BECD)
    return jnp.einsum("BECD,BTEC->BTD", y_BECD, send_BTEC if c.router.on_input else bring_BTEC)
