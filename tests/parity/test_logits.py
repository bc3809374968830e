"""The same weights give the same logits in `transformers` and here, in both directions."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")


from pretrain.models import convert
from tests.parity import zoo

TOLERANCE = 2e-5
PACKABLE = ["llama_gqa", "llama_yarn", "gpt2"]
"""One per kind of position whose angle does not hang on the longest row."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Their model, its folder, and ours read from it; made once for each name."""
    made = {}

    def get(name: str):
        if name not in made:
            theirs, folder = zoo.theirs(name), tmp_path_factory.mktemp(name)
            theirs.save_pretrained(folder)
            made[name] = theirs, folder, convert.load(folder)[1]
        return made[name]

    return get


@pytest.mark.parametrize("name", zoo.MODELS)
def test_logits_are_the_same_after_import_and_after_export(name, loaded, tmp_path):
    theirs, _, ours = loaded(name)
    tokens = zoo.tokens()
    expected = zoo.their_logits(theirs, tokens)
    assert np.abs(zoo.our_logits(ours, tokens) - expected).max() <= TOLERANCE
    convert.save(ours, tmp_path)
    reread, info = type(theirs).from_pretrained(tmp_path, dtype="float32", output_loading_info=True)
    assert not any(info.values()), info
    assert np.abs(zoo.their_logits(reread, tokens) - expected).max() <= TOLERANCE


@pytest.mark.parametrize("name", zoo.SCALINGS)
def test_the_scaling_bites(name):
    tokens = zoo.tokens()
    scaled = zoo.theirs(f"llama_{name}")
    plain = type(scaled)(zoo.transformers.LlamaConfig(**zoo.LLAMA | {"num_key_value_heads": 2} | zoo.rope("default")))
    plain.load_state_dict(scaled.state_dict())
    assert np.abs(zoo.their_logits(plain.eval(), tokens) - zoo.their_logits(scaled, tokens)).max() > 1e-2


@pytest.mark.parametrize("name", ["llama_gqa", "llama_mqa", "gpt2"])
def test_greedy_continuations_are_the_same(name, loaded):
    theirs, _, ours = loaded(name)
    start = zoo.tokens(length=8)
    ids = zoo.torch.from_numpy(start.astype(np.int64))
    settings = {"max_length": zoo.LENGTH, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = theirs.generate(ids, attention_mask=zoo.torch.ones_like(ids), **settings).numpy()
    row = np.zeros((3, zoo.LENGTH), np.int32)
    row[:, :8] = start
    for t in range(8, zoo.LENGTH):
        row[:, t] = zoo.our_logits(ours, row)[:, t - 1].argmax(-1)
    assert np.array_equal(row, expected)


@pytest.mark.parametrize("name", PACKABLE)
def test_three_documents_in_one_row_have_the_logits_of_three_rows(name, loaded):
    theirs, _, ours = loaded(name)
    lengths, tokens = (5, 12, 7), zoo.tokens()
    alone = [zoo.their_logits(theirs, tokens[i : i + 1, :n])[0] for i, n in enumerate(lengths)]
    packed = np.concatenate([tokens[i, :n] for i, n in enumerate(lengths)])[None]
    segments = np.repeat([1, 2, 3], lengths)[None]
    positions = np.concatenate([np.arange(n) for n in lengths])[None]
    found = zoo.our_logits(ours, packed, segments=segments, positions=positions)[0]
    assert np.abs(found - np.concatenate(alone)).max() <= TOLERANCE


@pytest.mark.parametrize("name", PACKABLE)
def test_padding_changes_no_logits(name, loaded):
    theirs, _, ours = loaded(name)
    tokens = zoo.tokens(rows=1)
    segments = (np.arange(zoo.LENGTH) < 15).astype(np.int32)[None]
    found = zoo.our_logits(ours, tokens, segments=segments)[0, :15]
    assert np.abs(found - zoo.their_logits(theirs, tokens[:, :15])[0]).max() <= TOLERANCE


@pytest.mark.parametrize("name", ["llama_biases", "llama_mqa", "gpt2", "gpt2_untied"])
@pytest.mark.parametrize("shard", [10**9, 9000])
def test_a_round_trip_returns_every_bit(name, shard, loaded, tmp_path):
    _, folder, ours = loaded(name)
    convert.save(ours, tmp_path, max_shard_bytes=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) == 1) == (shard > 9000)
    before, after = (convert.safetensors.read_folder(Path(f)) for f in (folder, tmp_path))
    assert before.keys() == after.keys()
    for key in before:
        assert before[key].read().tobytes() == after[key].read().tobytes(), key
