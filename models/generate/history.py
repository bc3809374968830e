"""What the tokens before say about the next one: penalties, bans, and when to stop.

L = stop sequences, N = tokens of the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.models.generate.config import Sampling

ANY, NONE = -1, -2
"""Places of a stop sequence that any token fills, and places of what was made that no token has filled."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Stops:
    sequences_LN: jax.Array
    """Each at the end of its row, `ANY` before it."""

    @staticmethod
    def of(tokens: Sequence[int], sequences: Sequence[Sequence[int]]) -> "Stops":
        every = [[t] for t in sorted(set(tokens))] + [list(s) for s in sequences]
        out_LN = np.full((len(every), max((len(s) for s in every), default=1)), ANY, np.int32)
        for row, sequence in zip(out_LN, every):
            row[len(row) - len(sequence) :] = sequence
        return Stops(sequences_LN=jnp.asarray(out_LN))

    def none(self, batch: int) -> jax.Array:
        """recent_BN before the first token."""
        return jnp.full((batch, self.sequences_LN.shape[1]), NONE, jnp.int32)

    def end(self, recent_BN: jax.Array) -> jax.Array:
        """Whether each row's last tokens are a stop sequence."""
        same_BLN = (recent_BN[:, None] == self.sequences_LN) | (self.sequences_LN == ANY)
        return jnp.any(jnp.all(same_BLN, axis=-1), axis=-1)

    def forbidden(self, logits_BV: jax.Array) -> jax.Array:
        """Without the sequences of one token."""
        alone_L = jnp.all(self.sequences_LN[:, :-1] == ANY, axis=-1)
        tokens_L = jnp.where(alone_L, self.sequences_LN[:, -1], logits_BV.shape[-1])
        return logits_BV.at[:, tokens_L].set(-jnp.inf, mode="drop")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class History:
    """Rows of slots: padding, prompt, what was made, room."""

    tokens_BS: jax.Array
    there_BS: jax.Array
    """False for padding and room."""
    filled: jax.Array
    """Slots before the room."""
    made: jax.Array
    """How many of them came since the prompt."""


def controlled(logits_BV: jax.Array, sampling: Sampling, history: History, stops: Stops) -> jax.Array:
    """The logits after what `Sampling` says of tokens before, of stops and of the first token."""
    s = sampling
    if s.repetition_penalty != 1:
        seen_BV = _counts(logits_BV, history.tokens_BS, history.there_BS) > 0
        worse_BV = jnp.where(logits_BV < 0, logits_BV * s.repetition_penalty, logits_BV / s.repetition_penalty)
        logits_BV = jnp.where(seen_BV, worse_BV, logits_BV)
    if s.frequency_penalty or s.presence_penalty:
        new_S = jnp.arange(history.tokens_BS.shape[1]) >= history.filled - history.made
        counts_BV = _counts(logits_BV, history.tokens_BS, history.there_BS & new_S)
        logits_BV = logits_BV - s.frequency_penalty * counts_BV - s.presence_penalty * (counts_BV > 0)
    if s.no_repeat_ngram is not None:
        again_BS = repeated(history, s.no_repeat_ngram)
        logits_BV = jnp.where(_counts(logits_BV, history.tokens_BS, again_BS) > 0, -jnp.inf, logits_BV)
    if s.min_tokens:
        logits_BV = jnp.where(history.made < s.min_tokens, stops.forbidden(logits_BV), logits_BV)
    if s.first_token is not None:
        other_V = (history.made == 0) & (jnp.arange(logits_BV.shape[-1]) != s.first_token)
        logits_BV = jnp.where(other_V, -jnp.inf, logits_BV)
    return logits_BV


def repeated(history: History, n: int) -> jax.Array:
    """Slots whose n - 1 tokens before are the last n - 1 of the row."""
    tokens_BS, slots_S = history.tokens_BS, jnp.arange(history.tokens_BS.shape[1])
    again_BS = (slots_S >= n - 1) & (slots_S < history.filled) & jnp.roll(history.there_BS, n - 1, axis=1)
    for back in range(1, n):
        last_B1 = jax.lax.dynamic_slice_in_dim(tokens_BS, history.filled - back, 1, axis=1)
        again_BS &= jnp.roll(tokens_BS, back, axis=1) == last_B1
    return again_BS


def _counts(logits_BV: jax.Array, tokens_BS: jax.Array, where_BS: jax.Array) -> jax.Array:
    rows_B1 = jnp.arange(tokens_BS.shape[0])[:, None]
    return jnp.zeros_like(logits_BV).at[rows_B1, tokens_BS].add(where_BS.astype(logits_BV.dtype))
