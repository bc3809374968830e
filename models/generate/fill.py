"""What an encoder would write in the place of its masks."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.errors import UserError
from pretrain.models.generate.prompts import Texts, bucket, check_length, check_tokens, rows
from pretrain.models.transformer import Inputs, Transformer


@dataclass(frozen=True, kw_only=True)
class Filled:
    """One mask: its place in its text and the most probable tokens, the best first."""

    place: int
    tokens: list[int]
    logprobs: list[float]


def fill(
    model: Transformer, texts: Texts, mask: int, *, top_k: int = 5, types: Texts | None = None
) -> list[list[Filled]]:
    """The masks of each text in order, each filled for itself: the others stay masks. Where the model has a generator
    and no head (ELECTRA), by its generator.

    `types`: the kind of each token, where the model has kinds. Raises UserError for what does not fit the model.
    """
    _check(model, texts, top_k, types)
    places = [[t for t, token in enumerate(text) if token == mask] for text in texts]
    if not any(places):
        raise UserError(f"found no mask in {len(texts)} texts, expected token {mask} at least once; put it there")
    inputs = rows(texts)
    if types is not None:
        inputs = replace(inputs, types=rows(types).tokens)
    most = bucket(max(map(len, places)))
    places_BN = np.zeros((len(texts), most), np.int32)
    for row, here in zip(places_BN, places):
        row[: len(here)] = here
    top_k = min(top_k, model.config.vocab_size)
    logprobs_BNk, tokens_BNk = (np.asarray(x) for x in _best(model, inputs, jnp.asarray(places_BN), top_k=top_k))
    return [
        [
            Filled(place=place, tokens=tokens_BNk[b, n].tolist(), logprobs=logprobs_BNk[b, n].tolist())
            for n, place in enumerate(here)
        ]
        for b, here in enumerate(places)
    ]


@partial(jax.jit, static_argnames=("top_k",))
def _best(model: Transformer, inputs: Inputs, places_BN: jax.Array, *, top_k: int) -> tuple[jax.Array, jax.Array]:
    if model.head is None:
        hidden_BTD, unembed = model.generated(inputs)
    else:
        hidden_BTD, unembed = model(inputs).hidden_BTD, model.unembed()
    hidden_BND = jnp.take_along_axis(hidden_BTD, places_BN[..., None], axis=1)
    return jax.lax.top_k(jax.nn.log_softmax(unembed(hidden_BND), axis=-1), top_k)


def _check(model: Transformer, texts: Texts, top_k: int, types: Texts | None) -> None:
    config = model.config
    if config.decoder is not None:
        raise UserError("found a decoder, expected an encoder alone; continue a text with it: models.generate.decode")
    if config.head is None and config.generator is None:
        raise UserError("found a model without a head, expected one that gives logits; set TransformerConfig.head")
    if top_k < 1:
        raise UserError(f"found top_k={top_k}, expected at least 1; 5 is usual")
    if not texts:
        raise UserError("found no text, expected at least one; give one list of token ids a row")
    check_tokens(config, texts, "text", "begin it with the tokenizer's first token")
    check_length(config.stack, texts, "text")
    if types is not None and [len(t) for t in types] != [len(t) for t in texts]:
        raise UserError("found types of other lengths than their texts, expected one a token; give as many")
