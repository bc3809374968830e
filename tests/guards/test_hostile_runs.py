"""Runs, logs and corpora made to fool a reader end in lines, soon and in little memory, and nothing in them is run."""

import json
import os
import re
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from benchmarks import readers_runs
from pretrain import run
from pretrain.checkpoint import manifest, reading
from pretrain.data.config import DatasetFolder
from pretrain.data.fit import _keep, _kept
from pretrain.data.sources import read_file
from pretrain.data.windows import Split
from pretrain.metrics.goodput import goodput
from pretrain.metrics.sinks import read_lines
from tests.data.stored import write_split
from tests.guards.test_hostile_files import SECONDS, refused


def encoded(folder: Path) -> dict:
    readers_runs.make_run(folder)
    return json.loads((folder / "run.json").read_text())["config"]


RUNS = {
    "a class of a module": lambda c: {**c, "optimizer": {"kind_of": "antigravity.Optimizer"}},
    "a class of another field": lambda c: {**c, "optimizer": c["model"]},
    "nested": lambda c: {**c, "model": json.loads("[" * 80 + "]" * 80)},
    "10^400 steps": lambda c: {**c, "steps": 10**400},
    "10^400 as a rate": lambda c: {**c, "optimizer": {**c["optimizer"], "peak_lr": 10**400}},
    "a rate that is no number": lambda c: {**c, "optimizer": {**c["optimizer"], "peak_lr": float("nan")}},
    "2^62 heads": lambda c: json.loads(re.sub(r'"heads": \d+', f'"heads": {2**62 + 1}', json.dumps(c))),
    "an endless rotation": lambda c: json.loads(re.sub(r'"fraction": [\d.]+', '"fraction": 1e308', json.dumps(c))),
    "ten thousand unknown fields": lambda c: {**c, **{f"x{i}": 0 for i in range(10_000)}},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_lies_about_itself_is_refused_and_nothing_is_imported(name, tmp_path):
    config = RUNS[name](encoded(tmp_path))
    (tmp_path / "run.json").write_text(json.dumps({"config": config}))
    refused(readers_runs.read_run, tmp_path)
    assert "antigravity" not in sys.modules


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    assert "run.json: not readable" in refused(run.read, epath.Path(tmp_path))


def resealed(path: Path, key: str, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_bytes(readers_runs.seal_digest(json.dumps(content).encode(), key))


MANIFESTS = {
    "a path": lambda m: m["files"].update({"../../etc/passwd": 5}),
    "2^64 numbers": lambda m: m["arrays"].update(a=[[2**32, 2**32], "float32", 1]),
    "a thousand dimensions": lambda m: m["arrays"].update(a=[[1] * 1000, "float32", 1]),
    "no numbers": lambda m: m["arrays"].update(a=[["x"], "float32", 1]),
    "no step": lambda m: m["progress"].update(tokens="many"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_with_the_right_digest_may_lie_all_the_same(name, tmp_path):
    readers_runs.make_manifest(tmp_path)
    resealed(tmp_path / "7/manifest.json", "digest", MANIFESTS[name])
    assert "checkpoint 7 is damaged: it" in refused(manifest.read, epath.Path(tmp_path / "7"))


def test_no_room_is_made_for_arrays_that_are_stored_otherwise(tmp_path):
    readers_runs.make_checkpoint(tmp_path)
    step = epath.Path(tmp_path / "3")
    assert reading.verify(step) == []
    resealed(Path(step / "manifest.json"), "digest", lambda m: m["arrays"]["model/a"].__setitem__(0, [2**20, 2**30]))
    assert reading.verify(step) == [f"3: model/a: is stored as [3, 4], expected [{2**20}, {2**30}]"]
    with pytest.raises(ValueError, match=r"it takes 4503599\.6 GB, this machine has"):
        reading._require_room({"a": np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (2**20, 2**30), (0, 0))})


def test_an_array_that_orbax_does_not_find_is_named(tmp_path):
    readers_runs.make_checkpoint(tmp_path)
    path = tmp_path / "3/_METADATA"
    tree = json.loads(path.read_text())
    tree["tree_metadata"]["('model', 'a')"]["key_metadata"] = []
    path.write_text(json.dumps(tree))
    problems = reading.verify(epath.Path(tmp_path / "3"))
    assert any(p.startswith("3: model/a: cannot be read (") for p in problems)


# Logs


def test_a_log_of_anything_is_read_as_far_as_it_is_one(tmp_path):
    lines = [
        b'{"kind": "start", "time": 1.0, "began": 0.0}',
        b'{"step": 4611686018427387904, "time": 2.0, "step_seconds": 1e-9}',
        b'{"step": ' + b"9" * 5000 + b"}",
        b'{"step": true}',
        b'{"step": -1}',
        b'{"time": "now"}',
        b'{"kind": ["start"]}',
        b'{"step_seconds": Infinity}',
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"step": 1, "step": 2}',
    ]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    found = read_lines(epath.Path(tmp_path / "metrics.jsonl"))
    assert [json.dumps(line).encode() for line in found] == [json.dumps(json.loads(x)).encode() for x in lines[:2]]
    began = time.process_time()
    assert goodput(found, [])["sessions"] == 1
    assert time.process_time() - began < SECONDS


REPORTS = {
    "devices that are a list": ("run.json", lambda f: f["hardware"].update(devices=[8])),
    "steps that are a list": ("run.json", lambda f: f["config"].update(steps=[1])),
    "a class that is a number": ("run.json", lambda f: f["config"]["optimizer"].update(kind_of=5)),
    "versions that are a list": ("run.json", lambda f: f.update(versions=[1])),
    "made in the year 10^10": ("run.json", lambda f: f.update(created=1e18)),
    "numbers whose product is infinite": ("run.json", lambda f: f.update(flops_per_token=1e308)),
    "a clock of 10^400": ("heartbeats/0.json", lambda f: f.update(time=10**400)),
    "a process without a name": ("heartbeats/0.json", lambda f: f.pop("host")),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_leaves_out_what_makes_no_sense(name, tmp_path):
    readers_runs.make_log(tmp_path)
    file, change = REPORTS[name]
    content = json.loads((tmp_path / file).read_text())
    change(content)
    (tmp_path / file).write_text(json.dumps(content))
    readers_runs.read_log(tmp_path)
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("said", [5, [5], [{"spike": "x", "first": 1, "last": 2}], [{"spike": 1, "first": 1}]])
def test_steps_that_are_left_out_are_numbers(said, tmp_path):
    readers_runs.make_log(tmp_path)
    (tmp_path / "skipped.json").write_text(json.dumps(said))
    assert "skipped.json" in refused(readers_runs.read_log, tmp_path)


# Corpora

CORPORA = {
    "a shard elsewhere": lambda m: m["shards"]["train"][0].update(name="../train-00000"),
    "a file elsewhere": lambda m: m["shards"]["train"][0]["files"].update({"/etc/passwd": {"bytes": 1, "sha256": ""}}),
    "half a token": lambda m: m["shards"]["train"][0].update(tokens=0.5),
    "fewer than no tokens": lambda m: m["shards"]["train"][0].update(tokens=-5),
    "records of nothing": lambda m: m.update(record_tokens=0),
    "files without sizes": lambda m: m["shards"]["train"][0].update(files={"a": 3}),
    "no documents dropped": lambda m: m.update(dropped=[1]),
}


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_with_the_right_checksum_may_lie_all_the_same(name, tmp_path):
    readers_runs.make_corpus(tmp_path)
    resealed(tmp_path / "manifest.json", "sha256", CORPORA[name])
    assert "manifest.json, which no corpus has" in refused(Split, tmp_path, "train")


def test_a_document_of_no_tokens_does_not_hold_a_reader_up(tmp_path, monkeypatch):
    from pretrain.data import records

    add = records.ShardWriter.add

    def lie(self, tokens, *place):
        add(self, tokens, *place)
        self._rows[-1] = (*self._rows[-1][:3], 0)

    monkeypatch.setattr(records.ShardWriter, "add", lie)
    split = write_split(tmp_path, [[[1, 2, 3], [4, 5]]], 8)
    assert "document 0 of 0 tokens" in refused(split.pieces, 0, 5)


def test_a_record_that_lies_is_refused(tmp_path):
    readers_runs.make_record(tmp_path)
    whole = (tmp_path / "record").read_bytes()
    lies = {0: b"PTR2", 4: struct.pack("<I", 3), 8: struct.pack("<I", 2**31), 40: struct.pack("<I", 2**32 - 1)}
    for at, word in lies.items():
        (tmp_path / "record").write_bytes(whole[:at] + word + whole[at + len(word) :])
        assert "record" in refused(readers_runs.read_record, tmp_path)
    (tmp_path / "record").write_bytes(whole[:20])
    assert "not a token record" in refused(readers_runs.read_record, tmp_path)


def test_a_table_of_rows_that_is_an_archive_or_python_is_made_again(tmp_path):
    path, table = tmp_path / "fit.npy", np.arange(4, dtype=np.int64).reshape(2, 2)
    _keep(path, table)
    assert np.array_equal(_kept(path), table)  # pyright: ignore[reportArgumentType]
    for data in (b"PK\3\4" + bytes(50), path.read_bytes().replace(b"False", b"((((("), b"\x80\x04K\x05."):
        path.write_bytes(data)
        assert _kept(path) is None


@pytest.mark.parametrize("offsets", [(0, -5, 2), (0, 2**31 - 1, 2**31 - 1), (3, 2, 1)])
def test_offsets_of_an_arrow_file_stay_inside_it(offsets, tmp_path):
    import pyarrow as pa

    path = tmp_path / "a.arrow"
    table = pa.record_batch({"text": ["ab", "cd"]})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_batch(table)
    true, false = struct.pack("<3i", 0, 2, 4), struct.pack("<3i", *offsets)
    data = path.read_bytes()
    assert data.count(true) == 1
    path.write_bytes(data.replace(true, false))
    source = DatasetFolder(paths=(str(path),))
    assert "found damaged arrow" in refused(lambda: list(read_file(source, str(path), Counter())))
