"""A sentence encoder's folder (Reimers & Gurevych 2019): what `sentence-transformers` does to the hidden states."""

import json
from pathlib import Path
from typing import Any, Literal

from pretrain import untrusted
from pretrain.errors import UserError
from pretrain.models.config import TaskConfig, TransformerConfig
from pretrain.models.convert import safetensors

NAME = "sentence"
MODULES, POOLING = "modules.json", "1_Pooling"
MODES: dict[str, Literal["first", "mean", "last"]] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
OTHER_MODES = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")


def read(folder: Path) -> TaskConfig | None:
    """The task of a folder's modules; None where it has none. Raises UserError for modules that compute more."""
    path = folder / MODULES
    if not path.is_file():
        return None
    modules = safetensors.read_list(untrusted.inside(folder, MODULES))
    kinds = [str(m.get("type")).rpartition(".")[2] if isinstance(m, dict) else repr(m) for m in modules]
    normalise = kinds[2:] == ["Normalize"]
    if kinds[:2] != ["Transformer", "Pooling"] or (kinds[2:] and not normalise):
        raise UserError(
            f"{path}: found the modules {', '.join(kinds)}, expected Transformer, Pooling and perhaps Normalize; "
            f"remove {MODULES} to read the encoder alone"
        )
    inner = modules[1].get("path", POOLING)
    if not untrusted.is_plain(inner):
        raise UserError(f"{path}: found the path {repr(inner)[:100]}, expected a folder inside; correct it")
    where = untrusted.inside(folder, f"{inner}/config.json")
    values = safetensors.read_json(where)
    modes = [name for name in (*MODES, *OTHER_MODES) if values.get(name)]
    if len(modes) != 1 or modes[0] not in MODES:
        raise UserError(f"{where}: found {modes or 'no mode'}, expected one of {', '.join(MODES)}; correct it")
    return TaskConfig(name=NAME, pool=MODES[modes[0]], normalise=normalise)


def split(config: TransformerConfig) -> tuple[tuple[TaskConfig, ...], TaskConfig | None]:
    """(the other tasks, the one that `sentence-transformers` has): a pool without weights."""
    for task in config.tasks:
        if task.name == NAME and task.labels is None and task.hidden is None and task.pool in MODES.values():
            return tuple(other for other in config.tasks if other is not task), task
    return config.tasks, None


def files(config: TransformerConfig, length: int | None) -> dict[str, Any]:
    """What a folder of this model holds besides, by name."""
    _, task = split(config)
    if task is None:
        return {}
    kinds = [("", "Transformer"), (POOLING, "Pooling"), *([("2_Normalize", "Normalize")] if task.normalise else [])]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    modes = {name: pool == task.pool for name, pool in MODES.items()} | dict.fromkeys(OTHER_MODES, False)
    pooling = {"word_embedding_dimension": config.d_model, **modes, "include_prompt": True}
    limit = {} if length is None else {"sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": False}}
    return {MODULES: modules, f"{POOLING}/config.json": pooling, **limit}


def write(folder: Path, config: TransformerConfig, length: int | None) -> list[str]:
    """The names of the files."""
    out = files(config, length)
    for name, value in out.items():
        (folder / name).parent.mkdir(exist_ok=True)
        safetensors.write_text(folder / name, json.dumps(value, indent=2) + "\n")
    return list(out)
