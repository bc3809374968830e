"""Clean documents on disk: a `.jsonl.zst` for each unit, with the place of each, and what was counted beside it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.data.manifest import write_json
from pretrain.data.records import publish
from pretrain.data.sources import Document
from pretrain.data.streams import damage, open_bytes

Funnel = list[dict[str, Any]]
"""A row a step: step, documents_in, bytes_in, documents, bytes, dropped {reason: {documents, bytes}}."""


def row_of(step: str) -> dict[str, Any]:
    return {"step": step, "documents_in": 0, "bytes_in": 0, "documents": 0, "bytes": 0, "dropped": {}}


def drop(row: dict[str, Any], reason: str, text_bytes: int, documents: int = 1) -> None:
    counts = row["dropped"].setdefault(reason, {"documents": 0, "bytes": 0})
    counts["documents"] += documents
    counts["bytes"] += text_bytes


def added(rows: Funnel, more: Funnel) -> Funnel:
    """The counts of two sets of documents that took the same steps."""
    out = [row_of(row["step"]) for row in more]
    for funnel in (rows, more):
        for total, row in zip(out, funnel):
            for name in ("documents_in", "bytes_in", "documents", "bytes"):
                total[name] += row[name]
            for reason, counts in row["dropped"].items():
                drop(total, reason, counts["bytes"], counts["documents"])
    return out


def shard(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.jsonl.zst"


def write_shard(folder: Path, number: int, documents: Iterator[tuple[str, int, int]], funnel: Funnel) -> None:
    """Of (text, number of the file in its unit, row in it). `funnel` is read when the last document has come."""
    import zstandard

    path = shard(folder, number)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with temporary.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as stream:
        for text, source, row in documents:
            line = json.dumps({"text": text, "file": source, "row": row}, ensure_ascii=False)
            stream.write(line.encode() + b"\n")
    publish(temporary, path)
    write_json(folder / f"{number:05d}.json", funnel)


def read_shard(path: Path, files: list[str]) -> Iterator[Document]:
    """The documents, as of the unit's `files`."""
    try:
        with open_bytes(path) as stream:
            for line in stream:
                record = json.loads(line)
                yield Document(record["text"], files[record["file"]], record["row"])
    except Exception as e:
        raise damage(e, str(path)) or e from None
