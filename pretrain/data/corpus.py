"""The prepared corpus of a config: made when it is missing, opened otherwise."""

import os
from collections.abc import Callable
from pathlib import Path

from pretrain.data.config import DataConfig
from pretrain.data.manifest import read_manifest, require_same_corpus
from pretrain.data.tokenizer import Tokenizer, load_tokenizer
from pretrain.data.windows import Split
from pretrain.data.write import Progress, require_same_tokenizer
from pretrain.data.write import prepare as prepare_corpus
from pretrain.errors import check


def corpus_folder(data: DataConfig, folder: str | os.PathLike) -> Path:
    return Path(folder if data.path is None else data.path)


def prepare_if_needed(
    data: DataConfig,
    folder: str | os.PathLike,
    *,
    prepare: bool = True,
    workers: int | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[Split, Split, Tokenizer]:
    """The train split, the validation split and the tokenizer; `folder` is used where `data.path` is None.

    Of many processes one calls it with `prepare=True`, the others with False after that one is done.
    """
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
