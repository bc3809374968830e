"""Objectives that read a corrupted text and write what is missing, or the whole."""

from dataclasses import dataclass, field

from pretrain.data.config import DataConfig
from pretrain.models.config import TransformerConfig
from pretrain.objectives import lengths
from pretrain.objectives.config_parts import Checks, LossConfig, both, reads_and_writes


def span_checks(rate: float, mean: float | None) -> Checks:
    return (
        (0 < rate < 1, f"rate={rate}: expected a share between 0 and 1; 0.15 is usual"),
        (mean is None or mean >= 1, f"mean={mean}: expected a span of at least 1 token; 3 is usual"),
    )


def sentinel_checks(sentinel: str) -> Checks:
    return ((sentinel.count("{}") == 1, f"sentinel={sentinel!r}: expected one {{}} for the number; <extra_id_{{}}>"),)


def sentinels(pattern: str, count: int) -> tuple[str, ...]:
    return tuple(pattern.replace("{}", str(i)) for i in range(count))


@dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """Read a text in which spans are sentinels, write each sentinel and its span (T5, Raffel et al. 2020).

    An encoder reads data.sequence_length tokens and the decoder writes what fits the rate (512: 114); a decoder alone
    reads and writes as many in one row, seeing all that it reads from both sides.
    """

    loss: LossConfig = field(default_factory=LossConfig)
    rate: float = 0.15
    """Share of the tokens that are hidden."""
    mean: float = 3.0
    """Tokens of a span."""
    sentinel: str = "<extra_id_{}>"
    start: str = "pad"
    """The decoder's first token beside an encoder (T5: pad)."""

    @property
    def mode(self) -> None:
        return None

    @property
    def denoisers(self) -> tuple["SpanCorruption"]:
        return (self,)

    def checks(self) -> Checks:
        return (*span_checks(self.rate, self.mean), *sentinel_checks(self.sentinel))

    def run_checks(self, model: TransformerConfig, data: DataConfig) -> Checks:
        return reads_and_writes(model, "SpanCorruption")

    def tokens(self, length: int, model: TransformerConfig) -> tuple[str, ...]:
        needed = lengths.spans(length, self.denoisers, encoder=both(model))
        return sentinels(self.sentinel, max(needed, lengths.SENTINELS))

    def lengths(self, length: int, model: TransformerConfig) -> tuple[int, int | None]:
        """(tokens of a row of the last stack, of the encoder before it)."""
        return (lengths.target_length(length, self.denoisers), length) if both(model) else (length, None)
