"""What configs of objectives share; nothing here imports jax or numpy."""

from dataclasses import dataclass

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


def reads_and_writes(model: TransformerConfig, name: str) -> Checks:
    return (
        (
            model.decoder is not None,
            f"{name} writes text, the model is {family(model)}; expected a decoder, set model.decoder or choose "
            "another objective",
        ),
        has_head(model, name),
        no_ahead(model, name),
    )


def no_ahead(model: TransformerConfig, name: str) -> tuple[bool, str]:
    message = f"{name} does not train model.ahead; set model.ahead=None or choose NextToken or FillInTheMiddle"
    return model.ahead is None, message


def both(model: TransformerConfig) -> bool:
    """Whether an encoder stands before the decoder."""
    return model.encoder is not None and model.decoder is not None
