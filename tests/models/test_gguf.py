"""GGUF files are read as llama.cpp writes them; damaged and hostile ones end in one line, soon and in little memory."""

import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf")
pytest.importorskip("torch")
pytest.importorskip("transformers")

import gguf

from pretrain.errors import UserError
from pretrain.import_gguf import import_gguf
from pretrain.models.convert import gguf_file
from pretrain.models.convert.gguf import load
from pretrain.opened import open_run
from tests.parity import zoo
from tests.parity.vocabulary import TEXT, trained, vocabulary
from tests.parity.zoo_decoders import BASE, built

PUBLISHED_HEADS = {"head_dim": 256, "query_pre_attn_scalar": 256}
SQUARE = {"sliding_window": 5, "query_pre_attn_scalar": 12}
GEMMA = BASE | {"head_dim": 12, "num_hidden_layers": 3}
LLAMA3 = zoo.rope(
    "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
MODELS = {
    "llama": ("llama", "Llama", BASE),
    "llama_tied_yarn": (
        "llama",
        "Llama",
        BASE | {"tie_word_embeddings": True} | zoo.rope("yarn", factor=4.0, original_max_position_embeddings=8),
    ),
    "llama3": ("llama", "Llama", BASE | LLAMA3),
    "qwen2": ("qwen2", "Qwen2", BASE),
    "qwen3": ("qwen3", "Qwen3", BASE | {"head_dim": 12}),
    "gemma": ("gemma", "Gemma", GEMMA),
    "gemma2": ("gemma2", "Gemma2", GEMMA | SQUARE),
    "gemma3": (
        "gemma3",
        "Gemma3Text",
        GEMMA | SQUARE | {"num_hidden_layers": 7},
    ),
}
NAMES = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("input_layernorm", "attn_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("model.layers.", "blk."),
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
]


def permuted(w: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter does it."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def written(path: Path, kind: str, model, *, quantised: str | None = None, metadata=lambda writer: None) -> None:
    """A model of `transformers` as a GGUF file, by llama.cpp's library and the rules of its converter."""
    c = model.config
    writer = gguf.GGUFWriter(path, kind)
    writer.add_vocab_size(c.vocab_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    if getattr(c, "head_dim", None):
        writer.add_key_length(c.head_dim)
        writer.add_value_length(c.head_dim)
    ropes = c.rope_parameters.get("full_attention", c.rope_parameters)
    writer.add_rope_freq_base(ropes["rope_theta"])
    if ropes["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(ropes["factor"])
        writer.add_rope_scaling_orig_ctx_len(ropes["original_max_position_embeddings"])
    if ropes["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", frequencies(c.head_dim or c.hidden_size // c.num_attention_heads, ropes))
    if kind in ("gemma2", "gemma3"):
        writer.add_sliding_window(c.sliding_window)
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(c.attn_logit_softcapping)
        writer.add_final_logit_softcapping(c.final_logit_softcapping)
    metadata(writer)
    for name, p in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        w = p.numpy()
        if kind == "llama" and ".q_proj" in name:
            w = permuted(w, c.num_attention_heads)
        if kind == "llama" and ".k_proj" in name:
            w = permuted(w, c.num_key_value_heads)
        if kind.startswith("gemma") and "norm" in name:
            w = w + 1
        sandwich = kind in ("gemma2", "gemma3")
        name = name.replace("post_attention_layernorm", "post_attention_norm" if sandwich else "ffn_norm")
        for theirs, ours in NAMES:
            name = name.replace(theirs, ours)
        if quantised and w.ndim == 2 and "norm" not in name:
            block = gguf.GGMLQuantizationType[quantised]
            writer.add_tensor(name, gguf.quantize(w, block), raw_dtype=block)
        else:
            writer.add_tensor(name, w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def frequencies(head_dim: int, ropes: dict) -> np.ndarray:
    """As llama.cpp's converter computes what each angle is divided by."""
    out = []
    low, high, length = ropes["low_freq_factor"], ropes["high_freq_factor"], ropes["original_max_position_embeddings"]
    for i in range(0, head_dim, 2):
        wave = 2 * np.pi * ropes["rope_theta"] ** (i / head_dim)
        if wave < length / high:
            out.append(1.0)
        elif wave > length / low:
            out.append(ropes["factor"])
        else:
            smooth = (length / wave - low) / (high - low)
            out.append(1 / ((1 - smooth) / ropes["factor"] + smooth))
    return np.array(out, np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_llama_cpp_has_the_logits_of_the_one_it_was_made_from(name, tmp_path):
    kind, family, settings = MODELS[name]
    model, path = built(family, settings), tmp_path / "model.gguf"
    written(path, kind, model)
    _, ours = load(gguf_file.read(path), path)
    tokens = zoo.tokens()
    assert np.abs(zoo.our_logits(ours, tokens) - zoo.their_logits(model, tokens)).max() <= 2e-5


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2"])
def test_transformers_reads_the_same_file_as_the_same_model(name, tmp_path):
    kind, family, settings = MODELS[name]
    path = tmp_path / "model.gguf"
    # It does not read the width of a head, but takes the one of the published models.
    settings = settings | {"qwen3": {"head_dim": 128}, "gemma2": PUBLISHED_HEADS}.get(name, {})
    written(path, kind, built(family, settings))
    judge = zoo.transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype="float32", attn_implementation="eager"
    ).eval()
    _, ours = load(gguf_file.read(path), path)
    tokens = zoo.tokens()
    assert np.abs(zoo.our_logits(ours, tokens) - zoo.their_logits(judge, tokens)).max() <= 2e-5


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_tensors_and_metadata_are_those_of_the_library(kind, tmp_path):
    path = tmp_path / "model.gguf"
    settings = BASE | {"hidden_size": 64, "intermediate_size": 96}
    written(path, "llama", built("Llama", settings), quantised=kind)
    ours, theirs = gguf_file.read(path), gguf.GGUFReader(path)
    for tensor in theirs.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours.tensors[tensor.name].read(), expected.reshape(tensor.shape.tolist()[::-1]))
    assert {t.tensor_type.name for t in theirs.tensors} == {"F32", kind}
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            assert ours.metadata[key] == pytest.approx(field.contents())


def test_a_float_is_the_short_decimal_that_was_meant(tmp_path):
    path = tmp_path / "model.gguf"
    written(path, "llama", built("Llama", BASE | {"rms_norm_eps": 1e-5}))
    config, _ = load(gguf_file.read(path), path)
    assert config.stack.final_norm.eps == 1e-5


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def header(tensors: int = 0, keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


def tensor(name: str = "a", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def array(kind: int, length: int, data: bytes = b"") -> bytes:
    return string("key") + struct.pack("<IIQ", 9, kind, length) + data


HUGE = 2**60
BAD = {
    "short": (b"GGUF", "found 4 bytes; expected a GGUF file, copy it again"),
    "another": (b"PK" * 20, "found another beginning than GGUF; expected a GGUF file, copy it again"),
    "big_endian": (
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "found version 50331648, expected one of (2, 3) in little endian; expected a GGUF file, copy it again",
    ),
    "tensors": (header(HUGE), f"found {HUGE} tensors, expected at most 65536; expected a GGUF file, copy it again"),
    "keys": (header(0, HUGE), f"found {HUGE} keys, expected at most 65536; expected a GGUF file, copy it again"),
    "cut": (header(3, 5), "found 24 bytes, its header needs more; expected a GGUF file, copy it again"),
    "long_string": (
        header(0, 1, struct.pack("<Q", HUGE)),
        f"found {HUGE} bytes in a string, expected at most 16777216; expected a GGUF file, copy it again",
    ),
    "long_array": (
        header(0, 1, array(0, HUGE)),
        f"found {HUGE} items in an array, expected at most 8388608; expected a GGUF file, copy it again",
    ),
    "cut_array": (
        header(0, 1, array(12, 8_000_000)),
        "found 51 bytes, its header needs more; expected a GGUF file, copy it again",
    ),
    "nested_array": (
        header(0, 1, array(9, 1)),
        "found an array of type 9, expected numbers or strings; expected a GGUF file, copy it again",
    ),
    "no_text": (
        header(0, 1, struct.pack("<Q", 1) + b"\xff"),
        "found a string that is not UTF-8; expected a GGUF file, copy it again",
    ),
    "twice": (
        header(0, 2, (string("a") + struct.pack("<II", 4, 1)) * 2),
        "found the key a twice; expected a GGUF file, copy it again",
    ),
    "dimensions": (
        header(1, 0, string("a") + struct.pack("<IQ", 2**31, 1)),
        f"tensor a: found {2**31} dimensions, expected 1 to 4; expected a GGUF file, copy it again",
    ),
    "shape": (
        header(1, 0, tensor(shape=(2**40, 2**40))),
        f"tensor a: found shape [{2**40}, {2**40}] of F32 at byte 96 of 65; expected a GGUF file, copy it again",
    ),
    "offset": (
        header(1, 0, tensor(offset=HUGE) + bytes(64)),
        f"tensor a: found shape [4] of F32 at byte {HUGE + 64} of 121; expected a GGUF file, copy it again",
    ),
    "type": (
        header(1, 0, tensor(kind=99)),
        f"tensor a has type 99, gguf {gguf_file._version()} does not turn it into numbers; "
        "do quantise the model otherwise",
    ),
    "alignment": (
        header(0, 1, string("general.alignment") + struct.pack("<II", 4, 0)),
        "general.alignment is 0, expected a power of two; expected a GGUF file, copy it again",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_line_and_in_little_memory(name, tmp_path):
    data, message = BAD[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(UserError) as error:
        gguf_file.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.value.problems == (f"{path}: {message}",)
    assert peak < 5_000_000


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    written(path, "llama", built("Llama", BASE | {"num_hidden_layers": 1}))
    return path.read_bytes()


def test_three_hundred_damaged_files_end_in_lines(small, tmp_path):
    rng, path, seen = random.Random(0), tmp_path / "model.gguf", set()
    for _ in range(300):
        data = bytearray(small)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.randrange(1, 4)):
            if data:
                data[rng.randrange(min(len(data), 1600))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            load(gguf_file.read(path), path)
        except UserError as error:
            seen.update(error.problems)
    assert len(seen) > 50
    assert not any("\n" in problem for problem in seen)


def test_what_a_file_lacks_or_has_too_much_is_named(tmp_path):
    path = tmp_path / "model.gguf"
    model = built("Llama", BASE)
    written(path, "llama", model, metadata=lambda w: w.add_tensor("blk.0.extra.weight", np.zeros(3, np.float32)))
    with pytest.raises(UserError) as error:
        load(gguf_file.read(path), path)
    assert error.value.problems == (
        f"{path}: found tensor blk.0.extra.weight, which LlamaForCausalLM with its metadata does not have; "
        "correct its metadata or remove it",
    )
    written(path, "mamba", model)
    with pytest.raises(UserError, match=r"general\.architecture is 'mamba', expected one of llama, qwen2"):
        load(gguf_file.read(path), path)
    written(path, "llama", model, metadata=lambda w: w.add_expert_count(8))
    with pytest.raises(UserError, match="llama: expert_count is 8, only 0 is supported in LlamaForCausalLM"):
        load(gguf_file.read(path), path)


def test_a_file_becomes_a_run_with_its_tokenizer(tmp_path):
    bpe = trained()
    values = vocabulary(bpe)

    def metadata(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(values["tokenizer.ggml.tokens"])
        writer.add_token_types(values["tokenizer.ggml.token_type"])
        writer.add_token_merges(values["tokenizer.ggml.merges"])
        writer.add_eos_token_id(0)
        writer.add_bos_token_id(1)

    settings = BASE | {"vocab_size": 400}
    written(tmp_path / "model.gguf", "llama", built("Llama", settings), metadata=metadata)
    report = import_gguf(tmp_path / "model.gguf", tmp_path / "run")
    assert report["max_abs_logit_difference"] <= 2e-5
    assert report["compared_with"] == f"transformers {zoo.transformers.__version__}"
    opened = open_run(tmp_path / "run")
    assert opened.tokenizer.encode(TEXT) == bpe.encode(TEXT, add_special_tokens=False).ids
    assert not opened.add_bos
    theirs = zoo.transformers.AutoTokenizer.from_pretrained(tmp_path / "run")
    assert theirs(TEXT, add_special_tokens=False)["input_ids"] == opened.tokenizer.encode(TEXT)
