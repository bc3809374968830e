"""The corpus of a config, prepared or streamed: made ready when it is not, opened otherwise."""

import os
from collections.abc import Callable
from pathlib import Path

from pretrain.data.config import DataConfig
from pretrain.data.lanes import Stream
from pretrain.data.manifest import read_manifest, require_same_corpus
from pretrain.data.pipeline import Pipeline
from pretrain.data.rows import Transform
from pretrain.data.streamed import Streamed
from pretrain.data.tokenizer import Tokenizer, load_tokenizer
from pretrain.data.unprepared import FOLDER, open_stream, require_stream
from pretrain.data.windows import Split
from pretrain.data.write import Progress, require_same_tokenizer
from pretrain.data.write import prepare as prepare_corpus
from pretrain.errors import check


def corpus_folder(data: DataConfig, folder: str | os.PathLike) -> Path:
    """Where tokenizer and validation split are, and all of a prepared corpus."""
    folder = Path(folder if data.path is None else data.path)
    return folder / FOLDER if data.streaming else folder


def open_corpus(
    data: DataConfig,
    folder: str | os.PathLike,
    *,
    prepare: bool = True,
    workers: int | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[Split | Stream, Split, Tokenizer]:
    """What is trained on, the validation split and the tokenizer; `folder` is used where `data.path` is None.

    Of many processes one calls it with `prepare=True`, the others with False after that one is done.
    """
    if not data.streaming:
        return prepare_if_needed(data, folder, prepare=prepare, workers=workers, progress=progress)
    check(data, "data")
    folder = corpus_folder(data, folder)
    if prepare:
        require_stream(data.corpus, folder)
    stream = open_stream(data.corpus, folder)
    return stream, Split(folder, "validation"), load_tokenizer(folder / "tokenizer")


def pipeline_of(train: Split | Stream, rows: Transform, data: DataConfig, batch: int) -> Pipeline | Streamed:
    kind = Streamed if isinstance(train, Stream) else Pipeline
    return kind.from_config(train, rows, data, batch)  # pyright: ignore[reportArgumentType]


def prepare_if_needed(
    data: DataConfig,
    folder: str | os.PathLike,
    *,
    prepare: bool = True,
    workers: int | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[Split, Split, Tokenizer]:
    """Of a corpus that is prepared, not streamed: see `open_corpus`."""
    check(data, "data")
    folder = corpus_folder(data, folder)
    if prepare:
        prepare_corpus(
            data.corpus, folder, workers=workers or os.cpu_count() or 1, executor=data.executor, progress=progress
        )
    else:
        require_same_corpus(folder, read_manifest(folder).corpus, data.corpus)
    train, validation = Split(folder, "train"), Split(folder, "validation")
    tokenizer = load_tokenizer(folder / "tokenizer")
    require_same_tokenizer(folder, train.fingerprint, tokenizer)
    return train, validation, tokenizer
