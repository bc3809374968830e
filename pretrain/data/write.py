"""From a corpus config to a folder of token shards, restartable at any moment.

The source files are divided into units that do not depend on the number of workers; one process turns a unit into one
shard for each split. A shard is done when its NAME.json stands; everything before that is written again.

    FOLDER/plan.json  tokenizer/  manifest.json
    FOLDER/{train,validation}-00000.{array_record,documents.array_record,json}
"""

import fcntl
import hashlib
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pretrain.data.config import CorpusConfig, TokenizerFile
from pretrain.data.manifest import (
    SPLITS,
    Manifest,
    Shard,
    plain,
    read_json,
    read_manifest,
    require_same_corpus,
    write_json,
)
from pretrain.data.processes import die_with_parent
from pretrain.data.records import ShardWriter, publish, token_dtype
from pretrain.data.sources import Document, list_files, read_files
from pretrain.data.tokenizer import Tokenizer, load_tokenizer
from pretrain.errors import UserError, check

BATCH_CHARACTERS = 1 << 20  # text tokenized in one call


@dataclass(frozen=True)
class Progress:
    done: int  # units, of
    units: int
    tokens: int
    documents: int


def prepare(
    corpus: CorpusConfig, folder: Path, *, workers: int = 1, progress: Callable[[Progress], None] = lambda _: None
) -> Manifest:
    """Prepares what is missing; the same bytes for any number of workers and however often it was killed.

    Raises UserError, having written nothing, where `folder` belongs to another corpus.
    """
    check(corpus, "corpus")
    folder = Path(folder)
    if (folder / "manifest.json").is_file():
        return _finished(corpus, folder)
    files = list_files(corpus.source)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        units = _plan(corpus, folder, files)
        for stale in folder.glob("*.tmp-*"):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        tokenizer = _tokenizer(corpus, folder, [file for file, _ in files])
        _check_specials(corpus, tokenizer)
        _write_units(corpus, folder, units, workers, progress)
        return _finish(corpus, folder, len(units), tokenizer)


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
def _locked(folder: Path):
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            message = f"found another process that prepares {folder}, expected to be alone; wait for it"
            raise UserError(message) from None
        yield


def _plan(corpus: CorpusConfig, folder: Path, files: list[tuple[str, int]]) -> list[list[str]]:
    """The units, as at the first start: a changed source would mix two corpora."""
    path = folder / "plan.json"
    listed = [list(f) for f in files]
    if path.is_file():
        plan = read_json(path)
        require_same_corpus(folder, plan["corpus"], corpus)
        if plan["files"] != listed:
            changed = next(new or old for old, new in _zip_longest(plan["files"], listed) if old != new)[0]
            message = f"found source files changed since {folder} was begun (first: {changed}), expected the same"
            raise UserError(f"{message}; restore them or prepare into another folder")
    elif any(folder.glob("*.array_record")):
        raise UserError(f"found token shards but no plan in {folder}, expected an empty folder; name another")
    else:
        write_json(path, {"corpus": plain(corpus), "files": listed})
    return units_of(files, corpus.unit_bytes)


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


def _tokenizer(corpus: CorpusConfig, folder: Path, files: list[str]) -> Tokenizer:
    target = folder / "tokenizer"
    recipe = corpus.tokenizer
    given = load_tokenizer(recipe.path) if isinstance(recipe, TokenizerFile) else None
    if target.is_dir():
        tokenizer = load_tokenizer(target)
        if given is not None:
            require_same_tokenizer(folder, tokenizer.fingerprint, given)
        return tokenizer
    temporary = folder / "tokenizer.tmp-0"
    temporary.mkdir()
    if isinstance(recipe, TokenizerFile):
        load_tokenizer(recipe.path).save(temporary)
    else:
        from pretrain.data.tokenizer_sentencepiece import sample, train_sentencepiece

        chosen = sample(training_texts(corpus, files), recipe.sample_bytes)
        if not chosen:
            raise _no_text(len(files))
        train_sentencepiece(chosen, recipe, temporary)
    publish(temporary, target)
    return load_tokenizer(target)


