"""A trained model as a folder that other software loads, and the proof that it holds the same model."""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from pretrain import __version__, proof, untrusted
from pretrain.data.tokenizer import Tokenizer, begins_with_bos, load_tokenizer
from pretrain.data.tokenizer_export import to_hf
from pretrain.errors import CheckFailed, UserError
from pretrain.models import convert, tree
from pretrain.models.convert import engine, safetensors
from pretrain.models.convert.folder import MAX_SHARD_BYTES, describe, family_of
from pretrain.models.transformer import Transformer
from pretrain.opened import OpenRun

MANIFEST = "export.json"
"""The name and SHA-256 of every file of an export: what marks a folder as one."""

TokenizerWriter = Callable[[Path], Mapping[str, Any]]
"""Writes its files into a folder and returns fields of config.json and generation_config.json, as `eos_token_id`."""


def export_model(
    model: Transformer,
    tokenizer_writer: TokenizerWriter | None,
    folder: str | os.PathLike,
    *,
    dtype: str = "float32",
    length: int | None = None,
    generation: Mapping[str, Any] | None = None,
    card: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes config, weights, tokenizer, generation settings and a model card in the Hugging Face layout.

    `length`: the longest sequence the model is meant for. `card`: facts by name, dictionaries become sections. The
    folder appears whole or not at all; an earlier export in its place is replaced, anything else refused (UserError).
    """
    folder = Path(folder).absolute()
    _refuse_strangers(folder)
    for part in convert.parts(model).values():
        describe(part.config, length)  # refuses before a byte is written
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        ids |= dict(tokenizer_writer(partial)) if tokenizer_writer else {}
        convert.save(model, partial, dtype=dtype, length=length, fields=ids, max_shard_bytes=max_shard_bytes)
        if model.config.decoder is not None and model.config.head is not None:
            chosen = {**ids, **(generation or {})}
            safetensors.write_text(partial / "generation_config.json", json.dumps(chosen, indent=2) + "\n")
        safetensors.write_text(partial / "README.md", _card(folder.name, model, dtype, card or {}))
        files = {name: _digest(partial / name) for name in _files(partial)}
        safetensors.write_text(
            partial / MANIFEST, json.dumps({"format": "pretrain-export-1", "files": files}, indent=2)
        )
        _swap(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def export_run(opened: OpenRun, folder: str | os.PathLike, *, dtype: str = "float32", check: bool = False) -> dict:
    """`export_model` with all that a run knows of its model; returns where it is and, with `check`, the proof."""
    config = opened.config
    facts: dict[str, Any] = {"run": str(opened.path), "step": f"{opened.step:,}"}
    if config is not None:
        tokens = opened.step * config.batch.rows * config.data.sequence_length
        facts |= {"tokens": f"{tokens:,}", "sequence length": config.data.sequence_length, "seed": config.seed}
        facts["corpus"] = type(config.data.corpus.source).__name__

    length = config.data.sequence_length if config else _length(Path(opened.path))
    writer = tokenizer_writer(opened.tokenizer, opened.add_bos, types=opened.model.config.embed.types)
    export_model(opened.model, writer, folder, dtype=dtype, length=length, card=facts)
    proof = check_export(folder, opened.model) if check else {}
    return {"folder": str(folder), "dtype": dtype, "step": opened.step, **proof}


def tokenizer_writer(tokenizer: Tokenizer | None, add_bos: bool, *, types: int = 0) -> TokenizerWriter | None:
    """`add_bos`: texts begin with it, where the tokenizer has one. `types`: kinds of tokens for the model."""
    if tokenizer is None:
        return None

    def write(folder: Path) -> dict[str, int | None]:
        to_hf(tokenizer, folder, add_bos=add_bos and tokenizer.bos is not None, types=types > 1)
        return {f"{role}_token_id": getattr(tokenizer, role) for role in ("bos", "eos", "pad")}

    return write


def _length(folder: Path) -> int | None:
    """The longest sequence that a Hugging Face folder says it is meant for."""
    length = safetensors.read_json(folder / "config.json").get("max_position_embeddings")
    if length is not None and (type(length) is not int or not 0 < length < 2**31):
        raise UserError(f"config.json: max_position_embeddings is {repr(length)[:40]}, expected a length; correct it")
    return length


def check_export(folder: str | os.PathLike, model: Transformer) -> dict[str, Any]:
    """How near the export is to `model`: every byte of it, and what it says of random tokens in f32.

    The second opinion comes from `transformers` where it is installed, else from the model before it was written.
    Raises CheckFailed when a file was changed, a weight differs, a tensor is not read or the outputs disagree.
    """
    folder = Path(folder)
    problems, reports = [*changed(folder)], []
    for name, part in convert.parts(model).items():
        objections, report = _checked(folder / name, part)
        problems += objections
        reports.append(report)
    if problems:
        raise CheckFailed(*problems)
    return _joined(reports)


def _checked(folder: Path, model: Transformer) -> tuple[list[str], dict[str, Any]]:
    """(problems, report) of one model in its folder."""
    problems = []
    family, _ = describe(model.config)
    read = convert.parts(convert.load(folder)[1])[""]
    dtype = np.dtype(jnp.dtype(safetensors.read_json(folder / "config.json").get("dtype", "float32")))
    mine, theirs = (engine.to_theirs(family, m, dtype) for m in (model, read))
    if other := [n for n in mine if n not in theirs or mine[n].read().tobytes() != theirs[n].read().tobytes()]:
        problems.append(f"{folder}: {safetensors.listed(other)} is not the model's, expected every bit; export again")
    inputs = proof.random_inputs(read.config)
    judged = proof.opinion(family, folder, read.config, inputs)
    if judged is None:
        before = engine.to_ours(family, read.config, mine, lambda name, param, value: jnp.asarray(value))
        judged = "own reload", proof.answers(family, before, inputs), [], []
    judge, outputs, unread, missing = judged
    if unread or missing:
        problems.append(f"{folder}: {judge} reads no {unread} and misses {missing}, expected neither; export again")
    gap, near = proof.difference(proof.answers(family, read, inputs), outputs)
    if not near:
        named = ", ".join(outputs).replace("_", " ")
        problems.append(f"{folder}: {named} differ from {judge}'s by {gap:.3g}, expected rounding; do not use it")
    return problems, {_gap(family): gap, "compared_with": judge, "unread_tensors": unread}


def _gap(family: engine.Family) -> str:
    """The name of the largest difference in a report."""
    return f"max_abs_{'hidden_state' if 'last_hidden_state' in family.outputs else 'logit'}_difference"


def _joined(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """One report of several models in an export."""
    out: dict[str, Any] = {}
    for report in reports:
        for key, value in report.items():
            before = out.get(key, value)
            out[key] = max(value, before) if isinstance(value, float) else before
    return out | {"unread_tensors": [name for report in reports for name in report["unread_tensors"]]}


def _refuse_strangers(folder: Path) -> None:
    """Nothing is deleted that an earlier export did not write."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: found a file, expected a new or empty folder; choose another name")
    names = _files(folder)
    if not names:
        return
    known = {MANIFEST, *_manifest(folder)} if MANIFEST in names else set()
    if strangers := sorted(set(names) - known):
        shown = safetensors.listed(strangers)
        raise UserError(f"{folder}: found {shown}, which no export wrote; choose a new or empty folder or move it away")


