"""Tokens after a prompt: one forward pass over the prompts, then a loop that never leaves the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pretrain.errors import UserError, check
from pretrain.models.cache import Cache, LayerCache, empty_cache
from pretrain.models.config import LearnedPositions
from pretrain.models.generate.config import Sampling
from pretrain.models.generate.sample import logprobs, pick
from pretrain.models.init import weight
from pretrain.models.lora import merged
from pretrain.models.transformer import Inputs, Transformer, unrolled

SLOTS = 32
"""Prompts and caches are padded to this times a power of two, so that few shapes are ever compiled."""
FIRST = 128
"""Slots of a cache at first; it doubles when full, so that a step reads few empty slots: at most half."""
STREAM = 8
"""Tokens between two looks at what the device has made."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One list a prompt. A stop token, if one came, is the last."""

    tokens: list[list[int]]
    logprobs: list[list[float]]
    """Of each token under the model itself, whatever the sampling."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class State:
    """Between two steps: `tokens_B` are chosen, the cache does not hold them yet."""

    cache: Cache
    tokens_B: jax.Array
    logprobs_B: jax.Array
    positions_B: jax.Array
    stopped_B: jax.Array
    made: jax.Array
    """Tokens chosen so far; folded into the key of the next one."""


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling,
    key: jax.Array,
    stop_tokens: Sequence[int] = (),
    cache_dtype: jnp.dtype | None = None,
    cache_length: int | None = None,
) -> Generation:
    """Up to `max_tokens` after each prompt, fewer where a stop token comes first.

    `cache_dtype`: None is the model's. `cache_length`: slots for padded prompts and new tokens, one compilation;
    None: the cache doubles as it fills.
    Raises UserError before the first step when prompts, options and model do not fit.
    """
    chunks = _chunks(
        model,
        prompts,
        chunk=max_tokens,
        max_tokens=max_tokens,
        sampling=sampling,
        key=key,
        stop_tokens=stop_tokens,
        cache_dtype=cache_dtype,
        cache_length=cache_length,
    )
    tokens_BN, logprobs_BN = (np.concatenate(parts, axis=1) for parts in zip(*chunks))
    rows = [row >= 0 for row in tokens_BN]
    return Generation(
        tokens=[t[kept].tolist() for t, kept in zip(tokens_BN, rows)],
        logprobs=[p[kept].tolist() for p, kept in zip(logprobs_BN, rows)],
    )


def stream(
    model: Transformer,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    key: jax.Array,
    stop_tokens: Sequence[int] = (),
    cache_dtype: jnp.dtype | None = None,
    cache_length: int | None = None,
) -> Iterator[int]:
    """The tokens that `generate` gives for this prompt alone, as they come."""
    chunks = _chunks(
        model,
        [prompt],
        chunk=STREAM,
        max_tokens=max_tokens,
        sampling=sampling,
        key=key,
        stop_tokens=stop_tokens,
        cache_dtype=cache_dtype,
        cache_length=cache_length,
    )
    for tokens_BN, _ in chunks:
        yield from (t for t in tokens_BN[0].tolist() if t >= 0)


def _chunks(model, prompts, *, chunk, max_tokens, sampling, key, stop_tokens, cache_dtype, cache_length):
    """(tokens_BN, logprobs_BN): the first token alone, then up to `chunk` at a time; tokens after a stop are -1."""
    check(sampling, "sampling")
    _check(model, prompts, max_tokens)
    inputs = _padded(prompts)
    T = inputs.tokens.shape[1]
    length = _cache_length(T, max_tokens, cache_length)
    stop = jnp.asarray(sorted(set(stop_tokens)), jnp.int32)
    model = prepared(model)
    state = _prefill(model, inputs, key, stop, sampling=sampling, length=length, dtype=cache_dtype or model.dtype)
    yield np.asarray(state.tokens_B)[:, None], np.asarray(state.logprobs_B)[:, None]
    made = 1
    while made < max_tokens and not np.all(state.stopped_B):
        filled = T + made - 1
        if filled == length:
            length = 2 * length
            state = _longer(state, length)
        n = min(chunk, max_tokens - made, length - filled)
        state, tokens_BS, logprobs_BS = _advance(model, state, key, stop, n, sampling=sampling)
        yield np.asarray(tokens_BS[:, :n]), np.asarray(logprobs_BS[:, :n])
        made += n


@jax.jit
def prepared(model: Transformer) -> Transformer:
    """The same function with what every step would do to its weights done once: layers apart, cast, gathered, fused."""
    model = unrolled(merged(model))
    tables = [model.embed.tokens, model.embed.types]
    tables += [stack.entry.positions for stack in (model.encoder, model.decoder) if stack is not None]
    for _, param in nnx.iter_graph(model):
        if isinstance(param, nnx.Param):
            matrix = param.inputs is not None or any(param is t for t in tables)
            param.set_value(weight(param, model.dtype if matrix else param.dtype))
    if jax.sharding.get_abstract_mesh().size <= 1:  # fused, the parts of a sharded product would sit on other devices
        for block in [*model.decoder.prefix, *model.decoder.suffix]:
            block.mixer.fuse()
            if block.mlp is not None:
                block.mlp.fuse()
    return model


@partial(jax.jit, static_argnames=("sampling", "length", "dtype"))
def _prefill(model: Transformer, inputs: Inputs, key, stop, *, sampling: Sampling, length: int, dtype) -> State:
    batch, T = inputs.tokens.shape
    out = model(inputs, cache=empty_cache(model.config, batch, T, dtype))
    tokens_B, logprobs_B = _choose(model, out.hidden_BTD[:, -1:], sampling, jax.random.fold_in(key, 0))
    return State(
        cache=_grown(out.cache, length),
        tokens_B=tokens_B,
        logprobs_B=logprobs_B,
        positions_B=inputs.positions[:, -1] + 1,
        stopped_B=jnp.isin(tokens_B, stop),
        made=jnp.int32(1),
    )


@partial(jax.jit, static_argnames=("sampling",), donate_argnames=("state",))
def _advance(model: Transformer, state: State, key, stop, n, *, sampling: Sampling):
    """(state, tokens_BS, logprobs_BS) after up to n more tokens, which fill the first n of S places."""
    tokens_BS = jnp.full_like(state.cache.segments_BS, -1)

    def step(carry):
        i, state, tokens_BS, logprobs_BS = carry
        out = model(Inputs(tokens=state.tokens_B[:, None], positions=state.positions_B[:, None]), cache=state.cache)
        tokens_B, logprobs_B = _choose(model, out.hidden_BTD, sampling, jax.random.fold_in(key, state.made))
        shown_B = jnp.where(state.stopped_B, -1, tokens_B)
        state = State(
            cache=out.cache,
            tokens_B=tokens_B,
            logprobs_B=logprobs_B,
            positions_B=state.positions_B + 1,
            stopped_B=state.stopped_B | jnp.isin(tokens_B, stop),
            made=state.made + 1,
        )
        return i + 1, state, tokens_BS.at[:, i].set(shown_B), logprobs_BS.at[:, i].set(logprobs_B)

    def unfinished(carry):
        return (carry[0] < n) & ~jnp.all(carry[1].stopped_B)

    carry = jnp.int32(0), state, tokens_BS, jnp.zeros_like(tokens_BS, jnp.float32)
    return jax.lax.while_loop(unfinished, step, carry)[1:]


def _choose(model: Transformer, hidden_B1D: jax.Array, sampling: Sampling, key) -> tuple[jax.Array, jax.Array]:
    logits_BV = model.logits(hidden_B1D)[:, 0]
    tokens_B = pick(logits_BV, sampling, key)
    return tokens_B, logprobs(logits_BV, tokens_B)


@partial(jax.jit, static_argnames=("length",))
def _longer(state: State, length: int) -> State:
    return replace(state, cache=_grown(state.cache, length))


def _grown(cache: Cache, length: int) -> Cache:
    def grow(x, axis):
        return jnp.pad(x, [(0, length - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])

    def grow_mixer(layer: LayerCache) -> LayerCache:
        return replace(layer, mixer=jax.tree.map(lambda x: grow(x, x.ndim - 2), layer.mixer))

    layers = jax.tree.map(grow_mixer, cache.layers, is_leaf=lambda x: isinstance(x, LayerCache))
    positions_BS = None if cache.positions_BS is None else grow(cache.positions_BS, 1)
    return replace(cache, layers=layers, segments_BS=grow(cache.segments_BS, 1), positions_BS=positions_BS)


def _padded(prompts: Sequence[Sequence[int]]) -> Inputs:
    """Prompts end together, so that the next token of every row goes to the same slot; before them is segment 0."""
    T = _bucket(max(len(p) for p in prompts))
    tokens_BT = np.zeros((len(prompts), T), np.int32)
    for row, prompt in zip(tokens_BT, prompts):
        row[T - len(prompt) :] = prompt
    place_BT = np.arange(T)[None] - (T - np.asarray([len(p) for p in prompts])[:, None])
    return Inputs(
        tokens=jnp.asarray(tokens_BT),
        positions=jnp.asarray(np.maximum(place_BT, 0), jnp.int32),
        segments=jnp.asarray(place_BT >= 0, jnp.int32),
    )


def _bucket(n: int) -> int:
    return SLOTS << max(0, -(-n // SLOTS) - 1).bit_length()


def _cache_length(prompt: int, max_tokens: int, asked: int | None) -> int:
    """Slots to begin with."""
    if asked is None:
        return min(_bucket(prompt + max_tokens), max(FIRST, 2 * prompt))
    if asked < prompt + max_tokens:
        raise UserError(
            f"found cache_length={asked}, expected at least {prompt + max_tokens} slots "
            f"({prompt} for the padded prompts, {max_tokens} new tokens); raise it or leave it out"
        )
    return asked


def _check(model: Transformer, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
    config = model.config
    positions = config.stack.positions
    if config.decoder is None or config.encoder is not None:
        raise UserError("found a model with an encoder, expected a decoder alone; generate from a GPT or Llama")
    if max_tokens < 1:
        raise UserError(f"found max_tokens={max_tokens}, expected at least 1; raise it")
    if not prompts:
        raise UserError("found no prompt, expected at least one; give one list of token ids a row")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"found no token in prompt {i}, expected at least one; begin it with the tokenizer's bos")
        if not (min(prompt) >= 0 and max(prompt) < config.vocab_size):
            raise UserError(
                f"found token ids {min(prompt)} to {max(prompt)} in prompt {i}, expected 0 to {config.vocab_size - 1}; "
                "use the tokenizer the model was trained with"
            )
    longest = max(len(p) for p in prompts)
    if isinstance(positions, LearnedPositions) and longest + max_tokens > positions.length:
        raise UserError(
            f"found a prompt of {longest} tokens and max_tokens={max_tokens}, expected at most {positions.length} "
            "together, the positions this model learned; shorten the prompt or lower max_tokens"
        )
