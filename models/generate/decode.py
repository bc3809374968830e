"""Tokens after a prompt: one forward pass over the prompts, then a loop that never leaves the device."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Required, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pretrain.errors import UserError
from pretrain.models.cache import Cache, LayerCache, empty_cache
from pretrain.models.generate.config import Sampling
from pretrain.models.generate.history import History, Stops, controlled
from pretrain.models.generate.prompts import Texts, bucket, check_options, check_prompts, padded
from pretrain.models.generate.sample import logprobs, pick
from pretrain.models.init import Blocked, weight
from pretrain.models.layers.attention import Attention, write
from pretrain.models.layers.heads import Head
from pretrain.models.layers.mlp import Mlp
from pretrain.models.lora import merged
from pretrain.models.transformer import Inputs, Transformer, unrolled
from pretrain.sharding import place
from pretrain.sharding.columns import ROWS

FIRST = 128
"""Slots of a cache at first; it grows when full, at most to the double, so that a step reads few empty slots."""
STREAM = 8
"""Tokens between two looks at what the device has made."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One list a prompt. A stop token or sequence, if one came, is the last."""

    tokens: list[list[int]]
    logprobs: list[list[float]]
    """Of each token under the model itself, whatever the sampling."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class State:
    """Between two steps: `tokens_B` are chosen, the cache does not hold them yet."""

    cache: Cache
    history_BS: jax.Array
    """The tokens that the cache holds."""
    tokens_B: jax.Array
    logprobs_B: jax.Array
    positions_B: jax.Array
    recent_BN: jax.Array
    """The last ones of those made: as many as the longest stop sequence has."""
    stopped_B: jax.Array
    made: jax.Array
    """Tokens chosen so far; folded into the key of the next one."""


class Options(TypedDict, total=False):
    max_tokens: Required[int]
    """After each prompt, fewer where a stop comes first."""
    sampling: Required[Sampling]
    key: Required[jax.Array]
    stop_tokens: Sequence[int]
    stop_sequences: Texts
    """Several tokens in a row that stop as one stop token does."""
    done: Callable[[list[int]], bool] | None
    """Whether a row's new tokens are enough, asked every few tokens: what looks at text ends a row so."""
    prefix: bool
    """The tokens of a prompt see each other, as in the training of a prefix language model."""
    cache_dtype: jnp.dtype | None
    """None: the model's."""
    cache_length: int | None
    """Slots for padded prompts and new tokens, one compilation; None: the cache grows as it fills."""


def generate(
    model: Transformer, prompts: Texts, *, sources: Texts | None = None, **options: Unpack[Options]
) -> Generation:
    """What comes after each prompt. `sources`: what an encoder reads, one for each prompt.

    Raises UserError before the first step when prompts, options and model do not fit.
    """
    chunks = _chunks(model, prompts, sources, options["max_tokens"], **options)
    tokens_BN, logprobs_BN = (np.concatenate(parts, axis=1) for parts in zip(*chunks))
    rows = [row >= 0 for row in tokens_BN]
    return Generation(
        tokens=[t[kept].tolist() for t, kept in zip(tokens_BN, rows)],
        logprobs=[p[kept].tolist() for p, kept in zip(logprobs_BN, rows)],
    )


def stream(
    model: Transformer, prompt: Sequence[int], *, source: Sequence[int] | None = None, **options: Unpack[Options]
) -> Iterator[int]:
    """The tokens that `generate` gives for this prompt alone, as they come."""
    for tokens_BN, _ in _chunks(model, [prompt], None if source is None else [source], STREAM, **options):
        yield from (t for t in tokens_BN[0].tolist() if t >= 0)