def training_texts(corpus: CorpusConfig, files: list[str]) -> Iterator[str]:
    """The texts of the train split."""
    for document in read_files(corpus.source, files, Counter()):
        if split_of(document.identity, corpus.validation_fraction) == "train":
            yield from document.texts


def _no_text(files: int) -> UserError:
    return UserError(f"found no text for training in {files} source files, expected some; name other files")


def _check_specials(corpus: CorpusConfig, tokenizer: Tokenizer) -> None:
    for name, wanted, i in (("bos", corpus.add_bos, tokenizer.bos), ("eos", corpus.add_eos, tokenizer.eos)):
        if wanted and i is None:
            message = f"found a tokenizer without {name}, expected one for corpus.add_{name}=True"
            raise UserError(f"{message}; set it to False or use another tokenizer")


def _write_units(corpus: CorpusConfig, folder: Path, units: list, workers: int, progress: Callable) -> None:
    state = {"done": 0, "tokens": 0, "documents": 0}
    missing = []

    def count(number: int) -> None:
        for split in SPLITS:
            shard = read_json(_shard_json(folder, split, number))
            state["tokens"] += shard["tokens"]
            state["documents"] += shard["documents"]
        state["done"] += 1
        progress(Progress(units=len(units), **state))

    for number in range(len(units)):
        if all(_shard_json(folder, split, number).is_file() for split in SPLITS):
            count(number)
        else:
            missing.append(number)
    if workers <= 1 or len(missing) <= 1:
        tokenizer = load_tokenizer(folder / "tokenizer")
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


_loaded: dict[Path, Tokenizer] = {}  # of this worker process


def _write_unit_here(corpus: CorpusConfig, folder: Path, number: int, files: list[str]) -> None:
    if folder not in _loaded:
        _loaded[folder] = load_tokenizer(folder / "tokenizer")
    write_unit(corpus, folder, number, files, _loaded[folder])


def _shard_json(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}-{number:05d}.json"


def write_unit(corpus: CorpusConfig, folder: Path, number: int, files: list[str], tokenizer: Tokenizer) -> None:
    dtype, numbers, dropped = token_dtype(tokenizer.vocab_size), {file: i for i, file in enumerate(files)}, Counter()
    writers = {s: ShardWriter(folder, f"{s}-{number:05d}", corpus.record_tokens, dtype) for s in SPLITS}
    bos = [tokenizer.bos] if corpus.add_bos else []
    eos = [tokenizer.eos] if corpus.add_eos else []
    for documents in _batches(read_files(corpus.source, files, dropped)):
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
        shard = Shard(name=w.name, documents=w.documents, tokens=w.tokens, text_bytes=w.text_bytes, files=w.finish())
        extra = {"sources": files, "dropped": dict(dropped) if split == "train" else {}}
        write_json(_shard_json(folder, split, number), {**asdict(shard), **extra})


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


def _finish(corpus: CorpusConfig, folder: Path, units: int, tokenizer: Tokenizer) -> Manifest:
    dropped, shards = Counter(), {split: [] for split in SPLITS}
    for number in range(units):
        for split in SPLITS:
            shard = read_json(_shard_json(folder, split, number))
            dropped.update(shard.pop("dropped"))
            del shard["sources"]
            shards[split].append(Shard(**shard))
    manifest = Manifest(
        corpus=plain(corpus),
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        record_tokens=corpus.record_tokens,
        shards=shards,
        dropped=dict(dropped),
    )
    if not manifest.total("train", "documents"):
        raise _no_text(sum(len(read_json(_shard_json(folder, "train", n))["sources"]) for n in range(units)))
    write_json(folder / "manifest.json", asdict(manifest))
    return manifest
