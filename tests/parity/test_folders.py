"""Hostile and broken folders end in one line for each problem; nothing is guessed, run or silently ignored."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pretrain.configs.gpt2 import gpt2
from pretrain.configs.llama import llama
from pretrain.errors import UserError
from pretrain.models import convert, tree
from pretrain.models.convert import safetensors as files
from pretrain.models.convert.folder import FAMILIES
from pretrain.models.transformer import Transformer
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import fsdp_tp

TENSORS = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, ml_dtypes.bfloat16), "c": np.float64(7)}
TENSORS = {name: np.asarray(value) for name, value in TENSORS.items()}


def lazy(arrays: dict[str, np.ndarray]) -> dict[str, files.Tensor]:
    return {name: files.Tensor(a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()}


def header(text: str | bytes, data: bytes = b"") -> bytes:
    text = text.encode() if isinstance(text, str) else text
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: str = "[2]", offsets: str = "[0, 8]") -> str:
    return f'{{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}'


def test_both_libraries_read_what_we_write(tmp_path):
    files.write_file(tmp_path / "x.safetensors", lazy(TENSORS))
    ours = files.read_file(tmp_path / "x.safetensors")
    assert list(ours) == list(TENSORS)
    with safe_open(tmp_path / "x.safetensors", "numpy") as theirs:
        assert theirs.metadata() == {"format": "pt"}
        assert np.array_equal(theirs.get_tensor("a"), TENSORS["a"])
    for name, value in TENSORS.items():
        assert (ours[name].shape, ours[name].dtype) == (value.shape, value.dtype)
        assert ours[name].read().tobytes() == value.tobytes()


def test_we_read_what_the_library_writes(tmp_path):
    save_file({"a": TENSORS["a"], "empty": np.empty((0, 3), np.int8)}, tmp_path / "x.safetensors")
    read = files.read_file(tmp_path / "x.safetensors")
    assert np.array_equal(read["a"].read(), TENSORS["a"])
    assert read["empty"].read().shape == (0, 3)


def test_shards_hold_at_most_what_they_may(tmp_path):
    names = files.write_folder(tmp_path, lazy({str(i): np.zeros(10, np.float32) for i in range(5)}), 80)
    assert names == [*(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)), files.INDEX]
    index = json.loads((tmp_path / files.INDEX).read_text())
    assert index["metadata"] == {"total_parameters": 50, "total_size": 200}
    assert list(files.read_folder(tmp_path)) == [*"01234"]


BAD_FILES = {
    "short": (b"\x01\x02", "found 2 bytes and no header, expected a safetensors file; copy it again"),
    "long_header": (b"\xff" * 40, "found 40 bytes and no header, expected a safetensors file; copy it again"),
    "no_json": (
        header("{]"),
        "found no JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)), "
        "expected an object; copy the file again",
    ),
    "list": (header("[1]"), "found list in JSON, expected an object; copy the file again"),
    "nested": (
        header("[" * 100_000),
        "found no JSON (more than 64 lists and objects inside one another), expected an object; copy the file again",
    ),
    "twice": (
        header(f'{{"a": {entry()}, "a": {entry()}}}', bytes(8)),
        "found no JSON ('a' stands in it twice), expected an object; copy the file again",
    ),
    "unknown_type": (
        header(f'{{"a": {entry("Q4")}}}', bytes(8)),
        "tensor a is described by {'dtype': 'Q4', 'shape': [2], 'data_offsets': [0, 8]}, "
        "expected dtype, shape and data_offsets",
    ),
    "negative": (
        header(f'{{"a": {entry(shape="[-2]")}}}', bytes(8)),
        "tensor a is described by {'dtype': 'F32', 'shape': [-2], 'data_offsets': [0, 8]}, "
        "expected dtype, shape and data_offsets",
    ),
    "lying_shape": (
        header(f'{{"a": {entry(shape="[1000000000000]")}}}', bytes(8)),
        "tensor a says bytes 0 to 8, expected 1000000000000 numbers of float32 from byte 0; "
        "the header is damaged, copy the file again",
    ),
    "overlap": (
        header(f'{{"a": {entry()}, "b\\n": {entry(offsets="[4, 12]")}}}', bytes(12)),
        "tensor 'b\\n' says bytes 4 to 12, expected 2 numbers of float32 from byte 8; "
        "the header is damaged, copy the file again",
    ),
    "truncated": (
        header(f'{{"a": {entry()}}}', bytes(7)),
        "found 76 bytes, its header says 77; it was cut short, copy it again",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_in_one_line(name, tmp_path):
    data, message = BAD_FILES[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        files.read_folder(tmp_path)
    assert error.value.problems == (f"{path}: {message}",)
    if name != "twice":  # the library keeps the last of two
        with pytest.raises(SafetensorError), safe_open(path, "numpy"):
            pass


def write_index(folder: Path, weights: object) -> None:
    (folder / files.INDEX).write_text(json.dumps({"weight_map": weights}))


def two_shards(folder: Path) -> None:
    files.write_folder(folder, lazy({"a": TENSORS["a"], "b": TENSORS["b"]}), 50)


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "escape": (
        lambda f: write_index(f, {"a": "../../secret.safetensors"}),
        "/model.safetensors.index.json: names '../../secret.safetensors', "
        "expected plain .safetensors names in its own folder",
    ),
    "absolute": (
        lambda f: write_index(f, {"a": "/etc/x.safetensors"}),
        "/model.safetensors.index.json: names '/etc/x.safetensors', "
        "expected plain .safetensors names in its own folder",
    ),
    "no_map": (
        lambda f: write_index(f, ["a"]),
        "/model.safetensors.index.json: found no weight_map, expected one of tensors to files; write the index again",
    ),
    "missing_shard": (
        lambda f: (f / TWO).unlink(),
        f": the shard {TWO} is missing, model.safetensors.index.json names it; copy it again",
    ),
    "twice": (
        lambda f: shutil.copy(f / ONE, f / TWO),
        f"/{TWO}: tensor a is in another shard too; keep one of them",
    ),
    "unlisted": (
        lambda f: write_index(f, {"a": ONE, "z": TWO}),
        f"/{TWO}: tensor b is not in model.safetensors.index.json; write the index again",
    ),
    "lost": (
        lambda f: write_index(f, {"a": ONE, "b": TWO, "z": TWO}),
        ": no shard holds z, model.safetensors.index.json names it; copy the shards again",
    ),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_index_is_refused_in_one_line(name, tmp_path):
    damage, message = BAD_FOLDERS[name]
    two_shards(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as error:
        files.read_folder(tmp_path)
    assert error.value.problems == (f"{tmp_path}{message}",)


@pytest.fixture(scope="module")
def models() -> dict[str, Transformer]:
    shape = {"vocab_size": 17, "d_model": 8, "layers": 2, "heads": 2, "d_ff": 12}
    made = {"llama": llama(**shape, tied=True), "gpt2": gpt2(**shape, length=9)}
    rng = np.random.default_rng(0)

    def numbers(_: str, param: nnx.Param):
        return jnp.asarray(rng.normal(size=param.shape), param.dtype)

    return {name: tree.like(tree.abstract(config), numbers) for name, config in made.items()}


def saved(model: Transformer, folder: Path, drop: str = "", add: dict | None = None, **fields) -> Path:
    """The folder of a model with a tensor less, tensors more, and other fields of config.json."""
    convert.save(model, folder, fields=fields)
    tensors = {name: t.read().copy() for name, t in files.read_folder(folder).items() if name != drop}
    files.write_file(folder / files.SINGLE, lazy(tensors | (add or {})))
    return folder


def refusal(folder: Path) -> tuple[str, ...]:
    with pytest.raises(UserError) as error:
        convert.load(folder)
    return error.value.problems


def test_a_folder_of_pickles_is_not_opened(models, tmp_path):
    convert.save(models["llama"], tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert refusal(tmp_path) == (
        f"{tmp_path}: found only pickled weights (pytorch_model.bin), which can run code when they are read; "
        "expected model.safetensors, load and save them with transformers where you trust them",
    )


def test_other_folders_are_refused(tmp_path):
    assert refusal(tmp_path / "no") == (
        f"{tmp_path}/no: no such folder, expected one in the Hugging Face layout; check the path",
    )
    assert refusal(tmp_path) == (
        f"{tmp_path}: found no config.json, expected a folder in the Hugging Face layout; check the path",
    )
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    assert refusal(tmp_path) == (
        "config.json: found architectures ['MambaForCausalLM'], expected one that docs/import.md lists; "
        "docs/add_a_family.md adds another",
    )


def test_the_documentation_lists_every_architecture():
    page = (Path(__file__).resolve().parents[2] / "docs/import.md").read_text()
    assert [family.architecture for family in FAMILIES if f"`{family.architecture}`" not in page] == []


def test_every_tensor_is_missed_or_read(models, tmp_path):
    up = "model.layers.1.mlp.up_proj.weight"
    folder = saved(models["llama"], tmp_path, drop=up, add={"model.extra": np.zeros(2, np.float32)}, vocab_size=18)
    assert refusal(folder) == (
        f"found no tensor {up}, expected it in LlamaForCausalLM; the checkpoint is incomplete",
        "tensor model.embed_tokens.weight: found shape [17, 8], config.json says [18, 8]; correct one",
        "found tensor model.extra, which LlamaForCausalLM with this config.json does not have; "
        "correct config.json or remove it",
    )


def test_absurd_sizes_cost_nothing(models, tmp_path):
    assert refusal(saved(models["llama"], tmp_path, num_hidden_layers=10**9)) == (
        f"config.json: found 1000000000 layers, {tmp_path} has 20 tensors; correct one",
    )
    wide = refusal(saved(models["llama"], tmp_path, intermediate_size=2**30, vocab_size=2**30))
    assert (
        wide[0]
        == "tensor model.embed_tokens.weight: found shape [17, 8], config.json says [1073741824, 8]; correct one"
    )


def test_no_damage_to_a_folder_ends_in_anything_but_one_line_each(models, tmp_path):
    convert.save(models["llama"], tmp_path)
    rng, config = random.Random(0), json.loads((tmp_path / "config.json").read_text())
    weights = (tmp_path / files.SINGLE).read_bytes()
    junk = [
        None,
        True,
        -1,
        0,
        3,
        10**30,
        1e400,
        0.5,
        "x",
        "",
        [],
        [1],
        {},
        {"rope_type": "yarn"},
        {"type": 7},
        {"a": []},
    ]
    ends = Counter()
    for i in range(300):
        damaged, data = dict(config), bytearray(weights)
        if i % 2:
            for name in rng.sample(sorted(config), rng.randint(1, 3)):
                damaged[name] = rng.choice(junk)
        else:
            data[rng.randrange(400)] = rng.randrange(256)
            data = data[: rng.choice([len(data), len(data), rng.randrange(len(data))])]
        (tmp_path / "config.json").write_text(json.dumps(damaged))
        (tmp_path / files.SINGLE).write_bytes(data)
        try:
            convert.load(tmp_path)
            ends["loaded"] += 1
        except UserError:
            ends["refused"] += 1
    assert ends["refused"] > 150


def test_quantised_tensors_are_refused(models, tmp_path):
    folder = saved(models["llama"], tmp_path, add={"model.norm.weight": np.ones(8, np.int8)})
    assert refusal(folder) == (
        "tensor model.norm.weight: found int8, expected one of float16, bfloat16, float32, float64; "
        "dequantise it first",
    )


def test_known_leftovers_of_older_checkpoints_are_read_over(models, tmp_path):
    table = np.asarray(models["llama"].embed.tokens[...])
    old = {"lm_head.weight": table, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    convert.load(saved(models["llama"], tmp_path, add=old))
    other = {"lm_head.weight": table + 1}
    assert refusal(saved(models["llama"], tmp_path, add=other)) == (
        "lm_head.weight differs from model.embed_tokens.weight, which config.json ties to it; "
        "set tie_word_embeddings to false",
    )


def test_a_gpt2_without_its_prefix_is_read(models, tmp_path):
    convert.save(models["gpt2"], tmp_path)
    bare = {n.removeprefix("transformer."): t.read().copy() for n, t in files.read_folder(tmp_path).items()}
    mask = {f"h.{i}.attn.bias": np.tri(9, dtype=np.float32)[None, None] for i in range(2)}
    files.write_file(tmp_path / files.SINGLE, lazy(bare | mask))
    _, read = convert.load(tmp_path)
    assert jnp.array_equal(read.decoder.pattern[0].mixer.key[...], models["gpt2"].decoder.pattern[0].mixer.key[...])


def test_a_model_over_eight_devices_is_read_and_written_bit_by_bit(tmp_path):
    config = llama(vocab_size=16, d_model=16, layers=2, heads=4, kv_heads=2, d_ff=16)
    rng = np.random.default_rng(0)
    whole = tree.like(tree.abstract(config), lambda _, p: jnp.asarray(rng.normal(size=p.shape), p.dtype))
    mesh = meshes.build(MeshConfig(fsdp=4, tensor=2))
    for folder, model in (("a", whole), ("b", None)):
        (tmp_path / folder).mkdir()
        with place.use(mesh, fsdp_tp()):
            if model is None:
                spread = {"place": lambda _, p, value: jax.device_put(value, place.stored(value.shape, p.axes, mesh))}
                _, model = convert.load(tmp_path / "a", **spread)
                assert len(model.decoder.pattern[0].mlp.up[...].sharding.device_set) == 8
            convert.save(model, tmp_path / folder)
    assert (tmp_path / "a" / files.SINGLE).read_bytes() == (tmp_path / "b" / files.SINGLE).read_bytes()


def test_numbers_too_large_for_the_type_are_not_exported(models, tmp_path):
    model = nnx.clone(models["gpt2"])
    model.decoder.entry.positions[...] = model.decoder.entry.positions[...].at[0, 0].set(1e6)
    with pytest.raises(UserError) as error:
        convert.save(model, tmp_path, dtype="float16")
    assert error.value.problems == (
        "tensor transformer.wpe.weight: found numbers that are not finite as float16; export another step or dtype",
    )
