"""One flipped bit, wherever it falls, is found by the guard that watches there, and the guard names the array."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import io_callback

from pretrain.checkpoint import layout
from pretrain.config import BatchConfig
from pretrain.errors import CheckFailed
from pretrain.feed import Feed
from pretrain.health.config import HealthConfig
from pretrain.health.guard import Guard
from pretrain.models.tree import word
from pretrain.objectives.build import build
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import PRESETS
from pretrain.state import create, make_optimizer
from pretrain.step import make_step
from tests.multidevice.test_layouts import batches
from tests.train import tiny

EVERY = 4
HEALTH = HealthConfig(compare_every=EVERY, recompute_every=EVERY)
QUICK = {"xla_backend_optimization_level": 0}


class Machine:
    """Two devices, one of which may be at fault."""

    def __init__(self, rules: str):
        config = tiny.config("text", batch=BatchConfig(rows=8), health=HEALTH)
        config = replace(config, model=replace(config.model, decoder=replace(config.model.decoder, repeats=1)))
        mesh = MeshConfig(data=2, fsdp=1) if rules == "dp" else MeshConfig(fsdp=2)
        self.mesh, self.rules = meshes.build(mesh, jax.devices()[:2]), PRESETS[rules]()
        self.calls, self.bad_call, self.found = 0, None, []
        with self.use():
            optimizer = make_optimizer(config, np.float32)
            self.state = create(config, optimizer, np.float32, self.mesh)
            update = optax.GradientTransformation(optimizer.init, self._faulty(optimizer.update))
            step = jax.jit(make_step(build(config.objective), update, 1, HEALTH), donate_argnums=0)
            self.batch = Feed(self.mesh, 8).on_device(batches()[0])
            self.step = step.lower(self.state, self.batch).compile(QUICK)
        self.guard = Guard(HEALTH, list(self.mesh.devices.flat), lambda **facts: self.found.append(facts))

    def use(self):
        return place.use(self.mesh, self.rules)

    def _faulty(self, update):
        """A gradient has another bit in the call `bad_call` of the step."""

        def flip() -> np.ndarray:
            return np.uint32((self.calls == self.bad_call) << 20)

        def wrapped(grads, state, params=None, **more):
            leaves, structure = jax.tree.flatten(grads)
            mask = io_callback(flip, jax.ShapeDtypeStruct((), jnp.uint32))
            bits = jax.lax.bitcast_convert_type(leaves[0], jnp.uint32) ^ mask
            leaves[0] = jax.lax.bitcast_convert_type(bits, jnp.float32)
            return update(jax.tree.unflatten(structure, leaves), state, params, **more)

        return wrapped

    def count(self, state, batch):
        self.calls += 1
        out = self.step(state, batch)
        jax.block_until_ready(out)
        return out

    def train(self, steps: int, faults: dict[int, tuple[str, int]] | None = None, at_rest: bool = False) -> None:
        """As the loop does. `faults`: behind which step which device's bit of which array flips."""
        with self.use():
            for at in range(1, steps + 1):
                self.state, _ = self.guard.step(self.count, self.state, self.batch, at)
                if not at_rest and at in (faults or {}):
                    self.state = flipped(self.state, *faults[at])
                self.guard.check()
                self.guard.rest(self.state, at, long=False)
                if at_rest and at in (faults or {}):
                    self.state = flipped(self.state, *faults[at])
            self.guard.check()


def flipped(state, name: str, device: int):
    """The state with one bit of the first number of one device's copy changed."""

    def of(path, x):
        if "/".join(map(word, path)).removesuffix("/value") != name:
            return x
        parts = [np.array(s.data) for s in x.addressable_shards]
        parts[device].reshape(-1).view(np.uint32)[0] ^= np.uint32(1 << 3)
        placed = [jax.device_put(p, s.device) for p, s in zip(parts, x.addressable_shards)]
        return jax.make_array_from_single_device_arrays(x.shape, x.sharding, placed)

    return jax.tree_util.tree_map_with_path(of, state)


@pytest.fixture(scope="module")
def machines():
    made = {}
    return lambda rules: made.setdefault(rules, Machine(rules))


@pytest.fixture
def machine(machines):
    def fresh(rules: str) -> Machine:
        made = machines(rules)
        made.calls, made.bad_call, made.found = 0, None, []
        made.guard.forget()
        with made.use():
            made.state = jax.tree.map(lambda x: x, _untouched(made))
        return made

    return fresh


def _untouched(made: Machine):
    """A state whose replicas are equal again, whatever an earlier test did to it."""
    if not hasattr(made, "kept"):
        made.kept = jax.device_get(layout.flatten(made.state))
    arrays = layout.flatten(made.state)
    clean = {n: jax.device_put(made.kept[n], arrays[n].sharding) for n in arrays}
    return layout.unflatten(made.state, layout.nest(clean))


def test_a_sound_machine_is_left_alone(machine):
    for rules in ("dp", "fsdp"):
        machine(rules).train(2 * EVERY + 1)


@pytest.mark.parametrize("name", ["model/decoder/pattern/0/mixer/query", "optimizer/slots/embed/tokens/mu"])
def test_a_bit_of_one_replica_is_found_within_the_steps_between_two_comparisons(machine, name):
    found = machine("dp")
    names = layout.flatten(found.state)
    name = name if name in names else next(n for n in sorted(names) if n.startswith("optimizer/slots"))
    with pytest.raises(CheckFailed, match=re.escape(name)) as error:
        found.train(3 * EVERY, {EVERY + 1: (name, 1)})
    assert found.found[0]["guard"] == "replicas"
    assert found.found[0]["step"] == 2 * EVERY
    assert name in found.found[0]["arrays"]
    assert "differ from their replicas" in str(error.value)


def test_without_replicas_a_bit_that_flips_at_rest_is_found_with_its_device(machine):
    found, name = machine("fsdp"), "model/embed/tokens"
    with pytest.raises(
        CheckFailed, match=re.escape(f"{name} on {jax.devices()[1]} of process 0: changed between step 4")
    ):
        found.train(2 * EVERY, {EVERY: (name, 1)}, at_rest=True)
    assert found.found[0]["guard"] == "rest"


def test_a_wrong_gradient_is_found_when_the_step_is_computed_again(machine):
    found = machine("fsdp")
    found.bad_call = EVERY  # the first of the two computations of step 4
    with pytest.raises(CheckFailed, match="computed three times, first time otherwise"):
        found.train(2 * EVERY)
    assert (found.found[0]["guard"], found.found[0]["step"]) == ("recompute", EVERY)
