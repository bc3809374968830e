"""Every parameter is in exactly one group, every group has a parameter, and errors name them."""

import re

import pytest

from pretrain.errors import UserError
from pretrain.optimizer.config import DECAY_GROUPS, TABLES, Group
from pretrain.optimizer.groups import assign

LLAMA = {
    "embed/tokens": "embedding",
    "decoder/pattern/0/pre_mixer/scale": "vector",
    "decoder/pattern/0/pre_mixer/bias": "vector",
    "decoder/pattern/0/mixer/query": "matrix",
    "decoder/pattern/0/mixer/query_bias": "vector",
    "decoder/pattern/0/mixer/query_norm/scale": "vector",
    "decoder/pattern/0/mlp/down": "matrix",
    "decoder/embed_norm/scale": "vector",
    "decoder/final_norm/scale": "vector",
    "positions/table": "embedding",
    "head/kernel": "embedding",
}


def errors(*groups, names=tuple(LLAMA)):
    with pytest.raises(UserError) as caught:
        assign(groups, names)
    return list(caught.value.problems)


def test_matrices_and_embeddings_decay_and_vectors_do_not():
    decays = {name: group.weight_decay is None for name, group in zip(LLAMA, assign(DECAY_GROUPS, list(LLAMA)))}
    assert decays == {name: what != "vector" for name, what in LLAMA.items()}


def test_tables_are_what_is_looked_up():
    tables = {name for name in LLAMA if re.search(TABLES, name)}
    assert tables == {name for name, what in LLAMA.items() if what == "embedding"}


def test_the_first_group_that_matches_wins():
    first, second = Group(pattern="mlp", lr_scale=2.0), Group(pattern="decoder/.*|embed|head|positions")
    chosen = dict(zip(LLAMA, assign((first, second), list(LLAMA))))
    assert chosen["decoder/pattern/0/mlp/down"] is first
    assert chosen["decoder/pattern/0/mixer/query"] is second


def test_parameters_without_a_group_are_named():
    assert errors(Group(pattern="decoder"), Group(pattern="embed/")) == [
        "positions/table, head/kernel match no pattern of optimizer.groups; "
        'expected every parameter in one, end with Group(pattern="") for the rest'
    ]


def test_a_group_without_a_parameter_names_some_that_exist():
    assert errors(Group(pattern="lora"), Group(pattern=""), names=("a/x", "a/y")) == [
        "optimizer.groups.0 pattern='lora' matches no parameter; "
        "expected at least one, remove it or match one of a/x, a/y"
    ]


def test_a_group_hidden_by_earlier_ones_is_told_to_move_up():
    assert errors(Group(pattern=""), Group(pattern="y"), names=("a/x", "a/y")) == [
        "optimizer.groups.1 pattern='y' matches only a/y, which earlier groups take; "
        "expected at least one, move it up or remove it"
    ]


def test_all_problems_are_told_at_once_and_long_lists_are_cut():
    missed, unused = errors(Group(pattern="z"), names=tuple(f"layer/{i}" for i in range(11)))
    assert missed.startswith("layer/0, layer/1, ")
    assert "layer/7 and 3 more match no pattern" in missed
    assert unused.startswith("optimizer.groups.0 pattern='z' matches no parameter")
