"""The distribution of the next token, against numpy and against `transformers`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.errors import UserError, check
from pretrain.models.generate.config import GREEDY, Sampling
from pretrain.models.generate.sample import filtered, logprobs, pick

LOGITS_BV = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32) * 2
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(top_k=5),
    Sampling(top_k=1000),
    Sampling(top_p=0.8),
    Sampling(top_p=1e-6),
    Sampling(min_p=0.1),
    Sampling(temperature=1.5, top_k=20, top_p=0.9, min_p=0.05),
]


def expected(logits_V: np.ndarray, s: Sampling) -> np.ndarray:
    """Probabilities, one filter after the other, one token at a time."""
    p = np.exp(logits_V.astype(np.float64) / s.temperature)
    p /= p.sum()
    order = np.argsort(-p)
    if s.top_k is not None:
        p[order[s.top_k :]] = 0
        p /= p.sum()
    if s.top_p is not None:
        mass = 0.0
        for token in order:
            if mass >= s.top_p:
                p[token] = 0
            mass += p[token]
        p /= p.sum()
    if s.min_p is not None:
        p[p < s.min_p * p.max()] = 0
        p /= p.sum()
    return p


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_filters_leave_the_renormalised_distribution_of_their_papers(sampling):
    ours_BV = jax.nn.softmax(filtered(jnp.asarray(LOGITS_BV), sampling))
    np.testing.assert_allclose(ours_BV, [expected(row, sampling) for row in LOGITS_BV], atol=1e-6)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_filters_equal_those_of_transformers(sampling):
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers.generation.logits_process")
    chain = [warpers.TemperatureLogitsWarper(sampling.temperature)] if sampling.temperature != 1 else []
    chain += [warpers.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    chain += [warpers.TopPLogitsWarper(sampling.top_p)] if sampling.top_p else []
    chain += [warpers.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    theirs_BV = torch.tensor(LOGITS_BV)
    for warper in chain:
        theirs_BV = warper(None, theirs_BV)
    np.testing.assert_allclose(filtered(jnp.asarray(LOGITS_BV), sampling), theirs_BV.numpy(), atol=1e-5)


def test_draws_follow_the_distribution():
    sampling, draws = Sampling(temperature=1.2, top_k=8, min_p=0.02), 20_000
    logits_BV = jnp.broadcast_to(LOGITS_BV[0], (draws, LOGITS_BV.shape[1]))
    p_V = expected(LOGITS_BV[0], sampling)
    counts_V = np.bincount(pick(logits_BV, sampling, jax.random.key(0)), minlength=len(p_V))
    seen = p_V > 0
    assert counts_V[~seen].sum() == 0
    chi_square = np.sum((counts_V[seen] - draws * p_V[seen]) ** 2 / (draws * p_V[seen]))
    assert chi_square < 24.3  # the 99.9th percentile with 7 degrees of freedom


def test_temperature_0_takes_the_most_probable_token_whatever_the_key():
    picked = [pick(jnp.asarray(LOGITS_BV), GREEDY, jax.random.key(k)).tolist() for k in range(3)]
    assert picked == [LOGITS_BV.argmax(-1).tolist()] * 3


def test_a_row_does_not_depend_on_the_rows_after_it():
    sampling, key = Sampling(), jax.random.key(1)
    whole = pick(jnp.asarray(LOGITS_BV), sampling, key)
    assert whole[:1].tolist() == pick(jnp.asarray(LOGITS_BV[:1]), sampling, key).tolist()


def test_logprobs_are_those_of_the_untempered_distribution():
    tokens_B = jnp.asarray([3, 0, 49])
    want_B = [np.log(expected(row, Sampling())[t]) for row, t in zip(LOGITS_BV, tokens_B)]
    np.testing.assert_allclose(logprobs(jnp.asarray(LOGITS_BV), tokens_B), want_B, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": -0.1}, {"min_p": 2.0}],
    ids=str,
)
def test_options_out_of_range_are_one_clear_line(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(UserError, match=rf"^sampling\.{name}={value}: expected .*; "):
        check(Sampling(**wrong), "sampling")