def _files(folder: Path) -> list[str]:
    """Of a folder and the folders in it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _manifest(folder: Path) -> dict[str, str]:
    files = safetensors.read_json(folder / MANIFEST).get("files")
    files = files if isinstance(files, dict) else {}
    if outside := [name for name in files if not all(map(untrusted.is_plain, name.split("/")))]:
        raise UserError(f"{folder / MANIFEST}: names {outside[0][:100]!r}, expected files inside; export again")
    return files


def changed(folder: Path) -> Iterator[str]:
    """What of an export is not as it was written, a sentence each."""
    if not (folder / MANIFEST).is_file():
        return
    for name, digest in _manifest(folder).items():
        if not (folder / name).is_file():
            yield f"{folder}: {name} is missing, {MANIFEST} names it; export again"
        elif _digest(folder / name) != digest:
            yield f"{folder}: {name} was changed since the export, its SHA-256 is another; export again"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clear(folder: Path) -> None:
    """Removes what killed exports left beside it."""
    for kind in ("partial", "old"):
        for path in folder.parent.glob(f".{glob.escape(folder.name)}.{kind}-*"):
            pid = path.name.rpartition("-")[2]
            if pid.isdigit() and (int(pid) == os.getpid() or not _runs(int(pid))):
                shutil.rmtree(path, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _swap(new: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def _card(name: str, model: Transformer, dtype: str, facts: Mapping[str, Any]) -> str:
    """Markdown with the YAML header of the hub; facts that are dictionaries become sections."""
    families = [describe(part.config)[0] for part in convert.parts(model).values()]
    use = f"pipeline_tag: {families[0].pipeline}"
    header = ["---", "library_name: transformers", use, "tags: [pretrain]", "---"]
    own = {
        "architecture": ", ".join(family.architecture for family in families),
        "parameters": f"{tree.size(model):,}",
        "dtype": dtype,
    }
    plain = {**own, **{key: value for key, value in facts.items() if not isinstance(value, Mapping)}}
    lines = [*header, f"# {name}", "", *_rows(plain), ""]
    for title, section in facts.items():
        if isinstance(section, Mapping):
            lines += [f"## {title}", "", *_rows(section), ""]
    lines += [f"Trained and exported with `pretrain` {__version__}."]
    return "\n".join(lines) + "\n"


def _rows(facts: Mapping[str, Any]) -> list[str]:
    cells = [(str(key), " ".join(str(value).split()).replace("|", "\\|")) for key, value in facts.items()]
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells)]


def import_folder(folder: str | os.PathLike, run: str | os.PathLike) -> dict[str, Any]:
    """Reads a Hugging Face folder and writes it again as `run`, ready for evaluate, generate and --start-from.

    Returns the contract of `check_export`, against the folder that was read. Raises UserError for whatever the folder
    has that our model would not read.
    """
    folder = Path(folder)
    _, model = convert.load(folder)
    has_tokenizer = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    tokenizer = load_tokenizer(folder) if has_tokenizer else None

    writer = tokenizer_writer(tokenizer, begins_with_bos(folder), types=model.config.embed.types)
    export_model(model, writer, run, length=_length(folder), card={"imported from": folder.name})
    reports = [compared(folder / name, Path(run) / name, part) for name, part in convert.parts(model).items()]
    return {"run": os.fspath(run), "parameters": tree.size(model), **_joined(reports)}


def compared(folder: Path, run: Path, model: Transformer) -> dict[str, Any]:
    """`model` beside the folder it was read from as `transformers` reads it, or else beside `run`."""
    family = family_of(safetensors.read_json(folder / "config.json"))
    inputs = proof.random_inputs(model.config)
    judged = proof.opinion(family, folder, model.config, inputs)
    if judged is None:
        read = convert.parts(convert.load(run)[1])[""]
        judged = "own reload", proof.answers(family, read, inputs), [], []
    judge, outputs, unread, _ = judged
    gap, _ = proof.difference(proof.answers(family, model, inputs), outputs)
    return {_gap(family): gap, "compared_with": judge, "unread_tensors": unread}