def _chunks(
    model: Transformer,
    prompts: Texts,
    sources: Texts | None,
    chunk: int,
    *,
    max_tokens: int,
    sampling: Sampling,
    key: jax.Array,
    stop_tokens: Sequence[int] = (),
    stop_sequences: Texts = (),
    done: Callable[[list[int]], bool] | None = None,
    prefix: bool = False,
    cache_dtype: jnp.dtype | None = None,
    cache_length: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(tokens_BN, logprobs_BN): the first token alone, then up to `chunk` at a time; tokens after a stop are -1."""
    check_prompts(model.config, prompts, sources, max_tokens)
    check_options(model.config, sampling, max_tokens, stop_sequences)
    inputs = padded(prompts, sources, prefix=prompts if prefix else None)
    T = inputs.tokens.shape[1]
    length = _cache_length(T, max_tokens, cache_length)
    stops = Stops.of(stop_tokens, stop_sequences)
    model = prepared(model, rows=len(prompts))
    state = _prefill(model, inputs, key, stops, sampling=sampling, length=length, dtype=cache_dtype or model.dtype)
    tokens_BN = np.asarray(state.tokens_B)[:, None]
    yield tokens_BN, np.asarray(state.logprobs_B)[:, None]
    rows, made = tokens_BN.tolist(), 1
    while made < max_tokens and not np.all(state.stopped_B):
        filled = T + made - 1
        if filled == length:
            length = _next_length(length, T + max_tokens)
            state = _longer(state, length)
        n = min(chunk if done is None else STREAM, max_tokens - made, length - filled)
        if done is not None:
            state = replace(state, stopped_B=state.stopped_B | jnp.asarray([done(row) for row in rows]))
        state, tokens_BS, logprobs_BS = _advance(model, state, key, stops, n, sampling=sampling)
        tokens_BN = np.asarray(tokens_BS[:, :n])
        yield tokens_BN, np.asarray(logprobs_BS[:, :n])
        for row, new in zip(rows, tokens_BN.tolist()):
            row += (t for t in new if t >= 0)
        made += n


@partial(jax.jit, static_argnames=("rows",))
def prepared(model: Transformer, *, rows: int) -> Transformer:
    """The same function with what every step would do to its weights done once: layers apart, cast, gathered, fused.

    `rows`: how many tokens a step multiplies with them.
    """
    model = unrolled(merged(model))
    assert model.embed is not None
    tables = [model.embed.tokens, model.embed.types]
    tables += [stack.entry.positions for stack in (model.encoder, model.decoder) if stack is not None]
    for _, param in nnx.iter_graph(model):
        if isinstance(param, nnx.Param):
            matrix = param.inputs is not None or any(param is t for t in tables)
            param.set_value(weight(param, model.dtype if matrix else param.dtype))
    if jax.sharding.get_abstract_mesh().size <= 1:  # fused, the parts of a sharded product would sit on other devices
        stacks = [stack for stack in (model.encoder, model.decoder) if stack is not None]
        for block in [block for stack in stacks for block in (*stack.prefix, *stack.suffix)]:
            block.mixer.fuse()
            if block.mlp is not None:
                block.mlp.fuse()
        if place.platform() == "cpu" and 1 < rows <= ROWS and model.decoder is not None:
            _block(model)
    return model


def _block(model: Transformer) -> None:
    assert model.embed is not None
    for _, module in nnx.iter_graph((model.decoder, model.head)):
        if isinstance(module, Attention | Mlp | Head):
            for name, param in list(vars(module).items()):
                if isinstance(param, nnx.Param) and param.inputs is not None:
                    setattr(module, name, Blocked(param[...], param.inputs))
    if model.head is not None and model.head.kernel is None:
        model.head.kernel = nnx.data(Blocked(model.embed.tokens[...].T, 1))


@partial(jax.jit, static_argnames=("sampling", "length", "dtype"))
def _prefill(model: Transformer, inputs: Inputs, key, stops: Stops, *, sampling: Sampling, length: int, dtype) -> State:
    batch, T = inputs.tokens.shape
    read = 0 if inputs.encoder is None else inputs.encoder.tokens.shape[1]
    out = model(inputs, cache=empty_cache(model.config, batch, T, dtype, read))
    assert out.cache is not None
    assert inputs.positions is not None
    before = State(
        cache=grown(out.cache, length),
        history_BS=wider(inputs.tokens, length, 1),
        tokens_B=inputs.tokens[:, -1],
        logprobs_B=jnp.zeros(batch),
        positions_B=inputs.positions[:, -1],
        recent_BN=stops.none(batch),
        stopped_B=jnp.zeros(batch, bool),
        made=jnp.int32(0),
    )
    return _chosen(model, before, out.hidden_BTD[:, -1:], key, stops, sampling)


@partial(jax.jit, static_argnames=("sampling",), donate_argnames=("state",))
def _advance(model: Transformer, state: State, key, stops: Stops, n, *, sampling: Sampling):
    """(state, tokens_BS, logprobs_BS) after up to n more tokens, which fill the first n of S places."""
    tokens_BS = jnp.full_like(state.cache.segments_BS, -1)

    def step(carry):
        i, before, tokens_BS, logprobs_BS = carry
        inputs = Inputs(tokens=before.tokens_B[:, None], positions=before.positions_B[:, None])
        out = model(inputs, cache=before.cache)
        history_BS = write(before.history_BS, inputs.tokens, before.cache.filled, 1)
        state = replace(before, cache=out.cache, history_BS=history_BS)
        state = _chosen(model, state, out.hidden_BTD, key, stops, sampling)
        shown_B = jnp.where(before.stopped_B, -1, state.tokens_B)
        return i + 1, state, tokens_BS.at[:, i].set(shown_B), logprobs_BS.at[:, i].set(state.logprobs_B)

    def unfinished(carry):
        return (carry[0] < n) & ~jnp.all(carry[1].stopped_B)

    carry = jnp.int32(0), state, tokens_BS, jnp.zeros_like(tokens_BS, jnp.float32)
    return jax.lax.while_loop(unfinished, step, carry)[1:]


def _chosen(model: Transformer, before: State, hidden_B1D, key, stops: Stops, sampling: Sampling) -> State:
    """With one token more, for which the cache that holds all before it gave these hidden states."""
    # The barrier keeps XLA's CPU compiler from fusing the last norm into a product of its own making, half as fast.
    logits_BV = model.logits(jax.lax.optimization_barrier(hidden_B1D))[:, 0]
    history = History(
        tokens_BS=before.history_BS,
        there_BS=before.cache.segments_BS != 0,
        filled=before.cache.filled,
        made=before.made,
    )
    said_BV = controlled(logits_BV, sampling, history, stops)
    tokens_B = pick(said_BV, sampling, jax.random.fold_in(key, before.made))
    recent_BN = jnp.concatenate([before.recent_BN[:, 1:], tokens_B[:, None]], axis=1)
    return replace(
        before,
        tokens_B=tokens_B,
        logprobs_B=logprobs(logits_BV, tokens_B),
        positions_B=before.positions_B + 1,
        recent_BN=recent_BN,
        stopped_B=before.stopped_B | (stops.end(recent_BN) & (before.made >= sampling.min_tokens)),
        made=before.made + 1,
    )


@partial(jax.jit, static_argnames=("length",))
def _longer(state: State, length: int) -> State:
    return replace(state, cache=grown(state.cache, length), history_BS=wider(state.history_BS, length, 1))


def grown(cache: Cache, length: int) -> Cache:
    def grow_mixer(layer: LayerCache) -> LayerCache:
        return replace(layer, mixer=jax.tree.map(lambda x: wider(x, length, x.ndim - 2), layer.mixer))

    layers = jax.tree.map(grow_mixer, cache.layers, is_leaf=lambda x: isinstance(x, LayerCache))
    positions_BS = None if cache.positions_BS is None else wider(cache.positions_BS, length, 1)
    return replace(cache, layers=layers, segments_BS=wider(cache.segments_BS, length, 1), positions_BS=positions_BS)


def wider(x: jax.Array, length: int, axis: int) -> jax.Array:
    return jnp.pad(x, [(0, length - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])


def _next_length(length: int, needed: int) -> int:
    """Of a cache that is full: twice as long, or less where that is enough, in quarters so that few are compiled."""
    return min((length + k * length // 4 for k in (1, 2, 3) if length + k * length // 4 >= needed), default=2 * length)


def _cache_length(prompt: int, max_tokens: int, asked: int | None) -> int:
    """Slots to begin with."""
    if asked is None:
        return min(bucket(prompt + max_tokens), max(FIRST, 2 * prompt))
    if asked < prompt + max_tokens:
        raise UserError(
            f"found cache_length={asked}, expected at least {prompt + max_tokens} slots "
            f"({prompt} for the padded prompts, {max_tokens} new tokens); raise it or leave it out"
        )
    return asked
