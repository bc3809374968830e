"""The texts of a web archive (WARC 1.1, ISO 28500; WET files of Common Crawl are of the same form)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.data.config import Warc
from pretrain.data.streams import damage, open_bytes
from pretrain.errors import UserError


@dataclass(frozen=True)
class Left:
    """In the place of a text: why there is none. It is counted."""

    reason: str


def web_rows(source: Warc, file: str) -> Iterator[tuple[int, bytes | str | Left]]:
    """(number of the record in the file, text) of each page; other records (requests, metadata) are no documents."""
    try:
        import trafilatura
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError as e:
        message = f"found no {e.name}, expected warcio and trafilatura for web archives"
        raise UserError(f"{message}; pip install 'pretrain[prepare]'") from None
    row = 0
    try:
        # Decompressed by us: at the end of a cut file warcio only stops.
        with open_bytes(Path(file)) as stream:
            for row, record in enumerate(ArchiveIterator(stream)):
                where = f"{file} record {row}"
                if record.rec_type == "conversion":
                    yield row, _content(record, source.max_document_bytes, where)
                elif record.rec_type == "response":
                    page = _page(record, source.max_document_bytes, where)
                    text = page if isinstance(page, Left) else trafilatura.extract(page, include_comments=False)
                    yield row, Left("no main text") if text is None else text
            while stream.read(1 << 16):  # to the last byte, which says whether the file is whole
                pass
    except (UserError, GeneratorExit):
        raise
    except ArchiveLoadFailed as e:
        reason = " ".join(str(e).split())
        raise UserError(f"{file} after record {row}: found no WARC ({reason}), expected one; copy it anew") from None
    except Exception as e:
        raise damage(e, f"{file} after record {row}") or e from None


def _page(record: Any, limit: int, where: str) -> bytes | Left:
    headers = record.http_headers
    if headers is None or not headers.get_statuscode().startswith("2"):
        return Left("no page")
    kind = (headers.get_header("Content-Type") or "").split(";")[0].strip().lower()
    if kind not in ("text/html", "application/xhtml+xml", ""):
        return Left("no HTML")
    return _content(record, limit, where)


def _content(record: Any, limit: int, where: str) -> bytes | Left:
    """The record's content; decompressing stops where it is longer than the limit."""
    stream, parts, size = record.content_stream(), [], 0
    while size <= limit and (part := stream.read(min(1 << 16, limit + 1 - size))):
        parts.append(part)
        size += len(part)
    if size > limit:
        return Left("longer than max_document_bytes")
    if getattr(record.raw_stream, "limit", 0) > 0:
        raise UserError(f"{where}: found the end of the file inside a record, expected a whole file; copy it anew")
    return b"".join(parts)
