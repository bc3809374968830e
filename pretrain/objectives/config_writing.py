"""Objectives that read one text and write another: what is missing in it, the whole of it, or its translation."""

from dataclasses import dataclass, field
from typing import Literal

from pretrain.data.config import DataConfig, Pairs, parts_of
from pretrain.models.config import TransformerConfig
from pretrain.objectives import lengths
from pretrain.objectives.config_parts import Checks, LossConfig, both, family, has_head, no_ahead, reads_and_writes


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """Write documents as they were before noise came in (BART, Lewis et al. 2020). An encoder and its decoder read and
    write packed rows of data.sequence_length tokens."""

    loss: LossConfig = field(default_factory=LossConfig)
    infill: float = 0.3
    """Share of the text that is hidden in spans, each a single mask."""
    mean: float = 3.5
    """Of the Poisson distribution of span lengths; a span of length 0 is a mask that hides nothing."""
    permute: float = 1.0
    """Share of the documents whose sentences are permuted."""
    rotate: float = 0.0
    """Share of the documents that begin at another token."""
    delete: float = 0.0
    """Share of the tokens outside of spans that are left out."""
    mask_tokens: float = 0.0
    """Share of the tokens outside of spans that become a mask."""
    mask: str = "<mask>"
    start: str = "eos"
    """The decoder's first token of each document (BART: eos)."""

    def checks(self) -> Checks:
        shares = {name: getattr(self, name) for name in ("infill", "permute", "rotate", "delete", "mask_tokens")}
        return (
            *(
                (0 <= s <= 1, f"{name}={s}: expected a share from 0 to 1; BART: infill=0.3, permute=1")
                for name, s in shares.items()
            ),
            (self.infill < 1, f"infill={self.infill}: expected some text to be left; 0.3 is usual"),
            (self.mean >= 1, f"mean={self.mean}: expected spans of at least 1 token; 3.5 is usual"),
            (
                self.delete + self.mask_tokens <= 1,
                f"delete={self.delete} and mask_tokens={self.mask_tokens}: expected at most 1 together; lower one",
            ),
            (any(shares.values()), "nothing is changed; set infill, permute, rotate, delete or mask_tokens"),
        )

    def run_checks(self, model: TransformerConfig, data: DataConfig) -> Checks:
        return (
            (
                both(model),
                f"Denoising has an encoder read and a decoder write, the model is {family(model)}; expected both, set "
                "model.encoder and model.decoder or choose another objective",
            ),
            has_head(model, "Denoising"),
            no_ahead(model, "Denoising"),
        )

    def tokens(self, length: int, model: TransformerConfig) -> tuple[str, ...]:
        """Names of the special tokens that rows of `length` for this model may hold."""
        return (self.mask, self.start)

    def lengths(self, length: int, model: TransformerConfig) -> tuple[int, int | None]:
        """(tokens of a row of the last stack, of the encoder before it)."""
        return length, length


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
    def denoisers(self) -> "tuple[Denoiser, ...]":
        """The same as a mixture of one."""
        return (Denoiser(mode=None, rate=self.rate, mean=self.mean),)

    def checks(self) -> Checks:
        return (*span_checks(self.rate, self.mean), *sentinel_checks(self.sentinel))

    def run_checks(self, model: TransformerConfig, data: DataConfig) -> Checks:
        return reads_and_writes(model, "SpanCorruption")

    def tokens(self, length: int, model: TransformerConfig) -> tuple[str, ...]:
        """Names of the special tokens that rows of `length` for this model may hold."""
        needed = lengths.spans(length, self.denoisers, encoder=both(model))
        return (*sentinels(self.sentinel, max(needed, lengths.SENTINELS)), self.start)

    def lengths(self, length: int, model: TransformerConfig) -> tuple[int, int | None]:
        """(tokens of a row of the last stack, of the encoder before it)."""
        return (lengths.target_length(length, self.denoisers), length) if both(model) else (length, None)


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """One kind of corruption in a mixture."""

    mode: str | None
    """The token that its input begins with; None: no token."""
    rate: float
    """Share of the tokens that are hidden."""
    mean: float | None
    """Tokens of a span; None: one span at the end, of any length up to twice the rate."""
    share: float = 1.0
    """Of the rows, beside the other denoisers' shares."""

    def checks(self) -> Checks:
        return (
            *span_checks(self.rate, self.mean),
            (
                self.mean is not None or self.rate <= 0.5,
                f"rate={self.rate}: expected at most 0.5 of a span at the end; 0.25 is usual",
            ),
            (self.share > 0, f"share={self.share}: expected a positive share; 1 is usual"),
        )


