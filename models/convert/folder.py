"""A model in a folder of the Hugging Face layout, in and out."""

import json
import os
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from pretrain import untrusted
from pretrain.errors import UserError, check
from pretrain.models.config import TransformerConfig
from pretrain.models.convert import engine, safetensors, sentence
from pretrain.models.convert.bart import BART_FAMILY, BART_MODEL, MBART_FAMILY
from pretrain.models.convert.bert import BERT
from pretrain.models.convert.deepseek import V2_FAMILY, V3_FAMILY
from pretrain.models.convert.distilbert import DISTILBERT
from pretrain.models.convert.electra import ELECTRA
from pretrain.models.convert.fields import Unlike, expressed
from pretrain.models.convert.gemma import GEMMA2_FAMILY, GEMMA3_FAMILY, GEMMA_FAMILY
from pretrain.models.convert.generator import apart, together
from pretrain.models.convert.gpt2 import GPT2
from pretrain.models.convert.gptj import GPTJ
from pretrain.models.convert.gptoss import GPT_OSS
from pretrain.models.convert.llama import LLAMA
from pretrain.models.convert.llama4 import LLAMA4
from pretrain.models.convert.marian import MARIAN
from pretrain.models.convert.mistral import MISTRAL
from pretrain.models.convert.mixtral import MIXTRAL
from pretrain.models.convert.modernbert import MODERNBERT
from pretrain.models.convert.neox import NEOX
from pretrain.models.convert.olmo2 import OLMO2
from pretrain.models.convert.opt import OPT
from pretrain.models.convert.pegasus import PEGASUS
from pretrain.models.convert.phi3 import PHI3
from pretrain.models.convert.qwen import QWEN2_FAMILY, QWEN3_FAMILY
from pretrain.models.convert.qwen_moe import QWEN3_MOE
from pretrain.models.convert.roberta import ROBERTA
from pretrain.models.convert.smollm3 import SMOLLM3
from pretrain.models.convert.t5 import MT5_FAMILY, T5_FAMILY, UMT5_FAMILY
from pretrain.models.lora import merged
from pretrain.models.transformer import Transformer

FAMILIES: tuple[engine.Family, ...] = (
    *(LLAMA, GPT2, MISTRAL, QWEN2_FAMILY, QWEN3_FAMILY, GEMMA_FAMILY, GEMMA2_FAMILY, GEMMA3_FAMILY),
    *(OLMO2, PHI3, SMOLLM3, GPTJ, NEOX, OPT),
    *(MIXTRAL, QWEN3_MOE, LLAMA4, V2_FAMILY, V3_FAMILY, GPT_OSS),
    *(T5_FAMILY, UMT5_FAMILY, MT5_FAMILY, BART_FAMILY, MBART_FAMILY, PEGASUS, MARIAN, BART_MODEL),
    *(*DISTILBERT, *BERT, *ROBERTA, *ELECTRA, *MODERNBERT),
)
"""A model that several can express is written as the first of them."""
MAX_SHARD_BYTES = 5_000_000_000
"""As `transformers` used for years: a shard fits in the memory of a small machine."""
GENERATOR = "generator"
"""The folder of an ELECTRA's generator inside that of its discriminator."""
DTYPES = ("float32", "bfloat16", "float16")


def load(
    path: str | os.PathLike,
    *,
    dtype: DTypeLike = jnp.float32,
    place: engine.Place = lambda name, param, value: jnp.asarray(value),
) -> tuple[TransformerConfig, Transformer]:
    """The config and the model, parameters in f32, activations in `dtype`.

    `place` puts each parameter where it shall live. Never runs code that comes with a checkpoint and never opens a
    pickle. Raises UserError.
    """
    folder = Path(path)
    model = _load(folder, dtype, place)
    if (folder / GENERATOR).is_dir():
        model = together(model, _load(untrusted.inside(folder, GENERATOR), dtype, place))
    return model.config, model


