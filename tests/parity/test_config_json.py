"""config.json is read in every spelling, written in all, and never read past."""

from dataclasses import replace

import pytest

from pretrain.configs import gpt2, gpt3, llama
from pretrain.configs.mixtral import mixtral
from pretrain.errors import UserError
from pretrain.models.config import (
    DynamicNtkScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MlpConfig,
    Rope,
    YarnScaling,
)
from pretrain.models.convert.fields import essence
from pretrain.models.convert.folder import describe
from pretrain.models.convert.gpt2 import config_from_hf as read_gpt2
from pretrain.models.convert.llama import config_from_hf as read_llama

LLAMA = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 12}
GPT2 = {"vocab_size": 9, "n_embd": 8, "n_head": 2, "n_layer": 2}
SCALINGS = [
    None,
    LinearScaling(factor=2.0),
    DynamicNtkScaling(factor=2.0, original_length=64),
    YarnScaling(factor=4.0, original_length=64, beta_fast=16.0),
    YarnScaling(factor=4.0, original_length=64, attention_factor=1.5),
    YarnScaling(factor=4.0, original_length=64, truncate=False),
    LongRopeScaling(short_factors=(1.0, 1.5), long_factors=(2.0, 4.0), original_length=64, attention_factor=1.1),
    Llama3Scaling(factor=32.0),
]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_llama_comes_back_as_it_went(scaling):
    config = llama.llama(vocab_size=9, d_model=8, layers=2, heads=2, kv_heads=1, d_ff=12, theta=5e5, scaling=scaling)
    family, values = describe(config)
    assert family.from_hf(values) == config
    assert family.from_hf({k: v for k, v in values.items() if k != "rope_parameters"}) == config
    assert family.from_hf({k: v for k, v in values.items() if k not in ("rope_theta", "rope_scaling")}) == config


@pytest.mark.parametrize("name", ["llama1_7b", "llama2_70b", "llama3_8b", "llama3_405b"])
def test_a_published_llama_comes_back_as_it_went(name):
    config = getattr(llama, name)()
    family, values = describe(config)
    assert (values["architectures"], family.from_hf(values)) == (["LlamaForCausalLM"], config)


def test_gpt2_comes_back_as_it_went():
    family, values = describe(gpt2.small())
    assert (values["architectures"], family.from_hf(values)) == (["GPT2LMHeadModel"], gpt2.small())


def test_a_stack_with_a_prefix_has_the_same_layers_in_another_order_of_scanning():
    config = llama.llama(vocab_size=9, d_model=8, layers=4, heads=2, d_ff=12)
    block = config.decoder.pattern[0]
    cut = replace(config.decoder, prefix=(block,), pattern=(block, block), repeats=1, suffix=(block,))
    family, values = describe(replace(config, decoder=cut))
    assert family.from_hf(values) == config
    assert essence(replace(config, decoder=cut)) == essence(config)


def change(config, **mixer):
    block = config.decoder.pattern[0]
    block = replace(block, mixer=replace(block.mixer, **mixer))
    return replace(config, decoder=replace(config.decoder, pattern=(block,)))


def capped():
    config = mixtral(vocab_size=9, d_model=8, layers=2, heads=2, d_ff=12, experts=4)
    (block,) = config.decoder.pattern
    return replace(
        config, decoder=replace(config.decoder, pattern=(replace(block, mlp=replace(block.mlp, capacity=1.5)),))
    )


def test_what_no_architecture_has_is_named():
    tiny = llama.llama(vocab_size=9, d_model=8, layers=1, heads=2, d_ff=12)
    block = tiny.decoder.pattern[0]
    gelu = replace(tiny.decoder, pattern=(replace(block, mlp=MlpConfig(d_ff=12, activation="gelu")),))
    cases = {
        "decoder.0.mixer.chunk=4: LlamaForCausalLM would read None, it has no such setting": change(tiny, chunk=4),
        "decoder.0.mixer.position.interleaved=True: LlamaForCausalLM would read False, it has no such setting": change(
            tiny, position=Rope(interleaved=True)
        ),
        "decoder.0.mlp.activation='gelu': LlamaForCausalLM would read 'silu', it has no such setting": replace(
            tiny, decoder=gelu
        ),
        "decoder.0.mlp.capacity=1.5 (and 1 more): MixtralForCausalLM would read None, it has no such setting": (
            capped()
        ),
        "head.softcap=30.0: LlamaForCausalLM would read None, it has no such setting": replace(
            tiny, head=replace(tiny.head, softcap=30.0)
        ),
        "decoder.1.mixer.window=256: GPT2LMHeadModel would read None, it has no such setting": gpt2.gpt2(
            d_model=8, layers=2, heads=2, window=256
        ),
        "decoder.1.mixer.window=256 (and 5 more): GPT2LMHeadModel would read None, it has no such setting": (
            gpt3.gpt3_small()
        ),
    }
    for message, config in cases.items():
        with pytest.raises(UserError) as error:
            describe(config)
        assert error.value.problems == (message,)


