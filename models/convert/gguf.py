"""Models of llama.cpp, by what they would be in the Hugging Face layout: the same tensors under other names.

llama.cpp pairs neighbours where Llama's queries and keys turn, so their rows stand in another order there, and Gemma's
norm scales are 1 larger.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from pretrain.errors import UserError, check
from pretrain.models.config import Llama3Scaling, Rope, TransformerConfig
from pretrain.models.convert import engine, gemma, gguf_file, llama, qwen
from pretrain.models.convert.fields import Fields
from pretrain.models.convert.safetensors import Tensor
from pretrain.models.layers.positions import rope_table
from pretrain.models.transformer import Transformer

FAMILIES = {
    "llama": llama.LLAMA,
    "qwen2": qwen.QWEN2_FAMILY,
    "qwen3": qwen.QWEN3_FAMILY,
    "gemma": gemma.GEMMA_FAMILY,
    "gemma2": gemma.GEMMA2_FAMILY,
    "gemma3": gemma.GEMMA3_FAMILY,
}
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SANDWICH = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""Of Gemma 2 and 3."""
FREQUENCIES = "rope_freqs.weight"
"""What each angle of Llama 3.1 is divided by."""
LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, whose logits llama.cpp divides by sqrt(d_model / heads) and not by sqrt(head_dim)."""


def load(
    file: gguf_file.File,
    path: Path,
    *,
    dtype: DTypeLike = jnp.float32,
    place: engine.Place = lambda name, param, value: jnp.asarray(value),
) -> tuple[TransformerConfig, Transformer]:
    """The config and the model, parameters in f32. Raises UserError with all that is wrong."""
    kind = file.metadata.get("general.architecture")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(
            f"{path}: general.architecture is {repr(kind)[:60]}, expected one of {', '.join(FAMILIES)}; "
            "import the model in the Hugging Face layout"
        )
    family = FAMILIES[kind]
    try:
        config = family.from_hf(values(file, kind, path))
        if config.stack.repeats > len(file.tensors):
            raise UserError(f"found {config.stack.repeats} layers and {len(file.tensors)} tensors; copy it again")
        check(config)
        return config, engine.to_ours(family, config, renamed(file, kind), place, dtype)
    except UserError as error:
        said = [p.removeprefix(f"{path}: ").replace("this config.json", "config.json") for p in error.problems]
        raise UserError(*(f"{path}: {problem.replace('config.json', 'its metadata')}" for problem in said)) from None


def values(file: gguf_file.File, kind: str, path: Path) -> dict[str, Any]:
    """config.json of the same model. Raises UserError."""
    f = Fields(
        {key.removeprefix(f"{kind}."): value for key, value in file.metadata.items() if key.startswith(f"{kind}.")},
        FAMILIES[kind].architecture,
        f"{path}: {kind}",
    )
    table = file.tensors.get("token_embd.weight")
    out: dict[str, Any] = {
        "architectures": [FAMILIES[kind].architecture],
        "vocab_size": table.shape[0] if table else None,
        "hidden_size": f.size("embedding_length"),
        "intermediate_size": f.size("feed_forward_length"),
        "num_hidden_layers": f.size("block_count"),
        "num_attention_heads": f.size("attention.head_count"),
        "num_key_value_heads": f.size("attention.head_count_kv", f.values.get("attention.head_count")),
        "max_position_embeddings": f.size("context_length"),
        "rms_norm_eps": f.positive("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    heads, d_model = out["num_attention_heads"], out["hidden_size"]
    head_dim = f.size("attention.key_length", d_model // heads if d_model and heads else None)
    f.expect("attention.value_length", head_dim)
    f.expect("rope.dimension_count", head_dim)
    f.expect("expert_count", 0)
    f.skip("vocab_size", "expert_used_count", "attention.causal")
    out |= {"head_dim": head_dim} if kind != "qwen2" else {}
    out |= _turning(f, file, kind, head_dim)
    if kind in ("llama", "qwen3", "gemma"):
        out["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    if kind in LARGEST_GEMMA:
        largest = out["num_hidden_layers"] == LARGEST_GEMMA[kind] and d_model and heads
        out["query_pre_attn_scalar"] = d_model // heads if largest else head_dim
        out["sliding_window"] = f.size("attention.sliding_window")
    if kind == "gemma2":
        out["attn_logit_softcapping"] = f.positive("attn_logit_softcapping", 50.0)
        out["final_logit_softcapping"] = f.positive("final_logit_softcapping", 30.0)
    f.finish()
    return out


def _turning(f: Fields, file: gguf_file.File, kind: str, head_dim: int | None) -> dict[str, Any]:
    """rope_theta and rope_scaling."""
    theta = f.positive("rope.freq_base", 1e6 if kind == "gemma3" else 1e4)
    names = {"none": None, "linear": "linear", "yarn": "yarn"}
    scaling, factor = f.choose("rope.scaling.type", names, "none"), f.positive("rope.scaling.factor", None)
    original, attention = (
        f.size("rope.scaling.original_context_length", None),
        f.positive("rope.scaling.attn_factor", None),
    )
    f.skip("rope.scaling.finetuned")
    f.expect("rope.scaling.yarn_log_multiplier", None)
    out: dict[str, Any] = {"rope_theta": theta}
    if scaling:
        said = {"factor": factor, "original_max_position_embeddings": original, "attention_factor": attention}
        out["rope_scaling"] = {"rope_type": scaling, **{k: v for k, v in said.items() if v is not None}}
    if FREQUENCIES in file.tensors and theta and head_dim:
        divisors = file.tensors[FREQUENCIES].read()
        factor = float(divisors.max())
        known = Llama3Scaling(factor=factor)
        if (
            scaling
            or divisors.shape != (head_dim // 2,)
            or not np.allclose(divisors, _divisors(theta, head_dim, known))
        ):
            f.problems.append(f"{f.where}: {FREQUENCIES} are not Llama 3's for one factor; import another file")
        out["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": known.low_frequency_factor,
            "high_freq_factor": known.high_frequency_factor,
            "original_max_position_embeddings": known.original_length,
        }
    return out


def _divisors(theta: float, head_dim: int, scaling: Llama3Scaling) -> np.ndarray:
    """What the scaling divides each angle by."""
    first = jnp.ones((1, 1), jnp.int32)
    plain, scaled = (
        np.arctan2(*(np.asarray(x, np.float64)[0, 0] for x in reversed(rope_table(rope, head_dim, first))))
        for rope in (Rope(theta=theta), Rope(theta=theta, scaling=scaling))
    )
    return plain / scaled


def renamed(file: gguf_file.File, kind: str) -> dict[str, Tensor]:
    """The tensors under the names of the Hugging Face layout, in its order of rows."""
    layer = {**LAYER, **(SANDWICH if kind in LARGEST_GEMMA else {})}
    heads = {"attn_q": file.metadata.get(f"{kind}.attention.head_count")}
    heads["attn_k"] = file.metadata.get(f"{kind}.attention.head_count_kv", heads["attn_q"])
    out = {}
    for name, tensor in file.tensors.items():
        inside = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if inside and inside[2] in layer:
            if kind == "llama" and inside[2] in heads:
                tensor = _halves(tensor, heads[inside[2]])
            if kind.startswith("gemma") and inside[2].endswith("norm"):
                tensor = _less_one(tensor)
            out[f"model.layers.{inside[1]}.{layer[inside[2]]}.{inside[3]}"] = tensor
        elif name.removesuffix(".weight") in WHOLE:
            tensor = _less_one(tensor) if kind.startswith("gemma") and name.startswith("output_norm") else tensor
            out[f"{WHOLE[name.removesuffix('.weight')]}.weight"] = tensor
        elif name != FREQUENCIES:
            out[name] = tensor
    return out


def _halves(tensor: Tensor, heads: Any) -> Tensor:
    """Rows of each head: its pairs of neighbours as a first and a second half. Other shapes are left to be refused."""
    rows = tensor.shape[0]
    if type(heads) is not int or heads < 1 or rows % (2 * heads):
        return tensor

    def load() -> np.ndarray:
        x = tensor.read()
        return x.reshape(heads, rows // heads // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    return replace(tensor, read=load)


def _less_one(tensor: Tensor) -> Tensor:
    return replace(tensor, read=lambda: tensor.read() - 1)
