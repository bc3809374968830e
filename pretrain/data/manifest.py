"""What a prepared folder says about itself, and how it is compared with a config."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain import untrusted
from pretrain.data.config import CorpusConfig
from pretrain.data.records import publish
from pretrain.errors import UserError

VERSION = 3
LARGEST = 1 << 28
"""Bytes of a JSON file of a corpus: millions of names of source files."""
SPLITS = ("train", "validation")
SEAL, LIST = "sha256", "rows"
"""Keys of our JSON files: of the rest of the content; of a list, which has no keys of its own."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard without its list of source files, which stands in `NAME.json`."""

    name: str
    documents: int
    tokens: int
    text_bytes: int
    files: dict[str, dict]  # name -> {"bytes", "sha256"}
    part: str = ""  # of the corpus, where its source has named ones


@dataclass(frozen=True, kw_only=True)
class Manifest:
    corpus: dict  # the CorpusConfig as plain values
    tokenizer: str  # fingerprint
    vocab_size: int
    record_tokens: int
    shards: dict[str, list[Shard]]  # by split, in order
    dropped: dict[str, int]  # documents left out, by reason
    funnel: list[dict] = field(default_factory=list)  # what each step did: rows of `recipe.shards`
    version: int = VERSION

    def total(self, split: str, what: str) -> int:
        """Sum over the split's shards of documents, tokens or text_bytes."""
        return sum(getattr(shard, what) for shard in self.shards[split])


def write_json(path: Path, value) -> None:
    """Atomically, with a checksum inside; the same value gives the same bytes."""
    content = value if isinstance(value, dict) else {LIST: value}
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    sealed = {**content, SEAL: _digest(content)}
    temporary.write_text(json.dumps(sealed, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    publish(temporary, path)


def read_json(path: Path, **kinds: type) -> Any:
    """What `write_json` wrote; with `kinds` an object that has these keys. Raises UserError where it is not that."""
    content = _unsealed(path, _parsed(path))
    for name, kind in kinds.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), kind):
            raise UserError(f"found no {name} in {path}, expected what prepare writes; restore it or prepare anew")
    return content


def _parsed(path: Path):
    try:
        return untrusted.load(path, LARGEST)
    except (ValueError, OSError):
        raise UserError(f"found a damaged {path}, expected JSON; restore it or prepare into another folder") from None


def _unsealed(path: Path, content: Any) -> Any:
    if not isinstance(content, dict) or content.pop(SEAL, None) != _digest(content):
        raise UserError(
            f"found other content in {path} than was written, expected that of its sha256; restore it or prepare into "
            "another folder"
        )
    return content[LIST] if content.keys() == {LIST} else content


def sources(folder: Path, shard: str) -> list[str]:
    """The source files that the documents of a shard name by number. Raises UserError."""
    return [str(name) for name in read_json(folder / f"{shard}.json", sources=list)["sources"]]


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"found no manifest.json in {folder}, expected a prepared corpus; run pretrain data prepare")
    parsed = _parsed(path)
    found = parsed.get("version") if isinstance(parsed, dict) else None
    if found != VERSION:
        raise UserError(f"found version {found} in {path}, expected {VERSION}; prepare the corpus anew")
    value = _unsealed(path, parsed)
    try:
        shards = {split: [Shard(**s) for s in value["shards"][split]] for split in SPLITS}
        manifest = Manifest(**{**value, "shards": shards})
    except (KeyError, TypeError):
        raise UserError(f"found a damaged {path}, expected a manifest; restore it or prepare anew") from None
    if wrong := next(_nonsense(manifest), None):
        raise UserError(f"found {wrong} in {path}, which no corpus has; restore it or prepare anew")
    return manifest


def _nonsense(manifest: Manifest) -> Iterator[str]:
    """What prepare never writes, though the checksum may be right: whoever can write the file can count it."""
    kinds = {"corpus": dict, "tokenizer": str, "dropped": dict, "funnel": list}
    if other := [name for name, kind in kinds.items() if not isinstance(getattr(manifest, name), kind)]:
        yield f"another {other[0]}"
        return
    counts = {"vocab_size": manifest.vocab_size, "record_tokens": manifest.record_tokens, **manifest.dropped}
    for shard in (s for split in SPLITS for s in manifest.shards[split]):
        where = repr(shard.name)[:80]
        counts |= {f"{where}.{what}": getattr(shard, what) for what in ("documents", "tokens", "text_bytes")}
        if not isinstance(shard.part, str) or not untrusted.is_plain(shard.name):
            yield f"the shard {where}"
        if not isinstance(shard.files, dict) or not all(map(untrusted.is_plain, shard.files)):
            yield f"{repr(shard.files)[:80]} as files"
        elif not all(isinstance(f, dict) and {"bytes", "sha256"} <= f.keys() for f in shard.files.values()):
            yield f"files without sizes in {where}"
    strange = [(n, c) for n, c in counts.items() if type(c) is not int or not 0 <= c < 2**48]
    yield from (f"{str(n)[:80]}={str(c)[:40]}" for n, c in strange)
    if not strange and not 0 < manifest.record_tokens <= 2**24:
        yield f"record_tokens={manifest.record_tokens}"


def plain(config) -> Any:
    """A config as JSON values; a dataclass also names its type."""
    if dataclasses.is_dataclass(config):
        values = {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"type": type(config).__name__, **values}
    return [plain(v) for v in config] if isinstance(config, tuple) else config


def require_same_corpus(folder: Path, stored: dict, corpus: CorpusConfig) -> None:
    """Raises, with each key that differs, where `folder` was prepared from another config."""
    old, new = _flat(stored), _flat(plain(corpus))
    if changed := [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]:
        message = "{} holds a corpus with {}={!r}, expected {!r}; restore the value or prepare into another folder"
        raise UserError(*(message.format(folder, key, old.get(key), new.get(key)) for key in changed))


def _flat(value, path: str = "corpus") -> dict:
    if not isinstance(value, dict):
        return {path: value}
    return {k: v for key, part in value.items() for k, v in _flat(part, f"{path}.{key}").items()}
