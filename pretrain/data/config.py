"""What a corpus is and how it is read: values only, because the command line loads this file for `--help`.

`pretrain.errors.check` collects the `checks` of the whole tree.
"""

from dataclasses import dataclass, replace
from typing import Literal

from pretrain.data.config_mixture import Mixture
from pretrain.data.recipe.config import HERE, Executor, Step

Checks = tuple[tuple[bool, str], ...]
InvalidText = Literal["replace", "skip", "error"]
"""What becomes of a document that is not Unicode: U+FFFD in the bad places, a counted drop, or an error."""


def _reader_checks(paths: tuple[str, ...], invalid_text: str, max_document_bytes: int) -> Checks:
    return (
        (bool(paths) and not isinstance(paths, str), f"paths={paths!r}: expected a tuple of files, folders or globs"),
        (invalid_text in ("replace", "skip", "error"), f"invalid_text={invalid_text}: expected replace, skip or error"),
        (max_document_bytes > 0, f"max_document_bytes={max_document_bytes}: expected a positive number of bytes"),
    )


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """One document for each file; `.gz` and `.zst` are decompressed. A folder means every file below it."""

    paths: tuple[str, ...]
    invalid_text: InvalidText = "replace"
    max_document_bytes: int = 2**28
    """More than this in one document is an error: memory stays bounded."""

    def checks(self) -> Checks:
        return _reader_checks(self.paths, self.invalid_text, self.max_document_bytes)


@dataclass(frozen=True, kw_only=True)
class JsonLines:
    """One document for each line's `field`; `.gz` and `.zst` are decompressed. A folder: every `.jsonl*` below."""

    paths: tuple[str, ...]
    field: str = "text"
    invalid_text: InvalidText = "replace"
    max_document_bytes: int = 2**28
    """Of one line."""

    def checks(self) -> Checks:
        return (
            *_reader_checks(self.paths, self.invalid_text, self.max_document_bytes),
            (bool(self.field), "field='': expected the name of the field that holds the text"),
        )


