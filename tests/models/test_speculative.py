"""Speculative decoding: the draft changes how fast tokens come, never which distribution they have."""

import itertools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.errors import UserError
from pretrain.models.generate.config import GREEDY, Sampling
from pretrain.models.generate.decode import generate
from pretrain.models.generate.history import Stops
from pretrain.models.generate.prompts import padded
from pretrain.models.generate.sample import filtered
from pretrain.models.generate.speculative import Speculation, _speculated, judged, speculate
from pretrain.models.transformer import Inputs, Transformer
from tests.models.mechanisms import DECODERS, LLAMA, PAIRS, drawn

KEY = jax.random.key(0)
PROMPTS = [[5, 9, 2], list(range(1, 39)), [40]]
SOURCES = [list(range(50, 8, -3)), [7], list(range(3, 45))]
NEW = 14


def near(model: Transformer, noise: float) -> Transformer:
    """A draft that often agrees."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + jnp.asarray(rng.normal(scale=noise, size=x.shape), x.dtype), model)


def greedy(model: Transformer, draft: Transformer, prompts=PROMPTS, **options) -> Speculation:
    return speculate(model, draft, prompts, **{"max_tokens": NEW, "sampling": GREEDY, "key": KEY} | options)


@pytest.mark.parametrize(("name", "drafts"), [("chunks", 3), ("latents", 4), ("relative", 1), ("mbart", 5)])
def test_greedy_tokens_are_those_of_the_model_alone(name, drafts):
    model = drawn((DECODERS | PAIRS)[name], 0.3)
    sources = SOURCES if name in PAIRS else None
    want = generate(model, PROMPTS, sources=sources, max_tokens=NEW, sampling=GREEDY, key=KEY)
    got = greedy(model, near(model, 0.03), sources=sources, drafts=drafts)
    assert got.tokens == want.tokens
    for ours, theirs in zip(got.logprobs, want.logprobs):
        np.testing.assert_allclose(ours, theirs, atol=5e-5)
    assert 0 < got.accepted < got.proposed


def test_a_draft_that_is_the_model_is_always_right_and_one_that_knows_nothing_does_no_harm():
    model = drawn(LLAMA, 0.4)
    same, other = greedy(model, model, drafts=6), greedy(model, drawn(DECODERS["alibi"], 0.4, seed=3), drafts=6)
    assert same.tokens == other.tokens
    assert same.acceptance == 1.0
    assert other.acceptance < 0.3


def test_controls_and_stops_are_heeded_inside_of_a_round():
    model = drawn(LLAMA, 0.4)
    sampling = Sampling(
        temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2, no_repeat_ngram=2,
        min_tokens=5,
    )  # fmt: skip
    free = generate(model, PROMPTS, max_tokens=NEW, sampling=sampling, key=KEY).tokens
    late = next(t for t in free[2][6:] if not any(t in row[:6] for row in free))
    stops = {"stop_tokens": [late], "stop_sequences": [free[1][5:8]]}
    options = {"sampling": sampling, "max_tokens": NEW, "key": KEY} | stops
    want = generate(model, PROMPTS, **options)
    got = greedy(model, near(model, 0.02), **options)
    assert got.tokens == want.tokens
    assert len({len(t) for t in got.tokens}) > 1
    assert got.accepted > 0


def test_a_judged_token_has_the_distribution_of_the_model():
    """Whatever the draft's: one drafted token and what comes of it, 40 000 times."""
    rng, draws = np.random.default_rng(0), 40_000
    p_V, r_V, q_V = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    keys = jax.random.split(KEY, 2)
    drafted_B1 = jax.random.categorical(keys[0], jnp.log(q_V), shape=(draws, 1))
    p_BTV = jnp.broadcast_to(jnp.asarray([p_V, r_V], jnp.float32), (draws, 2, 6))
    q_BKV = jnp.broadcast_to(jnp.asarray([q_V], jnp.float32), (draws, 1, 6))
    counts_B, next_B = (np.asarray(x) for x in jax.jit(judged)(p_BTV, q_BKV, drafted_B1, keys[1]))
    first_B = np.where(counts_B > 0, np.asarray(drafted_B1)[:, 0], next_B)
    assert chi_square(np.bincount(first_B, minlength=6), p_V) < 20.5  # the 99.9th percentile, 5 degrees of freedom
    assert chi_square(np.bincount(next_B[counts_B > 0], minlength=6), r_V) < 20.5
    assert abs(counts_B.mean() - np.minimum(p_V, q_V).sum()) < 0.01  # corollary 3.6


