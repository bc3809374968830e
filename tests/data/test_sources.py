import gzip
import json
import os
import textwrap
from collections import Counter

import pytest
import zstandard

from pretrain.data.config import JsonLines, Parquet, StandardLibrary, StandardLibraryPairs, TextFiles
from pretrain.data.sources import list_files, read_document, read_file, read_files
from pretrain.errors import UserError

TEXTS = ["one", "two\nlines", "drei 東京 \U0001f600", "x" * 100_000]
LINES = "".join(json.dumps({"text": t, "id": 1}) + "\n" for t in TEXTS).encode()


def read(source):
    return [d.text for d in read_files(source, [f for f, _ in list_files(source)], Counter())]


def two_frames(data: bytes) -> bytes:
    return zstandard.compress(data[:50]) + zstandard.compress(data[50:])


@pytest.mark.parametrize(("suffix", "packed"), [("", bytes), (".gz", gzip.compress), (".zst", two_frames)])
def test_json_lines_are_read_plain_gzipped_and_zstandard(tmp_path, suffix, packed):
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed(LINES))
    assert read(JsonLines(paths=(str(tmp_path),))) == TEXTS


def test_each_text_file_is_one_document(tmp_path):
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "4.txt.gz").write_bytes(gzip.compress(b"five"))
    assert read(TextFiles(paths=(str(tmp_path / "*"),))) == [*TEXTS, "five"]


def test_parquet_rows_are_documents(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"n": [1, 2, 3, 4], "body": TEXTS}), tmp_path / "a.parquet")
    assert read(Parquet(paths=(str(tmp_path),), column="body")) == TEXTS


def test_the_standard_library_is_python_without_installed_packages():
    files = [f for f, _ in list_files(StandardLibrary())]
    assert len(files) > 300
    assert files == sorted(files)
    assert not [f for f in files if "site-packages" in f or f"{os.sep}test{os.sep}" in f]
    assert len(list_files(StandardLibrary(limit=20))) == 20
    assert len(list_files(StandardLibrary(tests=True))) > len(files)


def test_pairs_of_the_standard_library_are_signatures_and_what_their_functions_do():
    source = StandardLibraryPairs(limit=60)
    files = [f for f, _ in list_files(source)]
    pairs = list(read_files(source, files, Counter()))
    assert len(pairs) > 200
    for pair in pairs:
        assert pair.text.startswith(("def ", "async def "))
        assert '"""' not in pair.text
        assert pair.target
        assert "\n\n" not in pair.target
    dedent = next(p for p in read_files(source, [str(textwrap.__file__)], Counter()) if p.text == "def dedent(text):")
    assert dedent.target == "Remove any common leading whitespace from every line in `text`."
    assert read_document(source, dedent.file, dedent.row) == dedent


def test_a_file_named_twice_is_read_once_and_link_loops_end(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    source = TextFiles(paths=(str(tmp_path), str(tmp_path / "a.txt"), str(tmp_path / "*.txt")))
    assert read(source) == ["a"]


def test_a_document_is_found_again_by_its_place(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    source = JsonLines(paths=(str(path),))
    for document in read_file(source, str(path), Counter()):
        assert read_document(source, document.file, document.row) == document
    with pytest.raises(UserError, match="found no document"):
        read_document(source, str(path), 9)


@pytest.mark.parametrize(("policy", "kept"), [("replace", ["a\ufffdb", "\ufffd", "ok"]), ("skip", ["ok"])])
def test_invalid_unicode_follows_the_policy_and_is_counted(tmp_path, policy, kept):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a\xffb"}\n{"text": "\\ud800"}\n\n{"text": ""}\n{"text": "ok"}\n')
    dropped = Counter()
    texts = [d.text for d in read_file(JsonLines(paths=("-",), invalid_text=policy), str(path), dropped)]
    assert texts == kept
    assert dropped["empty"] == 2
    assert dropped["invalid text"] == (2 if policy == "skip" else 0)


def test_a_compressed_bomb_is_read_in_bounded_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(b" " * 400_000_000))
    tracemalloc.start()
    with pytest.raises(UserError, match="more than 1000000 bytes"):
        read(JsonLines(paths=(str(path),), max_document_bytes=1_000_000))
    assert tracemalloc.get_traced_memory()[1] < 200_000_000
    tracemalloc.stop()
