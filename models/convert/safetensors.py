"""The safetensors format, read lazily and without trust, written shard by shard.

A file is eight bytes (the header's length, little endian), a JSON header {name: {dtype, shape, data_offsets}}, and
the numbers. Large checkpoints are several files and `model.safetensors.index.json`, {"weight_map": {name: file}}.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from pretrain import untrusted
from pretrain.errors import UserError

J = TypeVar("J", dict, list)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MAX_HEADER = untrusted.LARGEST  # bytes; the format has 100 MB, the largest models use a few
MAX_DIMS = 32  # of an array in numpy 1
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    **{f"I{8 * n}": f"i{n}" for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": f"u{n}" for n in (1, 2, 4, 8)},
    "BOOL": np.bool_,
}
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """An array that is made or read when it is asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def listed(names: list[str], limit: int = 5) -> str:
    """The first few names; hostile ones on one line too."""
    shown = ", ".join(n if n.isprintable() else repr(n) for n in (n[:200] for n in names[:limit]))
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint: of `model.safetensors` or else of the shards in its index, as `transformers` looks.

    Raises UserError, also for a folder with nothing but pickles: they can run code, nobody opens them here.
    """
    if (folder / SINGLE).is_file():
        return read_file(untrusted.inside(folder, SINGLE))
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder}: found only pickled weights ({listed(pickles)}), which can run code when they are read; "
            f"expected {SINGLE}, load and save them with transformers where you trust them"
        )
    raise UserError(f"{folder}: found neither {SINGLE} nor {INDEX}; expected a folder in the Hugging Face layout")


def _read_shards(folder: Path) -> dict[str, Tensor]:
    weights = read_json(untrusted.inside(folder, INDEX)).get("weight_map")
    if not isinstance(weights, dict) or not weights or not all(isinstance(f, str) for f in weights.values()):
        raise UserError(
            f"{folder / INDEX}: found no weight_map, expected one of tensors to files; write the index again"
        )
    files = sorted(set(weights.values()))
    if outside := [f for f in files if not untrusted.is_plain(f) or not f.endswith(".safetensors")]:
        found = repr(outside[0])[:100]
        raise UserError(f"{folder / INDEX}: names {found}, expected plain .safetensors names in its own folder")
    if missing := [f for f in files if not (folder / f).is_file()]:
        raise UserError(f"{folder}: the shard {listed(missing)} is missing, {INDEX} names it; copy it again")
    out: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in read_file(untrusted.inside(folder, file)).items():
            if name in out:
                raise UserError(f"{folder / file}: tensor {listed([name])} is in another shard too; keep one of them")
            if name not in weights:
                raise UserError(f"{folder / file}: tensor {listed([name])} is not in {INDEX}; write the index again")
            out[name] = tensor
    if lost := [name for name in weights if name not in out]:
        raise UserError(f"{folder}: no shard holds {listed(lost)}, {INDEX} names it; copy the shards again")
    return out


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, checked against its length; their numbers stay on disk until read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
            raise UserError(f"{path}: found {size} bytes and no header, expected a safetensors file; copy it again")
        header = _object(lambda: untrusted.loads(file.read(length)), path, dict)
    start, end, out = 8 + length, 0, {}
    entries = {name: _entry(name, entry, path) for name, entry in header.items() if name != "__metadata__"}
    for name, (dtype, shape, begin, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != end or stop - begin != math.prod(shape) * dtype.itemsize:
            raise UserError(
                f"{path}: tensor {listed([name])} says bytes {begin} to {stop}, expected {math.prod(shape)} numbers "
                f"of {dtype.name} from byte {end}; the header is damaged, copy the file again"
            )
        out[name], end = Tensor(shape, dtype, lambda a=(dtype, shape, start + begin): _map(path, *a)), stop
    if start + end != size:
        raise UserError(f"{path}: found {size} bytes, its header says {start + end}; it was cut short, copy it again")
    return {name: out[name] for name in entries}


def _map(path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> np.ndarray:
    if not math.prod(shape):
        return np.empty(shape, dtype)
    return np.memmap(path, np.uint8, "r", offset, math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)


def _entry(name: str, entry: object, path: Path) -> tuple[np.dtype, tuple[int, ...], int, int]:
    match entry:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [begin, stop]} if (
            code in DTYPES
            and all(type(n) is int and 0 <= n < 2**48 for n in (*shape, begin, stop))  # a bool is an int too
            and begin <= stop
            and len(shape) <= MAX_DIMS
            and math.prod(n or 1 for n in shape) < 2**60  # numpy multiplies them, also where one is zero
        ):
            return np.dtype(DTYPES[code]), tuple(shape), begin, stop
    found = repr(entry)[:100]
    raise UserError(f"{path}: tensor {listed([name])} is described by {found}, expected dtype, shape and data_offsets")


def read_json(path: Path) -> dict:
    """The object in a JSON file; raises UserError for anything else, also for a key that comes twice."""
    return _object(lambda: untrusted.load(path), path, dict)


def read_list(path: Path) -> list:
    """The list in a JSON file; raises UserError as `read_json` does."""
    return _object(lambda: untrusted.load(path), path, list)


def _object(read: Callable[[], Any], path: Path, kind: type[J]) -> J:
    expected = "expected an object" if kind is dict else "expected a list"
    try:
        out = read()
    except (ValueError, OSError) as error:
        said = untrusted.reason(error)
        raise UserError(f"{path}: found no JSON ({said}), {expected}; copy the file again") from None
    if not isinstance(out, kind):
        raise UserError(f"{path}: found {type(out).__name__} in JSON, {expected}; copy the file again")
    return out


def write_folder(folder: Path, tensors: Mapping[str, Tensor], max_shard_bytes: int) -> list[str]:
    """Writes the shards and, for more than one, their index; returns the names of the files.

    A shard is larger than `max_shard_bytes` only to hold one tensor. Each file appears whole or not at all.
    """
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > max_shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    count = len(shards)
    files = [SINGLE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for file, shard in zip(files, shards):
        write_file(folder / file, shard)
    if count == 1:
        return files
    weights = {name: file for file, shard in zip(files, shards) for name in shard}
    totals = {"total_parameters": sum(math.prod(t.shape) for t in tensors.values())}
    totals["total_size"] = sum(t.nbytes for t in tensors.values())
    write_text(folder / INDEX, json.dumps({"metadata": totals, "weight_map": weights}, indent=2) + "\n")
    return [*files, INDEX]


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without a format
    end = 0
    for name, tensor in tensors.items():
        offsets = [end, end := end + tensor.nbytes]
        header[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers are aligned to eight bytes

    def chunks():
        yield len(text).to_bytes(8, "little")
        yield text
        for tensor in tensors.values():
            yield np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8)

    _write(path, chunks())


def write_text(path: Path, text: str) -> None:
    _write(path, [text.encode("utf-8")])


def _write(path: Path, chunks) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
