"""The readers of files that fuzz.py damages, each with a valid small file of its kind."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.damage import Seal, Subject
from pretrain import errors

Make = Callable[[Path], None]


@dataclass(frozen=True)
class Reader:
    name: str
    make: Make
    """Writes valid files into a folder."""
    read: Callable[[Path], Any]
    share: float
    """Of all cases, before they are scaled to 1."""
    files: tuple[str, ...]
    """Those that are damaged; none named: all."""
    seals: dict[str, tuple[Seal, Seal]] = field(default_factory=dict)
    """File -> (seal, unseal); see damage.Subject."""

    def subjects(self, folder: Path) -> dict[str, Subject]:
        all_files = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]
        return {n: Subject((folder / n).read_bytes(), *self.seals.get(n, ())) for n in self.files or all_files}


def arrays(*names: str, shape: tuple[int, ...] = (3, 4)) -> dict[str, Any]:
    from pretrain.models.convert.safetensors import Tensor

    value = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return {name: Tensor(value.shape, value.dtype, lambda: value) for name in names}


def read_tensors(tensors: dict[str, Any]) -> None:
    for tensor in tensors.values():
        tensor.read()


# Hugging Face folders


def make_safetensors(folder: Path) -> None:
    from pretrain.models.convert import safetensors

    safetensors.write_file(folder / safetensors.SINGLE, arrays("a", "layer.b", "c"))


def make_shards(folder: Path) -> None:
    from pretrain.models.convert import safetensors

    safetensors.write_folder(folder, arrays("a", "b"), 50)


def read_weights(folder: Path) -> None:
    from pretrain.models.convert import safetensors

    read_tensors(safetensors.read_folder(folder))


HEADER: tuple[Seal, Seal] = (
    lambda text: len(text).to_bytes(8, "little") + text + bytes(144),
    lambda data: data[8 : 8 + int.from_bytes(data[:8], "little")],
)


def make_configs(folder: Path) -> None:
    """config.json of every family, a line each."""
    from pretrain.models.convert.folder import describe
    from tests.guards.families import TINY

    lines = {}
    for config in TINY.values():
        with contextlib.suppress(errors.UserError):  # some have no form there
            family, values = describe(replace(config, generator=None), 16)
            lines.setdefault(family.architecture, json.dumps(values))
    (folder / "configs.jsonl").write_text("\n".join(lines.values()))


def read_configs(folder: Path) -> None:
    """Only the damaged line is another one than before."""
    from pretrain.models.convert import safetensors
    from pretrain.models.convert.folder import family_of

    known, said = read_configs.__dict__.setdefault("known", set()), None
    for line in (folder / "configs.jsonl").read_bytes().split(b"\n"):
        if line.strip() and line not in known:
            try:
                values = safetensors._object(partial(_loads, line), folder, dict)
                errors.check(family_of(values).from_hf(values))
                if len(known) < 200:
                    known.add(line)
            except errors.UserError as error:
                said = error
    if said:
        raise said


def _loads(text: bytes) -> Any:
    from pretrain import untrusted

    return untrusted.loads(text)


def make_sentence(folder: Path) -> None:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [{"path": p, "type": f"sentence_transformers.models.{k}"} for p, k in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    facts = {"decoder_start_token_id": 1, "add_bos_token": True, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    for name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_text(json.dumps(facts))
    (folder / "export.json").write_text(json.dumps({"files": {"modules.json": "0" * 64, "a/b.json": "0"}}))


def read_sentence(folder: Path) -> None:
    from pretrain import exchange, texts
    from pretrain.data import tokenizer, tokenizer_hf
    from pretrain.models.convert import sentence

    for read in (sentence.read, tokenizer.begins_with_bos, tokenizer_hf._stated_roles, texts._start):
        read(folder)
    list(exchange.changed(folder))


def make_model(folder: Path) -> None:
    import jax.numpy as jnp

    from pretrain.configs.llama import llama
    from pretrain.models import convert, tree

    config = llama(vocab_size=17, d_model=8, layers=1, heads=2, d_ff=12)
    convert.save(tree.like(tree.abstract(config), lambda _, p: jnp.zeros(p.shape, p.dtype)), folder)


def read_model(folder: Path) -> None:
    from pretrain.models import convert

    convert.load(folder)


# GGUF


def make_gguf(folder: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    for name, value in (("vocab_size", 8), ("block_count", 1), ("context_length", 16), ("embedding_length", 8)):
        getattr(writer, f"add_{name}")(value)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "a", "b", "ab", "c", "d", "e", "f"])
    writer.add_token_types([3, 1, 1, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((8, 8), np.float16))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()


def read_gguf(folder: Path) -> None:
    from pretrain.data.tokenizer_gguf import tokenizer_of
    from pretrain.models.convert import gguf, gguf_file

    path = folder / "model.gguf"
    file = gguf_file.read(path)
    read_tensors(file.tensors)
    if file.metadata.get("general.architecture") == "llama":
        errors.check(gguf.FAMILIES["llama"].from_hf(gguf.values(file, "llama", path)))
    tokenizer_of(file.metadata, str(path))


# Vocabularies


def make_tokenizers(folder: Path) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    kinds = {
        "bpe": models.BPE({"a": 0, "b": 1, "ab": 2, "Ġ": 3}, [("a", "b")]),
        "unigram": models.Unigram([("<unk>", 0.0), ("a", -1.0), ("▁", -2.0)], 0, True),
        "wordpiece": models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"),
        "wordlevel": models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
    }
    for name, model in kinds.items():
        made = Tokenizer(model)
        made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(" {2,}"), " ")])
        split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+"), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(use_regex=False)])
        made.decoder = decoders.ByteLevel() if name == "bpe" else decoders.WordPiece()
        made.add_tokens([AddedToken("</s>", special=True), AddedToken("user", special=False)])
        made.save(str(folder / f"{name}.json"))


KINDS = ("bpe.json", "unigram.json", "wordpiece.json", "wordlevel.json")


def read_tokenizers(folder: Path, files: Iterable[str] = KINDS) -> None:
    """Those whose bytes are new."""
    from pretrain.data.tokenizer import load_tokenizer

    for name in files:
        if not _is_new(folder / name):
            continue
        tokenizer = load_tokenizer(folder / name)
        ids = tokenizer.encode("ab a  b1234 </s> é")
        tokenizer.decode(ids)
        tokenizer.bytes_of(ids)


_SEEN: set[bytes] = set()


def _is_new(path: Path) -> bool:
    digest = hashlib.blake2b(path.read_bytes(), digest_size=8).digest()
    if digest in _SEEN:
        return False
    if len(_SEEN) < 64:  # the valid files are read first
        _SEEN.add(digest)
    return True


def make_sentencepiece(folder: Path) -> None:
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore

    proto = ModelProto()
    for piece, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{b:02X}>", 6) for b in range(256))):
        proto.pieces.add(piece=piece, score=0.0, type=kind)
    for piece in ("a", "b", "ab", "▁"):
        proto.pieces.add(piece=piece, score=-1.0, type=1)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.trainer_spec.pad_id = -1
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.name = "identity"
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())


def seal_proto(text: bytes) -> bytes:
    from google.protobuf import json_format
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore

    try:
        return json_format.Parse(text, ModelProto(), ignore_unknown_fields=True).SerializeToString()
    except Exception:  # the JSON is no such message: the bytes themselves are as good a damage as any
        return text


def unseal_proto(data: bytes) -> bytes:
    from google.protobuf import json_format
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore

    return json.dumps(json_format.MessageToDict(ModelProto.FromString(data))).encode()


READERS = (
    Reader("safetensors", make_safetensors, read_weights, 20, ("model.safetensors",), {"model.safetensors": HEADER}),
    Reader(
        "shards",
        make_shards,
        read_weights,
        10,
        ("model.safetensors.index.json", "model-00001-of-00002.safetensors"),
        {"model-00001-of-00002.safetensors": (lambda text: HEADER[0](text)[:-96], HEADER[1])},
    ),
    Reader("config.json", make_configs, read_configs, 15, ("configs.jsonl",)),
    Reader(
        "roles",
        make_sentence,
        read_sentence,
        8,
        (
            "modules.json",
            "1_Pooling/config.json",
            "generation_config.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "export.json",
        ),
    ),
    Reader("folder", make_model, read_model, 0.05, ("config.json", "model.safetensors")),
    Reader("gguf", make_gguf, read_gguf, 8, ("model.gguf",)),
    Reader("tokenizer.json", make_tokenizers, read_tokenizers, 8, KINDS),
    Reader(
        "sentencepiece",
        make_sentencepiece,
        partial(read_tokenizers, files=("tokenizer.model",)),
        4,
        ("tokenizer.model",),
        {"tokenizer.model": (seal_proto, unseal_proto)},
    ),
)
