import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.data import manifest, records
from pretrain.data import write as writing
from pretrain.data.config import TokenizerFile
from pretrain.data.windows import Split
from pretrain.data.write import prepare, split_of, units_of
from pretrain.errors import UserError
from tests.data.conftest import corpus_of

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from pretrain.data.write import prepare
from tests.data.conftest import corpus_of
if __name__ == "__main__":
    prepare(corpus_of(Path(sys.argv[1]), unit_bytes=2_000), Path(sys.argv[2]), workers=int(sys.argv[3]))
"""


class Crash(BaseException):
    pass


def content(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def small(texts, opened, data):
    """A corpus of many units with a ready tokenizer."""
    return corpus_of(texts[0], unit_bytes=15_000, tokenizer=TokenizerFile(path=f"{data.path}/tokenizer"))


def test_the_bytes_do_not_depend_on_the_number_of_workers(small, tmp_path):
    seen = []
    prepare(small, tmp_path / "one", workers=1, progress=seen.append)
    prepare(small, tmp_path / "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert [p.done for p in seen] == list(range(1, seen[-1].units + 1))
    assert seen[-1].units > 2


def test_a_crash_at_any_rename_neither_loses_nor_repeats(small, tmp_path, monkeypatch):
    prepare(small, tmp_path / "whole")
    whole, folder, crashes = content(tmp_path / "whole"), tmp_path / "crashed", 0
    real = records.publish
    while not (folder / "manifest.json").is_file():
        calls = iter(range(100))

        def publish(temporary, path, calls=calls, allowed=crashes % 10):
            if next(calls) >= allowed:  # so many renames happen, then the machine dies; a unit has eight
                raise Crash
            real(temporary, path)

        for module in (records, manifest, writing):
            monkeypatch.setattr(module, "publish", publish)
        crashes += 1
        try:
            prepare(small, folder)
        except Crash:
            assert crashes < 200
    assert crashes > 8
    assert content(folder) == whole


def test_kill_9_at_random_moments_gives_the_same_bytes(texts, tmp_path):
    def start(folder, workers=2):
        (tmp_path / "program.py").write_text(PROGRAM)
        command = [sys.executable, str(tmp_path / "program.py"), str(texts[0]), str(folder), str(workers)]
        return subprocess.Popen(command, cwd=REPOSITORY, env={"PYTHONPATH": str(REPOSITORY), "PATH": ""})

    assert start(tmp_path / "whole", 1).wait(60) == 0
    whole, folder, r = content(tmp_path / "whole"), tmp_path / "killed", random.Random(0)
    for kill in range(3):
        process, wanted = start(folder), 1 + 3 * kill
        while process.poll() is None and len(list(folder.glob("*.array_record*"))) < wanted:
            time.sleep(0.002)
        time.sleep(r.random() * 0.02)
        process.kill()
        process.wait()
    while process.returncode:
        process = start(folder)
        process.wait(60)
    assert content(folder) == whole


def test_every_document_is_in_the_stream_exactly_once(texts, opened):
    train, validation, tokenizer = opened
    found = []
    for split in (train, validation):
        for shard in range(len(split.shards)):
            found += [split.document(shard, i) for i in range(split.shards[shard].documents)]
    assert len(found) == len(texts[1]) == train.documents + validation.documents
    lengths = sorted((len(t.encode()), len(tokenizer.encode(t)) + 1) for t in texts[1])
    assert sorted(f[2:] for f in found) == lengths
    assert len({f[:2] for f in found}) == len(found)
    assert train.text_bytes + validation.text_bytes == sum(n for n, _ in lengths)


def test_the_manifest_states_hashes_counts_and_the_tokenizer(data, opened):
    value = json.loads((Path(data.path) / "manifest.json").read_text())
    assert value["tokenizer"] == opened[2].fingerprint
    for shard in value["shards"]["train"]:
        for name, stated in shard["files"].items():
            assert hashlib.sha256((Path(data.path) / name).read_bytes()).hexdigest() == stated["sha256"]


def test_the_split_depends_on_the_text_alone():
    documents = [f"document {i}".encode() for i in range(10_000)]
    chosen = [d for d in documents if split_of(d, 0.1) == "validation"]
    assert 900 < len(chosen) < 1100
    assert chosen[:3] == [
        b"document 0",
        b"document 11",
        b"document 20",
    ]  # another hash would move documents between splits
    assert {d for d in documents if split_of(d, 0.05) == "validation"} < set(chosen)
    assert not [d for d in documents if split_of(d, 0) == "validation"]


def test_units_are_neighbours_of_bounded_size():
    files = [("a", 5), ("b", 5), ("c", 1), ("d", 50), ("e", 0), ("f", 9)]
    assert units_of(files, 10) == [["a", "b"], ["c"], ["d"], ["e", "f"]]


def test_vocabularies_above_65536_are_stored_in_four_bytes():
    assert records.token_dtype(65536).itemsize == 2
    assert records.token_dtype(65537).itemsize == 4


def test_a_token_beyond_the_vocabulary_is_refused(small, opened, tmp_path):
    class Wrong:
        vocab_size, bos, eos = 10, None, 2

        def encode_batch(self, texts):
            return [[10] for _ in texts]

    unit = writing.Unit("", small.source, [str(next(Path(small.source.paths[0]).glob("*")))])
    with pytest.raises(UserError, match="found token 10, expected ids below 10"):
        writing.write_unit(small, tmp_path, 0, unit, Wrong())


def test_preparing_again_only_opens(data, opened, monkeypatch):
    before = content(Path(data.path))
    monkeypatch.setattr(writing, "list_parts", None)  # the sources may be gone by now
    prepare(data.corpus, Path(data.path))
    assert content(Path(data.path)) == before


def test_verify_finds_a_flipped_byte(small, tmp_path):
    prepare(small, tmp_path)
    split = Split(tmp_path, "train")
    split.verify()
    path = tmp_path / "train-00001.array_record"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"train-00001\.array_record"):
        split.verify()
