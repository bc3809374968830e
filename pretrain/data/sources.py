"""Source files as documents, always in the same order, with the place each came from."""

import ast
import glob
import inspect
import itertools
import json
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pretrain.data.config import (
    DatasetFolder,
    JsonLines,
    JsonPairs,
    Parquet,
    Single,
    Source,
    StandardLibrary,
    StandardLibraryPairs,
    TextFiles,
    Warc,
    parts_of,
)
from pretrain.data.streams import damage, open_bytes, too_long
from pretrain.data.tables import dataset_files, table_rows
from pretrain.data.webpages import Left, web_rows
from pretrain.errors import UserError

SUFFIXES = {
    TextFiles: ("",),
    JsonLines: (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    JsonPairs: (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    Parquet: (".parquet",),
    DatasetFolder: (".arrow", ".parquet"),
    Warc: tuple(f"{kind}{packed}" for kind in (".warc", ".wet") for packed in ("", ".gz", ".zst")),
}


@dataclass(frozen=True, slots=True)
class Document:
    text: str  # not empty, without lone surrogates
    file: str
    row: int  # line of a JSON Lines file, row of a parquet file, 0 of a text file; counted from 0
    target: str | None = None  # of a pair

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,) if self.target is None else (self.text, self.target)

    @property
    def identity(self) -> bytes:
        """What decides its split."""
        return b"\0".join(text.encode() for text in self.texts)


def list_files(source: Single) -> list[tuple[str, int]]:
    """Every source file once, sorted by path, with its size in bytes."""
    if isinstance(source, StandardLibrary):
        return _standard_library(source)
    found: dict[str, str] = {}  # real path -> the name it was first found by
    for pattern in source.paths:
        matches = [p for p in _expand(pattern, SUFFIXES[type(source)]) if os.path.isfile(p)]
        if not matches:
            raise UserError(_nothing_found(pattern, SUFFIXES[type(source)]))
        for path in matches:
            found.setdefault(os.path.realpath(path), path)
    chosen = dataset_files(source, list(found.values())) if isinstance(source, DatasetFolder) else found.values()
    return sorted((path, os.path.getsize(path)) for path in chosen)


def list_parts(source: Source) -> list[tuple[str, str, int]]:
    """(part, file, bytes) of every part in order. Raises UserError for a file that is in two of them."""
    out = [(name, file, size) for name, part in parts_of(source) for file, size in list_files(part)]
    owners: dict[str, str] = {}
    for name, file, _ in out:
        if (owner := owners.setdefault(os.path.realpath(file), name)) != name:
            raise UserError(f"{file}: found it in the parts {owner} and {name}, expected one; take it out of the other")
    return out


def _expand(pattern: str, suffixes: tuple[str, ...]) -> list[str]:
    if os.path.isdir(pattern):  # os.walk does not follow links to folders: a loop cannot trap it
        names = [os.path.join(folder, name) for folder, _, files in os.walk(pattern) for name in files]
        return sorted(name for name in names if name.endswith(suffixes))
    if os.path.exists(pattern):
        return [pattern]
    return sorted(glob.glob(pattern, recursive=True))


def _nothing_found(pattern: str, suffixes: tuple[str, ...]) -> str:
    if os.path.isdir(pattern):
        wanted = " or ".join(s for s in suffixes if s) or "any"
        return f"found no {wanted} file in {pattern}, expected at least one; name another folder"
    if glob.has_magic(pattern):
        return f"found no file that matches {pattern}, expected at least one; correct the pattern"
    return f"found nothing at {pattern}, expected a file, folder or glob; correct the path"


def _standard_library(source: StandardLibrary) -> list[tuple[str, int]]:
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "dist-packages", "__pycache__"}
    if not source.tests:
        skip |= {"test", "tests", "idle_test"}
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in skip]
        files += [os.path.join(folder, name) for name in names if name.endswith(".py")]
    files.sort()
    if source.limit is not None and source.limit < len(files):
        files = [files[i * len(files) // source.limit] for i in range(source.limit)]
    return [(path, os.path.getsize(path)) for path in files]


def read_file(source: Single, file: str, dropped: Counter, start: int = 0) -> Iterator[Document]:
    """The file's documents from row `start` on; `dropped` counts, by reason, those that are left out."""
    policy = "skip" if isinstance(source, StandardLibrary) else source.invalid_text
    readers = {JsonLines: _json_rows, JsonPairs: _json_rows, Parquet: table_rows, StandardLibraryPairs: _functions}
    readers |= {DatasetFolder: table_rows, Warc: web_rows}
    rows = readers.get(type(source), _text_rows)
    for row, value in rows(source, file):
        if row < start:
            continue
        if isinstance(value, Left):
            dropped[value.reason] += 1
            continue
        where = f"{file} line {row + 1}" if rows is _json_rows else f"{file} row {row}"
        decoded = [_decoded(v, policy, where) for v in (value if isinstance(value, tuple) else (value,))]
        texts = [text for text in decoded if text is not None]
        if len(texts) < len(decoded):
            dropped["invalid text"] += 1
        elif not all(texts):
            dropped["empty"] += 1
        else:
            yield Document(texts[0], file, row, *texts[1:])


def read_document(source: Single, file: str, row: int) -> Document:
    """One document, found again by its place."""
    document = next(read_file(source, file, Counter(), row), None)
    if document is None or document.row != row:
        raise UserError(f"found no document at {file} row {row}, expected the prepared corpus' source; restore it")
    return document


def read_files(source: Single, files: list[str], dropped: Counter) -> Iterator[Document]:
    return itertools.chain.from_iterable(read_file(source, file, dropped) for file in files)


def _decoded(value: bytes | str, policy: str, where: str) -> str | None:
    """Text of well-formed Unicode; None where the policy drops the document."""
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        value.encode("utf-8")  # a JSON escape can smuggle half a surrogate pair in
        return value
    except (UnicodeDecodeError, UnicodeEncodeError) as e:
        if policy == "error":
            message = f"{where}: found invalid Unicode at offset {e.start}, expected UTF-8"
            raise UserError(f"{message}; repair it or set invalid_text to replace or skip") from None
    if policy == "skip":
        return None
    data = value if isinstance(value, bytes) else value.encode("utf-16-le", "surrogatepass")
    return data.decode("utf-8" if isinstance(value, bytes) else "utf-16-le", "replace")


def _text_rows(source: TextFiles | StandardLibrary, file: str) -> Iterator[tuple[int, bytes]]:
    limit = TextFiles.max_document_bytes if isinstance(source, StandardLibrary) else source.max_document_bytes
    try:
        with open_bytes(Path(file)) as stream:
            data = stream.read(limit + 1)
    except Exception as e:
        raise damage(e, file) or e from None
    if len(data) > limit:
        raise too_long(file, limit)
    yield 0, data


def _functions(source: StandardLibraryPairs, file: str) -> Iterator[tuple[int, tuple[str, str]]]:
    """(signature, first paragraph of the docstring) of each function that has one, as they stand in the file."""
    _, data = next(_text_rows(source, file))
    text = data.decode("utf-8", "replace")
    try:
        found = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    except (SyntaxError, ValueError):  # files that show what no Python is
        return
    functions = sorted((n for n in found if ast.get_docstring(n)), key=lambda n: n.lineno)
    lines = text.split("\n")
    for row, node in enumerate(functions):
        signature = inspect.cleandoc("\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1]))
        yield row, (signature, (ast.get_docstring(node) or "").split("\n\n")[0])


def _json_rows(source: JsonLines | JsonPairs, file: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    fields = (source.field,) if isinstance(source, JsonLines) else (source.source, source.target)
    row = 0
    try:
        with open_bytes(Path(file)) as stream:
            while line := stream.readline(source.max_document_bytes + 1):
                where = f"{file} line {row + 1}"
                if len(line) > source.max_document_bytes:
                    raise too_long(where, source.max_document_bytes)
                yield row, _texts(fields, line, where) if line.strip() else ("",)
                row += 1
    except (UserError, GeneratorExit):
        raise
    except Exception as e:
        raise damage(e, f"{file} line {row + 1}") or e from None


def _texts(fields: tuple[str, ...], line: bytes, where: str) -> tuple[str, ...]:
    # Bytes that are not UTF-8 pass the parser as lone surrogates and are judged afterwards like any other.
    try:
        record = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as e:
        reason = "nested too deeply" if isinstance(e, RecursionError) else str(e)
        raise UserError(f"{where}: found broken JSON ({reason}), expected one object; repair the line") from None
    if not isinstance(record, dict):
        wanted = " and ".join(map(repr, fields))
        message = f"{where}: found a JSON {type(record).__name__}, expected an object with {wanted}"
        raise UserError(f"{message}; repair the line")
    texts = tuple(record.get(field) for field in fields)
    for field, text in zip(fields, texts):
        if not isinstance(text, str):
            what = f"fields {', '.join(map(repr, sorted(record)))}" if text is None else f"a {type(text).__name__}"
            message = f"{where}: found {what}, expected text in {field!r}"
            raise UserError(f"{message}; set the source's field or repair the line".replace("\n", " "))
    return tuple(map(str, texts))
