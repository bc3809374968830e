"""The distribution of the next token, against numpy and against `transformers`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.errors import UserError, check
from pretrain.models.generate.config import GREEDY, Sampling
from pretrain.models.generate.history import History, Stops, controlled
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
    Sampling(typical_p=0.3),
    Sampling(typical_p=0.9),
    Sampling(temperature=1.5, top_k=20, top_p=0.9, min_p=0.05),
    Sampling(top_p=0.9, typical_p=0.7),
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
    if s.typical_p is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            odd = np.abs(-np.log(p) - np.nansum(-p * np.log(p)))
        mass = 0.0
        for token in np.argsort(odd):
            if mass >= s.typical_p:
                p[token] = 0
            mass += p[token]
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
    chain += [warpers.TypicalLogitsWarper(sampling.typical_p)] if sampling.typical_p else []
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


VOCABULARY = LOGITS_BV.shape[1]
PROMPT, STOP = 5, 7
ROWS = [[3, 9, 3, 9, 4, 3, 9, 6, 3, 9], [1, 2, 1, 2, 1, 2, 1, 2, 1, 2], [8, 8, 8, 8, 8, 8, 8, 8, 8, 8]]
CONTROLS = {
    "RepetitionPenaltyLogitsProcessor": (Sampling(repetition_penalty=1.3), lambda p: p(1.3)),
    "NoRepeatNGramLogitsProcessor": (Sampling(no_repeat_ngram=3), lambda p: p(3)),
    "MinNewTokensLengthLogitsProcessor": (Sampling(min_tokens=6), lambda p: p(PROMPT, 6, STOP)),
}


def history(rows=ROWS, prompt: int = PROMPT, before: int = 0, room: int = 0) -> History:
    """`before`: slots of padding, which hold a token that should count for nothing."""
    tokens_BS = np.pad(np.asarray(rows, np.int32), ((0, 0), (before, room)), constant_values=rows[0][-1])
    place_S = np.arange(tokens_BS.shape[1]) - before
    there_BS = np.broadcast_to((place_S >= 0) & (place_S < len(rows[0])), tokens_BS.shape)
    filled = before + len(rows[0])
    return History(
        tokens_BS=jnp.asarray(tokens_BS), there_BS=jnp.asarray(there_BS), filled=filled, made=len(rows[0]) - prompt
    )


def said(sampling: Sampling, history: History, stops: Stops | None = None) -> np.ndarray:
    stops = Stops.of([STOP], []) if stops is None else stops
    return np.asarray(jax.jit(lambda h: controlled(jnp.asarray(LOGITS_BV), sampling, h, stops))(history))


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_equal_those_of_transformers(name):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    sampling, make = CONTROLS[name]
    theirs_BV = make(getattr(processors, name))(torch.tensor(ROWS), torch.tensor(LOGITS_BV)).numpy()
    assert not np.array_equal(theirs_BV, LOGITS_BV), "the processor did nothing"
    np.testing.assert_allclose(said(sampling, history()), theirs_BV, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 9, 10, 11])
def test_no_ngram_comes_twice_whatever_its_length(n):
    want_BV = LOGITS_BV.copy()
    for logits_V, row in zip(want_BV, ROWS):
        ngrams = [row[i : i + n] for i in range(len(row) - n + 1)]
        for token in range(VOCABULARY):
            if [*row[len(row) - n + 1 :], token] in ngrams:
                logits_V[token] = -np.inf
    np.testing.assert_array_equal(said(Sampling(no_repeat_ngram=n), history()), want_BV)


def test_penalties_count_what_came_since_the_prompt():
    counts_BV = np.stack([np.bincount(row[PROMPT:], minlength=VOCABULARY) for row in ROWS])
    want_BV = LOGITS_BV - 0.4 * counts_BV - 0.7 * (counts_BV > 0)
    np.testing.assert_allclose(said(Sampling(frequency_penalty=0.4, presence_penalty=0.7), history()), want_BV, 1e-6)


def test_the_first_token_is_forced_and_no_other():
    forced = said(Sampling(first_token=4), history(prompt=len(ROWS[0])))
    assert np.isfinite(forced).nonzero()[1].tolist() == [4] * 3
    np.testing.assert_array_equal(said(Sampling(first_token=4), history()), LOGITS_BV)


def test_stops_of_one_token_are_forbidden_before_min_tokens_and_not_after():
    stops = Stops.of([STOP, 9], [[3, 4], [5]])
    early, late = (said(Sampling(min_tokens=n), history(), stops) for n in (6, 5))
    assert sorted(set(np.isinf(early).nonzero()[1])) == [5, STOP, 9]
    np.testing.assert_array_equal(late, LOGITS_BV)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(repetition_penalty=2.0),
        Sampling(no_repeat_ngram=2),
        Sampling(no_repeat_ngram=11),
        Sampling(presence_penalty=1.0),
        Sampling(frequency_penalty=1.0),
    ],
    ids=str,
)
def test_padding_and_room_are_no_history(sampling):
    np.testing.assert_array_equal(said(sampling, history(before=3, room=4)), said(sampling, history()))


def test_stop_sequences_end_where_their_last_token_comes():
    stops = Stops.of([STOP], [[1, 2, 3], [4, 4]])
    recent_BN, ends = stops.none(4), []
    for tokens in [[1, 4, 1, 2], [2, 4, 1, 3], [3, 4, 2, STOP], [4, 1, 3, 4]]:
        recent_BN = jnp.concatenate([recent_BN[:, 1:], jnp.asarray(tokens)[:, None]], axis=1)
        ends.append(stops.end(recent_BN).tolist())
    assert np.transpose(ends).tolist() == [
        [False, False, True, False],
        [False, True, True, False],
        [False, False, False, True],
        [False, False, True, False],
    ]
    assert not Stops.of([], []).end(Stops.of([], []).none(2)).any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": 2.0},
        {"typical_p": 0.0},
        {"repetition_penalty": 0.0},
        {"no_repeat_ngram": 0},
        {"min_tokens": -1},
        {"first_token": -1},
    ],
    ids=str,
)
def test_options_out_of_range_are_one_clear_line(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(UserError, match=rf"^sampling\.{name}={value}: expected .*; "):
        check(Sampling(**wrong), "sampling")
