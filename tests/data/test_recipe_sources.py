"""Web archives and Hugging Face datasets on disk, whole and damaged."""

import gzip
import io
import json
from collections import Counter

import pytest
import zstandard

from pretrain.data.config import DatasetFolder, Warc
from pretrain.data.sources import list_files, read_document, read_file, read_files
from pretrain.errors import UserError

PAGE = (
    "<html><head><title>t</title></head><body><nav>Home | About</nav><article><h1>Rivers</h1>{}</article></body></html>"
)
PARAGRAPHS = "".join(
    f"<p>The river number {i} freezes late, and nobody who lives beside it minds.</p>" for i in range(9)
)


def archive(tmp_path, pages, name="a.warc.gz", kind="response"):
    pytest.importorskip("trafilatura")
    pytest.importorskip("warcio")
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    out = io.BytesIO()
    writer = WARCWriter(out, gzip=name.endswith(".gz"))
    writer.write_record(writer.create_warcinfo_record(name, {"software": "test"}))
    for number, (body, headers, status) in enumerate(pages):
        http = StatusAndHeaders(status, headers, protocol="HTTP/1.1") if kind == "response" else None
        address, content = f"http://site.example/{number}", io.BytesIO(body)
        writer.write_record(writer.create_warc_record(address, kind, payload=content, http_headers=http))
    path = tmp_path / name
    path.write_bytes(zstandard.compress(out.getvalue()) if name.endswith(".zst") else out.getvalue())
    return path


def html(body: str, **headers: str):
    return body.encode(), [("Content-Type", "text/html; charset=utf-8"), *headers.items()], "200 OK"


def read(source):
    dropped = Counter()
    documents = list(read_files(source, [file for file, _ in list_files(source)], dropped))
    return documents, dropped


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.zst"])
def test_a_page_is_its_main_text_and_what_is_no_page_is_counted(tmp_path, name):
    image = (b"\x89PNG", [("Content-Type", "image/png")], "200 OK")
    gone = (b"<html>gone</html>", [("Content-Type", "text/html")], "404 Not Found")
    empty = html("<html><body></body></html>")
    archive(tmp_path, [html(PAGE.format(PARAGRAPHS)), image, gone, empty], name)
    source = Warc(paths=(str(tmp_path),))
    documents, dropped = read(source)
    assert [d.row for d in documents] == [1]
    assert "The river number 3 freezes late" in documents[0].text
    assert "About" not in documents[0].text
    assert dropped == {"no HTML": 1, "no page": 1, "no main text": 1}
    assert read_document(source, documents[0].file, 1) == documents[0]


def test_texts_of_wet_files_are_taken_as_they_are(tmp_path):
    texts = ["one\ntwo", "drei 東京"]
    archive(tmp_path, [(text.encode(), [], "") for text in texts], "a.wet.gz", kind="conversion")
    assert [d.text for d in read(Warc(paths=(str(tmp_path),)))[0]] == texts


def test_a_page_that_expands_beyond_the_limit_is_dropped_in_bounded_memory(tmp_path):
    import tracemalloc

    bomb = gzip.compress(b" " * 300_000_000)
    page = (bomb, [("Content-Type", "text/html"), ("Content-Encoding", "gzip")], "200 OK")
    archive(tmp_path, [page, html(PAGE.format(PARAGRAPHS))])
    tracemalloc.start()
    documents, dropped = read(Warc(paths=(str(tmp_path),), max_document_bytes=1_000_000))
    assert tracemalloc.get_traced_memory()[1] < 150_000_000
    tracemalloc.stop()
    assert len(documents) == dropped["longer than max_document_bytes"] == 1


@pytest.mark.parametrize(
    ("name", "damaged", "message"),
    [
        (
            "a.warc.gz",
            lambda data: data[:-9],
            "found the end of the file inside compressed data, expected a whole file",
        ),
        (
            "a.warc",
            lambda data: data[:-300],
            "record 1: found the end of the file inside a record, expected a whole file",
        ),
        ("a.warc", lambda _: b"this is no archive\r\n" * 9, "found no WARC .*, expected one; copy it anew"),
        ("a.warc.gz", lambda _: b"plain", "found damaged compressed data .*, expected .gz or .zst; copy it anew"),
    ],
)
def test_a_damaged_archive_is_named(tmp_path, name, damaged, message):
    path = archive(tmp_path, [html(PAGE.format(PARAGRAPHS))], name)
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        list(read_file(Warc(paths=(str(path),)), str(path), Counter()))


def save_to_disk(folder, texts, column="text"):
    """As `datasets.Dataset.save_to_disk`: streams of Arrow batches, and state.json that lists them."""
    pa = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    names = []
    parts = (texts[:300], texts[300:]) if texts[300:] else (texts,)
    for number, part in enumerate(parts):
        names.append(f"data-{number:05d}-of-00002.arrow")
        table = pa.table({column: part, "n": list(range(len(part)))})
        with pa.OSFile(str(folder / names[-1]), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=100)
    (folder / "cache-1234.arrow").write_bytes(b"of a map that ran once")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def test_a_dataset_that_was_saved_to_disk_is_read_split_by_split(tmp_path):
    texts = [f"document {i} 東京" for i in range(700)]
    save_to_disk(tmp_path / "d/train", texts)
    save_to_disk(tmp_path / "d/test", ["other"])
    (tmp_path / "d/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    train = DatasetFolder(paths=(str(tmp_path / "d"),), split="train")
    documents, _ = read(train)
    assert [d.text for d in documents] == texts
    assert read_document(train, documents[450].file, documents[450].row).text == texts[450]
    assert len(read(DatasetFolder(paths=(str(tmp_path / "d"),)))[0]) == 701
    with pytest.raises(UserError, match=r"found no split dev in .* \(folders: test, train\), expected one; set split"):
        read(DatasetFolder(paths=(str(tmp_path / "d"),), split="dev"))


def test_the_parquet_files_of_a_hub_repository_are_read_split_by_split(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "data").mkdir()
    for name, text in (("train-00000-of-00001", "a"), ("validation-00000-of-00001", "b")):
        pq.write_table(pa.table({"body": [text]}), tmp_path / f"data/{name}.parquet")
    source = DatasetFolder(paths=(str(tmp_path),), column="body", split="validation")
    assert [d.text for d in read(source)[0]] == ["b"]


def test_a_damaged_dataset_is_named(tmp_path):
    save_to_disk(tmp_path / "d", ["text"] * 400, column="body")
    source = DatasetFolder(paths=(str(tmp_path / "d"),))
    with pytest.raises(UserError, match=r"found columns body \(string\), n \(int64\), expected text in 'text'; set"):
        read(source)
    path = tmp_path / "d/data-00000-of-00002.arrow"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(
        UserError, match=r"data-00000-of-00002.arrow: found damaged arrow \(.*\), expected a whole file"
    ):
        read(DatasetFolder(paths=(str(tmp_path / "d"),), column="body"))
    (tmp_path / "d/state.json").write_text("{}")
    with pytest.raises(UserError, match=r"state\.json: found no list of data files, expected that of save_to_disk"):
        read(source)
