"""The n-gram index of evaluation sets that datatrove's filter reads; its own builder wants lighteval and a network."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig
from datatrove.utils.hashing import create_hash_func
from datatrove.utils.text import ngrams, simplify_text
from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer

from pretrain import untrusted
from pretrain.data.records import publish
from pretrain.data.streams import damage, open_bytes
from pretrain.errors import UserError

JSON = (".jsonl", ".jsonl.gz", ".jsonl.zst")
LONGEST = 1 << 26
"""Bytes of a text of an evaluation set, decompressed."""


def build_index(files: list[str], words: str | WordTokenizer, config: NGramsDecontConfig, folder: Path) -> None:
    """The hashes of all runs of `config.n_grams` words, one file an evaluation file."""
    folder.mkdir(parents=True, exist_ok=True)
    hashed: Any = create_hash_func(config.hash_config)
    tokenizer = load_word_tokenizer(words)
    for number, file in enumerate(files):
        hashes = set()
        for text in _texts(file):
            runs = ngrams(tokenizer.word_tokenize(simplify_text(text, config.norm_config)), config.n_grams)
            hashes.update(hashed(" ".join(run)) for run in runs)
        path = folder / f"{number:03d}.index.hashes"
        temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        temporary.write_bytes(np.array(sorted(hashes), config.hash_config.np_descr).tobytes())
        publish(temporary, path)


def _texts(file: str) -> Iterator[str]:
    """A text file whole; of a JSON line all strings joined, so that runs from question to answer are found too."""
    try:
        with open_bytes(Path(file)) as stream:
            if not file.endswith(JSON):
                yield _limited(stream.read(LONGEST + 1), file).decode("utf-8", "replace")
                return
            while line := _limited(stream.readline(LONGEST + 1), file):
                if line.strip():
                    yield "\n".join(_strings(untrusted.loads(line.decode("utf-8", "replace"))))
    except ValueError as e:
        raise UserError(f"{file}: found broken JSON ({e}), expected one value a line; repair it") from None
    except Exception as e:
        raise damage(e, file) or e from None


def _limited(data: bytes, file: str) -> bytes:
    if len(data) > LONGEST:
        raise UserError(f"{file}: found more than {LONGEST} bytes in one text, expected a benchmark; split it")
    return data


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(part)
