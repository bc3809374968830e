"""Beam search against `transformers`, and against every continuation there is."""

import itertools

import jax
import numpy as np
import pytest

from pretrain.errors import UserError
from pretrain.models.generate.beam import Hypotheses, beam_search
from pretrain.models.generate.config import GREEDY, BeamSearch, Sampling
from pretrain.models.generate.decode import generate
from pretrain.models.transformer import Inputs, Transformer
from tests.models.mechanisms import DECODERS, LLAMA, PAIRS, drawn

PROMPTS = [[5, 9, 2, 7], list(range(1, 39)), [40]]
SOURCES = [list(range(50, 8, -3)), [7, 3], list(range(3, 45))]
NEW, STOP = 10, 11
STOPS = list(range(4, 61, 7))
"""So many that some hypotheses end early."""
SHAPE = {"vocab_size": 61, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0, "init_std": 0.4}
SHAPE |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 44, "decoder_ffn_dim": 36}
SHAPE |= {"max_position_embeddings": 64, "pad_token_id": 1, "decoder_start_token_id": 2, "eos_token_id": STOP}
SHAPE |= {"forced_eos_token_id": None}
T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 44, "num_layers": 2, "num_heads": 4}
T5 |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "initializer_factor": 2.0}
T5 |= {"dropout_rate": 0.0, "decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": STOP}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
GPT2 |= {"eos_token_id": STOP, "bos_token_id": None, "pad_token_id": 1}
MODELS = {
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "t5": ("T5ForConditionalGeneration", T5),
    "bart": ("BartForConditionalGeneration", SHAPE),
    "marian": ("MarianMTModel", SHAPE | {"scale_embedding": True, "init_std": 0.2}),
}
SEARCHES: dict[str, tuple[BeamSearch, dict]] = {
    "plain": (BeamSearch(beams=4), {}),
    "long": (BeamSearch(beams=3, length_penalty=2.0, until="sure"), {}),
    "short": (BeamSearch(beams=3, length_penalty=-1.0, until="enough"), {"min_tokens": 3}),
    "controlled": (BeamSearch(beams=5, until="enough"), {"repetition_penalty": 1.3, "no_repeat_ngram": 2}),
}
CASES = [
    ("gpt2", "plain"),
    ("gpt2", "controlled"),
    ("t5", "plain"),
    ("t5", "long"),
    ("bart", "short"),
    ("bart", "plain"),
]
CASES += [("marian", "controlled"), ("marian", "long")]
UNTIL = {"enough": True, "likely": False, "sure": "never"}


