"""A prepared folder made of tokens rather than of text."""

import numpy as np

from pretrain.data.manifest import VERSION, write_json
from pretrain.data.records import ShardWriter
from pretrain.data.windows import Split
from pretrain.data.write import SPLITS


def write_split(folder, shards: list[list[list[int]]], record_tokens: int, dtype="<u2") -> Split:
    """A folder whose train split holds the given documents of each shard."""
    stated = []
    for number, documents in enumerate(shards):
        writer = ShardWriter(folder, f"train-{number:05d}", record_tokens, np.dtype(dtype))
        for row, tokens in enumerate(documents):
            writer.add(np.array(tokens), 0, row, 2 * len(tokens))
        write_json(folder / f"{writer.name}.json", {"sources": ["a.jsonl"]})
        files = writer.finish()
        counts = {"documents": writer.documents, "tokens": writer.tokens, "text_bytes": writer.text_bytes}
        stated.append({"name": writer.name, "files": files, **counts})
    value = {"corpus": {}, "tokenizer": "t", "vocab_size": 65536, "record_tokens": record_tokens, "version": VERSION}
    value |= {"shards": {split: stated if split == "train" else [] for split in SPLITS}, "dropped": {}}
    write_json(folder / "manifest.json", value)
    return Split(folder, "train")
