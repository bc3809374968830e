"""From a corpus config to a folder of token shards, restartable at any moment.

The source files are divided into units that do not depend on the number of workers; one process turns a unit into one
shard for each split. A shard is done when its NAME.json stands; everything before that is written again.

    FOLDER/plan.json  tokenizer/  manifest.json
    FOLDER/{train,validation}-00000.{array_record,places,documents.array_record,json}
"""

import fcntl
import hashlib
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from pretrain.data.config import CorpusConfig, Single, TokenizerFile, TrainSentencePiece, parts_of
from pretrain.data.manifest import (
    SPLITS,
    Manifest,
    Shard,
    plain,
    read_json,
    read_manifest,
    require_same_corpus,
    sources,
    write_json,
)
from pretrain.data.processes import die_with_parent
from pretrain.data.recipe import funnel
from pretrain.data.recipe.clean import clean, evaluations
from pretrain.data.recipe.config import HERE, Executor, Local
from pretrain.data.recipe.shards import Funnel, read_shard, shard
from pretrain.data.records import ShardWriter, publish, token_dtype
from pretrain.data.sources import Document, list_parts, read_files
from pretrain.data.tokenizer import Tokenizer, load_tokenizer
from pretrain.errors import UserError, check

BATCH_CHARACTERS = 1 << 20  # text tokenized in one call


@dataclass(frozen=True)
class Unit:
    """What becomes one shard of each split."""

    part: str
    source: Single
    files: list[str]
    clean: Path | None = None  # the shard that the recipe made of the files

    def documents(self, dropped: Counter) -> Iterator[Document]:
        if self.clean is not None:
            return read_shard(self.clean, self.files)
        return read_files(self.source, self.files, dropped)


@dataclass(frozen=True)
class Progress:
    done: int  # units, of
    units: int
    tokens: int
    documents: int
    job: str = "tokenize"


