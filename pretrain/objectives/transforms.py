"""The host's half of an objective."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pretrain.config import RunConfig
from pretrain.data.pack import Packed
from pretrain.data.rows import Transform
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.vocabulary import Vocabulary, special
from pretrain.models.config import TransformerConfig
from pretrain.objectives import config as c
from pretrain.objectives import lengths
from pretrain.objectives.causal import MiddleRows, PrefixRows
from pretrain.objectives.config_parts import both
from pretrain.objectives.config_writing import sentinels
from pretrain.objectives.layout import Beside, Joined
from pretrain.objectives.masking import Mask, MaskedRows
from pretrain.objectives.noise import NoisyRows
from pretrain.objectives.pairs import JoinedPairRows, PairRows
from pretrain.objectives.sentences import SentenceRows
from pretrain.objectives.spans import SpanRows


def rows_of(config: RunConfig, tokenizer: Tokenizer) -> Transform:
    """The rows that a run reads: see `transform`."""
    rows = transform(config.objective, tokenizer, config.data.sequence_length, config.model)
    return replace(rows, packing=config.data.packing) if isinstance(rows, Packed) else rows


def transform(config: c.Objective, tokenizer: Tokenizer, length: int, model: TransformerConfig) -> Transform:
    """Rows of at most `length` tokens for the stacks of the model.

    Raises UserError naming the special tokens that the tokenizer does not have.
    """
    return ROWS[type(config)](config, tokenizer, length, model)


def _next_token(config: c.NextToken, tokenizer: Tokenizer, length: int, model: TransformerConfig) -> Transform:
    return Packed(length)


def _prefix_lm(config: c.PrefixLm, tokenizer: Tokenizer, length: int, model: TransformerConfig) -> Transform:
    return PrefixRows(length)


def _middle(config: c.FillInTheMiddle, tokenizer: Tokenizer, length: int, model: TransformerConfig) -> Transform:
    prefix, suffix, middle = (
        special(tokenizer, getattr(config, f), f"objective.{f}") for f in ("prefix", "suffix", "middle")
    )
    marks = (prefix, suffix, middle, special(tokenizer, "eos", "objective"))
    return MiddleRows(length, config, Vocabulary.of(tokenizer), marks)


def _masked_lm(config: c.MaskedLm, tokenizer: Tokenizer, length: int, model: TransformerConfig) -> Transform:
    mask = _mask(config.masking, tokenizer)
    if (s := config.sentences) is None:
        return MaskedRows(length, mask)
    cls, sep = (special(tokenizer, getattr(s, f), f"objective.sentences.{f}") for f in ("cls", "sep"))
    return SentenceRows(length, s, mask, cls, sep)


def _replaced_token(config: c.ReplacedToken, tokenizer: Tokenizer, length: int, model: TransformerConfig) -> Transform:
    return MaskedRows(length, _mask(config.masking, tokenizer))


def _mask(config: c.Masking, tokenizer: Tokenizer) -> Mask:
    return Mask(config, Vocabulary.of(tokenizer), special(tokenizer, config.mask, "objective.masking.mask"))


def _spans(config: c.SpanCorruption | c.Ul2, tokenizer: Tokenizer, length: int, model: TransformerConfig) -> Transform:
    encoder, denoisers = both(model), config.denoisers
    modes = [None if d.mode is None else special(tokenizer, d.mode, "objective.denoisers") for d in denoisers]
    names = sentinels(config.sentinel, lengths.spans(length, denoisers, encoder=encoder))
    return SpanRows(
        room=lengths.raw_tokens(length, denoisers, encoder=encoder),
        denoisers=denoisers,
        shares=tuple(d.share for d in denoisers),
        modes=tuple(modes),
        sentinels=np.array([special(tokenizer, name, "objective.sentinel") for name in names], np.int32),
        eos=special(tokenizer, "eos", "objective"),
        layout=_layout(config, tokenizer, length, model),
    )


def _denoising(config: c.Denoising, tokenizer: Tokenizer, length: int, model: TransformerConfig) -> Transform:
    mask, start = (special(tokenizer, getattr(config, f), f"objective.{f}") for f in ("mask", "start"))
    return NoisyRows(length, config, Vocabulary.of(tokenizer), mask, start)


def _pairs(config: c.SequencePairs, tokenizer: Tokenizer, length: int, model: TransformerConfig) -> Transform:
    eos, truncate = special(tokenizer, "eos", "objective"), config.too_long == "truncate"
    if not both(model):
        return JoinedPairRows(length, eos, truncate, config.bidirectional)
    start = special(tokenizer, config.start, "objective.start")
    return PairRows(length, config.target_length or length, start, eos, truncate)


def _layout(config, tokenizer: Tokenizer, length: int, model: TransformerConfig) -> Beside | Joined:
    if not both(model):
        return Joined(length)
    target, source = config.lengths(length, model)
    return Beside(source, target, special(tokenizer, config.start, "objective.start"))


ROWS: dict[type, Callable[..., Transform]] = {
    c.NextToken: _next_token,
    c.PrefixLm: _prefix_lm,
    c.FillInTheMiddle: _middle,
    c.MaskedLm: _masked_lm,
    c.ReplacedToken: _replaced_token,
    c.SpanCorruption: _spans,
    c.Ul2: _spans,
    c.Denoising: _denoising,
    c.SequencePairs: _pairs,
}