@dataclass(frozen=True, kw_only=True)
class JsonPairs:
    """Two texts for each line, as a sentence and its translation; files as of `JsonLines`.

    Each is a document of its own, the target behind its source, and both are of the same split.
    """

    paths: tuple[str, ...]
    source: str = "source"
    """The field of the text that is read."""
    target: str = "target"
    """The field of the text that is written."""
    invalid_text: InvalidText = "replace"
    max_document_bytes: int = 2**28
    """Of one line."""

    def checks(self) -> Checks:
        return (
            *_reader_checks(self.paths, self.invalid_text, self.max_document_bytes),
            (
                len({self.source, self.target, ""}) == 3,
                f"source={self.source!r} and target={self.target!r}: expected the names of two fields",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Parquet:
    """One document for each row's `column`. A folder means every `.parquet` below it."""

    paths: tuple[str, ...]
    column: str = "text"
    invalid_text: InvalidText = "replace"
    max_document_bytes: int = 2**28

    def checks(self) -> Checks:
        return (
            *_reader_checks(self.paths, self.invalid_text, self.max_document_bytes),
            (bool(self.column), "column='': expected the name of the column that holds the text"),
        )


@dataclass(frozen=True, kw_only=True)
class DatasetFolder:
    """One document for each row's `column` of a Hugging Face dataset on disk: what `save_to_disk` wrote (`.arrow`), or
    a copy of its repository (`.parquet`)."""

    paths: tuple[str, ...]
    column: str = "text"
    split: str | None = None
    """As train; None: all."""
    invalid_text: InvalidText = "replace"
    max_document_bytes: int = 2**28

    def checks(self) -> Checks:
        return (
            *_reader_checks(self.paths, self.invalid_text, self.max_document_bytes),
            (bool(self.column), "column='': expected the name of the column that holds the text"),
            (self.split != "", "split='': expected the name of a split, or None for all"),
        )


@dataclass(frozen=True, kw_only=True)
class Warc:
    """One document for each web page of an archive, its main text by trafilatura; of WET files each text as it is.

    A folder means every `.warc`, `.wet`, and `.gz` and `.zst` of them, below it.
    """

    paths: tuple[str, ...]
    invalid_text: InvalidText = "replace"
    max_document_bytes: int = 2**24
    """Of one page with its markup; a larger one is dropped, and counted."""

    def checks(self) -> Checks:
        return _reader_checks(self.paths, self.invalid_text, self.max_document_bytes)


@dataclass(frozen=True, kw_only=True)
class StandardLibrary:
    """The sources of the running Python's standard library: real text on every machine."""

    tests: bool = False
    """Also the library's own tests: 30 MB instead of 12."""
    limit: int | None = None
    """Only so many files, evenly spread over the sorted list; None: all."""

    def checks(self) -> Checks:
        return ((self.limit is None or self.limit > 0, f"limit={self.limit}: expected a positive number or None"),)


@dataclass(frozen=True, kw_only=True)
class StandardLibraryPairs(StandardLibrary):
    """Of each of its functions with a docstring the signature, and the docstring's first paragraph to write."""


Pairs = JsonPairs | StandardLibraryPairs
Single = TextFiles | JsonLines | Parquet | DatasetFolder | Warc | StandardLibrary | Pairs


@dataclass(frozen=True, kw_only=True)
class Named:
    name: str
    source: Single


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Several sources side by side, one tokenizer for all; `DataConfig.mixture` says how much of each a run reads."""

    parts: tuple[Named, ...]

    def checks(self) -> Checks:
        names = [part.name for part in self.parts]
        pairs = {isinstance(part.source, Pairs) for part in self.parts}
        return (
            (
                len({*names, ""}) == len(names) + 1 > 1,
                f"parts: found the names {names}, expected distinct ones, not empty",
            ),
            (len(pairs) < 2, "parts: found pairs beside single texts, expected one kind; prepare two corpora"),
        )


Source = Single | Sources


def parts_of(source: Source) -> tuple[tuple[str, Single], ...]:
    """(name, source) of each part; one without a name where it is not divided."""
    if isinstance(source, Sources):
        return tuple((part.name, part.source) for part in source.parts)
    return (("", source),)


ROLES = ("bos", "eos", "pad")
"""Special tokens by what they are for, whatever a tokenizer calls them."""
ALWAYS = ("<unk>", "<s>", "</s>", "<pad>")
"""Special tokens of every vocabulary that we train, ids 0 to 3."""


@dataclass(frozen=True, kw_only=True)
class TrainSentencePiece:
    """Train on a uniform sample of the corpus' training documents."""

    kind: Literal["bpe", "unigram"] = "bpe"
    vocab_size: int = 32768
    byte_fallback: bool = True
    """Without it an unseen character becomes `unk` and its text is lost."""
    split_digits: bool = True
    character_coverage: float = 0.9995
    """Share of the sample's characters that get a piece of their own."""
    sample_bytes: int = 50_000_000
    special_tokens: tuple[str, ...] = ()
    """For example of a chat format: ids of their own that text never produces. Those of a run's objective come by
    themselves."""

    def checks(self) -> Checks:
        tokens, coverage = self.special_tokens, self.character_coverage
        return (
            (self.kind in ("bpe", "unigram"), f"kind={self.kind}: expected bpe or unigram"),
            (
                self.vocab_size >= 400,
                f"vocab_size={self.vocab_size}: expected 400 or more (bytes, ASCII, specials)",
            ),
            (self.sample_bytes >= 10_000, f"sample_bytes={self.sample_bytes}: expected at least 10000"),
            (0.98 <= coverage <= 1, f"character_coverage={coverage}: expected a share from 0.98 to 1; 0.9995 is usual"),
            (len({*tokens, ""}) == len(tokens) + 1, f"special_tokens={tokens}: expected distinct, non-empty strings"),
        )

    def with_tokens(self, names: tuple[str, ...]) -> "TrainSentencePiece":
        """With special tokens of these names too; a role (bos) and what every vocabulary has (<s>) are no new ones."""
        new = dict.fromkeys(n for n in names if n not in (*ROLES, *ALWAYS, *self.special_tokens))
        return replace(self, special_tokens=(*self.special_tokens, *new))


@dataclass(frozen=True, kw_only=True)
class TokenizerFile:
    """A sentencepiece `.model`, a Hugging Face `tokenizer.json`, or a folder that holds one."""

    path: str


TokenizerConfig = TrainSentencePiece | TokenizerFile


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Everything that decides the bytes of a prepared folder."""

    source: Source
    steps: tuple[Step, ...] = ()
    """What cleans the documents before they are tokenized, in this order."""
    tokenizer: TokenizerConfig = TrainSentencePiece()
    add_bos: bool = False
    add_eos: bool = True
    validation_fraction: float = 0.01
    """Of documents, chosen by the hash of their text: the same text is never on both sides."""
    record_tokens: int = 8192
    """Larger records mean fewer reads for a window, but more bytes read beside it."""
    unit_bytes: int = 64_000_000
    """Source bytes behind one shard; one process tokenizes a unit from end to end."""

    def checks(self) -> Checks:
        fraction, R = self.validation_fraction, self.record_tokens
        return (
            (0 <= fraction < 1, f"validation_fraction={fraction}: expected at least 0 and less than 1; 0.01 is usual"),
            (8 <= R <= 2**24, f"record_tokens={R}: expected 8 to 16777216; 8192 is usual"),
            (self.unit_bytes > 0, f"unit_bytes={self.unit_bytes}: expected a positive number of bytes"),
            (
                not self.steps or not any(isinstance(source, Pairs) for _, source in parts_of(self.source)),
                f"steps: found {len(self.steps)} for a source of pairs, expected none; clean the pairs beforehand",
            ),
        )


Packing = Literal["split", "fit"]


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """From a step on, until the next one of these, documents are cut after so many tokens of their row.

    The arrays and the tokens of a step stay what they are: a row of 4096 tokens holds eight documents of 512. The
    warm-up of Li et al. 2021 (arXiv:2108.06084), and mixed lengths (Pouransari et al. 2024, arXiv:2405.13226).
    """

    choices: tuple[int, ...]
    """Each row has one of these lengths, drawn at random."""
    step: int = 0
    """Finished steps before it."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A corpus and the way in which a run reads it."""

    corpus: CorpusConfig
    streaming: bool = False
    """Tokenize documents while they are read, with nothing prepared but the tokenizer and a validation set."""
    path: str | None = None
    """The prepared folder; None: the one that the caller names (the run's own)."""
    executor: Executor = HERE
    """Where it is prepared. It decides no byte."""
    mixture: Mixture | None = None
    """How much of each part of `Sources` is read; None: all of every part once an epoch."""
    sequence_length: int = 1024
    lengths: tuple[Lengths, ...] = ()
    """Shorter documents from some steps on, in rows that stay as long; (): as long as a row."""
    packing: Packing = "split"
    """split: the stream cut into rows. fit: whole documents as long as they fit a row, little padding."""
    shuffle: bool = True
    seed: int = 0
    workers: int = 0
    """Processes that build batches; 0: this process."""
    read_threads: int = 1
    """In each process; 0: build each batch when it is asked for."""
    prefetch: int = 2
    """Batches ready ahead of the step, for each process."""

    def checks(self) -> Checks:
        return (
            (
                self.mixture is None or isinstance(self.corpus.source, Sources),
                f"mixture: found {type(self.corpus.source).__name__}, expected Sources, whose parts it weighs; "
                "set it to None",
            ),
            *(self._streaming_checks() if self.streaming else ()),
            (self.sequence_length > 0, f"sequence_length={self.sequence_length}: expected a positive number of tokens"),
            (
                [one.step for one in self.lengths] == sorted({one.step for one in self.lengths}),
                f"lengths: found steps {[one.step for one in self.lengths]}, expected ascending ones",
            ),
            (
                all(
                    one.choices and min(one.choices) > 0 and max(one.choices) <= self.sequence_length
                    for one in self.lengths
                ),
                f"lengths: expected choices from 1 to sequence_length={self.sequence_length}, one or more each",
            ),
            (self.packing in ("split", "fit"), f"packing={self.packing}: expected split or fit"),
            (self.seed >= 0, f"seed={self.seed}: expected 0 or more"),
            (self.workers >= 0, f"workers={self.workers}: expected 0 or more processes"),
            (self.read_threads >= 0, f"read_threads={self.read_threads}: expected 0 or more threads"),
            (self.prefetch > 0, f"prefetch={self.prefetch}: expected 1 or more batches"),
        )

    def _streaming_checks(self) -> Checks:
        pairs = any(isinstance(source, Pairs) for _, source in parts_of(self.corpus.source))
        found = {
            "corpus.steps": bool(self.corpus.steps),
            "mixture": self.mixture is not None,
            "packing=fit": self.packing == "fit",
            "a source of pairs": pairs,
        }
        named = ", ".join(name for name, there in found.items() if there)
        return ((not named, f"streaming: found {named}, expected none of it; set streaming to False to prepare first"),)
