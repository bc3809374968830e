"""Objectives as values; nothing here imports jax or numpy.

Each says which models and data it fits (`run_checks`), which special tokens its rows hold (`tokens`) and how long these
are (`lengths`).
"""

from dataclasses import dataclass, field

from pretrain.data.config import DataConfig
from pretrain.models.config import TransformerConfig
from pretrain.objectives.config_masked import MaskedLm, Masking, ReplacedToken, Sentences
from pretrain.objectives.config_parts import Checks, LossConfig, decoder_only, no_ahead
from pretrain.objectives.config_writing import Denoiser, Denoising, SequencePairs, SpanCorruption, Ul2

__all__ = [
    "Denoiser",
    "Denoising",
    "LossConfig",
    "MaskedLm",
    "Masking",
    "ReplacedToken",
    "Sentences",
    "SequencePairs",
    "SpanCorruption",
]


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Predict each token from those before it in its document."""

    loss: LossConfig = field(default_factory=LossConfig)
    ahead: float = 0.3
    """Weight of the loss of tokens further ahead, where the model predicts them (DeepSeek-V3, arXiv:2412.19437: 0.3,
    later 0.1)."""

    def checks(self) -> Checks:
        return ((self.ahead > 0, f"ahead={self.ahead}: expected a positive weight; 0.3 is usual"),)

    def run_checks(self, model: TransformerConfig, data: DataConfig) -> Checks:
        return decoder_only(model, "NextToken")

    def tokens(self, length: int, model: TransformerConfig) -> tuple[str, ...]:
        """Names of the special tokens that rows of `length` for this model may hold."""
        return ()

    def lengths(self, length: int, model: TransformerConfig) -> tuple[int, int | None]:
        """(tokens of a row of the last stack, of the encoder before it)."""
        return length, None


@dataclass(frozen=True, kw_only=True)
class PrefixLm:
    """Predict the rest of each document from a first part that is seen from both sides (Raffel et al. 2020)."""

    loss: LossConfig = field(default_factory=LossConfig)

    def run_checks(self, model: TransformerConfig, data: DataConfig) -> Checks:
        return (*decoder_only(model, "PrefixLm"), no_ahead(model, "PrefixLm"))

    def tokens(self, length: int, model: TransformerConfig) -> tuple[str, ...]:
        """Names of the special tokens that rows of `length` for this model may hold."""
        return ()

    def lengths(self, length: int, model: TransformerConfig) -> tuple[int, int | None]:
        """(tokens of a row of the last stack, of the encoder before it)."""
        return length, None


@dataclass(frozen=True, kw_only=True)
class FillInTheMiddle:
    """Predict each token from those before it; in some documents the middle stands last (Bavarian et al. 2022)."""

    loss: LossConfig = field(default_factory=LossConfig)
    ahead: float = 0.3
    """As of `NextToken`."""
    rate: float = 0.5
    """Share of the documents of 3 tokens and more whose middle moves; their section 4.2: 0.5 to 0.9 cost nothing."""
    spm: float = 0.5
    """Share of those that have the suffix before the prefix."""
    room: int = 16
    """Tokens of a row kept free for marks, 4 for each document whose middle moves; further ones stay as they are."""
    prefix: str = "<fim_prefix>"
    suffix: str = "<fim_suffix>"
    middle: str = "<fim_middle>"

    def checks(self) -> Checks:
        return (
            (self.ahead > 0, f"ahead={self.ahead}: expected a positive weight; 0.3 is usual"),
            (0 < self.rate <= 1, f"rate={self.rate}: expected a share above 0; 0.5 is usual"),
            (0 <= self.spm <= 1, f"spm={self.spm}: expected a share from 0 to 1; 0.5 is usual"),
            (self.room > 0 and self.room % 4 == 0, f"room={self.room}: expected a multiple of 4 tokens; 16 is usual"),
        )

    def run_checks(self, model: TransformerConfig, data: DataConfig) -> Checks:
        fits = 2 * self.room <= data.sequence_length
        message = f"room={self.room} of data.sequence_length={data.sequence_length}: expected at most half; lower it"
        return (*decoder_only(model, "FillInTheMiddle"), (fits, message))

    def tokens(self, length: int, model: TransformerConfig) -> tuple[str, ...]:
        """Names of the special tokens that rows of `length` for this model may hold."""
        return (self.prefix, self.suffix, self.middle)

    def lengths(self, length: int, model: TransformerConfig) -> tuple[int, int | None]:
        """(tokens of a row of the last stack, of the encoder before it)."""
        return length, None


Objective = (
    NextToken | PrefixLm | FillInTheMiddle | MaskedLm | ReplacedToken | SpanCorruption | Ul2 | Denoising | SequencePairs
)
