"""Training straight from source files: the batches of a plain reference, whoever reads them and wherever they begin."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data import lanes as lanes_module
from pretrain.data.config import DataConfig, Lengths
from pretrain.data.corpus import corpus_folder, open_corpus, pipeline_of
from pretrain.data.lanes import Place, blocks
from pretrain.data.pack import Packed
from pretrain.data.sources import list_files, read_files
from pretrain.data.streamed import Streamed
from pretrain.data.write import split_of
from pretrain.errors import UserError
from tests.data.conftest import corpus_of, write_documents
from tests.data.test_pipeline import equal

ROWS, LENGTH, STEPS = 8, 50, 60
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def streaming(texts, tmp_path_factory) -> DataConfig:
    folder = tmp_path_factory.mktemp("streamed")
    return DataConfig(corpus=corpus_of(texts[0]), path=str(folder), sequence_length=LENGTH, streaming=True, seed=3)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(lanes_module, "BLOCK_DOCUMENTS", 16)


@pytest.fixture(scope="module")
def made(streaming):
    return open_corpus(streaming, "unused")


@pytest.fixture
def fresh(made, streaming):
    def make(**changes) -> Streamed:
        pipeline = pipeline_of(made[0], Packed(LENGTH), streaming, ROWS)
        assert isinstance(pipeline, Streamed)
        return replace(pipeline, **changes)

    shutil.rmtree(corpus_folder(streaming, "unused") / "cursors", ignore_errors=True)
    return make


def reference(made, streaming: DataConfig, steps: int) -> list[np.ndarray]:
    """Tokens [ROWS, LENGTH + 1] of each step: all documents dealt one by one, each lane one list, cut."""
    stream, _, tokenizer = made
    lanes: list[list[int]] = [[] for _ in range(ROWS)]
    count = 0
    for block in blocks(stream, Place(), streaming.seed, streaming.shuffle):
        for document in block.documents:
            lanes[count % ROWS] += [*tokenizer.encode(document.text), tokenizer.eos]
            count += 1
        if min(map(len, lanes)) > steps * LENGTH:
            break
    return [np.array([lane[s * LENGTH : (s + 1) * LENGTH + 1] for lane in lanes]) for s in range(steps)]


def test_batches_are_those_of_a_plain_reference(fresh, made, streaming):
    pipeline = fresh()
    for step, expected in enumerate(reference(made, streaming, STEPS)):
        batch = pipeline.rows(step)
        assert np.array_equal(batch["tokens"], expected[:, :-1])
        kept = batch["weights"] > 0
        assert np.array_equal(batch["targets"][kept], expected[:, 1:][kept])
        assert np.array_equal(~kept, batch["tokens"] == made[2].eos)  # only a document's last token has no target


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 3), processes=st.sampled_from([1, 2, 4, 8]), restart=st.integers(0, 40), shuffle=st.booleans()
)
def test_any_number_of_processes_and_a_restart_see_the_same_batches(made, streaming, seed, processes, restart, shuffle):
    data, share = replace(streaming, seed=seed, shuffle=shuffle), ROWS // processes
    whole = pipeline_of(made[0], Packed(LENGTH), data, ROWS)
    expected = [whole.rows(step) for step in range(45)]
    for p in range(processes):
        rows = slice(p * share, (p + 1) * share)
        before = pipeline_of(made[0], Packed(LENGTH), data, ROWS)
        for step in range(restart):
            before.rows(step, rows)
        if restart:
            reader = before._at(restart - 1, rows)
            before.journal.append(restart, reader.lanes.first, reader.lanes.cursors())
        after = pipeline_of(made[0], Packed(LENGTH), data, ROWS)
        for step in range(restart, 45):
            assert equal(after.rows(step, rows), {k: a[rows] for k, a in expected[step].items()})
        if restart > 1:
            assert after.journal.latest(restart, range(p * share, (p + 1) * share))[0][0] > 0


def test_a_resume_reads_from_the_journal_and_not_from_the_start(fresh, monkeypatch):
    pipeline = fresh()
    pipeline.rows(29)
    reader = pipeline._at(29, slice(None))
    pipeline.journal.append(30, 0, reader.lanes.cursors())
    expected, encoded = pipeline.rows(30), []
    other = replace(pipeline)
    encode = type(other.stream).encode

    def counting(self, tokenizer, documents):
        encoded.extend(documents)
        return encode(self, tokenizer, documents)

    monkeypatch.setattr(type(other.stream), "encode", counting)
    assert equal(other.rows(30), expected)
    assert len(encoded) <= 4 * ROWS
    encoded.clear()
    assert equal(replace(pipeline, journaled=False).rows(30), expected)
    assert len(encoded) > 8 * ROWS


@pytest.mark.parametrize(("workers", "threads"), [(0, 0), (0, 1), (3, 0)])
def test_workers_and_threads_do_not_change_batches(fresh, workers, threads, monkeypatch):
    monkeypatch.setattr(lanes_module, "BLOCK_DOCUMENTS", 1024)  # of the workers, which are processes of their own
    whole = fresh()
    stream = fresh().iterate(5, rows=slice(2, 8), stop_step=12, workers=workers, read_threads=threads)
    for step, batch in enumerate(stream, start=5):
        assert equal(batch, {k: a[2:8] for k, a in whole.rows(step).items()})
    assert step == 11


def test_every_training_document_is_read_once_an_epoch(fresh, texts):
    pipeline, seen = fresh(), Counter()
    for step in range(120):
        pipeline.rows(step)
        for row in range(ROWS):
            seen.update((p.document, p.file, p.row) for p in pipeline.sources(step, row) if p.offset == 0)
    assert set(seen.values()) == {1}, "a document began twice"
    source = corpus_of(texts[0]).source
    documents = read_files(source, [f for f, _ in list_files(source)], Counter())
    training = [(d.file, d.row) for d in documents if split_of(d.identity, 0.1) == "train"]
    n = len(training)
    for epoch in range(2):
        own = sorted((file, row) for number, file, row in seen if epoch * n <= number < (epoch + 1) * n)
        assert own == sorted(training)
    orders = [[(f, r) for d, f, r in sorted(seen) if e * n <= d < (e + 1) * n] for e in (0, 1)]
    assert orders[0] != orders[1]


def test_sources_name_the_document_and_the_offset_of_every_token(fresh, made):
    pipeline, (_, _, tokenizer) = fresh(), made
    for step in (0, 7, 33):
        raw = pipeline.raw(step)
        for row in range(ROWS):
            pieces = pipeline.sources(step, row)
            assert sum(p.length for p in pieces) == LENGTH
            for p in pieces:
                text = json.loads(Path(p.file).read_text(encoding="utf-8").splitlines()[p.row])["text"]
                ids = [*tokenizer.encode(text), tokenizer.eos]
                found = raw.tokens[row, p.start : p.start + p.length].tolist()
                assert found == ids[p.offset : p.offset + p.length]
    assert replace(pipeline).sources(33, 5) == pipeline.sources(33, 5)


def test_no_document_of_the_validation_split_is_trained_on(fresh, made, texts):
    _, validation, _ = made
    held = {t for t in texts[1] if split_of(t.encode(), 0.1) == "validation"}
    assert validation.documents == len(held) > 0
    pipeline = fresh()
    for step in range(60):
        pipeline.rows(step)
        for row in range(ROWS):
            for p in pipeline.sources(step, row):
                text = json.loads(Path(p.file).read_text(encoding="utf-8").splitlines()[p.row])["text"]
                assert text not in held


def test_lengths_cut_documents_and_move_no_token(fresh):
    short = fresh(lengths=(Lengths(step=2, choices=(10,)),))
    plain = fresh()
    for step in (1, 2, 5):
        a, b = short.rows(step), plain.rows(step)
        assert np.array_equal(a["tokens"], b["tokens"])
        assert a["positions"].max() < 10 if step >= 2 else np.array_equal(a["positions"], b["positions"])


def test_a_damaged_or_foreign_journal_changes_nothing(fresh):
    pipeline = fresh()
    expected = pipeline.rows(20)
    reader = pipeline._at(20, slice(None))
    pipeline.journal.append(21, 0, reader.lanes.cursors())
    following = pipeline.rows(21)
    (path,) = pipeline.journal.folder.glob("*.jsonl")
    line = path.read_bytes()
    for place in range(2, len(line) - 1, 37):
        path.write_bytes(line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :])
        assert pipeline.journal.latest(21, range(ROWS)) == [(0, None)] * ROWS
    path.write_bytes(line[: len(line) // 2])
    pipeline.journal.append(21, 0, reader.lanes.cursors())  # behind a torn line
    assert pipeline.journal.latest(21, range(ROWS))[0][0] != 0
    path.write_bytes(line[: len(line) // 2])
    assert equal(replace(pipeline).rows(21), following)
    other = replace(pipeline, seed=9)
    other.__dict__.pop("journal", None)
    assert other.journal.latest(21, range(ROWS)) == [(0, None)] * ROWS
    assert equal(replace(pipeline).rows(20), expected)


def test_a_source_file_that_changed_is_refused(tmp_path):
    write_documents(tmp_path / "t")
    data = DataConfig(corpus=corpus_of(tmp_path / "t"), path=str(tmp_path / "c"), streaming=True)
    open_corpus(data, "unused")
    name = tmp_path / "t" / "03.jsonl"
    before = name.stat()
    content = name.read_text(encoding="utf-8")
    name.write_text(content.replace("stream", "steam"), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"03.jsonl: found \d+ bytes instead of \d+, of 1 source files .* begin another"
    ):
        open_corpus(data, "unused", prepare=False)
    name.write_text(content, encoding="utf-8")
    os.utime(name, ns=(before.st_atime_ns, before.st_mtime_ns + 5_000_000))
    with pytest.raises(UserError, match="found another time of its last change"):
        open_corpus(data, "unused")
    os.utime(name, ns=(before.st_atime_ns, before.st_mtime_ns))
    open_corpus(data, "unused")
    name.rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"03.jsonl: found no such file"):
        open_corpus(data, "unused")


def test_what_a_stream_cannot_do_is_said(streaming, made, tmp_path):
    with pytest.raises(UserError, match="streaming: found packing=fit, expected none of it; set streaming to False"):
        open_corpus(replace(streaming, packing="fit"), "unused")
    (tmp_path / "t.jsonl").write_text('{"text": ""}\n')
    empty = DataConfig(corpus=corpus_of(tmp_path / "t.jsonl"), path=str(tmp_path / "c"), streaming=True)
    with pytest.raises(UserError, match="found no text for training in 1 source files"):
        open_corpus(empty, "unused")


def test_a_stream_can_be_pickled_while_it_is_read(fresh):
    pipeline = fresh()
    expected = pipeline.rows(3)
    assert equal(pickle.loads(pickle.dumps(pipeline)).rows(3), expected)


PROGRAM = """
import sys
from pretrain.data import journal
from pretrain.data.corpus import open_corpus, pipeline_of
from pretrain.data.pack import Packed
from pretrain.data.pipeline import batch_hash
from pretrain.data.config import DataConfig
from tests.data.conftest import corpus_of
journal.FIRST = journal.LONGEST = 0.0
if __name__ == "__main__":
    text, path, start, stop = sys.argv[1:]
    data = DataConfig(corpus=corpus_of(text), path=path, sequence_length=50, streaming=True, seed=3)
    stream = open_corpus(data, "unused")[0]
    pipeline = pipeline_of(stream, Packed(50), data, 8)
    for step, batch in enumerate(pipeline.iterate(int(start), stop_step=int(stop)), start=int(start)):
        print(step, batch_hash(batch), flush=True)
"""


def test_after_kills_the_same_batches_go_on(texts, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(path: Path, begin: int, stop: int) -> subprocess.Popen:
        words = [sys.executable, str(tmp_path / "program.py"), str(texts[0]), str(path), str(begin), str(stop)]
        return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)

    def told(output: str) -> dict[int, str]:
        return {int(a): b for a, b in (line.split() for line in output.splitlines() if line.count(" ") == 1)}

    calm = told(start(tmp_path / "calm", 0, 90).communicate()[0])
    seen, draw = {}, np.random.default_rng(1)
    for _ in range(3):
        process = start(tmp_path / "killed", max(seen, default=-1) + 1, 90)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(int(draw.integers(1, 25)))]
        time.sleep(float(draw.uniform(0, 0.01)))
        process.send_signal(signal.SIGKILL)
        seen |= told("".join(lines) + process.communicate()[0])
    assert list((tmp_path / "killed/stream/cursors").glob("*.jsonl"))
    seen |= told(start(tmp_path / "killed", max(seen) + 1, 90).communicate()[0])
    assert seen == calm
