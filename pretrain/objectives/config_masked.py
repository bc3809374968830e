"""Objectives of encoders, which see both sides of a hidden token."""

from dataclasses import dataclass, field
from typing import Literal

from pretrain.data.config import DataConfig
from pretrain.models.config import TransformerConfig
from pretrain.objectives.config_parts import Checks, LossConfig, encoder_only, has_head

SENTENCE_TASK = "next_sentence"
"""The model's head that judges pairs of sentences."""
REPLACED_TASK = "replaced"
"""The model's head that judges tokens."""


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Which tokens of a row are hidden; chosen anew each time that a row is seen (RoBERTa, Liu et al. 2019)."""

    rate: float = 0.15
    """Share of the tokens that are asked for."""
    mask: str = "[MASK]"
    masked: float = 0.8
    """Share of those that become the mask."""
    random: float = 0.1
    """Share of those that become a random token; the rest stay as they are."""
    whole_words: bool = False
    """Choose words with all their tokens."""

    def checks(self) -> Checks:
        return (
            (0 < self.rate < 1, f"rate={self.rate}: expected a share between 0 and 1; 0.15 is usual"),
            (
                min(self.masked, self.random) >= 0 and self.masked + self.random <= 1,
                f"masked={self.masked} and random={self.random}: expected shares that add up to at most 1; 0.8 and 0.1 "
                "are usual",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """Rows [CLS] A [SEP] B [SEP] of one document each, and a label for each row."""

    kind: Literal["next", "order"] = "next"
    """next: is B from another document (BERT)? order: do A and B stand in exchanged order (ALBERT)?"""
    cls: str = "[CLS]"
    sep: str = "[SEP]"
    short: float = 0.1
    """Share of rows cut to a random length."""

    def checks(self) -> Checks:
        return (
            (self.kind in ("next", "order"), f"kind={self.kind}: expected next or order"),
            (0 <= self.short <= 1, f"short={self.short}: expected a share from 0 to 1; 0.1 is usual"),
        )


@dataclass(frozen=True, kw_only=True)
class MaskedLm:
    """Predict hidden tokens from all others (BERT, Devlin et al. 2019)."""

    loss: LossConfig = field(default_factory=LossConfig)
    masking: Masking = field(default_factory=Masking)
    sentences: Sentences | None = None
    """None: rows are windows of the stream, documents apart."""

    def run_checks(self, model: TransformerConfig, data: DataConfig) -> Checks:
        tasks = {task.name: task for task in model.tasks}
        task = tasks.get(SENTENCE_TASK)
        judges = task is not None and task.pool != "token" and task.labels == 2
        return (
            *encoder_only(model, "MaskedLm"),
            has_head(model, "MaskedLm"),
            (
                self.sentences is None or judges,
                f"sentences needs a head of two labels; add TaskConfig(name={SENTENCE_TASK!r}, labels=2) to "
                "model.tasks, or set objective.sentences=None",
            ),
            (
                self.sentences is None or model.embed.types >= 2,
                f"sentences are of two types, the model knows {model.embed.types}; set model.embed.types=2",
            ),
        )

    def tokens(self, length: int, model: TransformerConfig) -> tuple[str, ...]:
        """Names of the special tokens that rows of `length` for this model may hold."""
        s = self.sentences
        return (self.masking.mask,) if s is None else (s.cls, s.sep, self.masking.mask)

    def lengths(self, length: int, model: TransformerConfig) -> tuple[int, int | None]:
        """(tokens of a row of the last stack, of the encoder before it)."""
        return length, None


@dataclass(frozen=True, kw_only=True)
class ReplacedToken:
    """Say of each token whether a generator, trained beside the model to fill in masks, has replaced it (ELECTRA, Clark
    et al. 2020). The model learns both; what it says does not reach the generator."""

    loss: LossConfig = field(default_factory=LossConfig)
    """Of the generator."""
    masking: Masking = field(default_factory=lambda: Masking(masked=0.85, random=0.0))
    """What the generator is asked for; all of it is replaced by what it says."""
    weight: float = 50.0
    """Of the mean loss of a token beside that of a mask."""

    def checks(self) -> Checks:
        return ((self.weight > 0, f"weight={self.weight}: expected a positive weight; 50 is usual"),)

    def run_checks(self, model: TransformerConfig, data: DataConfig) -> Checks:
        task = {task.name: task for task in model.tasks}.get(REPLACED_TASK)
        return (
            *encoder_only(model, "ReplacedToken"),
            (model.generator is not None, "ReplacedToken needs a model that generates; set model.generator"),
            (
                task is not None and task.pool == "token" and task.labels == 1,
                f"ReplacedToken needs a head of one label a token; add TaskConfig(name={REPLACED_TASK!r}, "
                'pool="token", labels=1) to model.tasks',
            ),
        )

    def tokens(self, length: int, model: TransformerConfig) -> tuple[str, ...]:
        """Names of the special tokens that rows of `length` for this model may hold."""
        return (self.masking.mask,)

    def lengths(self, length: int, model: TransformerConfig) -> tuple[int, int | None]:
        """(tokens of a row of the last stack, of the encoder before it)."""
        return length, None
