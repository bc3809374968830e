"""Our documents in a datatrove pipeline: in, counted through each step, and out."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.formatters.base import BaseFormatter

from pretrain.data.recipe.shards import Funnel, drop, read_shard, row_of, shard, write_shard


class Read(PipelineStep):
    """The documents of unit `rank`: from its source, or from the clean shard that a phase before wrote."""

    type, name = "READER", "unit"

    def __init__(self, units: list, folder: Path | None, rows: Funnel | None = None):
        super().__init__()
        self.units, self.folder, self.rows = units, folder, rows or []

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for row in self.rows:  # a task of a cluster runs several units, one after the other
            row.update(row_of(row["step"]))
        row = self.rows[0] if self.folder is None else None
        unit, dropped = self.units[rank], Counter()
        numbers = {file: i for i, file in enumerate(unit.files)}
        if self.folder is None:
            documents = unit.documents(dropped)
        else:
            documents = read_shard(shard(self.folder, rank), unit.files)
        for document in documents:
            if row is not None:
                size = len(document.text.encode())
                for name, amount in (("documents", 1), ("bytes", size)):
                    row[name] += amount
                    row[f"{name}_in"] += amount
            place = {"file": numbers[document.file], "row": document.row}
            yield Document(text=document.text, id=f"{place['file']}:{place['row']}", metadata=place)
        for reason, amount in dropped.items():
            assert row is not None
            drop(row, reason, 0, amount)
            row["documents_in"] += amount


class Exclusions:
    """What a datatrove filter takes for the writer of the documents it drops: they are counted."""

    def __init__(self, row: dict):
        self.row = row

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None: ...

    def write(self, document: Document, rank: int = 0) -> None:
        reason = document.metadata.get("filter_reason", "duplicate")
        drop(self.row, str(reason), len(document.text.encode()))


class Counted(PipelineStep):
    """A step, and in `row` what went in, came out and was dropped; a text that it left empty is dropped."""

    type = "STEP"

    def __init__(self, name: str, step: PipelineStep):
        super().__init__()
        self.name, self.step, self.row = name, step, row_of(name)
        if hasattr(step, "exclusion_writer"):
            step.exclusion_writer = Exclusions(self.row)  # pyright: ignore[reportAttributeAccessIssue]

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in self.step.run(self._entering(data), rank, world_size):
            if not document.text.strip():
                drop(self.row, "empty", len(document.text.encode()))
                continue
            self.row["documents"] += 1
            self.row["bytes"] += len(document.text.encode())
            yield document

    def _entering(self, data: Iterator[Document]) -> Iterator[Document]:
        for document in data:
            self.row["documents_in"] += 1
            self.row["bytes_in"] += len(document.text.encode())
            yield document


class Write(PipelineStep):
    type, name = "WRITER", "clean shard"

    def __init__(self, folder: Path, rows: Funnel):
        super().__init__()
        self.folder, self.rows = folder, rows

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        places = ((d.text, d.metadata["file"], d.metadata["row"]) for d in data)
        write_shard(self.folder, rank, places, self.rows)


class Call(PipelineStep):
    """A function of the task's number, for work that is no stream of documents."""

    type, name = "CALL", "function"

    def __init__(self, function: Callable[[int], None]):
        super().__init__()
        self.function = function

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        self.function(rank)


class Unicode(BaseFormatter):
    """A Unicode form, line ends as \\n, no blanks at the end of a line and at most two empty lines in a row."""

    name = "unicode"

    def __init__(self, form: str):
        super().__init__()
        self.form = form

    def format(self, text: str) -> str:
        text = unicodedata.normalize(self.form, text).replace("\r\n", "\n").replace("\r", "\n")  # pyright: ignore
        lines, empty = [], 0
        for line in text.split("\n"):
            line = line.rstrip()
            empty = 0 if line else empty + 1
            if empty <= 2:
                lines.append(line)
        return "\n".join(lines).strip("\n")


class Chain(PipelineStep):
    """Several steps that count as one."""

    type, name = "CHAIN", "steps"

    def __init__(self, *steps: PipelineStep):
        super().__init__()
        self.steps = steps

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        for step in self.steps:
            data = step.run(data, rank, world_size)
        return data
