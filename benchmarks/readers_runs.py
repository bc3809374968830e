"""More readers for fuzz.py: of runs, checkpoints, logs, corpora and source files."""

import gzip
import hashlib
import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from etils import epath

from benchmarks.readers import Reader

# Runs


def make_run(folder: Path) -> None:
    from pretrain import presets
    from pretrain.serial import encode

    (folder / "run.json").write_text(json.dumps({"config": encode(presets.load("runs.smoke"))}))


def read_run(folder: Path) -> None:
    from pretrain import run

    run.read_config(epath.Path(folder)).check()


def seal_digest(text: bytes, key: str = "digest", keep: int = 64) -> bytes:
    """With the sha256 of the rest, as our own writers do it."""
    try:
        content = json.loads(text)
        content.pop(key, None)
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:keep]
        return json.dumps({**content, key: digest}).encode()
    except (ValueError, AttributeError, TypeError, RecursionError):
        return text


def make_manifest(folder: Path) -> None:
    from pretrain.checkpoint.manifest import Manifest, Progress

    (folder / "7").mkdir()
    manifest = Manifest(
        progress=Progress(step=7, tokens=70),
        arrays={"model/a": [[3, 4], "float32", 123], "step": [[], "int32", 5]},
        files={"a/0.0": 3, "_METADATA": 5},
        loss=1.5,
        origin={"config": "0" * 64, "code": {"version": "1", "commit": None}},
    )
    (folder / "7/manifest.json").write_text(manifest.text())


def read_manifest(folder: Path) -> None:
    from pretrain.checkpoint import manifest, reading

    step = epath.Path(folder / "7")
    facts = manifest.read(step)
    manifest.wrong_files(step, facts)
    reading.described(facts)
    facts.text()


def make_log(folder: Path) -> None:
    from tests.report.made_up_run import make_run as made_up

    made_up(folder, steps=6, resume_at=3)
    (folder / "skipped.json").write_text(json.dumps([{"spike": 4, "first": 3, "last": 5, "back_to": 2}]))
    beat = {"process": 0, "host": "a", "pid": 1, "step": 3, "doing": "step", "time": 1e9}
    for process in (0, 1):
        (folder / "heartbeats").mkdir(exist_ok=True)
        (folder / f"heartbeats/{process}.json").write_text(json.dumps({**beat, "process": process}))


def read_log(folder: Path) -> None:
    from pretrain import doctor
    from pretrain.health import spikes, watchdog
    from pretrain.report import write_report

    run = epath.Path(folder)
    doctor.examine(run, arrays=False)
    watchdog.lagging(watchdog.read(run), 10.0)
    write_report(run)
    spikes.read(run)


# Corpora and their sources


def make_corpus(folder: Path) -> None:
    from tests.data.stored import write_split

    draw = np.random.default_rng(0)
    write_split(folder, [[draw.integers(1, 300, n).tolist() for n in (5, 9, 30)]], 16)


CORPUS = (
    *("manifest.json", "train-00000.json", "train-00000.array_record", "train-00000.documents.array_record"),
    "train-00000.places",
)


def read_corpus(folder: Path) -> None:
    from pretrain.data.fit import packed
    from pretrain.data.windows import Split

    split = Split(folder, "train")
    split.pieces(0, min(split.tokens, 64))
    for _, (_, _) in zip(range(8), split.records()):
        pass
    tokens, starts = np.zeros(33, np.int64), np.zeros(33, bool)
    split.fill(0, tokens, starts)
    for window in range(min(split.windows, 4)):
        packed(split.window_lengths(window), 16)


def make_record(folder: Path) -> None:
    from pretrain.data.records import Record, encode_record

    record = Record(np.arange(9, dtype="<u2"), np.array([0, 3, 8]), 0, 0, 0)
    (folder / "record").write_bytes(encode_record(record))


def read_record(folder: Path) -> None:
    from pretrain.data.records import decode_record
    from pretrain.errors import UserError

    try:
        record = decode_record((folder / "record").read_bytes())
    except ValueError as error:  # its caller names the file
        raise UserError(str(error)) from None
    np.zeros(len(record.tokens), bool)[record.boundaries] = True


def make_journal(folder: Path) -> None:
    from pretrain.data.journal import Journal
    from pretrain.data.lanes import Cursor, Place

    Journal(folder, "d").append(4, 0, [Cursor(Place(0, 1, 2, 3), 4, 5), Cursor(Place(1, 1, 2, 3), 4, 5)])


