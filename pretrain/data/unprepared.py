"""What a stream needs before its first batch: the list of its files, a tokenizer, and some documents to validate on.

    FOLDER/stream/sources.json  tokenizer/  manifest.json  {train,validation}-00000.*  cursors/

The train shard holds some of the first documents: how many bytes a token stands for. `cursors` is the `journal`.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from pretrain.data.config import CorpusConfig, Single, TokenizerFile, TrainSentencePiece, parts_of
from pretrain.data.lanes import Stream
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
from pretrain.data.permute import permute
from pretrain.data.sources import Document, list_parts, read_file
from pretrain.data.tokenizer import load_tokenizer
from pretrain.data.windows import Split
from pretrain.data.write import (
    check_specials,
    locked,
    make_tokenizer,
    no_text,
    require_same_tokenizer,
    split_of,
    sweep,
    write_unit,
)
from pretrain.errors import UserError

FOLDER = "stream"
KEPT = 1000
"""Documents of each split: to validate on, and to count bytes a token."""
MOST = 1_000_000
"""Documents that are read to find those."""
TOGETHER = 8
"""Files that they are taken from in turn."""


@dataclass
class _First:
    """Stands for a unit of `write`: the first documents of the stream."""

    files: list[str]
    part: str = ""
    texts: list[Document] = field(default_factory=list)
    """Of the train split, to train a tokenizer on."""
    kept: list[Document] = field(default_factory=list)
    """Of both splits."""

    def documents(self, dropped: Counter) -> Iterator[Document]:
        yield from self.texts or self.kept


def require_stream(corpus: CorpusConfig, folder: Path) -> None:
    """Makes what is missing. Raises UserError where the folder is another stream's."""
    if (folder / "manifest.json").is_file():
        return
    listed, sources = _listed(corpus), folder / "sources.json"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        sweep(folder)
        if not sources.is_file() or read_json(sources, files=list)["files"] != listed:
            shutil.rmtree(folder / "tokenizer", ignore_errors=True)  # of other text, before a kill
            write_json(sources, {"files": listed})
        first = _first_documents(corpus)
        tokenizer = make_tokenizer(corpus, folder, [first])  # pyright: ignore[reportArgumentType]
        check_specials(corpus, tokenizer)
        first.texts = []
        write_unit(corpus, folder, 0, first, tokenizer)  # pyright: ignore[reportArgumentType]
        shards = {split: [Shard(**_stated(folder, split))] for split in SPLITS}
        if not shards["train"][0].documents:
            raise no_text(len(listed))
        manifest = Manifest(
            corpus=plain(corpus),
            tokenizer=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            record_tokens=corpus.record_tokens,
            shards=shards,
            dropped={},
        )
        write_json(folder / "manifest.json", asdict(manifest))


def open_stream(corpus: CorpusConfig, folder: Path) -> Stream:
    """Raises UserError where the folder is another corpus', or a source file has changed since it was made."""
    manifest = read_manifest(folder)
    require_same_corpus(folder, manifest.corpus, corpus)
    if isinstance(corpus.tokenizer, TokenizerFile) and Path(corpus.tokenizer.path).exists():
        require_same_tokenizer(folder, manifest.tokenizer, load_tokenizer(corpus.tokenizer.path))
    listed = _listed(corpus)
    _require_same_files(folder, read_json(folder / "sources.json", files=list)["files"], listed)
    sources: dict[str, Single] = dict(parts_of(corpus.source))
    return Stream(
        folder=folder,
        files=tuple((sources[part], file) for part, file, _, _ in listed),
        corpus=corpus,
        digest=hashlib.sha256(json.dumps([listed, manifest.tokenizer, plain(corpus)]).encode()).hexdigest(),
        bytes_per_token=Split(folder, "train").bytes_per_token,
        vocab_size=manifest.vocab_size,
    )


def _listed(corpus: CorpusConfig) -> list[list]:
    """Part, name, bytes and time of the last change (ns) of every source file."""
    return [[part, file, size, os.stat(file).st_mtime_ns] for part, file, size in list_parts(corpus.source)]


def _require_same_files(folder: Path, before: list[list], now: list[list]) -> None:
    if before == now:
        return
    old, new = ({file: (part, size, at) for part, file, size, at in files} for files in (before, now))
    changed = [file for file in sorted(old.keys() | new.keys()) if old.get(file) != new.get(file)]
    file = changed[0] if changed else "their order"
    found = "no such file" if file not in new else "a new file" if file not in old else _told(new[file], old[file])
    raise UserError(
        f"{file}: found {found}, of {len(changed)} source files that differ from those that {folder} began with, "
        "expected the same; restore them with their times (cp -p), or begin another run"
    )


def _told(now: tuple, before: tuple) -> str:
    if now[1] != before[1]:
        return f"{now[1]} bytes instead of {before[1]}"
    return "another time of its last change"


def _first_documents(corpus: CorpusConfig) -> _First:
    """In a fixed order, from some files in turn, until there is enough."""
    names = [file for _, file, _ in list_parts(corpus.source)]
    first, counts, size = _First(names), Counter(), 0
    wanted = corpus.tokenizer.sample_bytes if isinstance(corpus.tokenizer, TrainSentencePiece) else 0
    for seen, document in enumerate(_in_turn(corpus)):
        split = split_of(document.identity, corpus.validation_fraction)
        if counts[split] < KEPT:
            first.kept.append(document)
        if split == "train" and size < wanted:
            first.texts.append(document)
            size += len(document.text.encode())
        counts[split] += 1
        enough = counts["validation"] >= KEPT or not corpus.validation_fraction
        if seen >= MOST or (size >= wanted and counts["train"] >= KEPT and enough):
            break
    return first


def _in_turn(corpus: CorpusConfig) -> Iterator[Document]:
    parts = dict(parts_of(corpus.source))
    files = [(parts[part], file) for part, file, _ in list_parts(corpus.source)]
    order = permute(np.arange(len(files)), len(files), seed="first", epoch=0).tolist()
    waiting = iter([read_file(source, file, Counter()) for source, file in (files[i] for i in order)])
    active = [file for _, file in zip(range(TOGETHER), waiting)]
    while active:
        for file in list(active):
            document = next(file, None)
            if document is None:
                active.remove(file)
                active += [new for new in [next(waiting, None)] if new is not None]
            else:
                yield document


def _stated(folder: Path, split: str) -> dict:
    facts = read_json(folder / f"{split}-00000.json")
    return {name: value for name, value in facts.items() if name not in ("sources", "dropped")}
