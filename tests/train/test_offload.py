"""Moments in the hosts' memory are the same moments."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pretrain.sharding import mesh as meshes
from pretrain.state import abstract, make_optimizer
from tests.train import tiny

SAME = ("step", "batch_hash", "loss", "grad_norm", "learning_rate")


def test_a_run_whose_moments_lie_on_the_host_gives_the_losses_of_another_also_resumed(corpus, tmp_path):
    calm, run = tmp_path / "calm", tmp_path / "run"
    tiny.finish(tiny.start(corpus, calm, "steps=8", "simulate=2"))
    for steps in (4, 8):
        tiny.finish(tiny.start(corpus, run, f"steps={steps}", "simulate=2", "offload=1"))
    for a, b in zip(tiny.lines(calm), tiny.lines(run), strict=True):
        assert {k: a[k] for k in SAME} == {k: b[k] for k in SAME}


@pytest.mark.parametrize("offload", [False, True])
def test_only_what_is_remembered_of_each_parameter_lies_on_the_host(offload):
    config = tiny.config(Path("text"))
    config = replace(config, optimizer=replace(config.optimizer, offload=offload))
    state = abstract(
        config, make_optimizer(config, jnp.dtype("float32")), jnp.dtype("float32"), meshes.abstract(config.mesh, 1)
    )
    there = {s.sharding.memory_kind for s in jax.tree.leaves(state.optimizer.slots)}
    assert there == {"pinned_host" if offload else None}
    rest = replace(state, optimizer=state.optimizer._replace(slots={}))
    assert {s.sharding.memory_kind for s in jax.tree.leaves(rest)} == {None}
