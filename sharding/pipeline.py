"""A stack of equal pieces run by stages, each on devices of its own: pipeline parallelism.

Micro-batches enter one after another and go from stage to stage, all stages working at the same time on different ones
(GPipe, Huang et al. 2019); with several rounds a micro-batch passes all stages again, through their next pieces, which
shortens the time in which stages wait (interleaved, Narayanan et al. 2021, arXiv:2104.04473, section 2.2). One scan
over ticks, whose stages are a dimension of the arrays; the backward pass is its derivative.

Micro-batches wait in a queue that is spread over the stages, and outside of the pipeline those are devices with rows of
their own, so that embeddings and losses are nobody's work twice.

S = stages, q = micro-batches for each stage, M = S q of them, b = rows of one, v = rounds, R = pieces times periods.
Item n = r M + m is micro-batch m in round r: stage s works on it in tick n + s, and after the last one it goes back to
the queue, to be read in tick n + M.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from pretrain.sharding import place

Tree = Any
Work = Callable[[Tree, jax.Array, Tree, jax.Array], tuple[jax.Array, Tree]]
Wrap = Callable[[Callable], Callable]


def run(work: Work, layers: Tree, x: jax.Array, rows: Tree, wrap: Wrap) -> tuple[jax.Array, Tree]:
    """(x after all layers, what `work` counted for each layer, added up over micro-batches).

    Args:
        work: (layers of a piece, x of some rows, what belongs to these rows, number of the micro-batch) -> (x, counts
            with the leading dimension of the layers).
        layers: arrays [R, ...], in the order in which they work.
        x: [batch, ...].
        rows: arrays [batch, ...] that every stage reads.
        wrap: remat of one stage's tick, where there are several rounds.
    """
    order = place.schedule()
    S, q, v = place.stages(), order.micro, order.rounds
    M = S * q
    pieces = jax.tree.map(partial(_pieces, S=S, v=v), layers)
    queue = place.hand_out(x, S, q)
    rows = jax.tree.map(lambda x: _everywhere(place.hand_out(x, S, q), M), rows)

    def tend(pieces, x, rows, n_S):
        """What all stages do in a tick."""
        r_S, m_S = jnp.clip(n_S // M, 0, v - 1), n_S % M
        mine = jax.tree.map(lambda x: _pick(x, r_S, 1), pieces)
        theirs = jax.tree.map(lambda x: _pick(x, m_S, 0), rows)
        with place.within_stage():
            return jax.vmap(work)(mine, x, theirs, place.staged(m_S))

    tend = wrap(tend) if v > 1 else tend

    def tick(carry, t):
        flow, queue, counts = carry
        n_S = t - jnp.arange(S)
        valid_S = (n_S >= 0) & (n_S < M * v)
        head = jax.lax.dynamic_index_in_dim(queue, t % q, 1, keepdims=False)
        x = jnp.where(_column(jnp.arange(S) == 0, head), head, flow)
        y, new = tend(pieces, x, rows, n_S)
        counts = jax.tree.map(lambda sums, x: _counted(sums, x, n_S // M, valid_S), counts, new)
        return (*_moved(y, head, queue, t, S, q, v), counts), None

    flow = jnp.zeros_like(queue[:, 0])
    counts = _no_counts(tend, pieces, flow, rows, S, v)
    (_, queue, counts), _ = jax.lax.scan(tick, (flow, queue, counts), jnp.arange(M * v + S - 1))
    counts = jax.tree.map(lambda c: place.replicated(c).reshape(-1, *c.shape[3:]), counts)
    return place.take_back(_in_order(queue, S, q), x), jax.tree.map(place.staged, counts)


def _moved(y, head, queue, t, S: int, q: int, v: int):
    """(what reaches the next stage, the queue after one step). The queue's slot t mod q moves one stage on."""
    spec, axis = jax.typeof(y).sharding.spec, place.stage_axis()
    back = S - -(-S // q)
    """Where the last stage's result is put, so that it reaches the front in time."""

    def shift(y, head, queue, t):
        me = jax.lax.axis_index(axis)
        flow = jax.lax.ppermute(y, axis, [(i, (i + 1) % S) for i in range(S)])
        turned = jax.lax.ppermute(head, axis, [((i + 1) % S, i) for i in range(S)])
        queue = jax.lax.dynamic_update_index_in_dim(queue, turned, t % q, 1)
        done = {0: flow, S - 1: y}.get(back)
        if done is None:
            done = jax.lax.ppermute(y, axis, [(S - 1, back)])
        n = t - (S - 1)
        slot = n % q
        old = jax.lax.dynamic_index_in_dim(queue, slot, 1, keepdims=False)
        new = jnp.where((me == back) & (n >= 0), done, old)
        return flow, jax.lax.dynamic_update_index_in_dim(queue, new, slot, 1)

    queued = P(spec[0], None, *spec[1:])
    return jax.shard_map(shift, in_specs=(spec, spec, queued, P()), out_specs=(spec, queued))(y, head, queue, t)


def _in_order(queue, S: int, q: int):
    """The queue after the last tick with every micro-batch where it came from."""
    spec, axis = jax.typeof(queue).sharding.spec, place.stage_axis()
    lags = [(j - (S - 1)) // q for j in range(q)]

    def turn(queue):
        parts = []
        for lag in sorted(set(lags)):
            part = queue[:, lags.index(lag) : lags.index(lag) + lags.count(lag)]
            parts.append(jax.lax.ppermute(part, axis, [((i + lag) % S, i) for i in range(S)]))
        return jnp.concatenate(parts, axis=1)

    return jax.shard_map(turn, in_specs=spec, out_specs=spec)(queue)


def _pieces(x: jax.Array, S: int, v: int) -> jax.Array:
    """[R, ...] -> [v, S, R / (S v), ...]: stage s has pieces s, S + s, ... In one round they lie there already."""
    spec, axis = jax.typeof(x).sharding.spec, place.stage_axis()
    per = x.shape[0] // (S * v)
    first = np.arange(S) if v % S == 0 else np.arange(S) * v // S
    """Which of its own pieces each device sends first, so that no two send to the same one."""

    def exchange(x):
        own, me = x.reshape(v, per, *x.shape[1:]), jax.lax.axis_index(axis)
        if v == 1:
            return own[:, None]
        out = jnp.zeros_like(own)
        for t in range(v):
            j_S = (first + t) % v
            piece_S = np.arange(S) * v + j_S
            to_S = piece_S % S
            sent = jax.lax.dynamic_index_in_dim(own, jnp.asarray(j_S)[me], 0, keepdims=False)
            came = jax.lax.ppermute(sent, axis, list(enumerate(to_S.tolist())))
            round_S = (piece_S // S)[np.argsort(to_S)]
            out = jax.lax.dynamic_update_index_in_dim(out, came, jnp.asarray(round_S)[me], 0)
        return out[:, None]

    return jax.shard_map(exchange, in_specs=spec, out_specs=P(None, axis, None, *spec[1:]))(x)


def _pick(x: jax.Array, i_S: jax.Array, stage_dim: int) -> jax.Array:
    """[n, S, ...] or, of what all stages have, [n, ...] -> [S, ...]: number i[s] for stage s."""
    spec, axis = jax.typeof(x).sharding.spec, place.stage_axis()
    rest = spec[1 + stage_dim :]

    def pick(x, i_S):
        x = jax.lax.dynamic_index_in_dim(x, i_S[0], 0, keepdims=not stage_dim)
        return x

    picked = jax.shard_map(pick, in_specs=(spec, P(axis)), out_specs=P(axis, *rest))
    return picked(x, place.staged(i_S))


def _everywhere(x: jax.Array, M: int) -> jax.Array:
    """[S, q, b, ...] -> [M, b, ...] for all stages."""
    spec = jax.typeof(x).sharding.spec
    x = jax.sharding.reshard(x, P(None, *spec[1:]))
    return jax.lax.reshape(x, (M, *x.shape[2:]), out_sharding=P(None, *spec[2:]))


def _column(x_S: jax.Array, like: jax.Array) -> jax.Array:
    return x_S.reshape(-1, *(1,) * (like.ndim - 1))


def _no_counts(tend, pieces, flow, rows, S: int, v: int) -> Tree:
    shapes = jax.eval_shape(tend, pieces, flow, rows, jnp.arange(S))[1]
    spec = P(None, place.stage_axis())
    return jax.tree.map(lambda c: jnp.zeros((v, *c.shape), c.dtype, out_sharding=spec), shapes)


def _counted(sums, x, r_S: jax.Array, valid_S: jax.Array):
    """Sums [v, S, ...] with the counts [S, ...] of a tick added to those of each stage's round."""
    hot_vS = (jnp.arange(sums.shape[0])[:, None] == r_S) & valid_S
    return sums + jnp.where(hot_vS.reshape(*hot_vS.shape, *(1,) * (x.ndim - 1)), x, 0)
