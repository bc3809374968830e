"""Text to token ids and back, whatever file the vocabulary came from."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pretrain import untrusted
from pretrain.errors import UserError

LARGEST_FILE = 1 << 27
"""Bytes of a vocabulary: four times the largest tokenizer.json published."""
MOST_TOKENS = 1 << 22
"""Sixteen times the largest vocabulary published: tables are as long as the largest id."""
MOST_GROWTH = 1000
"""Times that a text may become longer by what a file says of normalisation, whose steps multiply; NFKC has 33."""


class Tokenizer(Protocol):
    vocab_size: int
    bos: int | None
    eos: int | None
    pad: int | None
    unk: int | None
    fingerprint: str  # sha256 of the content that decides the ids
    specials: dict[str, int]  # every special token but unk, by name

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone: no bos or eos, and never a special id, also where the text spells one."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        """The text bytes that the ids stand for; special ids stand for none."""
        ...

    def save(self, folder: str | os.PathLike) -> None:
        """Writes what `load_tokenizer(folder)` reads back with the same fingerprint."""
        ...


def without_surrogates(text: str) -> str:
    """Lone surrogates, which no UTF-8 can hold and which crash the bindings, as U+FFFD."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def longest_replacement(charsmap: bytes) -> int:
    """Bytes that one character becomes at most, in a compiled map of sentencepiece: the size of its trie, the trie, and
    the replacements with a zero behind each."""
    texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :]
    return max(map(len, texts.split(b"\0")))


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """A sentencepiece `.model`, a Hugging Face `tokenizer.json`, or a folder that holds one (.json first)."""
    from pretrain.data.tokenizer_hf import HFTokenizer
    from pretrain.data.tokenizer_sentencepiece import SentencePieceTokenizer

    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
        found = found or sorted(path.glob("*.model"))
        if not found:
            raise UserError(
                f"found no tokenizer in {path}, expected tokenizer.json or a .model file; name another folder"
            )
        path = untrusted.inside(path, found[0].name)
    if not path.is_file():
        raise UserError(f"found nothing at {path}, expected a tokenizer file or folder; correct the path")
    return HFTokenizer.load(path) if path.suffix == ".json" else SentencePieceTokenizer.load(path)


def begins_with_bos(folder: str | os.PathLike) -> bool:
    """Whether a text begins with bos, as the tokenizer_config.json of a folder says; where it says nothing, yes."""
    try:
        said = untrusted.load(Path(folder) / "tokenizer_config.json")
    except (OSError, ValueError):
        return True
    return not isinstance(said, dict) or said.get("add_bos_token") is not False
