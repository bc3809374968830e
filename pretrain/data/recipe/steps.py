"""A recipe as datatrove pipelines. Duplicates divide it into phases: all documents are written, then compared."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.decont import NGramsDecontConfig, NGramsDecontFilter
from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
)
from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
from datatrove.utils.word_tokenizers import load_word_tokenizer
from loguru import logger

from pretrain.data.recipe import config as recipe
from pretrain.data.recipe.clean import evaluation_files
from pretrain.data.recipe.documents import Chain, Counted, Read, Unicode, Write
from pretrain.data.recipe.passages import build_index
from pretrain.data.recipe.repetition import Repetition
from pretrain.data.recipe.shards import row_of
from pretrain.data.recipe.words import Languages, UnicodeWords
from pretrain.errors import UserError

FINDERS = 64  # at most so many tasks compare hashes; more would leave each with little


@dataclass
class Job:
    """A pipeline that `tasks` tasks run, before the next job begins."""

    name: str
    tasks: int
    pipeline: list[PipelineStep]
    before: Callable[[], None] | None = None  # run once by who starts the tasks


@dataclass
class Phases:
    """The jobs of a recipe; the numbers of tasks depend on the units alone."""

    units: list
    work: Path
    clean: Path
    jobs: list[Job] = field(default_factory=list)
    pending: list[Counted] = field(default_factory=list)  # steps that no job has yet
    before: list[Callable[[], None]] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)  # folders of clean shards, each of the one before

    def add(self, step: recipe.Step) -> None:
        name = f"{len(self.jobs):02d}-{type(step).__name__}"
        if isinstance(step, recipe.Duplicates):
            self.write(self.work / f"{name}-documents")
            folder = self.work / name
            build = _exact if isinstance(step, recipe.ExactDuplicates) else _near
            new, keep = build(step, folder, self)  # pyright: ignore[reportArgumentType]
            self.jobs += new
            self.pending.append(Counted(type(step).__name__, keep))
        else:
            index = self.work / f"{name}-{len(self.pending)}-index"
            self.pending.append(Counted(type(step).__name__, _streamed(step, index)))
            if isinstance(step, recipe.Decontaminate):
                files = evaluation_files(step.paths)
                self.before.append(partial(build_index, files, _words(step), _overlap(step), index))

    def write(self, folder: Path) -> None:
        """A job for the pending steps, that writes what they leave."""
        first = not self.written
        rows = [row_of("read")] if first else []
        rows += [step.row for step in self.pending]
        read = Read(self.units, None if first else self.written[-1], rows)
        name = f"{len(self.jobs):02d}-documents"
        before = partial(_all, list(self.before))
        self.jobs.append(Job(name, len(self.units), [read, *self.pending, Write(folder, rows)], before))
        self.written.append(folder)
        self.pending, self.before = [], []

    def read(self) -> Read:
        return Read(self.units, self.written[-1])


def phases(steps: tuple[recipe.Step, ...], units: list, work: Path, clean: Path) -> Phases:
    """Raises UserError for what a step needs and this machine does not have."""
    out = Phases(units, work, clean)
    logger.disable("datatrove")  # advice for who writes pipelines
    try:
        for step in steps:
            out.add(step)
    except ImportError as e:
        raise UserError(f"found no package: {' '.join(str(e).split())}; expected all of pretrain[prepare]") from None
    except ValueError as e:  # of load_word_tokenizer
        found = [words for step in steps if (words := getattr(step, "words", None)) is not None]
        raise UserError(f"found words={found} ({e}), expected languages of datatrove; set words to None") from None
    finally:
        logger.enable("datatrove")
    out.write(clean)
    return out


def _all(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _words(step: Any) -> Any:
    if step.words is None:
        return UnicodeWords()
    load_word_tokenizer(step.words)  # raises before any task has begun
    return step.words


def _given(step: Any) -> dict[str, Any]:
    """The fields as the arguments of the datatrove filter that they are named after."""
    fields = asdict(step)
    del fields["words"]
    return {**fields, "language": _words(step)}


def _overlap(step: recipe.Decontaminate) -> NGramsDecontConfig:
    return NGramsDecontConfig(n_grams=step.n_grams)


def _streamed(step: Any, index: Path) -> PipelineStep:
    """The step as one that looks at a document by itself."""
    match step:
        case recipe.Normalise():
            repair = [FTFYFormatter()] if step.repair else []
            return Chain(*repair, Unicode(step.form))
        case recipe.Language():
            return Languages(step.languages, step.threshold, step.model)
        case recipe.C4():
            return C4QualityFilter(**_given(step))
        case recipe.GopherQuality():
            return GopherQualityFilter(**_given(step))
        case recipe.GopherRepetition():
            return Repetition(**_given(step))
        case recipe.FineWeb():
            return FineWebQualityFilter(**_given(step))
        case recipe.Decontaminate():
            return NGramsDecontFilter(str(index), _overlap(step), language=_words(step))
        case recipe.Scrub():
            return PIIFormatter(
                remove_emails=step.email is not None,
                remove_ips=step.ip is not None,
                only_remove_public_ips=step.only_public_ips,
                email_replacement=step.email or "",
                ip_replacement=step.ip or "",
            )
    raise TypeError(f"{type(step).__name__} is no step")


def _text(document: Document) -> str:
    return document.text


def _exact(_: recipe.ExactDuplicates, folder: Path, phases: Phases) -> tuple[list[Job], PipelineStep]:
    config, units = ExactDedupConfig(content_getter=_text), len(phases.units)
    finders = min(units, FINDERS)
    hashes, found, n = str(folder / "hashes"), str(folder / "found"), len(phases.jobs)
    sign = Job(f"{n:02d}-hashes", units, [phases.read(), ExactDedupSignature(hashes, config, finders)])
    find = Job(f"{n + 1:02d}-compare", finders, [ExactFindDedups(hashes, found, config, lines_to_buffer=1000)])
    return [sign, find], ExactDedupFilter(found, config)


def _near(step: recipe.NearDuplicates, folder: Path, phases: Phases) -> tuple[list[Job], PipelineStep]:
    config = MinhashConfig(
        n_grams=step.n_grams, num_buckets=step.buckets, hashes_per_bucket=step.hashes_per_bucket, seed=step.seed
    )
    signatures, pairs, clusters = (str(folder / name) for name in ("signatures", "pairs", "clusters"))
    n, words = len(phases.jobs), _words(step)
    stages = (
        ("signatures", len(phases.units), [phases.read(), MinhashDedupSignature(signatures, config, words)]),
        ("pairs", step.buckets, [MinhashDedupBuckets(signatures, pairs, config=config, lines_to_buffer=1000)]),
        ("clusters", 1, [MinhashDedupCluster(pairs, clusters, config, lines_to_buffer=1000)]),
    )
    jobs = [Job(f"{n + i:02d}-{name}", tasks, list(pipeline)) for i, (name, tasks, pipeline) in enumerate(stages)]
    return jobs, MinhashDedupFilter(clusters)