def rope(**fields) -> dict:
    return LLAMA | {"max_position_embeddings": 64} | fields


REFUSED = {
    "activation": (
        read_llama,
        LLAMA | {"hidden_act": "gelu"},
        ["config.json: hidden_act is 'gelu', expected one of silu, swish"],
    ),
    "window": (
        read_llama,
        LLAMA | {"sliding_window": 128},
        [
            "config.json: sliding_window is 128, which LlamaForCausalLM does not have; "
            "remove it if the model was trained without it"
        ],
    ),
    "quantised": (
        read_llama,
        LLAMA | {"quantization_config": {"bits": 4}},
        [
            "config.json: quantization_config is {'bits': 4}, which LlamaForCausalLM does not have; "
            "remove it if the model was trained without it"
        ],
    ),
    "everything": (
        read_llama,
        {"vocab_size": "many", "hidden_size": -8, "num_attention_heads": True, "intermediate_size": 12},
        [
            "config.json: hidden_size is -8, expected a number above 0; correct it",
            "config.json: num_attention_heads is True, expected int; correct it",
            "config.json: num_hidden_layers is nothing, expected int; correct it",
            "config.json: vocab_size is 'many', expected int; correct it",
        ],
    ),
    "longrope": (
        read_llama,
        rope(rope_scaling={"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0, -1]}),
        [
            "config.json: RoPE: short_factor is [1.0, -1], expected positive numbers; correct it",
            "config.json: RoPE: long_factor is nothing, expected list; correct it",
            "config.json: RoPE: found 1 short_factor and 0 long_factor, expected as many",
        ],
    ),
    "numbers": (
        read_llama,
        rope(rms_norm_eps=float("nan"), hidden_size=10**400, rope_scaling={"rope_type": "linear", "factor": -2}),
        [
            f"config.json: hidden_size is 1{'0' * 59}, expected int; correct it",
            "config.json: rms_norm_eps is nan, expected float; correct it",
            "config.json: RoPE: factor is -2.0, expected a number above 0; correct it",
        ],
    ),
    "frequencies": (
        read_llama,
        rope(rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.5, "high_freq_factor": 4.0}),
        ["config.json: RoPE: low_freq_factor is 4.5, expected at most high_freq_factor=4.0; correct one"],
    ),
    "two_thetas": (
        read_llama,
        rope(rope_theta=1e4, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        ["config.json: rope_theta is 500000.0 and 10000.0; keep one of them"],
    ),
    "partial": (
        read_llama,
        rope(partial_rotary_factor=0.5),
        ["config.json: RoPE: partial_rotary_factor is 0.5, only 1.0 is supported in LlamaForCausalLM"],
    ),
    "proportional": (
        read_llama,
        rope(rope_scaling={"type": "proportional", "factor": 2.0}),
        [
            "config.json: RoPE: rope_type is 'proportional', "
            "expected one of default, linear, dynamic, yarn, llama3, longrope, su",
            "config.json: RoPE: factor is 2.0, which LlamaForCausalLM does not have; "
            "remove it if the model was trained without it",
        ],
    ),
    "gpt2_layer_scale": (
        read_gpt2,
        GPT2 | {"scale_attn_by_inverse_layer_idx": True},
        ["config.json: scale_attn_by_inverse_layer_idx is True, only False is supported in GPT2LMHeadModel"],
    ),
    "gpt2_heads": (
        read_gpt2,
        GPT2 | {"n_head": 3},
        ["config.json: n_head is 3, expected a divisor of n_embd=8; correct one"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_config_that_means_another_function_is_refused(name):
    read, values, problems = REFUSED[name]
    with pytest.raises(UserError) as error:
        read(values)
    assert list(error.value.problems) == problems


def test_fields_that_change_no_logits_are_read_over():
    extra = {
        "pretraining_tp": 2,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "some_flag": False,
        "sliding_window": None,
    }
    assert read_llama(LLAMA | extra) == read_llama(LLAMA)
    assert read_gpt2(GPT2 | {"summary_type": "mean", "n_ctx": 1024, "attn_pdrop": 0.1}) == read_gpt2(GPT2)


def test_the_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    assert read_llama(transformers.LlamaConfig().to_dict()) == read_llama(
        {"vocab_size": 32000, "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32}
        | {"intermediate_size": 11008}
    )
    assert read_gpt2(transformers.GPT2Config().to_dict()) == read_gpt2(
        {"vocab_size": 50257, "n_embd": 768, "n_head": 12, "n_layer": 12}
    )
