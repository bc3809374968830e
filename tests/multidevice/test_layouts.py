"""Where arrays lie changes nothing but the last bits."""

import jax
import numpy as np
import pytest
from etils import epath

from pretrain.checkpoint.manager import Checkpoints
from pretrain.checkpoint.manifest import Progress
from pretrain.config import BatchConfig, CheckpointConfig
from pretrain.feed import Feed
from pretrain.objectives.build import build
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import PRESETS
from pretrain.state import abstract, create, make_optimizer
from pretrain.step import make_step
from tests.train import tiny

STEPS, ROWS, LENGTH = 20, 8, 32
LAYOUTS = {
    "one device": ("dp", MeshConfig(fsdp=1), 1),
    "dp": ("dp", MeshConfig(data=8, fsdp=1), 8),
    "fsdp": ("fsdp", MeshConfig(fsdp=8), 8),
    "fsdp_tp": ("fsdp_tp", MeshConfig(fsdp=4, tensor=2), 8),
    "2x2x2": ("fsdp_tp", MeshConfig(data=2, fsdp=2, tensor=2), 8),
}


def batches() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    out = []
    for _ in range(STEPS):
        tokens = rng.integers(0, 400, (ROWS, LENGTH), dtype=np.int32)
        cut = rng.integers(4, LENGTH - 4, (ROWS, 1))
        column = np.arange(LENGTH)[None]
        first = column < cut
        out.append(
            {
                "tokens": tokens,
                "targets": np.roll(tokens, -1, 1),
                "positions": np.where(first, column, column - cut).astype(np.int32),
                "segments": np.where(first, 1, 2).astype(np.int32),
                "weights": (column != cut - 1).astype(np.float32) * np.ones((ROWS, 1), np.float32),
            }
        )
    return out


class World:
    """A training job on the first devices of this process."""

    def __init__(self, name: str, accumulate: int = 1):
        rules, mesh, devices = LAYOUTS[name]
        self.config = tiny.config("text", batch=BatchConfig(rows=ROWS, accumulate=accumulate))
        self.mesh = meshes.build(mesh, jax.devices()[:devices])
        self.rules = PRESETS[rules]()
        with self.use():
            self.optimizer = make_optimizer(self.config, np.float32)
            self.feed = Feed(self.mesh, ROWS)
            step = make_step(build(self.config.objective), self.optimizer, accumulate, self.config.health)
            self.step = jax.jit(step)
            self.state = create(self.config, self.optimizer, np.float32, self.mesh)

    def use(self):
        return place.use(self.mesh, self.rules)

    def train(self, batches) -> np.ndarray:
        losses = []
        with self.use():
            for batch in batches:
                self.state, metrics = self.step(self.state, self.feed.on_device(batch))
                losses.append(float(metrics["loss"]))
        return np.array(losses)


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return World("one device").train(batches())


@pytest.mark.parametrize("name", [n for n in LAYOUTS if n != "one device"])
def test_every_layout_gives_the_losses_of_one_device(name, reference):
    np.testing.assert_allclose(World(name).train(batches()), reference, rtol=1e-5)


@pytest.mark.parametrize("name", ["one device", "2x2x2"])
def test_micro_batches_give_the_losses_of_one_batch(name, reference):
    np.testing.assert_allclose(World(name, accumulate=2).train(batches()), reference, rtol=1e-5)


def test_a_state_lies_as_the_rules_say():
    world = World("2x2x2")
    with world.use():
        wanted = abstract(world.config, world.optimizer, np.float32, world.mesh)
        sharded = [w for w in jax.tree.leaves(wanted) if any(w.sharding.spec)]
        assert len(sharded) > 20
        for have, want in zip(jax.tree.leaves(world.state), jax.tree.leaves(wanted)):
            assert have.sharding.is_equivalent_to(want.sharding, have.ndim)
            moved = world.step(world.state, world.feed.on_device(batches()[0]))[0]
        for have, want in zip(jax.tree.leaves(moved), jax.tree.leaves(wanted)):
            assert have.sharding.is_equivalent_to(want.sharding, have.ndim)


def test_a_checkpoint_of_one_mesh_restores_on_every_other(tmp_path, reference):
    data = batches()
    writer = World("fsdp_tp")
    writer.train(data[:10])
    folder = epath.Path(tmp_path / "checkpoints")
    with writer.use():
        checkpoints = Checkpoints(folder, CheckpointConfig())
        checkpoints.save(writer.state, Progress(step=10, tokens=1), None)
        checkpoints.close()
    for name in LAYOUTS:
        reader = World(name)
        with reader.use():
            shapes = abstract(reader.config, reader.optimizer, np.float32, reader.mesh)
            checkpoints = Checkpoints(folder, CheckpointConfig())
            reader.state, progress = checkpoints.resume(shapes)
            checkpoints.close()
        assert progress == Progress(step=10, tokens=1)
        for a, b in zip(jax.tree.leaves(reader.state.model), jax.tree.leaves(writer.state.model)):
            np.testing.assert_array_equal(jax.device_get(a), jax.device_get(b))
        np.testing.assert_allclose(reader.train(data[10:]), reference[10:], rtol=1e-5)
