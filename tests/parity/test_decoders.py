"""Dense decoders have the logits of `transformers` after import and after export, and continue a text the same way."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from pretrain.models import convert
from tests.parity import zoo
from tests.parity.zoo_decoders import MODELS, theirs

TOLERANCE = 2e-5
CONTINUED = ["mistral", "qwen2_windows", "gemma2", "gemma3", "olmo2", "phi3_window", "smollm3", "gptj", "opt"]
"""With a cache there and here; one for each mechanism."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Their model and ours read from its folder; made once for each name."""
    made = {}

    def get(name: str):
        if name not in made:
            model, folder = theirs(name), tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            made[name] = model, convert.load(folder)[1]
        return made[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_same_after_import_and_after_export(name, loaded, tmp_path):
    model, ours = loaded(name)
    tokens = zoo.tokens()
    expected = zoo.their_logits(model, tokens)
    assert np.abs(zoo.our_logits(ours, tokens) - expected).max() <= TOLERANCE
    convert.save(ours, tmp_path)
    reread, info = zoo.reread(tmp_path)
    assert not any(info.values()), info
    assert np.abs(zoo.their_logits(reread, tokens) - expected).max() <= TOLERANCE
    _, again = convert.load(tmp_path)
    assert np.array_equal(zoo.our_logits(again, tokens), zoo.our_logits(ours, tokens))


@pytest.mark.parametrize("name", CONTINUED)
def test_greedy_continuations_are_the_same(name, loaded):
    model, ours = loaded(name)
    start = zoo.tokens(length=8)
    assert np.array_equal(zoo.our_continuation(ours, start), zoo.their_continuation(model, start))


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_gradients_are_those_of_torch(name, loaded, tmp_path):
    zoo.assert_same_gradients(theirs(name), loaded(name)[1], tmp_path)
