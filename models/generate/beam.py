"""Beam search: one loop on the device for all prompts and their beams.

M = beams of a prompt, R = B M rows of the cache, C = candidates of a prompt, N = new tokens, S = slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.errors import UserError, check
from pretrain.models.cache import Cache, LayerCache, empty_cache
from pretrain.models.generate.config import GREEDY, BeamSearch, Sampling
from pretrain.models.generate.decode import grown, prepared
from pretrain.models.generate.history import History, Stops, controlled
from pretrain.models.generate.prompts import Texts, bucket, check_options, check_prompts, padded
from pretrain.models.transformer import Inputs, Transformer

NEVER = -1e9
"""Added to a score, less than all others."""


@dataclass(frozen=True, kw_only=True)
class Hypotheses:
    """Of each prompt those that finished, the best first: at most as many as beams. A stop, if one came, is last."""

    tokens: list[list[list[int]]]
    logprobs: list[list[list[float]]]
    """Of each token under the model itself."""
    scores: list[list[float]]
    """What they are ordered by: see `BeamSearch.length_penalty`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Kept:
    """Continuations, and what is known of them."""

    scores: jax.Array
    """[B, M], as all fields without a letter of their own."""
    tokens_N: jax.Array
    logprobs_N: jax.Array
    lengths: jax.Array
    recent_W: jax.Array
    """The last tokens, as many as the longest stop sequence has."""

    def take(self, places_BM: jax.Array) -> "Kept":
        return jax.tree.map(lambda x: _take(x, places_BM), self)

    def beside(self, other: "Kept") -> "Kept":
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), self, other)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class State:
    """Between two steps: the last tokens of `running` are chosen, the cache does not hold them yet."""

    cache: Cache
    running: Kept
    parents_BM: jax.Array
    """The beam whose rows of the cache each running one goes on from."""
    finished: Kept
    over_BM: jax.Array
    """Whether there is a finished continuation in this place."""
    open_B: jax.Array
    """Whether a running one may become better than a finished one."""
    made: jax.Array
    going: jax.Array


def beam_search(
    model: Transformer,
    prompts: Texts,
    search: BeamSearch,
    *,
    max_tokens: int,
    sources: Texts | None = None,
    sampling: Sampling = GREEDY,
    stop_tokens: Sequence[int] = (),
    stop_sequences: Texts = (),
    prefix: bool = False,
    cache_dtype: jnp.dtype | None = None,
) -> Hypotheses:
    """The best continuations of each prompt. `sampling`: its penalties and bans, which change scores; no temperature.

    Raises UserError before the first step when prompts, options and model do not fit.
    """
    check(search, "search")
    check_prompts(model.config, prompts, sources, max_tokens)
    check_options(model.config, sampling, max_tokens, stop_sequences)
    if not sampling.greedy:
        raise UserError(
            f"sampling.temperature={sampling.temperature}: expected 0, a beam search draws nothing; set it to 0"
        )
    state = _search(
        prepared(model, rows=len(prompts) * search.beams),
        padded(prompts, sources, prefix=prompts if prefix else None),
        Stops.of(stop_tokens, stop_sequences),
        search=search,
        sampling=sampling,
        max_tokens=max_tokens,
        dtype=cache_dtype or model.dtype,
    )
    over_BM, kept = jax.device_get((state.over_BM, state.finished))

    def rows(x_BMN: np.ndarray) -> list[list[list]]:
        return [
            [x_N[:n].tolist() for x_N, n, over in zip(x_MN, lengths, overs) if over]
            for x_MN, lengths, overs in zip(x_BMN, kept.lengths, over_BM)
        ]

    scores = [scores_M[over_M].tolist() for scores_M, over_M in zip(kept.scores, over_BM)]
    return Hypotheses(tokens=rows(kept.tokens_N), logprobs=rows(kept.logprobs_N), scores=scores)


