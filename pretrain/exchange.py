"""A trained model as a folder that other software loads, and the proof that it holds the same model."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pretrain import __version__
from pretrain.data.tokenizer import Tokenizer, load_tokenizer
from pretrain.data.tokenizer_export import to_hf
from pretrain.errors import CheckFailed, UserError
from pretrain.models import convert, tree
from pretrain.models.config import LearnedPositions, TransformerConfig
from pretrain.models.convert import engine, safetensors
from pretrain.models.convert.folder import MAX_SHARD_BYTES, describe
from pretrain.models.transformer import Inputs, Transformer
from pretrain.opened import OpenRun

MANIFEST = "export.json"
"""The name and SHA-256 of every file of an export: what marks a folder as one."""
TOLERANCE = 1e-3
"""Of logits, relative to the largest one. Two f32 implementations of a model differ by about 1e-5, a wrong one by 1."""
ROWS, LENGTH = 2, 64
"""Of the random tokens both read."""

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
    describe(model.config, length)  # refuses before a byte is written
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        ids |= dict(tokenizer_writer(partial)) if tokenizer_writer else {}
        convert.save(model, partial, dtype=dtype, length=length, fields=ids, max_shard_bytes=max_shard_bytes)
        chosen = {**ids, **(generation or {})}
        safetensors.write_text(partial / "generation_config.json", json.dumps(chosen, indent=2) + "\n")
        safetensors.write_text(partial / "README.md", _card(folder.name, model, dtype, card or {}))
        files = {path.name: _digest(path) for path in sorted(partial.iterdir())}
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
    writer = _tokenizer_writer(opened.tokenizer, config.data.corpus.add_bos if config else None)
    export_model(opened.model, writer, folder, dtype=dtype, length=length, card=facts)
    proof = check_export(folder, opened.model) if check else {}
    return {"folder": str(folder), "dtype": dtype, "step": opened.step, **proof}


def _tokenizer_writer(tokenizer: Tokenizer | None, add_bos: bool | None) -> TokenizerWriter | None:
    """`add_bos` None: where the tokenizer has one."""
    if tokenizer is None:
        return None

    def write(folder: Path) -> dict[str, int | None]:
        to_hf(tokenizer, folder, add_bos=tokenizer.bos is not None if add_bos is None else add_bos)
        return {f"{role}_token_id": getattr(tokenizer, role) for role in ("bos", "eos", "pad")}

    return write


def _length(folder: Path) -> int | None:
    """The longest sequence that a Hugging Face folder says it is meant for."""
    return safetensors.read_json(folder / "config.json").get("max_position_embeddings")


def check_export(folder: str | os.PathLike, model: Transformer) -> dict[str, Any]:
    """How near the export is to `model`: every byte of it, and the logits of random tokens in f32.

    The second opinion comes from `transformers` where it is installed, else from the model before it was written.
    Raises CheckFailed when a file was changed, a weight differs, a tensor is not read or the logits disagree.
    """
    folder = Path(folder)
    _, read = convert.load(folder)
    family, _ = describe(model.config)
    dtype = np.dtype(jnp.dtype(safetensors.read_json(folder / "config.json").get("dtype", "float32")))
    mine, theirs = (engine.to_theirs(family, m, dtype) for m in (model, read))
    problems = [*_changed(folder)]
    if other := [n for n in mine if n not in theirs or mine[n].read().tobytes() != theirs[n].read().tobytes()]:
        problems.append(f"{folder}: {safetensors.listed(other)} is not the model's, expected every bit; export again")
    tokens_BT = _random_tokens(read.config)
    ours = _logits(read, tokens_BT)
    judged = _transformers_logits(folder, tokens_BT)
    if judged is None:
        before = engine.to_ours(family, read.config, mine, lambda name, param, value: jnp.asarray(value))
        judged = "own reload", _logits(before, tokens_BT), [], []
    judge, logits, unread, missing = judged
    if unread or missing:
        problems.append(f"{folder}: {judge} reads no {unread} and misses {missing}, expected neither; export again")
    difference = float(np.max(np.abs(ours - logits)))
    if not difference <= TOLERANCE * max(1.0, float(np.max(np.abs(logits)))):
        problems.append(f"{folder}: logits differ from {judge}'s by {difference:.3g}, expected rounding; do not use it")
    if problems:
        raise CheckFailed(*problems)
    return {"max_abs_logit_difference": difference, "compared_with": judge, "unread_tensors": unread}


def _logits(model: Transformer, tokens_BT: np.ndarray) -> np.ndarray:
    return np.asarray(_forward(model, Inputs(tokens=jnp.asarray(tokens_BT))))


@jax.jit
def _forward(model: Transformer, inputs: Inputs) -> jax.Array:
    return model.logits(model(inputs).hidden_BTD)


def _random_tokens(config: TransformerConfig) -> np.ndarray:
    positions = config.stack.positions
    length = min(LENGTH, positions.length) if isinstance(positions, LearnedPositions) else LENGTH
    return np.random.default_rng(0).integers(0, config.vocab_size, (ROWS, length), dtype=np.int32)


def _transformers_logits(folder: Path, tokens_BT: np.ndarray):
    """(version, logits, tensors it did not read, tensors it missed); None where it is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    with _without_bars(transformers.utils.logging):
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True, trust_remote_code=False
        )
    model, info = loaded
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(tokens_BT.astype(np.int64))).logits.numpy()
    version = f"transformers {transformers.__version__}"
    return version, logits, sorted(info["unexpected_keys"]), sorted(info["missing_keys"])


@contextmanager
def _without_bars(logging: Any) -> Iterator[None]:
    """`transformers` draws no progress bar inside; outside it does as before."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _refuse_strangers(folder: Path) -> None:
    """Nothing is deleted that an earlier export did not write."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: found a file, expected a new or empty folder; choose another name")
    names = {path.name for path in folder.iterdir()}
    if not names:
        return
    known = {MANIFEST, *_manifest(folder)} if MANIFEST in names else set()
    if strangers := sorted(names - known):
        shown = safetensors.listed(strangers)
        raise UserError(f"{folder}: found {shown}, which no export wrote; choose a new or empty folder or move it away")


def _manifest(folder: Path) -> dict[str, str]:
    files = safetensors.read_json(folder / MANIFEST).get("files")
    return files if isinstance(files, dict) else {}


def _changed(folder: Path) -> Iterator[str]:
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


def _swap(new: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def _card(name: str, model: Transformer, dtype: str, facts: Mapping[str, Any]) -> str:
    """Markdown with the YAML header of the hub; facts that are dictionaries become sections."""
    header = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [pretrain]", "---"]
    own = {
        "architecture": describe(model.config)[0].architecture,
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
    config, model = convert.load(folder)
    has_tokenizer = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    tokenizer = load_tokenizer(folder) if has_tokenizer else None

    writer = _tokenizer_writer(tokenizer, None)
    export_model(model, writer, run, length=_length(folder), card={"imported from": folder.name})
    tokens_BT = _random_tokens(config)
    judge, logits, unread, _ = _transformers_logits(folder, tokens_BT) or ("own reload", None, [], [])
    if logits is None:
        logits = _logits(convert.load(Path(run))[1], tokens_BT)
    difference = float(np.max(np.abs(_logits(model, tokens_BT) - logits)))
    return {
        "run": os.fspath(run),
        "parameters": tree.size(model),
        "max_abs_logit_difference": difference,
        "compared_with": judge,
        "unread_tensors": unread,
    }
