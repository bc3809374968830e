"""The steps of cleaning a corpus, and where they run: values only.

A quality step's fields are those of the datatrove filter of its name, with the numbers of the paper.
"""

from dataclasses import dataclass
from typing import Literal

Checks = tuple[tuple[bool, str], ...]
Words = str | None
"""How text is divided into words: None by a Unicode pattern; a language ("en"): by datatrove's tokenizer for it, mostly
spaCy (pip install spacy), some hundred times slower."""


def _share(**fields: float) -> Checks:
    return tuple((0 <= v <= 1, f"{name}={v}: expected a share from 0 to 1") for name, v in fields.items())


@dataclass(frozen=True, kw_only=True)
class Normalise:
    """One spelling of the same text; what is empty afterwards is dropped. Indentation stays, for code."""

    form: Literal["NFC", "NFKC"] = "NFC"
    repair: bool = True
    """Undo wrong decodings ("schÃ¶n"), HTML entities and control characters, by ftfy."""

    def checks(self) -> Checks:
        return ((self.form in ("NFC", "NFKC"), f"form={self.form}: expected NFC or NFKC"),)


@dataclass(frozen=True, kw_only=True)
class Language:
    """Keeps the documents in one of the languages."""

    languages: tuple[str, ...]
    """ISO 639-1, as en, de."""
    threshold: float = 0.65
    """Least probability of the languages together (FineWeb, section 3.3)."""
    model: str | None = None
    """A fastText file, as lid.176.bin; None: the model inside the package py3langid."""

    def checks(self) -> Checks:
        named = bool(self.languages) and not isinstance(self.languages, str)
        return (
            (named, f"languages={self.languages!r}: expected a tuple of codes, as ('en',)"),
            *_share(threshold=self.threshold),
        )


@dataclass(frozen=True, kw_only=True)
class C4:
    """Lines that are no sentences go, and documents with few that are (Raffel et al. 2020, section 2.2)."""

    min_num_sentences: int = 5
    min_words_per_line: int = 3
    max_word_length: int = 1000
    filter_no_terminal_punct: bool = True
    filter_lorem_ipsum: bool = True
    filter_javascript: bool = True
    filter_curly_bracket: bool = True
    filter_policy: bool = True
    remove_citations: bool = True
    words: Words = None

    def checks(self) -> Checks:
        least = min(self.min_num_sentences, self.min_words_per_line, self.max_word_length)
        return (
            (least >= -1, "expected min_num_sentences, min_words_per_line and max_word_length of -1 (off) or more"),
        )


