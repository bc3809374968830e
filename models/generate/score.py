"""How probable a model finds what others wrote."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.errors import UserError
from pretrain.models.generate.prompts import Texts, bucket, check_length, check_prompts, check_tokens, padded
from pretrain.models.transformer import Inputs, Transformer


@dataclass(frozen=True, kw_only=True)
class Scored:
    logprobs: list[float]
    """Of each token of the continuation, given the prompt and those before it."""
    greedy: bool
    """Every token is the most probable one."""

    @property
    def total(self) -> float:
        """Log-likelihood of the continuation."""
        return sum(self.logprobs)


def score(
    model: Transformer, prompts: Texts, continuations: Texts, *, sources: Texts | None = None, prefix: bool = False
) -> list[Scored]:
    """Each continuation after its prompt. `sources`: what an encoder reads. `prefix`: a prompt's tokens see each other.

    Raises UserError when texts and model do not fit.
    """
    check_prompts(model.config, prompts, sources)
    if len(continuations) != len(prompts):
        raise UserError(f"found {len(continuations)} continuations, expected {len(prompts)}; give one for each prompt")
    check_tokens(model.config, continuations, "continuation", "leave its prompt out")
    whole = [[*prompt, *after] for prompt, after in zip(prompts, continuations)]
    check_length(model.config.stack, whole, "text")
    inputs = padded(whole, sources, prefix=prompts if prefix else None)
    N = bucket(max(map(len, continuations)))
    logprobs_BN, greedy_BN = (np.asarray(x) for x in _scored(model, inputs, last=N))
    return [
        Scored(logprobs=logprobs_N[N - len(after) :].tolist(), greedy=bool(greedy_N[N - len(after) :].all()))
        for logprobs_N, greedy_N, after in zip(logprobs_BN, greedy_BN, continuations)
    ]


@partial(jax.jit, static_argnames=("last",))
def _scored(model: Transformer, inputs: Inputs, *, last: int) -> tuple[jax.Array, jax.Array]:
    """(logprobs_BN, greedy_BN) of the last tokens: texts end together. The first of a row says nothing."""
    places_N = jnp.maximum(jnp.arange(-last, 0) + inputs.tokens.shape[1], 1)
    logits_BNV = model.logits(model(inputs).hidden_BTD[:, places_N - 1])
    tokens_BN = inputs.tokens[:, places_N]
    chosen_BN = jnp.take_along_axis(jax.nn.log_softmax(logits_BNV, axis=-1), tokens_BN[..., None], axis=-1)[..., 0]
    return chosen_BN, jnp.argmax(logits_BNV, axis=-1) == tokens_BN