@pytest.mark.parametrize("rows", [1, 2])
def test_samples_have_the_distribution_of_the_model(rows):
    """All continuations of 3 tokens of a vocabulary of 4, against their probabilities without cache and draft."""
    config = replace(LLAMA, vocab_size=4, d_model=16, decoder=replace(LLAMA.decoder, repeats=1))
    model, draft = drawn(config, 0.5), drawn(config, 0.5, seed=5)
    prompts, sampling, draws = [[1, 2], [3]][:rows], Sampling(temperature=1.4, top_k=3), 8_000
    inputs, stops = padded(prompts), Stops.of([], [])
    options = {"sampling": sampling, "drafts": 2, "max_tokens": 3, "dtype": jnp.float32}
    run = jax.jit(jax.vmap(lambda key: _speculated(model, draft, inputs, key, stops, **options)))
    state = run(jax.random.split(KEY, draws))
    assert 0.2 < state.accepted.sum() / state.proposed.sum() < 0.9
    for i, prompt in enumerate(prompts):
        tokens_N3 = np.asarray(state.shown_BN)[:, i, :3]
        counts = np.bincount(tokens_N3 @ [16, 4, 1], minlength=64)
        p = probabilities(model, prompt, np.asarray(list(itertools.product(range(4), repeat=3))), sampling)
        assert abs(p.sum() - 1) < 1e-5
        assert counts[p == 0].sum() == 0
        seen = p * draws > 5
        assert chi_square(counts[seen], p[seen], draws) < np.sum(seen) - 1 + 4 * np.sqrt(2 * np.sum(seen))


@partial(jax.jit, static_argnames=("sampling",))
def _distributions(model: Transformer, tokens_BT: jax.Array, sampling: Sampling) -> jax.Array:
    logits_BTV = model.logits(model(Inputs(tokens=tokens_BT)).hidden_BTD)
    flat = filtered(logits_BTV.reshape(-1, logits_BTV.shape[-1]), sampling)
    return jax.nn.softmax(flat).reshape(logits_BTV.shape)


def probabilities(model: Transformer, prompt: list[int], tokens_CN: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Of each of these continuations."""
    rows_CT = np.concatenate([np.broadcast_to(prompt, (len(tokens_CN), len(prompt))), tokens_CN], axis=1)
    p_CTV = np.asarray(_distributions(model, jnp.asarray(rows_CT), sampling))[:, len(prompt) - 1 : -1]
    return np.prod(np.take_along_axis(p_CTV, tokens_CN[..., None], axis=-1), axis=(1, 2))


def chi_square(counts: np.ndarray, p: np.ndarray, draws: int | None = None) -> float:
    expected = (counts.sum() if draws is None else draws) * p
    return float(np.sum((counts - expected) ** 2 / expected))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drafts": 0}, "found drafts=0, expected 1 to 31 tokens at a time; "),
        ({"draft": drawn(replace(LLAMA, vocab_size=65))}, "found a draft of 65 tokens, expected 64 as in the model; "),
        ({"max_tokens": 0}, "found max_tokens=0, expected at least 1; "),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(change, message):
    model = drawn(LLAMA)
    with pytest.raises(UserError) as error:
        greedy(**{"model": model, "draft": model} | change)
    assert str(error.value).startswith(message)