@dataclass(frozen=True, kw_only=True)
class GopherQuality:
    """Rae et al. 2021, table A1, quality."""

    min_doc_words: int = 50
    max_doc_words: int = 100_000
    min_avg_word_length: float = 3
    max_avg_word_length: float = 10
    max_symbol_word_ratio: float = 0.1
    max_bullet_lines_ratio: float = 0.9
    max_ellipsis_lines_ratio: float = 0.3
    max_non_alpha_words_ratio: float = 0.8
    """Least share of words with a letter; the name is datatrove's."""
    min_stop_words: int = 2
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    words: Words = None

    def checks(self) -> Checks:
        return (
            (
                0 < self.min_doc_words <= self.max_doc_words,
                f"min_doc_words={self.min_doc_words}, max_doc_words={self.max_doc_words}: expected 1 or more, in order",
            ),
            (
                self.min_avg_word_length <= self.max_avg_word_length,
                f"min_avg_word_length={self.min_avg_word_length}: expected at most {self.max_avg_word_length}",
            ),
            *_share(
                max_bullet_lines_ratio=self.max_bullet_lines_ratio,
                max_ellipsis_lines_ratio=self.max_ellipsis_lines_ratio,
                max_non_alpha_words_ratio=self.max_non_alpha_words_ratio,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class GopherRepetition:
    """Rae et al. 2021, table A1, repetition, with the n-gram thresholds of the table."""

    dup_line_frac: float = 0.3
    dup_para_frac: float = 0.3
    dup_line_char_frac: float = 0.2
    dup_para_char_frac: float = 0.2
    words: Words = None

    def checks(self) -> Checks:
        return _share(
            dup_line_frac=self.dup_line_frac,
            dup_para_frac=self.dup_para_frac,
            dup_line_char_frac=self.dup_line_char_frac,
            dup_para_char_frac=self.dup_para_char_frac,
        )


@dataclass(frozen=True, kw_only=True)
class FineWeb:
    """Penedo et al. 2024, section 3.6."""

    line_punct_thr: float = 0.12
    short_line_thr: float = 0.67
    short_line_length: int = 30
    char_duplicates_ratio: float = 0.01
    new_line_ratio: float = 0.3
    words: Words = None

    def checks(self) -> Checks:
        return _share(
            line_punct_thr=self.line_punct_thr,
            short_line_thr=self.short_line_thr,
            char_duplicates_ratio=self.char_duplicates_ratio,
        )


@dataclass(frozen=True, kw_only=True)
class ExactDuplicates:
    """One of the documents with the same text stays."""


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """MinHash (Broder 1997): one document stays of those joined by pairs that agree in all hashes of a bucket.

    Two documents of similarity s are such a pair with probability 1 - (1 - s**hashes_per_bucket)**buckets: 0.92 at 0.8.
    """

    n_grams: int = 5
    buckets: int = 14
    hashes_per_bucket: int = 8
    seed: int = 1
    words: Words = None

    def checks(self) -> Checks:
        least = min(self.n_grams, self.buckets, self.hashes_per_bucket)
        return (
            (least > 0, "expected n_grams, buckets and hashes_per_bucket of 1 or more"),
            (self.seed >= 0, f"seed={self.seed}: expected 0 or more"),
        )


@dataclass(frozen=True, kw_only=True)
class Decontaminate:
    """Drops a document that shares a run of words with an evaluation set."""

    paths: tuple[str, ...]
    """Evaluation files, folders or globs: JSON Lines, every text of a line, or plain text; also .gz and .zst."""
    n_grams: int = 12
    """Words in a run."""
    words: Words = None

    def checks(self) -> Checks:
        named = bool(self.paths) and not isinstance(self.paths, str)
        return (
            (named, f"paths={self.paths!r}: expected a tuple of evaluation files, folders or globs"),
            (self.n_grams > 0, f"n_grams={self.n_grams}: expected 1 or more words"),
        )


@dataclass(frozen=True, kw_only=True)
class Scrub:
    """Another text in the place of each e-mail address and IPv4 address."""

    email: str | None = "email@example.com"
    """None: they stay."""
    ip: str | None = "192.0.2.1"
    """An address for documentation (RFC 5737); None: they stay."""
    only_public_ips: bool = True


Duplicates = ExactDuplicates | NearDuplicates
Step = (
    Normalise | Language | C4 | GopherQuality | GopherRepetition | FineWeb | Duplicates | Decontaminate | Scrub
)  # in any order, any number of times


@dataclass(frozen=True, kw_only=True)
class Local:
    """The processes of this machine, `--workers` of them."""


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Job arrays on a cluster, by datatrove; the folders must be on a file system that all nodes share."""

    partition: str
    time: str = "24:00:00"
    """Of one job, as Slurm writes it."""
    workers: int = -1
    """Tasks that run at once; -1: as many as the cluster gives."""
    tasks_per_job: int = 1
    cpus_per_task: int = 1
    gigabytes_per_cpu: int = 4
    qos: str = "normal"
    environment: str = ""
    """A shell line before the task, as `source /shared/venv/bin/activate`."""
    poll: float = 20.0
    """Seconds between two looks at what is done."""

    def checks(self) -> Checks:
        return (
            (bool(self.partition), "partition='': expected the name of a partition; sinfo lists them"),
            *_cluster(self.workers, self.tasks_per_job, self.cpus_per_task, self.gigabytes_per_cpu),
            (self.poll > 0, f"poll={self.poll}: expected a positive number of seconds"),
        )


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Tasks of a Ray cluster, by datatrove; the folders must be on a file system that all nodes share."""

    address: str | None = None
    """As `auto` or ray://head:10001; None: a cluster of this machine alone is begun."""
    workers: int = -1
    """Tasks that run at once; -1: all."""
    tasks_per_job: int = 1
    cpus_per_task: int = 1
    gigabytes_per_cpu: int = 2

    def checks(self) -> Checks:
        return _cluster(self.workers, self.tasks_per_job, self.cpus_per_task, self.gigabytes_per_cpu)


def _cluster(workers: int, tasks_per_job: int, cpus_per_task: int, gigabytes_per_cpu: int) -> Checks:
    sizes = {"tasks_per_job": tasks_per_job, "cpus_per_task": cpus_per_task, "gigabytes_per_cpu": gigabytes_per_cpu}
    return (
        (workers == -1 or workers > 0, f"workers={workers}: expected 1 or more, or -1 for all"),
        *((size > 0, f"{name}={size}: expected 1 or more") for name, size in sizes.items()),
    )


Executor = Local | Slurm | Ray
HERE = Local()


def web(language: str, evaluations: tuple[str, ...] = ()) -> tuple[Step, ...]:
    """The steps of FineWeb (Penedo et al. 2024, section 3), and exact duplicates before them; for prose, not code."""
    return (
        Normalise(),
        ExactDuplicates(),
        Language(languages=(language,)),
        GopherRepetition(),
        GopherQuality() if language == "en" else GopherQuality(min_stop_words=0),
        C4(filter_no_terminal_punct=False),
        FineWeb(),
        NearDuplicates(),
        *((Decontaminate(paths=evaluations),) if evaluations else ()),
        Scrub(),
    )
