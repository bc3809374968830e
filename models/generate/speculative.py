"""Speculative decoding: a small model proposes tokens, the model judges all of them in one step.

Leviathan et al. 2023 (arXiv:2211.17192, algorithm 1); what comes out has the distribution of the model alone. Rows of a
batch go on together, by what the one with the fewest accepted tokens has: good for few rows.

K = tokens proposed at a time, N = new tokens, S = slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.errors import UserError
from pretrain.models.cache import Cache, empty_cache
from pretrain.models.generate.config import Sampling
from pretrain.models.generate.decode import Generation, grown, prepared, wider
from pretrain.models.generate.history import History, Stops, controlled
from pretrain.models.generate.prompts import Texts, bucket, check_options, check_prompts, padded
from pretrain.models.generate.sample import filtered
from pretrain.models.layers.attention import write
from pretrain.models.transformer import Inputs, Transformer


@dataclass(frozen=True, kw_only=True)
class Speculation(Generation):
    proposed: int
    """Tokens of the draft."""
    accepted: int
    """Those of them that the model let stand."""

    @property
    def acceptance(self) -> float:
        """Share of the draft's tokens."""
        return self.accepted / max(self.proposed, 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class State:
    """Between two rounds: the last token is chosen, no cache holds it. The draft's lacks the token before it too."""

    cache: Cache
    draft_cache: Cache
    history_BS: jax.Array
    """All tokens, by slot."""
    positions_B1: jax.Array
    """Of the last token."""
    recent_BW: jax.Array
    stopped_B: jax.Array
    made: jax.Array
    shown_BN: jax.Array
    """New tokens; -1 after a stop."""
    logprobs_BN: jax.Array
    proposed: jax.Array
    accepted: jax.Array


def speculate(
    model: Transformer,
    draft: Transformer,
    prompts: Texts,
    *,
    max_tokens: int,
    sampling: Sampling,
    key: jax.Array,
    drafts: int = 4,
    sources: Texts | None = None,
    stop_tokens: Sequence[int] = (),
    stop_sequences: Texts = (),
    prefix: bool = False,
    cache_dtype: jnp.dtype | None = None,
) -> Speculation:
    """As `generate`, with the help of `draft`, which proposes `drafts` tokens at a time.

    Raises UserError before the first step when models, prompts and options do not fit.
    """
    for one in (model, draft):
        check_prompts(one.config, prompts, sources if one.encoder is not None else None, max_tokens)
    check_options(model.config, sampling, max_tokens, stop_sequences)
    if draft.config.vocab_size != model.config.vocab_size:
        raise UserError(
            f"found a draft of {draft.config.vocab_size} tokens, expected {model.config.vocab_size} as in the model; "
            "take one with the same tokenizer"
        )
    if not 1 <= drafts < 32:
        raise UserError(f"found drafts={drafts}, expected 1 to 31 tokens at a time; 4 is usual")
    state = _speculated(
        prepared(model, rows=len(prompts) * (drafts + 1)),
        prepared(draft, rows=len(prompts)),
        padded(prompts, sources, prefix=prompts if prefix else None),
        key,
        Stops.of(stop_tokens, stop_sequences),
        sampling=sampling,
        drafts=drafts,
        max_tokens=max_tokens,
        dtype=cache_dtype or model.dtype,
    )
    tokens_BN, logprobs_BN = (np.asarray(x)[:, :max_tokens] for x in (state.shown_BN, state.logprobs_BN))
    rows = [row >= 0 for row in tokens_BN]
    return Speculation(
        tokens=[t[kept].tolist() for t, kept in zip(tokens_BN, rows)],
        logprobs=[p[kept].tolist() for p, kept in zip(logprobs_BN, rows)],
        proposed=int(state.proposed),
        accepted=int(state.accepted),
    )


@partial(jax.jit, static_argnames=("sampling", "drafts", "max_tokens", "dtype"))
def _speculated(
    model: Transformer,
    draft: Transformer,
    inputs: Inputs,
    key: jax.Array,
    stops: Stops,
    *,
    sampling: Sampling,
    drafts: int,
    max_tokens: int,
    dtype,
) -> State:
    """After the last token, or the stop of the last row."""
    state = _begun(model, draft, inputs, key, stops, sampling, drafts, max_tokens, dtype)

    def round(state: State) -> State:
        keys = jax.random.split(jax.random.fold_in(key, state.made), 2)
        state, drafted_BK, q_BKV = _drafted(draft, state, keys[0], stops, sampling, drafts)
        last_B1 = jax.lax.dynamic_slice_in_dim(state.history_BS, state.cache.filled, 1, axis=1)
        tokens_BT = jnp.concatenate([last_B1, drafted_BK], axis=1)
        positions_BT = state.positions_B1 + jnp.arange(drafts + 1)
        out = model(Inputs(tokens=tokens_BT, positions=positions_BT), cache=state.cache)
        assert out.cache is not None
        logits_BTV = model.logits(out.hidden_BTD)
        p_BTV = _probabilities(logits_BTV, _proposing(state, drafted_BK), stops, sampling)
        counts_B, next_B = judged(p_BTV, q_BKV, drafted_BK, keys[1])
        new_BT = jnp.concatenate([drafted_BK, next_B[:, None]], axis=1)
        new_BT = jnp.where(jnp.arange(drafts + 1) == counts_B[:, None], next_B[:, None], new_BT)
        going_B = ~state.stopped_B
        n = jnp.min(jnp.where(going_B, counts_B, drafts)) + 1
        state = replace(
            state,
            cache=replace(out.cache, filled=state.cache.filled),
            proposed=state.proposed + drafts * jnp.sum(going_B),
            accepted=state.accepted + jnp.sum(jnp.where(going_B, counts_B, 0)),
        )
        return _emitted(state, new_BT, jax.nn.log_softmax(logits_BTV), n, stops, sampling)

    def unfinished(state: State):
        return (state.made < max_tokens) & ~jnp.all(state.stopped_B)

    return jax.lax.while_loop(unfinished, round, state)


def _begun(model, draft, inputs: Inputs, key, stops: Stops, sampling, drafts: int, max_tokens: int, dtype) -> State:
    """With the first token."""
    B, T = inputs.tokens.shape
    length = bucket(T + max_tokens + drafts)
    logits_BV, cache = _prefilled(model, inputs, length, dtype)
    _, draft_cache = _prefilled(draft, inputs, length, dtype)
    assert inputs.positions is not None
    state = State(
        cache=replace(cache, filled=cache.filled - 1),
        draft_cache=draft_cache,
        history_BS=wider(inputs.tokens, length, 1),
        positions_B1=inputs.positions[:, -1:],
        recent_BW=stops.none(B),
        stopped_B=jnp.zeros(B, bool),
        made=jnp.int32(0),
        shown_BN=jnp.full((B, max_tokens + drafts), -1, jnp.int32),
        logprobs_BN=jnp.zeros((B, max_tokens + drafts)),
        proposed=jnp.int32(0),
        accepted=jnp.int32(0),
    )
    probs_BV = _probabilities(logits_BV[:, None], state, stops, sampling)[:, 0]
    first_B1 = _drawn(probs_BV, jax.random.fold_in(key, 0))[:, None]
    return _emitted(state, first_B1, jax.nn.log_softmax(logits_BV)[:, None], jnp.int32(1), stops, sampling)


def _prefilled(model: Transformer, inputs: Inputs, length: int, dtype) -> tuple[jax.Array, Cache]:
    """(logits_BV of the last token, cache)."""
    if model.encoder is None:
        inputs = replace(inputs, encoder=None)
    read = 0 if inputs.encoder is None else inputs.encoder.tokens.shape[1]
    batch, T = inputs.tokens.shape
    out = model(inputs, cache=empty_cache(model.config, batch, T, dtype, read))
    assert out.cache is not None
    return model.logits(out.hidden_BTD[:, -1:])[:, 0], grown(out.cache, length)


def _drafted(draft: Transformer, state: State, key, stops: Stops, sampling: Sampling, drafts: int):
    """(state, drafted_BK, q_BKV), q the distributions that the draft's tokens were drawn from."""

    def step(carry, i, tokens_BT=None):
        cache, state, last_B1 = carry
        tokens_BT = last_B1 if tokens_BT is None else tokens_BT
        positions_BT = state.positions_B1 + i + jnp.arange(1 - tokens_BT.shape[1], 1)
        out = draft(Inputs(tokens=tokens_BT, positions=positions_BT), cache=cache)
        q_BV = _probabilities(draft.logits(out.hidden_BTD[:, -1:]), state, stops, sampling, first=i)[:, 0]
        new_B1 = _drawn(q_BV, jax.random.fold_in(key, i))[:, None]
        history_BS = write(state.history_BS, new_B1, state.cache.filled + 1 + i, 1)
        return (out.cache, replace(state, history_BS=history_BS), new_B1), (new_B1[:, 0], q_BV)

    first = state.cache.filled - 1
    cache = replace(state.draft_cache, filled=first)
    tokens_B2 = jax.lax.dynamic_slice_in_dim(state.history_BS, first, 2, axis=1)  # the draft may have missed the first
    carry, (new_B, q_BV) = step((cache, state, tokens_B2[:, 1:]), jnp.int32(0), tokens_B2)
    (cache, *_), (new_KB, q_KBV) = jax.lax.scan(step, carry, jnp.arange(1, drafts))
    drafted_BK = jnp.concatenate([new_B[:, None], new_KB.swapaxes(0, 1)], axis=1)
    q_BKV = jnp.concatenate([q_BV[:, None], q_KBV.swapaxes(0, 1)], axis=1)
    return replace(state, draft_cache=cache), drafted_BK, q_BKV


def judged(p_BTV: jax.Array, q_BKV: jax.Array, drafted_BK: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(accepted_B, next_B): how many of the drafted tokens stand, and the token after them.

    A token stands with probability min(1, p / q); the one after the first that does not is drawn from max(0, p - q).
    """
    accept_key, draw_key = jax.random.split(key)
    K = drafted_BK.shape[1]
    p_BK, q_BK = (jnp.take_along_axis(x[:, :K], drafted_BK[..., None], -1)[..., 0] for x in (p_BTV, q_BKV))
    stands_BK = jax.random.uniform(accept_key, p_BK.shape) * q_BK < p_BK
    counts_B = jnp.sum(jnp.cumprod(stands_BK, axis=1), axis=1)
    q_BTV = jnp.pad(q_BKV, ((0, 0), (0, 1), (0, 0)))  # after the last there is nothing to take away
    p_BV, q_BV = (jnp.take_along_axis(x, counts_B[:, None, None], axis=1)[:, 0] for x in (p_BTV, q_BTV))
    rest_BV = jnp.maximum(p_BV - q_BV, 0)
    left_B1 = jnp.sum(rest_BV, axis=-1, keepdims=True)
    return counts_B, _drawn(jnp.where(left_B1 > 0, rest_BV, p_BV), draw_key)


def _drawn(weights_BV: jax.Array, key: jax.Array) -> jax.Array:
    return jax.random.categorical(key, jnp.log(weights_BV), axis=-1).astype(jnp.int32)


def _probabilities(logits_BTV, state: State, stops: Stops, sampling: Sampling, first: int | jax.Array = 0) -> jax.Array:
    """probs_BTV of the tokens number `first` and on after those made, each with all before it as history."""
    slots_S = jnp.arange(state.history_BS.shape[1])

    def one(i, logits_BV):
        filled = state.cache.filled + 1 + i
        there_BS = ((state.cache.segments_BS != 0) | (slots_S >= state.cache.filled)) & (slots_S < filled)
        history = History(tokens_BS=state.history_BS, there_BS=there_BS, filled=filled, made=state.made + i)
        said_BV = controlled(logits_BV, sampling, history, stops)
        if sampling.greedy:
            return jax.nn.one_hot(jnp.argmax(said_BV, axis=-1), said_BV.shape[-1])
        return jax.nn.softmax(filtered(said_BV, sampling), axis=-1)

    steps_T = first + jnp.arange(logits_BTV.shape[1])
    return jax.vmap(one, in_axes=(0, 1), out_axes=1)(steps_T, logits_BTV)


def _proposing(state: State, drafted_BK: jax.Array) -> State:
    """As if the last tokens were these."""
    return replace(state, history_BS=write(state.history_BS, drafted_BK, state.cache.filled + 1, 1))


def _emitted(state: State, new_BT: jax.Array, own_BTV: jax.Array, n, stops: Stops, sampling: Sampling) -> State:
    """With the first n of these tokens, and their log-probabilities under the model itself."""
    logprobs_BT = jnp.take_along_axis(own_BTV, new_BT[..., None], axis=-1)[..., 0]
    shown, recent_BW, stopped_B = [], state.recent_BW, state.stopped_B
    for i in range(new_BT.shape[1]):
        shown.append(jnp.where(stopped_B | (i >= n), -1, new_BT[:, i]))
        later_BW = jnp.concatenate([recent_BW[:, 1:], new_BT[:, i : i + 1]], axis=1)
        recent_BW = jnp.where(i < n, later_BW, recent_BW)
        ends_B = stops.end(later_BW) & (state.made + i >= sampling.min_tokens) & (i < n)
        stopped_B = stopped_B | ends_B
    filled = state.cache.filled + n
    return replace(
        state,
        cache=replace(state.cache, filled=filled),
        history_BS=write(state.history_BS, new_BT, state.cache.filled + 1, 1),
        positions_B1=state.positions_B1 + n,
        recent_BW=recent_BW,
        stopped_B=stopped_B,
        made=state.made + n,
        shown_BN=write(state.shown_BN, jnp.stack(shown, axis=1), state.made, 1),
        logprobs_BN=write(state.logprobs_BN, logprobs_BT, state.made, 1),
    )