DENOISERS = (
    Denoiser(mode="[NLU]", rate=0.15, mean=3.0),
    Denoiser(mode="[NLU]", rate=0.15, mean=8.0),
    Denoiser(mode="[S2S]", rate=0.25, mean=None),
    Denoiser(mode="[NLG]", rate=0.5, mean=3.0),
    Denoiser(mode="[NLG]", rate=0.5, mean=8.0),
    Denoiser(mode="[NLG]", rate=0.15, mean=64.0),
    Denoiser(mode="[NLG]", rate=0.5, mean=64.0),
)
"""Those of UL2 (Tay et al. 2022, table 1): two regular, one sequential, four extreme ones."""


@dataclass(frozen=True, kw_only=True)
class Ul2:
    """Span corruption of several kinds, one a row, named by a token in front of it (UL2, Tay et al. 2022).

    Rows take as much text as the longest of the kinds allows: see `SpanCorruption`.
    """

    loss: LossConfig = field(default_factory=LossConfig)
    denoisers: tuple[Denoiser, ...] = DENOISERS
    sentinel: str = "<extra_id_{}>"
    start: str = "pad"
    """The decoder's first token beside an encoder (T5: pad)."""

    def checks(self) -> Checks:
        return (
            (bool(self.denoisers), "denoisers: expected at least one; add a Denoiser"),
            *sentinel_checks(self.sentinel),
        )

    def run_checks(self, model: TransformerConfig, data: DataConfig) -> Checks:
        return reads_and_writes(model, "Ul2")

    def tokens(self, length: int, model: TransformerConfig) -> tuple[str, ...]:
        """Names of the special tokens that rows of `length` for this model may hold."""
        needed = lengths.spans(length, self.denoisers, encoder=both(model))
        modes = dict.fromkeys(d.mode for d in self.denoisers if d.mode is not None)
        return (*sentinels(self.sentinel, max(needed, lengths.SENTINELS)), *modes, self.start)

    def lengths(self, length: int, model: TransformerConfig) -> tuple[int, int | None]:
        """(tokens of a row of the last stack, of the encoder before it)."""
        return (lengths.target_length(length, self.denoisers), length) if both(model) else (length, None)


@dataclass(frozen=True, kw_only=True)
class SequencePairs:
    """Read a text and write its pair, as a translation. Rows hold whole pairs, as many as fit.

    An encoder reads data.sequence_length tokens a row; a decoder alone has as many for both.
    """

    loss: LossConfig = field(default_factory=LossConfig)
    target_length: int | None = None
    """Tokens of a row that the decoder writes beside an encoder; None: data.sequence_length."""
    too_long: Literal["drop", "truncate"] = "drop"
    """What becomes of a pair that is longer than a row: it is left out, or cut."""
    bidirectional: bool = False
    """A decoder alone sees what it reads from both sides."""
    start: str = "bos"
    """The decoder's first token of each text, beside an encoder."""

    def checks(self) -> Checks:
        n = self.target_length
        return (
            (n is None or n > 0, f"target_length={n}: expected a positive number of tokens, or None"),
            (self.too_long in ("drop", "truncate"), f"too_long={self.too_long}: expected drop or truncate"),
        )

    def run_checks(self, model: TransformerConfig, data: DataConfig) -> Checks:
        corpus, alone = data.corpus, model.encoder is None
        return (
            *reads_and_writes(model, "SequencePairs"),
            (
                all(isinstance(source, Pairs) for _, source in parts_of(corpus.source)),
                f"SequencePairs reads pairs, data.corpus.source is {type(corpus.source).__name__}; set it to JsonPairs",
            ),
            (corpus.add_eos, "SequencePairs ends each text with eos; set data.corpus.add_eos=True"),
            (
                self.target_length is None or not alone,
                "target_length is of a decoder beside an encoder; set objective.target_length=None",
            ),
            (
                alone or not self.bidirectional,
                "bidirectional is of a decoder alone, an encoder sees both sides; set objective.bidirectional=False",
            ),
        )

    def tokens(self, length: int, model: TransformerConfig) -> tuple[str, ...]:
        """Names of the special tokens that rows of `length` for this model may hold."""
        return (self.start,) if both(model) else ()

    def lengths(self, length: int, model: TransformerConfig) -> tuple[int, int | None]:
        """(tokens of a row of the last stack, of the encoder before it)."""
        return (self.target_length or length, length) if both(model) else (length, None)
