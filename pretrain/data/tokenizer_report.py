"""What a tokenizer makes of some text: how many tokens, of which kind, how fast."""

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pretrain.data.config import JsonLines, Parquet, TextFiles
from pretrain.data.sources import list_files, read_files
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.tokenizer_sentencepiece import SentencePieceTokenizer

CHARACTERS = 1 << 20
"""Encoded in one call."""


def read_texts(path: str, size: int) -> list[str]:
    """Documents of a file or folder, of `size` UTF-8 bytes in total at most; the last one is cut."""
    name = Path(path).name
    kind = JsonLines if ".jsonl" in name else Parquet if name.endswith(".parquet") else TextFiles
    source = kind(paths=(path,))
    texts, left = [], size
    for document in read_files(source, [file for file, _ in list_files(source)], Counter()):
        data = document.text.encode()[:left]
        texts.append(data.decode("utf-8", "ignore"))
        left -= len(data)
        if left <= 0:
            break
    return texts


def measure(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, float]:
    """Of all texts together; a word is what stands between spaces, a MB 10^6 bytes of UTF-8.

    byte_tokens: share of tokens that spell a byte, or a character in part. exact: share of texts that come back.
    """
    counts, seconds, exact = np.zeros(tokenizer.vocab_size, np.int64), 0.0, 0
    for batch in _batches(texts):
        began = time.process_time()  # of all threads
        encoded = tokenizer.encode_batch(batch)
        seconds += time.process_time() - began
        exact += sum(tokenizer.decode(ids) == text for ids, text in zip(encoded, batch))
        for ids in encoded:
            counts += np.bincount(ids, minlength=len(counts))
    tokens, size = max(int(counts.sum()), 1), sum(len(t.encode()) for t in texts)
    return {
        "bytes": size,
        "tokens": int(counts.sum()),
        "bytes_per_token": size / tokens,
        "tokens_per_word": int(counts.sum()) / max(sum(len(t.split()) for t in texts), 1),
        "byte_tokens": float(counts[_byte_ids(tokenizer)].sum()) / tokens,
        "unk": 0.0 if tokenizer.unk is None else float(counts[tokenizer.unk]) / tokens,
        "exact": exact / max(len(texts), 1),
        "mb_per_cpu_second": size / 1e6 / max(seconds, 1e-9),
    }


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _byte_ids(tokenizer: Tokenizer) -> np.ndarray:
    """bool [vocab_size]."""
    out = np.array([_is_part(tokenizer.bytes_of([i])) for i in range(tokenizer.vocab_size)])
    if isinstance(tokenizer, SentencePieceTokenizer):
        out |= np.array([bool(re.fullmatch("<0x[0-9A-F]{2}>", p.piece)) for p in tokenizer.proto.pieces])
    return out


def _is_part(data: bytes) -> bool:
    try:
        data.decode()
        return False
    except UnicodeDecodeError:
        return True
