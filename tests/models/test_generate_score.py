"""Log-likelihoods of given continuations, against one row at a time and against what generate says of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.errors import UserError
from pretrain.models.generate.config import GREEDY
from pretrain.models.generate.decode import generate
from pretrain.models.generate.score import score
from pretrain.models.transformer import Inputs
from tests.models.mechanisms import DECODERS, LLAMA, PAIRS, drawn

PROMPTS = [[5, 9, 2], list(range(1, 39)), [40]]
SOURCES = [list(range(50, 8, -3)), [7], list(range(3, 45))]
AFTER = [[7], [3, 60, 3, 1], [9] * 31]


@pytest.mark.parametrize(("name", "prefix"), [("relative", False), ("chunks", True), ("t5", False)])
def test_a_continuation_scores_what_the_model_says_of_each_token(name, prefix):
    model, sources = drawn((DECODERS | PAIRS)[name], 0.3), SOURCES if name in PAIRS else None
    scored = score(model, PROMPTS, AFTER, sources=sources, prefix=prefix)
    forward = jax.jit(lambda inputs: jax.nn.log_softmax(model.logits(model(inputs).hidden_BTD)))
    for i, (prompt, after, got) in enumerate(zip(PROMPTS, AFTER, scored)):
        inputs = Inputs(
            tokens=jnp.asarray([prompt + after]),
            prefix=(jnp.arange(len(prompt + after)) < len(prompt))[None].astype(jnp.int32) if prefix else None,
            encoder=None if sources is None else Inputs(tokens=jnp.asarray([sources[i]])),
        )
        want_N = np.asarray(forward(inputs))[0, len(prompt) - 1 + np.arange(len(after)), after]
        np.testing.assert_allclose(got.logprobs, want_N, atol=2e-5)
        assert got.total == pytest.approx(want_N.sum(), abs=1e-4)
        assert not got.greedy


def test_what_generate_says_scores_what_generate_says_of_it():
    model = drawn(LLAMA, 0.4)
    made = generate(model, PROMPTS, max_tokens=6, sampling=GREEDY, key=jax.random.key(0))
    scored = score(model, PROMPTS, made.tokens)
    assert all(s.greedy for s in scored)
    for s, logprobs in zip(scored, made.logprobs):
        np.testing.assert_allclose(s.logprobs, logprobs, atol=2e-5)
    wrong = [[*tokens[:-1], (tokens[-1] + 1) % 64] for tokens in made.tokens]
    assert not any(s.greedy for s in score(model, PROMPTS, wrong))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"continuations": AFTER[:2]}, "found 2 continuations, expected 3; "),
        ({"continuations": [[], [1], [1]]}, "found no token in continuation 0, expected at least one; "),
        ({"continuations": [[1], [1], [64]]}, "found token ids 64 to 64 in continuation 2, expected 0 to 63; "),
        ({"sources": SOURCES}, "found sources, expected none: the model is a decoder alone; "),
        ({"model": drawn(PAIRS["bart"]), "sources": SOURCES, "continuations": [[1], [1] * 59, [1]]}, "found a text of"),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    with pytest.raises(UserError) as error:
        score(**{"model": drawn(LLAMA), "prompts": PROMPTS, "continuations": AFTER} | change)
    assert str(error.value).startswith(message)
