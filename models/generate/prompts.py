"""Prompts and sources as the rows of one batch."""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from pretrain.errors import UserError, check
from pretrain.models.config import LearnedPositions, StackConfig, TransformerConfig
from pretrain.models.generate.config import Sampling
from pretrain.models.transformer import Inputs

Texts = Sequence[Sequence[int]]
SLOTS = 32
"""Prompts and caches are padded to this times a power of two, so that few shapes are ever compiled."""


def padded(texts: Texts, sources: Texts | None = None, *, prefix: Texts | None = None) -> Inputs:
    """Texts end together, so that the next token of every row goes to the same slot; before them is segment 0.

    `sources`: what an encoder reads, padded at the end. `prefix`: what each text begins with and sees both ways.
    """
    inputs = rows(texts, left=True)
    encoder = None if sources is None else rows(sources)
    if prefix is not None:
        assert inputs.positions is not None
        assert inputs.segments is not None
        inside_BT = inputs.positions < jnp.asarray([len(p) for p in prefix])[:, None]
        inputs = replace(inputs, prefix=inputs.segments * inside_BT)
    return replace(inputs, encoder=encoder)


def rows(texts: Texts, *, left: bool = False) -> Inputs:
    """Texts that end together (`left`) or begin together, the rest segment 0."""
    T = bucket(max(len(text) for text in texts))
    tokens_BT = np.zeros((len(texts), T), np.int32)
    lengths_B1 = np.asarray([len(text) for text in texts])[:, None]
    place_BT = np.arange(T)[None] - (T - lengths_B1 if left else 0)
    there_BT = (place_BT >= 0) & (place_BT < lengths_B1)
    tokens_BT[there_BT] = np.concatenate([np.asarray(text, np.int32) for text in texts])
    return Inputs(
        tokens=jnp.asarray(tokens_BT),
        positions=jnp.asarray(np.where(there_BT, place_BT, 0), jnp.int32),
        segments=jnp.asarray(there_BT, jnp.int32),
    )


def bucket(n: int) -> int:
    return SLOTS << max(0, -(-n // SLOTS) - 1).bit_length()


def check_prompts(
    config: TransformerConfig, prompts: Texts, sources: Texts | None, max_tokens: int | None = None
) -> None:
    """Raises UserError where the model cannot go on from these, for `max_tokens`."""
    if config.decoder is None:
        raise UserError("found an encoder alone, expected a decoder; fill masks with it: models.generate.fill")
    if not all(block.mixer.causal for block in config.decoder.blocks):
        raise UserError("found a decoder whose tokens see the future, expected causal attention; fill masks with it")
    if config.head is None:
        raise UserError("found a model without a head, expected one that gives logits; set TransformerConfig.head")
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"found max_tokens={max_tokens}, expected at least 1; raise it")
    if not prompts:
        raise UserError("found no prompt, expected at least one; give one list of token ids a row")
    check_tokens(config, prompts, "prompt", "begin it with the tokenizer's bos or the decoder's start token")
    _check_sources(config, prompts, sources)
    positions, longest = config.decoder.positions, max(len(p) for p in prompts)
    if max_tokens and isinstance(positions, LearnedPositions) and longest + max_tokens > positions.length:
        raise UserError(
            f"found a prompt of {longest} tokens and max_tokens={max_tokens}, expected at most {positions.length} "
            "together, the positions this model learned; shorten the prompt or lower max_tokens"
        )


def check_options(config: TransformerConfig, sampling: Sampling, max_tokens: int, stop_sequences: Texts) -> None:
    check(sampling, "sampling")
    vocabulary, first, least = config.vocab_size, sampling.first_token, sampling.min_tokens
    if first is not None and first >= vocabulary:
        raise UserError(f"sampling.first_token={first}: expected 0 to {vocabulary - 1}, the vocabulary; name another")
    if least > max_tokens:
        raise UserError(f"sampling.min_tokens={least}: expected at most max_tokens={max_tokens}; lower it")
    if not all(len(sequence) for sequence in stop_sequences):
        raise UserError("found an empty stop sequence, expected at least one token in each; leave it out")


def _check_sources(config: TransformerConfig, prompts: Texts, sources: Texts | None) -> None:
    if (sources is not None) != (config.encoder is not None):
        found, expected = ("sources", "none") if sources is not None else ("no sources", "one for each prompt")
        kind = "a decoder alone" if config.encoder is None else "an encoder and a decoder"
        raise UserError(f"found {found}, expected {expected}: the model is {kind}; give what it reads")
    if sources is None or config.encoder is None:
        return
    if len(sources) != len(prompts):
        raise UserError(f"found {len(sources)} sources, expected {len(prompts)}; give one for each prompt")
    check_tokens(config, sources, "source", "end it with the tokenizer's eos")
    check_length(config.encoder, sources, "source")


def check_length(stack: StackConfig, texts: Texts, name: str) -> None:
    """Raises UserError for a text longer than the positions that a stack has learned."""
    longest = max(len(text) for text in texts)
    if isinstance(stack.positions, LearnedPositions) and longest > stack.positions.length:
        raise UserError(
            f"found a {name} of {longest} tokens, expected at most {stack.positions.length}, the positions this model "
            f"learned; shorten the {name}"
        )


def check_tokens(config: TransformerConfig, texts: Texts, name: str, do: str) -> None:
    for i, text in enumerate(texts):
        if not len(text):
            raise UserError(f"found no token in {name} {i}, expected at least one; {do}")
        if not (min(text) >= 0 and max(text) < config.vocab_size):
            raise UserError(
                f"found token ids {min(text)} to {max(text)} in {name} {i}, expected 0 to {config.vocab_size - 1}; "
                "use the tokenizer the model was trained with"
            )
