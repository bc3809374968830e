"""Objectives as values; nothing here imports jax or numpy."""

from dataclasses import dataclass, field
from typing import Literal

from pretrain.models.config import TransformerConfig

Checks = tuple[tuple[bool, str], ...]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    chunk: int = 32
    """Tokens of each row whose logits exist at the same time."""
    z_loss: float = 0.0
    """Weight of log(Z)^2 (PaLM, Chowdhery et al. 2022, section 5); 1e-4 is usual."""
    label_smoothing: float = 0.0

    def checks(self) -> Checks:
        return (
            (self.chunk > 0, f"chunk={self.chunk}: expected a positive number of tokens; 128 is usual"),
            (self.z_loss >= 0, f"z_loss={self.z_loss}: expected 0 or more; 1e-4 is usual"),
            (
                0 <= self.label_smoothing < 1,
                f"label_smoothing={self.label_smoothing}: expected a share below 1; 0.1 is usual",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Predict each token from those before it in its document."""

    loss: LossConfig = field(default_factory=LossConfig)
    ahead: float = 0.3
    """Weight of the loss of tokens further ahead, where the model predicts them (DeepSeek-V3, arXiv:2412.19437: 0.3,
    later 0.1)."""

    def checks(self) -> Checks:
        return ((self.ahead > 0, f"ahead={self.ahead}: expected a positive weight; 0.3 is usual"),)

    def model_checks(self, model: TransformerConfig) -> Checks:
        return decoder_only(model, "NextToken")

    def tokens(self, length: int, model: TransformerConfig) -> tuple[str, ...]:
        """Names of the special tokens that rows of `length` for this model may hold."""
        return ()


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

    def model_checks(self, model: TransformerConfig) -> Checks:
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
        s = self.sentences
        return (self.masking.mask,) if s is None else (s.cls, s.sep, self.masking.mask)


SENTENCE_TASK = "next_sentence"
Objective = NextToken | MaskedLm


def decoder_only(model: TransformerConfig, name: str) -> Checks:
    return (
        (
            model.decoder is not None and model.encoder is None,
            f"{name} reads text from the left, the model is {family(model)}; expected a decoder alone, set "
            "model.decoder and model.encoder=None or choose another objective",
        ),
        has_head(model, name),
    )


def encoder_only(model: TransformerConfig, name: str) -> Checks:
    return (
        (
            model.encoder is not None and model.decoder is None,
            f"{name} reads text from both sides, the model is {family(model)}; expected an encoder alone, set "
            "model.encoder and model.decoder=None or choose another objective",
        ),
    )


def has_head(model: TransformerConfig, name: str) -> tuple[bool, str]:
    return model.head is not None, f"{name} predicts tokens, the model has no head; set model.head"


def family(model: TransformerConfig) -> str:
    if model.decoder is None:
        return "an encoder alone"
    return "a decoder alone" if model.encoder is None else "an encoder with a decoder"