def pair(name: str, path):
    """(theirs, ours) with the same weights."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = pytest.importorskip("pretrain.models.convert.folder")
    architecture, settings = MODELS[name]
    cls = getattr(transformers, architecture)
    torch.manual_seed(0)
    theirs = cls(cls.config_class(**settings)).eval()
    theirs.save_pretrained(path)
    return theirs, folder.load(path)[1]


def their_hypotheses(theirs, search: BeamSearch, controls: dict) -> tuple[list[list[list[int]]], np.ndarray]:
    """(tokens, scores) of all beams of each row."""
    import torch

    names = {"min_tokens": "min_new_tokens", "no_repeat_ngram": "no_repeat_ngram_size"}
    ids = [s for s in SOURCES if theirs.config.is_encoder_decoder] or PROMPTS
    longest = max(map(len, ids))
    left = not theirs.config.is_encoder_decoder
    rows = [[1] * ((longest - len(r)) * left) + r + [1] * ((longest - len(r)) * (not left)) for r in ids]
    there = [[0] * ((longest - len(r)) * left) + [1] * len(r) + [0] * ((longest - len(r)) * (not left)) for r in ids]
    out = theirs.generate(
        torch.tensor(rows),
        attention_mask=torch.tensor(there),
        num_beams=search.beams,
        num_return_sequences=search.beams,
        length_penalty=search.length_penalty,
        early_stopping=UNTIL[search.until],
        max_new_tokens=NEW,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        pad_token_id=1,
        eos_token_id=STOPS,
        **{names.get(name, name): value for name, value in controls.items()},
    )
    made = out.sequences[:, longest if left else 1 :].tolist()
    ends = [next((i for i, token in enumerate(row, 1) if token in STOPS), NEW) for row in made]
    cut = [row[:end] for row, end in zip(made, ends)]
    groups = [cut[i : i + search.beams] for i in range(0, len(cut), search.beams)]
    return groups, out.sequences_scores.reshape(-1, search.beams).numpy()


@pytest.mark.parametrize(("model", "search"), CASES)
def test_all_hypotheses_are_those_of_transformers(model, search, tmp_path):
    theirs, ours = pair(model, tmp_path)
    search, controls = SEARCHES[search]
    both = ours.encoder is not None
    got = beam_search(
        ours,
        [[2]] * 3 if both else PROMPTS,
        search,
        sources=SOURCES if both else None,
        max_tokens=NEW,
        sampling=Sampling(temperature=0.0, **controls),
        stop_tokens=STOPS,
    )
    tokens, scores = their_hypotheses(theirs, search, controls)
    assert got.tokens == tokens
    np.testing.assert_allclose(got.scores, scores, rtol=1.2e-6, atol=5e-5)


def test_one_beam_is_greedy_decoding():
    model = drawn(DECODERS["chunks"], 0.4)
    want = generate(model, PROMPTS, max_tokens=NEW, sampling=GREEDY, key=jax.random.key(0))
    got = beam_search(model, PROMPTS, BeamSearch(beams=1), max_tokens=NEW)
    assert [rows[0] for rows in got.tokens] == want.tokens
    for (logprobs,), greedy in zip(got.logprobs, want.logprobs):
        np.testing.assert_allclose(logprobs, greedy, atol=2e-5)


def test_as_many_beams_as_there_are_continuations_find_the_best_ones():
    """Of 3 tokens from a vocabulary of 5, with a stop token, every one scored by the model without a cache."""
    from dataclasses import replace

    model, stop, prompt, lp = drawn(replace(LLAMA, vocab_size=5), 0.5), 4, [1, 2], 0.7
    logits = jax.jit(lambda tokens_BT: jax.nn.log_softmax(model.logits(model(Inputs(tokens=tokens_BT)).hidden_BTD)))
    every = {tuple(c[: c.index(stop) + 1] if stop in c else c) for c in itertools.product(range(5), repeat=3)}
    scores = {}
    for c in every:
        row = [*prompt, *c, *[0] * (3 - len(c))]
        logp_TV = np.asarray(logits(np.asarray([row])))[0]
        scores[c] = sum(logp_TV[1 + i, t] for i, t in enumerate(c)) / len(c) ** lp
    best = sorted(scores, key=lambda c: -scores[c])[:25]
    search = BeamSearch(beams=25, length_penalty=lp, until="sure")
    got = beam_search(model, [prompt], search, max_tokens=3, stop_tokens=[stop])
    assert [tuple(c) for c in got.tokens[0]] == best
    np.testing.assert_allclose(got.scores[0], [scores[c] for c in best], atol=1e-5)


@pytest.mark.parametrize("name", ["latent_pair", "relative"])
def test_scores_are_sums_of_the_logprobs_that_generate_would_give(name):
    """The cache follows its beams: the tokens of the best, forced one by one, have the same logprobs."""
    config = (DECODERS | PAIRS)[name]
    model, sources = drawn(config, 0.4), SOURCES if name in PAIRS else None
    got = beam_search(model, PROMPTS, BeamSearch(beams=4), sources=sources, max_tokens=NEW, stop_tokens=[STOP])
    for i, (tokens, logprobs, scores) in enumerate(zip(got.tokens, got.logprobs, got.scores)):
        assert scores == sorted(scores, reverse=True)
        np.testing.assert_allclose([np.sum(p) / len(p) for p in logprobs], scores, atol=1e-5)
        want = forced(model, PROMPTS[i], sources and sources[i], tokens[0])
        np.testing.assert_allclose(logprobs[0], want, atol=5e-5)


def forced(model: Transformer, prompt: list[int], source: list[int] | None, tokens: list[int]) -> np.ndarray:
    encoder = None if source is None else Inputs(tokens=np.asarray([source], np.int32))
    inputs = Inputs(tokens=np.asarray([prompt + tokens], np.int32), encoder=encoder)
    logp_TV = np.asarray(jax.nn.log_softmax(model.logits(model(inputs).hidden_BTD)))[0]
    return logp_TV[len(prompt) - 1 + np.arange(len(tokens)), tokens]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": BeamSearch(beams=0)}, "search.beams=0: expected at least 1; "),
        ({"sampling": Sampling()}, "sampling.temperature=1.0: expected 0, a beam search draws nothing; "),
        ({"prompts": [[]]}, "found no token in prompt 0, expected at least one; "),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(change, message):
    options = {"prompts": PROMPTS, "search": BeamSearch(), "max_tokens": 2} | change
    with pytest.raises(UserError) as error:
        beam_search(drawn(LLAMA), **options)
    assert str(error.value).startswith(message)


def test_hypotheses_are_plain_lists():
    got = beam_search(drawn(LLAMA, 0.4), PROMPTS[:1], BeamSearch(beams=2), max_tokens=2)
    assert got == Hypotheses(tokens=got.tokens, logprobs=got.logprobs, scores=got.scores)
    assert [type(x) for x in (got.tokens[0][0][0], got.logprobs[0][0][0], got.scores[0][0])] == [int, float, float]
