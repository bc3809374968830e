"""What encoders write in the place of masks, against `transformers` and the model itself."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.errors import UserError
from pretrain.models.config import GeneratorConfig, HeadConfig, TransformConfig
from pretrain.models.generate.fill import fill
from pretrain.models.transformer import Inputs
from tests.models.mechanisms import LLAMA, PAIRS, drawn

MASK = 4
TEXTS = [[2, 9, MASK, 11, MASK, 3], [2, *range(5, 40), MASK, 3], [2, 30, 3]]
TYPES = [[0, 0, 0, 1, 1, 1], [0] * 20 + [1] * 18, [0, 0, 0]]
SHAPE = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"intermediate_size": 44, "max_position_embeddings": 48, "initializer_range": 0.3}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(theirs, ours) with the same weights."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = pytest.importorskip("pretrain.models.convert.folder")
    torch.manual_seed(0)
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**SHAPE)).eval()
    path = tmp_path_factory.mktemp("bert")
    theirs.save_pretrained(path)
    return theirs, folder.load(path)[1]


@pytest.mark.parametrize("types", [None, TYPES])
def test_masks_are_filled_as_transformers_would(pair, types):
    import torch

    theirs, ours = pair
    filled = fill(ours, TEXTS, MASK, top_k=4, types=types)
    assert [[f.place for f in row] for row in filled] == [[2, 4], [36], []]
    for i, (text, row) in enumerate(zip(TEXTS, filled)):
        more = {} if types is None else {"token_type_ids": torch.tensor([types[i]])}
        with torch.no_grad():
            logp_TV = torch.log_softmax(theirs(torch.tensor([text]), **more).logits[0], -1)
        for f in row:
            best = logp_TV[f.place].topk(4)
            assert f.tokens == best.indices.tolist()
            np.testing.assert_allclose(f.logprobs, best.values.numpy(), atol=2e-5)


def test_types_matter(pair):
    assert fill(pair[1], TEXTS, MASK) != fill(pair[1], TEXTS, MASK, types=TYPES)


def test_the_generator_fills_masks_where_there_is_no_head():
    inner = replace(PAIRS["bart"].encoder, positions=None)
    small = GeneratorConfig(d_model=16, encoder=inner, head=HeadConfig(tied=True, transform=TransformConfig()))
    model = drawn(replace(PAIRS["bart"], decoder=None, encoder=inner, head=None, generator=small), 0.3)
    ((filled, _), *_) = fill(model, TEXTS, MASK, top_k=3)
    hidden_BTD, unembed = model.generated(Inputs(tokens=jnp.asarray(TEXTS[:1])))
    logp_V = np.asarray(jax.nn.log_softmax(unembed(hidden_BTD)[0, 2]))
    assert filled.tokens == np.argsort(-logp_V)[:3].tolist()
    np.testing.assert_allclose(filled.logprobs, np.sort(logp_V)[::-1][:3], atol=2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": []}, "found no text, expected at least one; "),
        ({"texts": [[2, 3]]}, "found no mask in 1 texts, expected token 4 at least once; "),
        ({"texts": [[2, MASK, 61]]}, "found token ids 2 to 61 in text 0, expected 0 to 60; "),
        ({"texts": [[MASK] * 49]}, "found a text of 49 tokens, expected at most 48, the positions this model learned"),
        ({"top_k": 0}, "found top_k=0, expected at least 1; "),
        ({"types": [[0]]}, "found types of other lengths than their texts, expected one a token; "),
        ({"model": drawn(LLAMA)}, "found a decoder, expected an encoder alone; "),
    ],
)
def test_what_does_not_fit_is_said(pair, change, message):
    with pytest.raises(UserError) as error:
        fill(**{"model": pair[1], "texts": TEXTS[:1], "mask": MASK} | change)
    assert str(error.value).startswith(message)
