import json
import random
from pathlib import Path

import pytest

from pretrain.data.config import CorpusConfig, DataConfig, JsonLines, TrainSentencePiece

WORDS = (
    "the",
    "stream",
    "of",
    "tokens",
    "is",
    "cut",
    "every",
    "window",
    "row",
    "naïve",
    "東京",
    "def",
    "=",
    "10",
    "\n",
)


def write_documents(folder: Path, files: int = 6, documents: int = 25, seed: int = 0) -> list[str]:
    """JSON Lines files of made-up text; returns the documents in the corpus' order."""
    folder.mkdir(parents=True, exist_ok=True)
    r, texts = random.Random(seed), []
    for number in range(files):
        new = [f"{number}-{i} " + " ".join(r.choices(WORDS, k=r.randrange(1, 120))) for i in range(documents)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in new)
        (folder / f"{number:02d}.jsonl").write_text(lines, encoding="utf-8")
        texts += new
    return texts


def corpus_of(folder: Path, **changes) -> CorpusConfig:
    base = {
        "source": JsonLines(paths=(str(folder),)),
        "tokenizer": TrainSentencePiece(vocab_size=420, sample_bytes=200_000),
        "validation_fraction": 0.1,
        "record_tokens": 64,
        "unit_bytes": 20_000,
    }
    return CorpusConfig(**{**base, **changes})


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("texts")
    return folder, write_documents(folder)


@pytest.fixture(scope="session")
def data(texts, tmp_path_factory) -> DataConfig:
    return DataConfig(corpus=corpus_of(texts[0]), path=str(tmp_path_factory.mktemp("corpus") / "c"), sequence_length=50)


@pytest.fixture(scope="session")
def opened(data):
    from pretrain.data.corpus import prepare_if_needed

    return prepare_if_needed(data, "unused", workers=1)
