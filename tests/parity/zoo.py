"""Tiny random models of `transformers`, one per thing that can differ."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.models import convert, tree
from pretrain.models.generate.config import GREEDY
from pretrain.models.generate.decode import generate
from pretrain.models.transformer import Inputs, Transformer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)

VOCAB, LENGTH = 61, 24
"""A prime vocabulary; sequences longer than the original length of every scaling below."""

LLAMA = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 4, "max_position_embeddings": 8, "initializer_range": 0.3, "rms_norm_eps": 1e-5}
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "initializer_range": 0.2}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def rope(kind: str, **more) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **more}}


SCALINGS = {
    "linear": rope("linear", factor=2.5),
    "dynamic": rope("dynamic", factor=3.0),
    "yarn": rope("yarn", factor=4.0, original_max_position_embeddings=8),
    "yarn_spelled_out": rope(
        "yarn", factor=4.0, original_max_position_embeddings=8, beta_fast=2.0, beta_slow=0.5, attention_factor=1.3
    ),
    "yarn_mscale": rope(
        "yarn", factor=4.0, original_max_position_embeddings=8, beta_fast=2.0, mscale=0.7, mscale_all_dim=1.2
    ),
    "llama3": rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8),
}
MODELS: dict[str, tuple[str, dict]] = {
    "llama_mha": ("Llama", LLAMA),
    "llama_gqa": ("Llama", LLAMA | {"num_key_value_heads": 2}),
    "llama_mqa": ("Llama", LLAMA | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama_biases": ("Llama", LLAMA | {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
    "llama_wide_heads": ("Llama", LLAMA | {"head_dim": 12, "num_hidden_layers": 3, "rms_norm_eps": 1e-3}),
    **{f"llama_{name}": ("Llama", LLAMA | {"num_key_value_heads": 2} | s) for name, s in SCALINGS.items()},
    "gpt2": ("GPT2", GPT2),
    "gpt2_untied": ("GPT2", GPT2 | {"tie_word_embeddings": False, "n_inner": 40, "activation_function": "gelu"}),
    "gpt2_unscaled": ("GPT2", GPT2 | {"scale_attn_weights": False, "activation_function": "relu"}),
}


def theirs(name: str, seed: int = 0):
    """The model in f32 with random weights everywhere, biases and norms too."""
    family, settings = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**settings)
    model = getattr(transformers, "LlamaForCausalLM" if family == "Llama" else "GPT2LMHeadModel")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
            else:
                p.copy_(torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5)
    return model


def tokens(rows: int = 3, length: int = LENGTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (rows, length), dtype=np.int32)


# Unoptimised code compiles seven times faster, and these models run once.
@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def logits(model: Transformer, inputs: Inputs) -> jax.Array:
    return model.logits(model(inputs).hidden_BTD)


def our_logits(model: Transformer, tokens_BT: np.ndarray, **more: np.ndarray) -> np.ndarray:
    arrays = {name: jnp.asarray(value, jnp.int32) for name, value in {"tokens": tokens_BT, **more}.items()}
    return np.asarray(logits(model, Inputs(**arrays)))


def their_logits(model, tokens_BT: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens_BT.astype(np.int64))).logits.numpy()


def their_continuation(model, tokens_BT: np.ndarray, length: int = LENGTH) -> np.ndarray:
    """The rows continued greedily, up to `length` tokens."""
    ids = torch.from_numpy(tokens_BT.astype(np.int64))
    settings = {"max_length": length, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings).numpy()


def our_continuation(model: Transformer, tokens_BT: np.ndarray, length: int = LENGTH) -> np.ndarray:
    """The same with our decoder and its cache."""
    more = length - tokens_BT.shape[1]
    out = generate(model, tokens_BT.tolist(), max_tokens=more, sampling=GREEDY, key=jax.random.key(0))
    return np.concatenate([tokens_BT, np.array(out.tokens)], axis=1)


def reread(folder):
    """The model in a folder as `transformers` reads it, and what it found missing or too much."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="float32", output_loading_info=True, attn_implementation="eager"
    )
    return model.eval(), info


def assert_same_gradients(model, ours, folder) -> None:
    """Of the next token's loss: theirs are written to `folder` as a checkpoint and read as ours.

    Each parameter's differs by at most a thousandth of its norm.
    """
    ids = tokens()
    theirs = torch.from_numpy(ids.astype(np.int64))
    logits = model(theirs[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), theirs[:, 1:].flatten()).backward()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.grad)
            p.grad = None
    model.save_pretrained(folder)
    _, expected = convert.load(folder)

    def loss(m):
        out = m(Inputs(tokens=jnp.asarray(ids[:, :-1])))
        logprobs_BTV = jax.nn.log_softmax(m.logits(out.hidden_BTD))
        return -jnp.take_along_axis(logprobs_BTV, jnp.asarray(ids[:, 1:])[..., None], axis=-1).mean()

    found = tree.params(jax.jit(jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0})(ours))
    for path, want in tree.params(expected).items():
        if not path.endswith("mlp/balance"):  # no parameter there, and moved by no gradient here
            a, b = np.asarray(found[path][...]), np.asarray(want[...])
            assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(b), path