def prepare(
    corpus: CorpusConfig,
    folder: Path,
    *,
    workers: int = 1,
    executor: Executor = HERE,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Manifest:
    """Prepares what is missing; the same bytes for any executor and workers, and however often it was killed.

    Raises UserError, having written nothing, where `folder` belongs to another corpus.
    """
    check(corpus, "corpus")
    folder = Path(folder)
    if (folder / "manifest.json").is_file():
        return _finished(corpus, folder)
    files = list_parts(corpus.source)
    if not isinstance(executor, Local) and (relative := [f for _, f, _ in files if not os.path.isabs(f)]):
        message = (
            f"found the relative path {relative[0]} for {type(executor).__name__}, expected paths that begin with /"
        )
        raise UserError(f"{message}; its tasks may run in another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        units = _plan(corpus, folder, files)
        if isinstance(executor, Local):
            sweep(folder)
        cleaned = None
        if corpus.steps:
            done = lambda job, n, of: progress(Progress(n, of, 0, 0, job))  # noqa: E731
            cleaned = clean(corpus.steps, units, folder / "clean", executor, workers, done)
            units = [replace(unit, clean=shard(folder / "clean", n)) for n, unit in enumerate(units)]
        tokenizer = make_tokenizer(corpus, folder, units)
        check_specials(corpus, tokenizer)
        if not isinstance(executor, Local):
            _write_elsewhere(corpus, folder, units, executor)
            sweep(folder)  # not before: tasks of a killed command may have been writing
        _write_units(corpus, folder, units, workers, progress, tokenizer)
        return _finish(corpus, folder, len(units), tokenizer, cleaned)


def sweep(folder: Path) -> None:
    """Takes away what a kill left half written."""
    for stale in folder.glob("*.tmp-*"):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()


def _finished(corpus: CorpusConfig, folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    require_same_corpus(folder, manifest.corpus, corpus)
    if isinstance(corpus.tokenizer, TokenizerFile) and Path(corpus.tokenizer.path).exists():
        require_same_tokenizer(folder, manifest.tokenizer, load_tokenizer(corpus.tokenizer.path))
    return manifest


def require_same_tokenizer(folder: Path, fingerprint: str, tokenizer: Tokenizer) -> None:
    if tokenizer.fingerprint != fingerprint:
        found, expected = tokenizer.fingerprint[:12], fingerprint[:12]
        message = f"found tokenizer {found}, expected {expected}, with which {folder} was prepared"
        raise UserError(f"{message}; restore that tokenizer or prepare into another folder")


@contextmanager
def locked(folder: Path):
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            message = f"found another process that prepares {folder}, expected to be alone; wait for it"
            raise UserError(message) from None
        yield


def _plan(corpus: CorpusConfig, folder: Path, files: list[tuple[str, str, int]]) -> list["Unit"]:
    """The units, as at the first start: a changed source would mix two corpora."""
    path = folder / "plan.json"
    listed = [list(f) for f in files]
    listed += [["evaluation", file, os.path.getsize(file)] for file in evaluations(corpus.steps)]
    if path.is_file():
        plan = read_json(path, corpus=dict, files=list)
        require_same_corpus(folder, plan["corpus"], corpus)
        if plan["files"] != listed:
            changed = next(new or old for old, new in _zip_longest(plan["files"], listed) if old != new)[1]
            message = f"found source files changed since {folder} was begun (first: {changed}), expected the same"
            raise UserError(f"{message}; restore them or prepare into another folder")
    elif any(folder.glob("*.array_record")):
        raise UserError(f"found token shards but no plan in {folder}, expected an empty folder; name another")
    else:
        write_json(path, {"corpus": plain(corpus), "files": listed})
    return divided(corpus, files)


def divided(corpus: CorpusConfig, files: list[tuple[str, str, int]]) -> list[Unit]:
    """The files of `list_parts` as units, each of one part."""
    return [
        Unit(name, source, names)
        for name, source in parts_of(corpus.source)
        for names in units_of([(file, size) for part, file, size in files if part == name], corpus.unit_bytes)
    ]


def _zip_longest(old: list, new: list):
    n = max(len(old), len(new))
    return zip(old + [None] * (n - len(old)), new + [None] * (n - len(new)))


def units_of(files: list[tuple[str, int]], unit_bytes: int) -> list[list[str]]:
    """Neighbouring files in groups of at most `unit_bytes`, or one file that is larger."""
    units, size = [], unit_bytes + 1
    for file, file_bytes in files:
        if size + file_bytes > unit_bytes:
            units.append([])
            size = 0
        units[-1].append(file)
        size += file_bytes
    return units


def split_of(data: bytes, validation_fraction: float) -> str:
    """The split of a document by its text alone."""
    rank = int.from_bytes(hashlib.blake2b(data, digest_size=8, person=b"split").digest(), "big")
    return "validation" if rank < int(validation_fraction * 2**64) else "train"


def make_tokenizer(corpus: CorpusConfig, folder: Path, units: Sequence[Unit]) -> Tokenizer:
    """The tokenizer of the folder, brought or trained where there is none yet."""
    target = folder / "tokenizer"
    recipe = corpus.tokenizer
    given = load_tokenizer(recipe.path) if isinstance(recipe, TokenizerFile) else None
    if target.is_dir():
        tokenizer = load_tokenizer(target)
        if given is not None:
            require_same_tokenizer(folder, tokenizer.fingerprint, given)
        return tokenizer
    temporary = folder / "tokenizer.tmp-0"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    if given is not None:
        given.save(temporary)
    elif isinstance(recipe, TrainSentencePiece):
        from pretrain.data.tokenizer_sentencepiece import sample, train_sentencepiece

        chosen = sample(training_texts(corpus, units), recipe.sample_bytes)
        if not chosen:
            raise no_text(sum(len(unit.files) for unit in units))
        train_sentencepiece(chosen, recipe, temporary)
    publish(temporary, target)
    return given or load_tokenizer(target)


def training_texts(corpus: CorpusConfig, units: Sequence[Unit]) -> Iterator[str]:
    """The texts of the train split."""
    for document in chain.from_iterable(unit.documents(Counter()) for unit in units):
        if split_of(document.identity, corpus.validation_fraction) == "train":
            yield from document.texts


def no_text(files: int) -> UserError:
    return UserError(f"found no text for training in {files} source files, expected some; name other files")


def check_specials(corpus: CorpusConfig, tokenizer: Tokenizer) -> None:
    for name, wanted, i in (("bos", corpus.add_bos, tokenizer.bos), ("eos", corpus.add_eos, tokenizer.eos)):
        if wanted and i is None:
            message = f"found a tokenizer without {name}, expected one for corpus.add_{name}=True"
            raise UserError(f"{message}; set it to False or use another tokenizer")


def _write_units(
    corpus: CorpusConfig, folder: Path, units: list, workers: int, progress: Callable, tokenizer: Tokenizer
) -> None:
    state = {"done": 0, "tokens": 0, "documents": 0}
    missing = []

    def count(number: int) -> None:
        for split in SPLITS:
            facts = read_json(_shard_json(folder, split, number), tokens=int, documents=int)
            state["tokens"] += facts["tokens"]
            state["documents"] += facts["documents"]
        state["done"] += 1
        progress(Progress(state["done"], len(units), state["tokens"], state["documents"]))

    for number in range(len(units)):
        if all(_shard_json(folder, split, number).is_file() for split in SPLITS):
            count(number)
        else:
            missing.append(number)
    if workers <= 1 or len(missing) <= 1:
        for number in missing:
            write_unit(corpus, folder, number, units[number], tokenizer)
            count(number)
        return
    # Not fork: the caller may have threads of XLA and Grain.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(missing)), context, initializer=die_with_parent, initargs=(os.getpid(),)
    ) as pool:
        futures = {pool.submit(_write_unit_here, corpus, folder, n, units[n]): n for n in missing}
        try:
            for future in as_completed(futures):
                future.result()
                count(futures[future])
        except BrokenProcessPool:
            message = f"found a worker killed while preparing {folder}, expected enough memory for {workers}"
            raise UserError(f"{message}; repeat the command with fewer workers; it continues") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write_elsewhere(corpus: CorpusConfig, folder: Path, units: list[Unit], executor: Executor) -> None:
    """The units by the tasks of a cluster."""
    try:
        from pretrain.data.recipe.documents import Call
        from pretrain.data.recipe.execute import run_job
        from pretrain.data.recipe.steps import Job
    except ImportError as e:
        message = f"found no package {e.name}, expected it for {type(executor).__name__}"
        raise UserError(f"{message}; pip install 'pretrain[prepare]'") from None
    folder = folder.absolute()
    units = [replace(u, clean=u.clean and u.clean.absolute()) for u in units]
    logs = folder / "tokenize"
    job = Job("tokenize", len(units), [Call(partial(_write_numbered, corpus, folder, units))])
    run_job(job, logs, executor, 1, lambda *_: None)
    shutil.rmtree(logs)


def _write_numbered(corpus: CorpusConfig, folder: Path, units: list[Unit], number: int) -> None:
    if not all(_shard_json(folder, split, number).is_file() for split in SPLITS):
        _write_unit_here(corpus, folder, number, units[number])


_loaded: dict[Path, Tokenizer] = {}  # of this worker process


def _write_unit_here(corpus: CorpusConfig, folder: Path, number: int, unit: Unit) -> None:
    if folder not in _loaded:
        _loaded[folder] = load_tokenizer(folder / "tokenizer")
    write_unit(corpus, folder, number, unit, _loaded[folder])


def _shard_json(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}-{number:05d}.json"


def write_unit(corpus: CorpusConfig, folder: Path, number: int, unit: Unit, tokenizer: Tokenizer) -> None:
    dtype, dropped = token_dtype(tokenizer.vocab_size), Counter()
    numbers = {file: i for i, file in enumerate(unit.files)}
    writers = {s: ShardWriter(folder, f"{s}-{number:05d}", corpus.record_tokens, dtype) for s in SPLITS}
    bos = [tokenizer.bos] if corpus.add_bos else []
    eos = [tokenizer.eos] if corpus.add_eos else []
    for documents in _batches(unit.documents(dropped)):
        encoded = iter(tokenizer.encode_batch([text for d in documents for text in d.texts]))
        for document in documents:
            parts = [np.array(bos + next(encoded) + eos, np.int64) for _ in document.texts]
            if not all(map(len, parts)):
                dropped["no tokens"] += 1
                continue
            if (most := max(int(tokens.max()) for tokens in parts)) >= tokenizer.vocab_size:
                message = f"{document.file} row {document.row}: found token {most}"
                raise UserError(f"{message}, expected ids below {tokenizer.vocab_size}; repair the tokenizer")
            writer = writers[split_of(document.identity, corpus.validation_fraction)]
            for text, tokens in zip(document.texts, parts):
                writer.add(tokens, numbers[document.file], document.row, len(text.encode()))
    for split in reversed(SPLITS):  # train-N.json last: it also counts what the unit dropped
        w = writers[split]
        sizes = {"documents": w.documents, "tokens": w.tokens, "text_bytes": w.text_bytes}
        stated = Shard(name=w.name, **sizes, files=w.finish(), part=unit.part)
        extra = {"sources": unit.files, "dropped": dict(dropped) if split == "train" else {}}
        write_json(_shard_json(folder, split, number), {**asdict(stated), **extra})


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _finish(corpus: CorpusConfig, folder: Path, units: int, tokenizer: Tokenizer, cleaned: Funnel | None) -> Manifest:
    dropped, shards = Counter(), {split: [] for split in SPLITS}
    for number in range(units):
        for split in SPLITS:
            facts = read_json(_shard_json(folder, split, number), dropped=dict, sources=list)
            dropped.update(facts.pop("dropped"))
            del facts["sources"]
            shards[split].append(Shard(**facts))
    stated = [s for split in SPLITS for s in shards[split]]
    rows = funnel.whole(cleaned, dropped, sum(s.documents for s in stated), sum(s.text_bytes for s in stated))
    manifest = Manifest(
        corpus=plain(corpus),
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        record_tokens=corpus.record_tokens,
        shards=shards,
        dropped=funnel.reasons(rows),
        funnel=rows,
    )
    if not manifest.total("train", "documents"):
        raise no_text(sum(len(sources(folder, f"train-{n:05d}")) for n in range(units)))
    write_json(folder / "manifest.json", asdict(manifest))
    return manifest
