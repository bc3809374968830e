"""The published sizes: as many parameters as `transformers` counts, and a config.json that comes back as it went."""

import inspect
from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers

from pretrain.configs import (
    deepseek,
    gemma,
    gptj,
    gptoss,
    llama4,
    mistral,
    mixtral,
    neox,
    olmo,
    opt,
    phi,
    qwen,
    smollm,
)
from pretrain.errors import UserError, check
from pretrain.models import accounting, tree
from pretrain.models.convert.fields import essence
from pretrain.models.convert.folder import describe

PUBLISHED = {
    "gptj.gptj_6b": 6050882784,
    "neox.neox_20b": 20554567680,
    "neox.pythia_70m": 70426624,
    "neox.pythia_160m": 162322944,
    "neox.pythia_410m": 405334016,
    "neox.pythia_1b": 1011781632,
    "neox.pythia_1_4b": 1414647808,
    "neox.pythia_2_8b": 2775208960,
    "neox.pythia_6_9b": 6857302016,
    "neox.pythia_12b": 11846072320,
    "opt.opt_125m": 125239296,
    "opt.opt_1_3b": 1315758080,
    "opt.opt_6_7b": 6658473984,
    "mistral.mistral_7b": 7241732096,
    "mistral.nemo_12b": 12247782400,
    "mixtral.mixtral_8x7b": 46702792704,
    "mixtral.mixtral_8x22b": 140630071296,
    "qwen.qwen2_0_5b": 494032768,
    "qwen.qwen2_7b": 7615616512,
    "qwen.qwen2_72b": 72706203648,
    "qwen.qwen3_4b": 4022468096,
    "qwen.qwen3_8b": 8190735360,
    "qwen.qwen3_30b_a3b": 30532122624,
    "qwen.qwen3_235b_a22b": 235093634560,
    "gemma.gemma_2b": 2506172416,
    "gemma.gemma_7b": 8537680896,
    "gemma.gemma2_2b": 2614341888,
    "gemma.gemma2_9b": 9241705984,
    "gemma.gemma2_27b": 27227128320,
    "gemma.gemma3_270m": 268098176,
    "gemma.gemma3_1b": 999885952,
    "olmo.olmo2_1b": 1484916736,
    "olmo.olmo2_7b": 7298617344,
    "olmo.olmo2_13b": 13716198400,
    "phi.phi3_mini": 3821079552,
    "phi.phi4": 14659507200,
    "phi.phi4_mini": 3836021760,
    "smollm.smollm2_360m": 361821120,
    "smollm.smollm2_1_7b": 1711376384,
    "smollm.smollm3_3b": 3075098624,
    "deepseek.v2_lite": 15706484224,
    "deepseek.v2": 235741434880,
    "deepseek.v3": 671026419200,
    "gptoss.gptoss_20b": 20914757184,
    "gptoss.gptoss_120b": 116829156672,
}
"""As the papers' tables, the model cards and the hub say."""
MODULES = (deepseek, gemma, gptj, gptoss, llama4, mistral, mixtral, neox, olmo, opt, phi, qwen, smollm)
PRESETS = {
    f"{module.__name__.rsplit('.', 1)[1]}.{name}": make
    for module in MODULES
    for name, make in inspect.getmembers(module, inspect.isfunction)
    if make.__module__ == module.__name__
    and name[0] != "_"
    and all(p.default is not p.empty for p in inspect.signature(make).parameters.values())
}
"""Every size: functions that need no argument."""


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_the_count_is_the_published_one(name, count):
    assert accounting.parameters(PRESETS[name]()).total == count


@pytest.mark.parametrize("name", PRESETS)
def test_transformers_counts_as_many_parameters(name):
    config = PRESETS[name]()
    _, values = describe(config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**values))
    saved = model.state_dict()
    buffers = sum(b.numel() for n, b in model.named_buffers() if n in saved)  # DeepSeek's balancing biases
    count = sum(p.numel() for p in model.parameters()) + buffers
    assert count == accounting.parameters(config).total == tree.size(tree.abstract(config))


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_comes_back_as_it_went(name):
    config = PRESETS[name]()
    family, values = describe(config)
    again = family.from_hf(values)
    assert essence(again) == essence(config)
    assert replace(again, init=config.init).decoder == config.decoder


FAMILIES = {family.architecture: family for family in (describe(make())[0] for make in PRESETS.values())}
NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "ffn_dim")
NEEDED += ("n_embd", "n_layer", "n_head", "num_experts_per_tok", "architectures")


def published(architecture: str) -> dict:
    """config.json with every default of `transformers`."""
    family = FAMILIES[architecture]
    config = type(transformers.AutoConfig.for_model(family.model_type))(architectures=[architecture])
    return config.to_dict() | ({"num_experts_per_tok": 6} if architecture.startswith("Deepseek") else {})


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_defaults_are_those_of_transformers(architecture):
    full, family = published(architecture), FAMILIES[architecture]
    assert family.from_hf(full) == family.from_hf({name: full[name] for name in NEEDED if name in full})


STRANGE = (-1, 0, 2**40, 1e300, float("nan"), "", "x", [], [1], ["sliding_attention"], {}, {"rope_type": "yarn"}, True)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_strange_values_are_refused_in_lines_or_read(architecture):
    family, refused = FAMILIES[architecture], 0
    full = describe(next(make() for make in PRESETS.values() if describe(make())[0] is family))[1]
    for name in full:
        for value in (*STRANGE, None):
            try:
                check(family.from_hf(full | {name: value}))
            except UserError as error:
                refused += 1
                assert not any("\n" in problem for problem in error.problems)  # noqa: PT017
    assert refused > 5 * len(full)


def test_modules_for_further_tokens_come_back_too():
    config = deepseek.v3(ahead=1)
    family, values = describe(config)
    assert family.from_hf(values).ahead == config.ahead
    # Section 4.2 of the paper: 671B, and 14B more with their copies of embeddings and head.
    copies = 2 * config.vocab_size * config.d_model
    assert (tree.size(tree.abstract(config)) + copies) / 1e9 == pytest.approx(671 + 14, abs=1)