@partial(jax.jit, static_argnames=("search", "sampling", "max_tokens", "dtype"))
def _search(
    model: Transformer, inputs: Inputs, stops: Stops, *, search: BeamSearch, sampling: Sampling, max_tokens: int, dtype
) -> State:
    (B, T), M = inputs.tokens.shape, search.beams
    read = 0 if inputs.encoder is None else inputs.encoder.tokens.shape[1]
    out = model(inputs, cache=empty_cache(model.config, B, T, dtype, read))
    assert out.cache is not None
    assert inputs.positions is not None
    prompts_RT, last_R1 = jnp.repeat(inputs.tokens, M, axis=0), jnp.repeat(inputs.positions[:, -1:], M, axis=0)
    expand = partial(_expanded, prompts_RT=prompts_RT, stops=stops, search=search, sampling=sampling)
    cache = _repeated(grown(out.cache, bucket(T + max_tokens)), M)
    hidden_R1D = jnp.repeat(out.hidden_BTD[:, -1:], M, axis=0)

    def step(state: State) -> State:
        places_R = (state.parents_BM + jnp.arange(B)[:, None] * M).reshape(-1)
        tokens_R1 = jax.lax.dynamic_slice_in_dim(state.running.tokens_N, state.made - 1, 1, axis=2).reshape(-1, 1)
        now = Inputs(tokens=tokens_R1, positions=last_R1 + state.made)
        out = model(now, cache=_reordered(state.cache, places_R))
        return expand(replace(state, cache=out.cache), model.logits(out.hidden_BTD)[:, 0])

    first = expand(_start(cache, stops, B, M, max_tokens), model.logits(hidden_R1D)[:, 0])
    return jax.lax.while_loop(lambda state: state.going, step, first)


def _start(cache: Cache, stops: Stops, B: int, M: int, max_tokens: int) -> State:
    nothing = Kept(
        scores=jnp.full((B, M), NEVER),
        tokens_N=jnp.zeros((B, M, max_tokens), jnp.int32),
        logprobs_N=jnp.zeros((B, M, max_tokens)),
        lengths=jnp.zeros((B, M), jnp.int32),
        recent_W=stops.none(B * M).reshape(B, M, -1),
    )
    return State(
        cache=cache,
        running=replace(nothing, scores=nothing.scores.at[:, 0].set(0.0)),  # all beams are the same as yet
        parents_BM=jnp.zeros((B, M), jnp.int32),
        finished=nothing,
        over_BM=jnp.zeros((B, M), bool),
        open_B=jnp.ones(B, bool),
        made=jnp.int32(0),
        going=jnp.bool_(True),
    )


def _expanded(
    state: State, logits_RV: jax.Array, *, prompts_RT, stops: Stops, search: BeamSearch, sampling: Sampling
) -> State:
    """One token more in every beam, chosen among all of a prompt's."""
    _, M, N = state.running.tokens_N.shape
    places_BC, ended_BC, candidates = _candidates(state, logits_RV, prompts_RT, stops, sampling)
    made = state.made + 1
    ended_BC = ended_BC | (made == N)
    _, best_BM = jax.lax.top_k(candidates.scores + NEVER * ended_BC, M)
    running = candidates.take(best_BM)
    running = replace(running, scores=running.scores + NEVER * _take(ended_BC, best_BM))

    done_BC = ended_BC & (jnp.arange(ended_BC.shape[1]) < M)  # the others are there so that M can go on
    full_B = jnp.all(state.over_BM, axis=1) & (search.until == "enough")
    barred_BC = ~done_BC | (full_B | ~state.open_B)[:, None]
    scores_BC = candidates.scores / made.astype(jnp.float32) ** search.length_penalty + NEVER * barred_BC
    every = state.finished.beside(replace(candidates, scores=scores_BC))
    _, top_BM = jax.lax.top_k(every.scores, M)
    finished = every.take(top_BM)
    over_BM = _take(jnp.concatenate([state.over_BM, done_BC & ~barred_BC], axis=1), top_BM)

    length = N if search.until == "sure" and search.length_penalty > 0 else made.astype(jnp.float32)
    hope_B1 = running.scores[:, :1] / length**search.length_penalty
    worst_BM = jnp.where(over_BM, jnp.min(finished.scores, axis=1, keepdims=True), NEVER)
    open_B = state.open_B & jnp.any(hope_B1 > worst_BM, axis=1)
    enough = jnp.all(over_BM) & (search.until == "enough")
    return replace(
        state,
        running=running,
        parents_BM=_take(places_BC, best_BM),
        finished=finished,
        over_BM=over_BM,
        open_B=open_B,
        made=made,
        going=jnp.any(open_B) & ~enough & ~jnp.all(ended_BC),
    )