def read_journal(folder: Path) -> None:
    from pretrain.data.journal import Journal

    Journal(folder, "d").latest(9, range(4))


def make_table(folder: Path) -> None:
    from pretrain.data.fit import _keep

    _keep(folder / "fit.npy", np.arange(12, dtype=np.int64).reshape(6, 2))


def read_table(folder: Path) -> None:
    from pretrain.data.fit import _kept

    _kept(folder / "fit.npy")


TEXTS = {"text": ["a few words", "more of them", "é"], "n": [1, 2, 3]}


def make_sources(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    lines = "".join(json.dumps({"text": t}) + "\n" for t in TEXTS["text"]).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(lines))
    (folder / "d.txt").write_bytes(b"plain")
    table = pa.table(TEXTS)
    pq.write_table(table, folder / "e.parquet")
    with pa.OSFile(str(folder / "f.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    page = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 5\r\n\r\nhello\r\n\r\n"
    (folder / "g.wet").write_bytes(page * 2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "f.arrow"}]}))


def read_sources(folder: Path, names: tuple[str, ...]) -> None:
    from pretrain.data import config as c
    from pretrain.data.sources import read_file
    from pretrain.data.tables import _data_files

    kinds = {".arrow": c.DatasetFolder, ".parquet": c.Parquet, ".wet": c.Warc, ".txt": c.TextFiles}
    for name in names:
        path = folder / name
        kind = kinds.get(path.suffix, c.JsonLines)
        for _ in read_file(kind(paths=(str(path),), max_document_bytes=1 << 16), str(path), Counter()):
            pass
    _data_files(folder)


def make_checkpoint(folder: Path) -> None:
    import jax
    import jax.numpy as jnp
    import orbax.checkpoint as ocp

    from pretrain.checkpoint import layout
    from pretrain.checkpoint.manifest import Manifest, Progress, list_files
    from pretrain.sharding import fingerprint

    state = {"model": {"a": jnp.arange(12, dtype=jnp.float32).reshape(3, 4), "b": jnp.ones(5)}}
    ocp.PyTreeCheckpointer().save(folder / "3", state)
    flat = {name: np.asarray(a) for name, a in layout.flatten(jax.device_get(state)).items()}
    described = layout.describe(flat)
    step = epath.Path(folder / "3")
    manifest = Manifest(
        progress=Progress(step=3, tokens=9),
        arrays={n: [*described[n], fingerprint.of_host(a)] for n, a in flat.items()},
        files=list_files(step),
        loss=None,
        origin={},
    )
    (step / "manifest.json").write_text(manifest.text())


def read_checkpoint(folder: Path) -> None:
    from pretrain.checkpoint.reading import verify
    from pretrain.errors import UserError

    if said := verify(epath.Path(folder / "3")):
        raise UserError(*said)


LOG = ("run.json", "metrics.jsonl", "events.jsonl", "skipped.json", "heartbeats/0.json")
SHARDS = {
    "manifest.json": (partial(seal_digest, key="sha256"), bytes),
    "train-00000.json": (partial(seal_digest, key="sha256"), bytes),
}
READERS = (
    Reader("run.json", make_run, read_run, 10, ("run.json",)),
    Reader(
        "manifest", make_manifest, read_manifest, 10, ("7/manifest.json",), {"7/manifest.json": (seal_digest, bytes)}
    ),
    Reader("log", make_log, read_log, 2, LOG),
    Reader("corpus", make_corpus, read_corpus, 3, CORPUS, SHARDS),
    Reader("record", make_record, read_record, 20, ("record",)),
    Reader(
        "journal",
        make_journal,
        read_journal,
        10,
        ("00000-00002.jsonl",),
        {"00000-00002.jsonl": (partial(seal_digest, key="sha256", keep=16), bytes)},
    ),
    Reader("fit table", make_table, read_table, 5, ("fit.npy",)),
    Reader(
        "json lines",
        make_sources,
        partial(read_sources, names=("a.jsonl", "b.jsonl.gz", "c.jsonl.zst")),
        8,
        ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "state.json"),
    ),
    Reader("tables", make_sources, partial(read_sources, names=("e.parquet", "f.arrow")), 4, ("e.parquet", "f.arrow")),
    Reader("web archive", make_sources, partial(read_sources, names=("g.wet",)), 4, ("g.wet",)),
    Reader("checkpoint", make_checkpoint, read_checkpoint, 0.3, (), {"3/manifest.json": (seal_digest, bytes)}),
)
