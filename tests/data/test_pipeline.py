import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.pack import Packed
from pretrain.data.pipeline import Pipeline, batch_hash, combine, row_hashes, validation_batches

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pipeline(opened, data):
    return Pipeline.from_config(opened[0], Packed(50), data, batch=6)


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_each_token_is_seen_exactly_once_an_epoch(pipeline):
    n = pipeline.plan.rows
    one_row = Pipeline(pipeline.split, Packed(50), batch=1, seed=4)
    for epoch in (0, 1):
        seen = [int(one_row.windows(step)[0]) for step in range(epoch * n, epoch * n + n)]
        assert sorted(seen) == list(range(n))
        rows = [one_row.rows(step) for step in range(epoch * n, epoch * n + n)]
        assert sum(int((row["segments"] > 0).sum()) for row in rows) == pipeline.split.tokens


def test_epochs_and_seeds_have_orders_of_their_own(pipeline):
    n = pipeline.plan.rows
    orders = {
        tuple(int(Pipeline(pipeline.split, Packed(50), 1, seed).windows(e * n + i)[0]) for i in range(n))
        for seed in (0, 1)
        for e in (0, 1)
    }
    assert len(orders) == 4


def test_without_shuffle_windows_come_in_order(pipeline):
    plain = Pipeline(pipeline.split, Packed(50), batch=3, shuffle=False)
    assert plain.windows(2).tolist() == [6, 7, 8]


@settings(max_examples=30, deadline=None)
@given(step=st.integers(0, 10**12), hosts=st.sampled_from([1, 2, 3, 6]))
def test_any_number_of_hosts_sees_the_same_global_batch(pipeline, step, hosts):
    whole, share = pipeline.rows(step), 6 // hosts
    parts = [pipeline.rows(step, slice(h * share, (h + 1) * share)) for h in range(hosts)]
    assert equal(whole, {name: np.concatenate([p[name] for p in parts]) for name in whole})
    assert combine([digest for p in parts for digest in row_hashes(p)]) == batch_hash(whole)


def test_the_hash_sees_every_array_and_the_order(pipeline):
    batch = pipeline.rows(0)
    hashes = {batch_hash(batch), batch_hash({k: v[::-1] for k, v in batch.items()})}
    for name in batch:
        changed = {**batch, name: batch[name].copy()}
        changed[name][3, 7] += 1
        hashes.add(batch_hash(changed))
    assert len(hashes) == 7


@pytest.mark.parametrize(("workers", "threads"), [(0, 0), (0, 1), (0, 3), (1, 1), (2, 0)])
def test_workers_and_threads_do_not_change_batches_or_their_order(pipeline, workers, threads):
    stream = pipeline.iterate(5, rows=slice(2, 4), stop_step=12, workers=workers, read_threads=threads, prefetch=3)
    got = list(stream)
    assert len(got) == 7
    assert all(equal(batch, pipeline.rows(step, slice(2, 4))) for step, batch in zip(range(5, 12), got))


def test_an_endless_stream_ends_when_it_is_closed(pipeline):
    stream = pipeline.iterate(10**9)
    assert equal(next(stream), pipeline.rows(10**9))
    stream.close()


def test_validation_shows_each_window_once_and_fills_the_last_batch(opened):
    _, validation, _ = opened
    batches = list(validation_batches(validation, Packed(50), 4))
    assert sum(int((b["segments"] > 0).sum()) for b in batches) == validation.tokens
    assert {b["tokens"].shape for b in batches} == {(4, 50)}
    assert sum(b["weights"].sum() for b in batches) == validation.tokens - validation.documents
    assert len(list(validation_batches(validation, Packed(50), 4, limit=2))) == 2
    every = Counter(t for b in batches for row in b["tokens"] for t in row.tolist())
    assert every[2] == validation.documents  # one eos each


def test_bytes_per_token_is_text_over_tokens(opened, texts):
    train, validation, _ = opened
    total = train.bytes_per_token * train.tokens + validation.bytes_per_token * validation.tokens
    assert total == pytest.approx(sum(len(t.encode()) for t in texts[1]))


def test_sources_name_the_document_of_every_segment(pipeline):
    batch = pipeline.rows(3)
    for row in range(6):
        assert [p.length for p in pipeline.sources(3, row)] == np.bincount(batch["segments"][row])[1:].tolist()


PROGRAM = """
import sys, time
from pretrain.data.pack import Packed
from pretrain.data.pipeline import Pipeline
from pretrain.data.windows import Split
if __name__ == "__main__":
    stream = Pipeline(Split(sys.argv[1], "train"), Packed(50), 6).iterate(0, workers=2)
    next(stream)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for children in /proc")
def test_workers_die_with_a_killed_parent(data, opened, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), data.path]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        children = children_of(process.pid)
        assert len(children) >= 2
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in children if alive(pid)]


def children_of(pid: int) -> list[int]:
    return [int(p) for f in Path(f"/proc/{pid}/task").glob("*/children") for p in f.read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
