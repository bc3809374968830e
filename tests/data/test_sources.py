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


def test_links_that_lead_nowhere_or_in_a_circle_are_no_files(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
    (tmp_path / "one.txt").symlink_to(tmp_path / "two.txt")
    (tmp_path / "two.txt").symlink_to(tmp_path / "one.txt")
    for folder in (str(tmp_path), str(tmp_path / "**")):
        assert read(TextFiles(paths=(folder,))) == ["a"]
    with pytest.raises(UserError, match=r"found nothing at .*one\.txt, expected a file"):
        read(TextFiles(paths=(str(tmp_path / "one.txt"),)))


def test_empty_files_are_counted_and_are_no_documents(tmp_path):
    for name, data in (("a.jsonl", b""), ("b.jsonl.gz", gzip.compress(b"")), ("c.jsonl.zst", b""), ("d.jsonl", LINES)):
        (tmp_path / name).write_bytes(data)
    assert read(JsonLines(paths=(str(tmp_path),))) == TEXTS
    (tmp_path / "e.txt").write_bytes(b"")
    dropped = Counter()
    assert list(read_file(TextFiles(paths=("-",)), str(tmp_path / "e.txt"), dropped)) == []
    assert dropped == {"empty": 1}


@pytest.mark.parametrize("kind", [TextFiles, JsonLines])
def test_a_line_of_a_gigabyte_is_refused_in_bounded_memory(tmp_path, kind):
    import tracemalloc

    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.truncate(10**9)  # holes: no byte of it is on the disk
    tracemalloc.start()
    with pytest.raises(UserError, match="more than 1000000 bytes in one document, expected at most max_document_bytes"):
        read(kind(paths=(str(path),), max_document_bytes=1_000_000))
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("kind", [TextFiles, JsonLines])
def test_a_gzip_bomb_is_refused_in_bounded_memory(tmp_path, kind):
    import tracemalloc

    path, packed = tmp_path / "a.jsonl.gz", gzip.compress(bytes(10_000_000))
    path.write_bytes(packed * 100)  # a gigabyte in a hundred members
    tracemalloc.start()
    with pytest.raises(UserError, match="more than 1000000 bytes"):
        read(kind(paths=(str(path),), max_document_bytes=1_000_000))
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


def test_a_compressed_bomb_is_read_in_bounded_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(b" " * 400_000_000))
    tracemalloc.start()
    with pytest.raises(UserError, match="more than 1000000 bytes"):
        read(JsonLines(paths=(str(path),), max_document_bytes=1_000_000))
    assert tracemalloc.get_traced_memory()[1] < 200_000_000
    tracemalloc.stop()
