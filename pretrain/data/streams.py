"""Bytes of a plain, gzip or zstandard file, decompressed as they are read."""

import gzip
import io
import zlib
from pathlib import Path

from pretrain.errors import UserError

CHUNK = 2048  # compressed bytes at a time: zstandard can expand one to 64 MB at most (a 4-byte block repeats 128 KB)


class _Zstandard(io.RawIOBase):
    """Unlike the library's own reader, raises EOFError where the last frame is cut off."""

    def __init__(self, path: Path):
        import zstandard

        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame = None  # the open frame, if any
        self._file = path.open("rb")
        self._out = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._out:
            data = self._file.read(CHUNK)
            if not data:
                if self._frame is not None:
                    raise EOFError("the last frame is cut off")
                return 0
            self._feed(data)
        n = min(len(buffer), len(self._out))
        buffer[:n] = self._out[:n]
        self._out = self._out[n:]
        return n

    def _feed(self, data: bytes) -> None:
        parts = []
        while data:
            self._frame = self._frame or self._new()
            parts.append(self._frame.decompress(data))
            data = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        self._out = memoryview(b"".join(parts))

    def close(self) -> None:
        self._file.close()
        super().close()


def open_bytes(path: Path) -> io.BufferedIOBase:
    """The decompressed bytes; reading may raise whatever `damage` translates."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstandard(path), 1 << 16)
    return path.open("rb")


def damage(error: Exception, where: str) -> UserError | None:
    """What a user should read when decompression failed; None: the error is of another kind."""
    if isinstance(error, EOFError):
        return UserError(
            f"{where}: found the end of the file inside compressed data, expected a whole file; copy it anew"
        )
    if isinstance(error, (gzip.BadGzipFile, zlib.error)) or type(error).__name__ == "ZstdError":
        return UserError(f"{where}: found damaged compressed data ({error}), expected .gz or .zst; copy it anew")
    return None


def too_long(where: str, limit: int) -> UserError:
    message = f"{where}: found more than {limit} bytes in one document, expected at most max_document_bytes"
    return UserError(f"{message}; raise it or split the document")
