"""Tiny random encoder-decoders of `transformers`: each as published, others with what its config can change."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.models.transformer import Inputs, Transformer
from tests.parity.zoo import VOCAB, torch, transformers

T5 = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 6, "d_ff": 44, "num_layers": 2, "num_decoder_layers": 3}
T5 |= {"num_heads": 4, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
T5 |= {"dropout_rate": 0.0, "decoder_start_token_id": 0}
GATED = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
BART = {"vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "dropout": 0.0}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 44, "decoder_ffn_dim": 36}
BART |= {"max_position_embeddings": 40, "pad_token_id": 1, "decoder_start_token_id": 2}
MARIAN = BART | {"scale_embedding": True, "activation_function": "swish", "pad_token_id": 0, "eos_token_id": 1}
MARIAN |= {"decoder_start_token_id": 0, "forced_eos_token_id": None}

MODELS: dict[str, tuple[str, dict]] = {
    "t5": ("T5ForConditionalGeneration", T5),
    "t5_gelu": ("T5ForConditionalGeneration", T5 | {"feed_forward_proj": "gelu", "layer_norm_epsilon": 1e-3}),
    "t5_1_1": ("T5ForConditionalGeneration", GATED),
    "t5_1_1_tied": ("T5ForConditionalGeneration", GATED),
    "t5_even": ("T5ForConditionalGeneration", T5 | {"num_decoder_layers": 2}),
    "umt5_even": ("UMT5ForConditionalGeneration", T5 | {"num_decoder_layers": 2}),
    "t5_ul2": ("T5ForConditionalGeneration", GATED | {"feed_forward_proj": "gated-silu"}),
    "mt5": ("MT5ForConditionalGeneration", GATED),
    "umt5": ("UMT5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu"}),
    "umt5_untied": ("UMT5ForConditionalGeneration", GATED),
    "bart": ("BartForConditionalGeneration", BART),
    "bart_scaled": ("BartForConditionalGeneration", BART | {"scale_embedding": True, "activation_function": "relu"}),
    "mbart": ("MBartForConditionalGeneration", BART | {"scale_embedding": True}),
    "pegasus": ("PegasusForConditionalGeneration", BART | {"scale_embedding": True, "activation_function": "relu"}),
    "marian": ("MarianMTModel", MARIAN),
    "marian_relu": ("MarianMTModel", MARIAN | {"scale_embedding": False, "activation_function": "relu"}),
}
UNTIED = ("t5_1_1", "t5_ul2", "mt5", "umt5_untied")
"""With a head of their own, which `transformers` 5 gives no model that it builds, but reads."""
CONTINUED = ("t5_even", "umt5_even", "bart", "marian")
"""One for each kind of position. The cache of `transformers` has as many layers as a T5's encoder."""


def theirs(name: str, seed: int = 0):
    """The model in f32 with random weights everywhere: biases, norms and the logits' bias of Marian too."""
    architecture, settings = MODELS[name]
    cls = getattr(transformers, architecture)
    model = cls(cls.config_class(**settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    if name in UNTIED:
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(VOCAB, 32))
    with torch.no_grad():
        for path, p in model.named_parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
            elif p.requires_grad:  # not the sines
                scale = T5["d_kv"] ** -0.5 if path.endswith(".q.weight") else 1.0  # where T5 has it: in its queries
                p.copy_(scale * torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5)
        if architecture == "MarianMTModel":
            model.final_logits_bias.copy_(torch.randn(1, VOCAB, generator=generator))
    return model


def pairs(rows: int = 3, source: int = 19, target: int = 23, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(3, VOCAB, (rows, source), np.int32), rng.integers(3, VOCAB, (rows, target), np.int32)


def their_answer(model, source_BS, target_BT, mask_BS=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(encoder's hidden states, decoder's, logits)."""
    source, target = (torch.from_numpy(np.asarray(x, np.int64)) for x in (source_BS, target_BT))
    mask = None if mask_BS is None else torch.from_numpy(np.asarray(mask_BS, np.int64))
    with torch.no_grad():
        out = model(input_ids=source, attention_mask=mask, decoder_input_ids=target, output_hidden_states=True)
    return out.encoder_last_hidden_state.numpy(), out.decoder_hidden_states[-1].numpy(), out.logits.numpy()


@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def _answer(model: Transformer, inputs: Inputs):
    out = model(inputs)
    return out.encoded_BSD, out.hidden_BTD, model.logits(out.hidden_BTD)


def our_answer(model: Transformer, source_BS, target_BT, **more) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`more`: source_segments, source_positions, segments, positions."""
    arrays = {name: jnp.asarray(value, jnp.int32) for name, value in more.items()}
    read = {name.removeprefix("source_"): value for name, value in arrays.items() if name.startswith("source_")}
    written = {name: value for name, value in arrays.items() if not name.startswith("source_")}
    encoder = Inputs(tokens=jnp.asarray(source_BS), **read)
    answer = _answer(model, Inputs(tokens=jnp.asarray(target_BT), encoder=encoder, **written))
    encoded, hidden, logits = (np.asarray(x) for x in answer)
    return encoded, hidden, logits