def _candidates(state: State, logits_RV, prompts_RT, stops: Stops, sampling: Sampling):
    """(places_BC, ended_BC, candidates): the best tokens after any beam, so many that M of them can go on."""
    (B, M), V = state.running.scores.shape, logits_RV.shape[-1]
    kept = min((1 + max(1, stops.sequences_LN.shape[0])) * M, M * V)
    own_RV = jax.nn.log_softmax(logits_RV, axis=-1)
    said_RV = controlled(own_RV, sampling, _history(state, prompts_RT), stops)
    total_BMV = said_RV.reshape(B, M, V) + state.running.scores[:, :, None]
    scores_BC, flat_BC = jax.lax.top_k(total_BMV.reshape(B, M * V), kept)
    places_BC, tokens_BC = flat_BC // V, (flat_BC % V).astype(jnp.int32)
    parents = state.running.take(places_BC)
    logprobs_BC = jnp.take_along_axis(own_RV.reshape(B, M * V), flat_BC, axis=1)
    recent_BCW = jnp.concatenate([parents.recent_W[..., 1:], tokens_BC[..., None]], axis=-1)
    candidates = Kept(
        scores=scores_BC,
        tokens_N=jax.lax.dynamic_update_slice_in_dim(parents.tokens_N, tokens_BC[..., None], state.made, axis=2),
        logprobs_N=jax.lax.dynamic_update_slice_in_dim(parents.logprobs_N, logprobs_BC[..., None], state.made, axis=2),
        lengths=parents.lengths + 1,
        recent_W=recent_BCW,
    )
    ends_BC = stops.end(recent_BCW.reshape(B * kept, -1)).reshape(B, kept)
    return places_BC, ends_BC & (state.made >= sampling.min_tokens), candidates


def _history(state: State, prompts_RT: jax.Array) -> History:
    (R, T), N = prompts_RT.shape, state.running.tokens_N.shape[-1]
    tokens_RS = jnp.concatenate([prompts_RT, state.running.tokens_N.reshape(R, N)], axis=1)
    places_S = jnp.arange(T + N)
    there_RT = state.cache.segments_BS[:, :T] != 0
    there_RS = jnp.pad(there_RT, ((0, 0), (0, N)), constant_values=True) & (places_S < T + state.made)
    return History(tokens_BS=tokens_RS, there_BS=there_RS, filled=T + state.made, made=state.made)


def _take(x: jax.Array, places_BM: jax.Array) -> jax.Array:
    """Of each prompt the continuations at these places."""
    return jnp.take_along_axis(x, places_BM.reshape(*places_BM.shape, *(1,) * (x.ndim - 2)), axis=1)


def _repeated(cache: Cache, beams: int) -> Cache:
    """Every row as often as it has beams."""
    rows = replace(cache, filled=None)
    return replace(jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), rows), filled=cache.filled)


def _reordered(cache: Cache, places_R: jax.Array) -> Cache:
    """What each row keeps of its own tokens; those of one prompt share all else."""

    def moved(layer: LayerCache) -> LayerCache:
        return replace(layer, mixer=jax.tree.map(lambda x: x[places_R], layer.mixer))

    return replace(cache, layers=jax.tree.map(moved, cache.layers, is_leaf=lambda x: isinstance(x, LayerCache)))
