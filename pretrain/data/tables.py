"""A column of parquet files and of Hugging Face datasets on disk."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain import untrusted
from pretrain.data.config import DatasetFolder, Parquet
from pretrain.data.streams import too_long
from pretrain.errors import UserError


def table_rows(source: Parquet | DatasetFolder, file: str) -> Iterator[tuple[int, bytes]]:
    """(row, text). Raises UserError where the column is not text or the file is damaged."""
    try:
        import pyarrow as pa
    except ImportError:
        raise UserError("found no pyarrow, expected it for parquet; pip install 'pretrain[parquet]'") from None
    row, kind = 0, "arrow" if file.endswith(".arrow") else "parquet"
    try:
        for batch in _batches(file, source.column):
            # Bytes, because pyarrow raises on a whole batch when one string in it is not UTF-8.
            for value in batch.cast(pa.large_binary()).to_pylist():
                if len(value or b"") > source.max_document_bytes:
                    raise too_long(f"{file} row {row}", source.max_document_bytes)
                yield row, value or b""
                row += 1
    except (pa.ArrowException, OSError, ValueError, SystemError) as e:  # the last: sizes below zero
        reason = " ".join(str(e).split())
        raise UserError(f"{file}: found damaged {kind} ({reason}), expected a whole file; copy it anew") from None


def _batches(file: str, column: str) -> Iterator[Any]:
    """The column in pieces of some hundred rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.endswith(".arrow"):
        with pq.ParquetFile(file) as parquet:
            _check_column(file, parquet.schema_arrow, column)
            for batch in parquet.iter_batches(batch_size=256, columns=[column]):
                yield batch.column(0)
        return
    with pa.memory_map(file) as mapped, pa.ipc.open_stream(mapped) as stream:
        _check_column(file, stream.schema, column)
        for batch in stream:
            batch.validate()
            texts = batch.column(column)
            plain = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(texts.type, texts.type)
            texts = texts.view(plain)
            texts.validate(full=True)  # offsets lead into the file and nowhere else; as bytes: UTF-8 is judged later
            for start in range(0, len(texts), 256):
                yield texts.slice(start, 256)


def _check_column(file: str, schema: Any, column: str) -> None:
    import pyarrow as pa

    kinds = {f.name: f.type for f in schema}
    if kinds.get(column) not in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
        columns = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        message = f"{file}: found columns {columns}, expected text in {column!r}"
        raise UserError(f"{message}; set the source's column".replace("\n", " "))


def dataset_files(source: DatasetFolder, files: list[str]) -> list[str]:
    """Those of the split, without what `datasets` keeps beside its data (cache-*.arrow).

    A split is a folder of `save_to_disk` or of a repository, or how a file's name begins, as train-00000-of-00007.
    """
    listed: dict[Path, set[str] | None] = {}
    for folder in {Path(file).parent for file in files}:
        listed[folder] = _data_files(folder)
    known = [f for f in files if (names := listed[Path(f).parent]) is None or os.path.basename(f) in names]
    chosen = [f for f in known if source.split is None or _split(f, source.split)]
    if not chosen:
        found = sorted({Path(f).parent.name for f in known})
        message = f"found no split {source.split} in {', '.join(source.paths)} (folders: {', '.join(found)})"
        raise UserError(f"{message}, expected one; set split to another, or to None for all")
    return chosen


def _data_files(folder: Path) -> set[str] | None:
    """What `save_to_disk` says are the files of the folder; None: it did not write it."""
    state = folder / "state.json"
    if not state.is_file():
        return None
    try:
        return {str(entry["filename"]) for entry in untrusted.load(state)["_data_files"]}
    except (ValueError, OSError, KeyError, TypeError):
        raise UserError(f"{state}: found no list of data files, expected that of save_to_disk; save it anew") from None


def _split(file: str, split: str) -> bool:
    path = Path(file)
    return path.parent.name == split or path.name.startswith((f"{split}-", f"{split}."))
