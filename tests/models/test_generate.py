"""Decoding with a cache against the model without one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pretrain.configs.gpt2 import gpt2
from pretrain.configs.llama import llama
from pretrain.errors import UserError
from pretrain.models.config import (
    DynamicNtkScaling,
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    Rope,
    TransformerConfig,
    YarnScaling,
)
from pretrain.models.generate.config import GREEDY, Sampling
from pretrain.models.generate.decode import Generation, generate, stream
from pretrain.models.transformer import Inputs, Transformer

KEY = jax.random.key(0)
PROMPTS = [[5, 9, 2], list(range(1, 39)), [40]]
NEW = 12
LATE = Sampling(temperature=0.0, min_tokens=4)


def tiny(**changes) -> TransformerConfig:
    return llama(**{"vocab_size": 64, "d_model": 32, "layers": 2, "heads": 4, "kv_heads": 2, "d_ff": 48} | changes)


def mixed() -> TransformerConfig:
    """Each layer with a position scaling of its own, and one with a window and a soft-cap."""
    config = tiny()
    (block,) = config.decoder.pattern
    scalings = (
        LinearScaling(factor=4.0),
        DynamicNtkScaling(factor=2.0, original_length=128),
        YarnScaling(factor=4.0, original_length=16),
        Llama3Scaling(original_length=16),
    )
    mixers = [replace(block.mixer, position=Rope(scaling=scaling)) for scaling in scalings]
    mixers.append(replace(block.mixer, window=5, softcap=20.0))
    pattern = tuple(replace(block, mixer=mixer) for mixer in mixers)
    return replace(config, decoder=replace(config.decoder, pattern=pattern, repeats=1))


CONFIGS = {
    "llama": tiny(),
    "gpt2": gpt2(vocab_size=64, length=64, d_model=32, layers=2, heads=4),
    "mixed": mixed(),
}


def made(config: TransformerConfig) -> Transformer:
    """With weights so large, and biases so small, that the next token depends on the context."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))

    def drawn(path, x):
        scale = 0.05 if "bias" in jax.tree_util.keystr(path) else 0.5
        return jnp.asarray(rng.normal(scale=scale, size=x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return made(CONFIGS["llama"])


def logits(model: Transformer, tokens: list[int]) -> np.ndarray:
    """logits_TV without a cache; padded to one length, for one compilation. No token sees the padding after it."""
    padded_BT = jnp.asarray([tokens + [0] * (64 - len(tokens))])
    return np.asarray(_forward(model, padded_BT))[0, : len(tokens)]


@jax.jit
def _forward(model: Transformer, tokens_BT: jax.Array) -> jax.Array:
    return model.logits(model(Inputs(tokens=tokens_BT)).hidden_BTD)


def greedy(model: Transformer, prompts=PROMPTS, **options) -> Generation:
    return generate(model, prompts, **{"max_tokens": NEW, "sampling": GREEDY, "key": KEY} | options)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_greedy_token_is_the_argmax_of_the_whole_context(name):
    model = made(CONFIGS[name])
    out = greedy(model)
    for prompt, tokens, logprobs in zip(PROMPTS, out.tokens, out.logprobs):
        logits_NV = logits(model, prompt + tokens[:-1])[len(prompt) - 1 :]
        assert tokens == logits_NV.argmax(-1).tolist()
        want_N = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits_NV)), np.asarray(tokens)[:, None], 1)[:, 0]
        np.testing.assert_allclose(logprobs, want_N, atol=2e-5)
    assert len({t for row in out.tokens for t in row}) > 4, "the weights make a test that cannot fail"


def test_a_batch_gives_each_prompt_what_it_gets_alone(model):
    alone = [greedy(model, [p], cache_length=128) for p in PROMPTS]
    together = greedy(model)
    assert together.tokens == [a.tokens[0] for a in alone]
    for a, logprobs in zip(alone, together.logprobs):
        np.testing.assert_allclose(a.logprobs[0], logprobs, atol=2e-5)


def test_a_stop_token_is_the_last_of_its_row_and_of_no_other(model):
    free = greedy(model).tokens
    stop = free[1][3]
    want = [row[: row.index(stop) + 1] if stop in row else row for row in free]
    out = greedy(model, stop_tokens=[stop])
    assert out.tokens == want
    assert [len(p) for p in out.logprobs] == [len(t) for t in want]
    assert greedy(model, stop_tokens=[row[0] for row in free]).tokens == [row[:1] for row in free]


def test_a_stop_sequence_is_the_last_of_its_row_and_of_no_other(model):
    free = greedy(model).tokens
    sequence = free[1][2:5]

    def cut(row: list[int]) -> list[int]:
        ends = [i + 3 for i in range(len(row) - 2) if row[i : i + 3] == sequence]
        return row[: ends[0]] if ends else row

    out = greedy(model, stop_sequences=[sequence, [64, 64, 64, 64]])
    assert out.tokens == [cut(row) for row in free]
    assert len(out.tokens[1]) == 5
    options = {"max_tokens": NEW, "sampling": GREEDY, "key": KEY, "stop_sequences": [sequence]}
    assert list(stream(model, PROMPTS[1], **options)) == out.tokens[1]


