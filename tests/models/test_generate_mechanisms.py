"""Decoding with a cache against the model without one, for every mechanism that a cache touches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.errors import UserError
from pretrain.models.cache import empty_cache
from pretrain.models.generate.config import GREEDY
from pretrain.models.generate.decode import Generation, generate, prepared, stream
from pretrain.models.generate.prompts import padded
from pretrain.models.transformer import Inputs, Transformer
from tests.models.mechanisms import DECODERS, LLAMA, PAIRS, VOCABULARY, drawn

KEY = jax.random.key(0)
NEW = 12
PROMPTS = [[5, 9, 2], list(range(1, 39)), [40]]
SOURCES = [list(range(50, 8, -3)), [7], list(range(3, 45))]
CONFIGS = DECODERS | PAIRS
VARIED = [name for name in CONFIGS if name != "bart"]
"""Those that do not say one token for ever when their weights are random."""


def sources_of(name: str) -> list[list[int]] | None:
    return SOURCES if name in PAIRS else None


def greedy(model: Transformer, prompts=PROMPTS, sources=None, **options) -> Generation:
    options = {"max_tokens": NEW, "sampling": GREEDY, "key": KEY} | options
    return generate(model, prompts, sources=sources, **options)


@jax.jit
def _forward(model: Transformer, inputs: Inputs) -> jax.Array:
    return model.logits(model(inputs).hidden_BTD)


def logits(model: Transformer, tokens: list[int], source: list[int] | None = None, prefix: int = 0) -> np.ndarray:
    """logits_TV without a cache; no token sees the padding, which makes one compilation of many lengths."""

    def row(ids):
        return jnp.asarray([ids + [0] * (64 - len(ids))])

    def there(n):
        return (jnp.arange(64) < n)[None].astype(jnp.int32)

    encoder = None if source is None else Inputs(tokens=row(source), segments=there(len(source)))
    inputs = Inputs(tokens=row(tokens), segments=there(len(tokens)), prefix=there(prefix), encoder=encoder)
    return np.asarray(_forward(model, inputs))[0, : len(tokens)]


def assert_greedy(model: Transformer, out: Generation, sources=None, prefix: bool = False):
    for i, (prompt, tokens, logprobs) in enumerate(zip(PROMPTS, out.tokens, out.logprobs)):
        whole = logits(model, prompt + tokens[:-1], sources and sources[i], prefix * len(prompt))
        logits_NV = whole[len(prompt) - 1 :]
        assert tokens == logits_NV.argmax(-1).tolist()
        want_N = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits_NV)), np.asarray(tokens)[:, None], 1)[:, 0]
        finest = np.spacing(np.abs(logits_NV).max())  # logits are no finer, and some of these are hundreds
        np.testing.assert_allclose(logprobs, want_N, atol=max(2e-5, 2 * finest))
    assert len({t for row in out.tokens for t in row}) > 4, "the weights make a test that cannot fail"


@pytest.mark.parametrize("name", VARIED)
def test_every_greedy_token_is_the_argmax_of_the_whole_context(name):
    model = drawn(CONFIGS[name], 0.4)
    assert_greedy(model, greedy(model, sources=sources_of(name)), sources_of(name))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_with_a_cache_equal_those_without(name):
    """The prompts at once, then one token after another, all prompts and sources of a length of their own."""
    model = drawn(CONFIGS[name], 0.2)
    inputs = padded(PROMPTS, sources_of(name))
    T, S = inputs.tokens.shape[1], 0 if inputs.encoder is None else inputs.encoder.tokens.shape[1]
    ready = prepared(model, rows=len(PROMPTS))
    step = jax.jit(lambda m, i, c: (m.logits((out := m(i, cache=c)).hidden_BTD), out.cache))
    first, cache = step(ready, inputs, empty_cache(ready.config, len(PROMPTS), T + 8, jnp.float32, S))
    got, rng, rows = [first[:, -1]], np.random.default_rng(0), [list(p) for p in PROMPTS]
    for i in range(8):
        tokens_B1 = rng.integers(0, VOCABULARY, (len(rows), 1))
        rows = [row + new.tolist() for row, new in zip(rows, tokens_B1)]
        now = Inputs(tokens=jnp.asarray(tokens_B1, jnp.int32), positions=inputs.positions[:, -1:] + 1 + i)
        out, cache = step(ready, now, cache)
        got.append(out[:, -1])
    for i, (row, prompt) in enumerate(zip(rows, PROMPTS)):
        want_NV = logits(model, row, SOURCES[i] if S else None)[len(prompt) - 1 :]
        np.testing.assert_allclose(np.stack([g[i] for g in got]), want_NV, atol=1e-5)


def test_a_prefix_language_model_reads_its_prompt_both_ways():
    model = drawn(LLAMA, 0.4)
    out = greedy(model, prefix=True)
    assert_greedy(model, out, prefix=True)
    assert out.tokens != greedy(model).tokens


def test_a_batch_gives_each_prompt_and_source_what_they_get_alone():
    model = drawn(CONFIGS["mbart"], 0.4)
    together = greedy(model, sources=SOURCES).tokens
    assert together == [greedy(model, [p], [s]).tokens[0] for p, s in zip(PROMPTS, SOURCES)]
    assert together != greedy(model, sources=SOURCES[::-1]).tokens
    options = {"max_tokens": NEW, "sampling": GREEDY, "key": KEY}
    assert list(stream(model, PROMPTS[0], source=SOURCES[0], **options)) == together[0]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("t5", {"sources": None}, "found no sources, expected one for each prompt: the model is an encoder and a"),
        ("alibi", {"sources": SOURCES}, "found sources, expected none: the model is a decoder alone; "),
        ("t5", {"sources": SOURCES[:2]}, "found 2 sources, expected 3; "),
        ("t5", {"sources": [[1], [], [2]]}, "found no token in source 1, expected at least one; "),
        ("t5", {"sources": [[1], [2, 99], [2]]}, "found token ids 2 to 99 in source 1, expected 0 to 63; "),
        ("bart", {"sources": [[1], [2], [3] * 97]}, "found a source of 97 tokens, expected at most 96, the positions"),
    ],
)
def test_sources_that_do_not_fit_are_said_before_the_first_step(name, change, message):
    with pytest.raises(UserError) as error:
        greedy(drawn(CONFIGS[name]), **{"sources": SOURCES} | change)
    assert str(error.value).startswith(message)