def _load(folder: Path, dtype: DTypeLike, place: engine.Place) -> Transformer:
    if not folder.exists():
        raise UserError(f"{folder}: no such folder, expected one in the Hugging Face layout; check the path")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: found no config.json, expected a folder in the Hugging Face layout; check the path")
    values = safetensors.read_json(untrusted.inside(folder, "config.json"))
    family = family_of(values)
    config = family.from_hf(values)
    tensors = engine.modern(family, safetensors.read_folder(folder))
    layers = max(stack.repeats for stack in (config.encoder, config.decoder) if stack)
    if layers > len(tensors):  # before anything grows with the number of layers
        raise UserError(f"config.json: found {layers} layers, {folder} has {len(tensors)} tensors; correct one")
    config = family.refine(config, tensors)
    if embedding := sentence.read(folder):
        config = replace(config, tasks=(*config.tasks, embedding))
    check(config)
    return engine.to_ours(family, config, tensors, place, dtype)


def parts(model: Transformer) -> dict[str, Transformer]:
    """The models that `transformers` needs for it, by the folder of each inside the export; adapters are added to their
    matrices."""
    model = merged(model) if model.config.adapters else model
    if model.config.generator is None:
        return {"": model}
    main, generator = apart(model)
    return {"": main, GENERATOR: generator}


def save(
    model: Transformer,
    folder: str | os.PathLike,
    *,
    dtype: str = "float32",
    length: int | None = None,
    fields: dict | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[str]:
    """Writes config.json and the weights into a folder; returns the names of the files.

    `length`: the longest sequence the model is meant for. `fields`: more of config.json, as `eos_token_id`.
    Raises UserError with every field that no architecture of `transformers` known here has.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: expected one of {', '.join(DTYPES)}")
    names = []
    for name, part in parts(model).items():
        family, values = describe(part.config, length)
        values |= {"dtype": dtype, "torch_dtype": dtype}  # torch_dtype: the name before version 5
        values = _identified(family, values, fields or {})
        tensors = engine.to_theirs(family, part, np.dtype(jnp.dtype(dtype)), length)
        inside = Path(folder) / name
        inside.mkdir(parents=True, exist_ok=True)
        safetensors.write_text(inside / "config.json", json.dumps(values, indent=2) + "\n")
        written = ["config.json", *safetensors.write_folder(inside, tensors, max_shard_bytes)]
        written += sentence.write(inside, part.config, length)
        names += [f"{name}/{file}".lstrip("/") for file in written]
    return names


def _identified(family: engine.Family, values: dict, fields: dict) -> dict:
    """config.json with the ids of a tokenizer; a family's defaults are not ours."""
    for name in family.fixed:
        if fields.get(name, values[name]) not in (None, values[name]):
            raise UserError(
                f"{name}={fields[name]}: in {family.architecture} positions begin after padding, in this model after "
                f"{values[name]}; set the offset of its positions to {fields[name] + 1}"
            )
    kept = {name: values[name] for name in family.fixed}
    return values | dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")) | fields | kept


def family_of(values: dict) -> engine.Family:
    """By `architectures`, or by `model_type` where a config names none."""
    named = values.get("architectures")
    named = named if isinstance(named, list) else []
    for family in FAMILIES:
        if family.architecture in named or (not named and family.model_type == values.get("model_type")):
            return family
    found = f"architectures {named}" if named else f"model_type {values.get('model_type')!r}"
    raise UserError(
        f"config.json: found {found[:100]}, expected one that docs/import.md lists; docs/add_a_family.md adds another"
    )


def describe(config: TransformerConfig, length: int | None = None) -> tuple[engine.Family, dict]:
    """The architecture that computes the same and its config.json; for none, the objections of the nearest one."""
    refusals: list[UserError] = []
    config = replace(config, tasks=sentence.split(config)[0])
    for family in FAMILIES:
        try:
            return family, expressed(family, config, length)
        except UserError as error:
            refusals.append(error)
    raise min(refusals, key=lambda error: (isinstance(error, Unlike), len(error.problems)))
