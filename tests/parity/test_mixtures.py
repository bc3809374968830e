"""Mixtures of experts and latent attention have the logits of `transformers`, and their gradients."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from pretrain.models import convert, tree
from pretrain.models.config import AheadConfig
from pretrain.models.layers.moe import load, losses, route
from pretrain.models.transformer import Inputs
from tests.parity import zoo
from tests.parity.zoo_decoders import built
from tests.parity.zoo_mixtures import MODELS, theirs

TOLERANCE = 1e-4
FAST = {"xla_backend_optimization_level": 0}
"""To compile: these programs run once."""
CONTINUED = ["mixtral_window", "deepseek_v2", "deepseek_v3", "gpt_oss", "llama4_dense_between"]
"""With a cache there and here; latent attention absorbs its maps then."""


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


def test_modules_for_further_tokens_are_written_read_and_predict_alike(loaded, tmp_path, monkeypatch):
    config = loaded("deepseek_v3")[1].config
    block, norm = config.stack.blocks[-1], config.stack.final_norm
    config = replace(config, ahead=AheadConfig(depth=2, block=block, norm=norm))
    rng = np.random.default_rng(0)
    ours = tree.like(tree.abstract(config), lambda _, p: jnp.asarray(rng.normal(size=p.shape) * 0.3, p.dtype))
    convert.save(ours, tmp_path)
    again, reread = convert.load(tmp_path)
    assert again.ahead == config.ahead
    assert all(map(np.array_equal, *map(jax.tree.leaves, (ours, reread))))

    last = len(config.stack.blocks)
    names = [rf"model\.layers\.{last + d}\..*" for d in range(2)]
    monkeypatch.setattr(zoo.transformers.DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", names)
    model, info = zoo.reread(tmp_path)
    assert not any(info.values()), info
    from transformers.modeling_layers import MtpModel

    judge = MtpModel.from_pretrained(model).eval()
    tokens = zoo.tokens()
    inputs = Inputs(tokens=jnp.asarray(tokens))
    predicted, _ = jax.jit(lambda m, i: m.ahead(m(i).hidden_BTD, i), compiler_options=FAST)(ours, inputs)
    ids = zoo.torch.from_numpy(tokens.astype(np.int64))
    with zoo.torch.no_grad():
        theirs_BTD = model.model(ids).last_hidden_state
        for d, mine_BTD in enumerate(predicted):
            rest = ids[:, d + 1 :]
            positions = zoo.torch.arange(d + 1, ids.shape[1])[None].expand_as(rest)
            theirs_BTD = judge.forward_layer(d, theirs_BTD[:, : rest.shape[1]], positions, None, input_ids=rest)
            expected = judge._project_to_logits(theirs_BTD).numpy()
            found = np.asarray(ours.logits(mine_BTD))[:, : rest.shape[1]]
            assert np.abs(found - expected).max() <= TOLERANCE


def test_a_checkpoint_without_the_modules_that_its_config_names_is_read_without_them(tmp_path):
    family, settings = MODELS["deepseek_v3"]
    built(family, settings | {"num_mtp_layers": 1}).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_nextn_predict_layers"] == 1
    assert convert.load(tmp_path)[0].ahead is None


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss_yarn"])
def test_gradients_are_those_of_torch(name, loaded, tmp_path):
    zoo.assert_same_gradients(theirs(name), loaded(name)[1], tmp_path)


def test_the_balance_loss_is_that_of_transformers_but_for_the_choices_it_counts(loaded):
    """`load_balancing_loss_func` adds up the shares of each of a token's top_k choices; ours is their mean."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = loaded("mixtral")[1].config
    moe = config.stack.blocks[0].mlp
    router = replace(moe.router, balance_loss=1.0)
    logits = np.random.default_rng(0).normal(size=(2, 7, moe.experts)).astype(np.float32)
    there = np.arange(7) < np.array([7, 4])[:, None]
    _, ids = route(router, jnp.asarray(logits), None)
    config = replace(moe, router=router)
    found = losses(config, load(config, jnp.asarray(logits), ids, jnp.asarray(there)), None)["balance"]
    gate = (zoo.torch.from_numpy(logits.reshape(-1, moe.experts)),)
    mask = zoo.torch.from_numpy(there.astype(np.int64))
    expected = load_balancing_loss_func(gate, moe.experts, router.top_k, attention_mask=mask)
    assert float(found) == pytest.approx(float(expected) / router.top_k, rel=1e-5)
