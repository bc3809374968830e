"""Objectives as values; nothing here imports jax or numpy.

Each says which models and data it fits (`run_checks`), which special tokens its rows hold (`tokens`) and how long these
are (`lengths`).
"""

from dataclasses import dataclass, field

from pretrain.data.config import DataConfig
from pretrain.models.config import TransformerConfig
from pretrain.objectives.config_masked import MaskedLm, Masking, ReplacedToken, Sentences
from pretrain.objectives.config_parts import Checks, LossConfig, decoder_only
from pretrain.objectives.config_writing import Denoising, SequencePairs, SpanCorruption

__all__ = [
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


Objective = NextToken | MaskedLm | ReplacedToken | SpanCorruption | Denoising | SequencePairs