def test_no_stop_comes_before_min_tokens(model):
    free = greedy(model).tokens[1]
    late = greedy(model, PROMPTS[1:2], stop_sequences=[free[2:4], free[6:8]], sampling=LATE).tokens[0]
    assert late == free[:8]
    forbidden = greedy(model, PROMPTS[1:2], stop_tokens=free[:2], sampling=LATE).tokens[0]
    assert len(forbidden) >= LATE.min_tokens
    assert not set(forbidden[: LATE.min_tokens]) & set(free[:2])


def test_each_row_of_a_batch_is_controlled_by_its_own_history(model):
    sampling = Sampling(
        temperature=0.0, repetition_penalty=1.2, frequency_penalty=0.5, presence_penalty=0.5, no_repeat_ngram=2
    )
    alone = [greedy(model, [p], sampling=sampling).tokens[0] for p in PROMPTS]
    assert greedy(model, sampling=sampling).tokens == alone
    assert alone != greedy(model).tokens


def test_the_same_key_gives_the_same_tokens_and_another_key_others(model):
    sampling = Sampling(temperature=2.0, top_p=0.95)
    a, b, c = (greedy(model, sampling=sampling, key=jax.random.key(k)) for k in (1, 1, 2))
    assert a == b
    assert a.tokens != c.tokens


def test_a_stream_gives_the_tokens_of_generate(model):
    sampling = Sampling(temperature=2.0)
    options = {"max_tokens": NEW, "sampling": sampling, "key": KEY, "stop_tokens": [64]}
    whole = generate(model, PROMPTS[:1], **options).tokens[0]
    assert list(stream(model, PROMPTS[0], **options)) == whole
    stop = options["stop_tokens"][0] = whole[9]
    assert list(stream(model, PROMPTS[0], **options)) == whole[: whole.index(stop) + 1]


def test_one_token_needs_no_step(model):
    assert greedy(model, max_tokens=1, cache_length=128).tokens == [row[:1] for row in greedy(model).tokens]


def test_a_cache_that_grows_forgets_nothing(model):
    grown = greedy(model, PROMPTS[:1], max_tokens=110)
    assert grown.tokens == greedy(model, PROMPTS[:1], max_tokens=110, cache_length=256).tokens


def test_a_bfloat16_cache_stays_near_the_model(model):
    out = greedy(model, max_tokens=2, cache_dtype=jnp.bfloat16)
    np.testing.assert_allclose(np.ravel(out.logprobs), np.ravel(greedy(model, max_tokens=2).logprobs), atol=0.1)


def test_transformers_continues_an_imported_model_the_same_way(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = pytest.importorskip("pretrain.models.convert.folder")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.LlamaConfig(
        vocab_size=64, num_key_value_heads=2, initializer_range=0.3, bos_token_id=None, eos_token_id=None, **shape
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    ours, prompt = folder.load(tmp_path)[1], torch.tensor(PROMPTS[:1])

    def continued(**options) -> list[list[int]]:
        settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0} | options
        return theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)[
            :, prompt.shape[1] :
        ].tolist()

    free = continued()
    assert greedy(ours, PROMPTS[:1]).tokens == free
    sampling = Sampling(temperature=0.0, repetition_penalty=1.4, no_repeat_ngram=2, min_tokens=3)
    stop = free[0][1]
    controlled = continued(repetition_penalty=1.4, no_repeat_ngram_size=2, min_new_tokens=3, eos_token_id=stop)
    assert greedy(ours, PROMPTS[:1], sampling=sampling, stop_tokens=[stop]).tokens == controlled != free


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "found no prompt, expected at least one; "),
        ({"prompts": [[1], []]}, "found no token in prompt 1, expected at least one; "),
        ({"prompts": [[1, 64]]}, "found token ids 1 to 64 in prompt 0, expected 0 to 63; "),
        ({"max_tokens": 0}, "found max_tokens=0, expected at least 1; "),
        ({"max_tokens": 8, "cache_length": 40}, "found cache_length=40, expected at least 72 slots"),
        ({"sampling": Sampling(temperature=-1.0)}, "sampling.temperature=-1.0: expected 0 "),
        ({"sampling": Sampling(first_token=64)}, "sampling.first_token=64: expected 0 to 63, the vocabulary; "),
        ({"sampling": Sampling(min_tokens=13)}, "sampling.min_tokens=13: expected at most max_tokens=12; "),
        ({"stop_sequences": [[1], []]}, "found an empty stop sequence, expected at least one token in each; "),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(model, change, message):
    with pytest.raises(UserError) as error:
        greedy(model, **change)
    assert str(error.value).startswith(message)


def test_learned_positions_end_where_their_table_ends():
    config = CONFIGS["gpt2"]
    model = made(replace(config, decoder=replace(config.decoder, positions=LearnedPositions(length=10))))
    assert len(greedy(model, [[1, 2, 3]], max_tokens=7).tokens[0]) == 7
    with pytest.raises(UserError, match="found a prompt of 3 tokens and max_tokens=8, expected at most 10 together"):
        greedy(model, [[1, 2, 3]], max_tokens=8)
