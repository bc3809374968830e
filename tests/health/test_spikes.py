"""What each policy makes of a batch that is far from the usual, and of one that is not finite."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from pretrain.checkpoint import manifest
from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig
from pretrain.errors import CheckFailed
from pretrain.feed import Feed
from pretrain.health import triage
from pretrain.health.config import HealthConfig, LowerLr, Rewind, Skip, Stop, Warn
from pretrain.health.spikes import Spikes
from pretrain.metrics.sinks import Recorder, read_lines
from pretrain.models import tree
from pretrain.objectives.batch import Loss
from pretrain.objectives.build import build
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place
from pretrain.sharding.mesh import MeshConfig
from pretrain.state import create, make_optimizer
from pretrain.step import make_step
from tests.health.conftest import OUTSIDE, RARE, spoilt_targets
from tests.multidevice.test_layouts import batches
from tests.train import tiny

HEALTH = {"window": 6, "sigmas": 8.0}
SPIKE = 9
QUIET = {"evals": EvalConfig(every=50, batches=1), "checkpoint": CheckpointConfig(every=2, keep_latest=9)}
SAME = ("loss", "grad_norm", "batch_hash", "learning_rate", "loss_z", "tokens")


class Steps:
    """One batch again and again, so that only a spoilt one is a spike."""

    def __init__(self, policy):
        self.config = config = tiny.config(
            "text", batch=BatchConfig(rows=8), health=HealthConfig(policy=policy, **HEALTH)
        )
        self.mesh = meshes.build(MeshConfig(fsdp=1), jax.devices()[:1])
        with place.use(self.mesh, place.NOWHERE):
            optimizer = make_optimizer(config, np.float32)
            self.state = create(config, optimizer, np.float32, self.mesh)
            step = make_step(build(config.objective), optimizer, 1, config.health)
            self.step = jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})
            self.batch = Feed(self.mesh, 8).on_device(batches()[0])

    def __call__(self, batch=None) -> dict[str, float]:
        with place.use(self.mesh, place.NOWHERE):
            self.state, metrics = self.step(self.state, self.batch if batch is None else batch)
        return {name: float(value) for name, value in metrics.items()}

    @property
    def spike(self):
        return spoilt_targets(self.batch)

    @property
    def broken(self):
        return replace(self.batch, weights=self.batch.weights * jnp.inf)


@pytest.fixture(scope="module")
def steps():
    """The programs of a policy once; a new state each time."""
    made: dict = {}

    def fresh(policy) -> Steps:
        run = made.setdefault(policy, None) or Steps(policy)
        if made[policy] is None:
            made[policy] = run
            run.first = run.state
        run.state = run.first
        return run

    return fresh


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_skipped_batch_changes_the_counters_alone_and_a_nan_never_enters_the_window(steps):
    run = steps(Skip(in_a_row=2))
    assert not any(run()["spike"] for _ in range(8))
    for n, bad in enumerate((run.spike, run.broken), start=1):
        before, seen = run.state, run(bad)
        assert (seen["spike"], seen["skipped"]) == (float(n == 1), n)
        assert same(before.model, run.state.model)
        assert same(before.optimizer.slots, run.state.optimizer.slots)
        assert int(run.state.step) == int(run.state.optimizer.step) == int(before.step) + 1
        assert np.isfinite(run.state.health.losses_W).all()
        assert np.isfinite(run.state.health.norms_W).all()
    before, after = run.state, run()
    assert not same(before.model, run.state.model), "the next batch is trained on"
    assert (after["spike"], after["skipped"]) == (0, 0)


def test_a_spike_lowers_the_learning_rate_of_the_next_steps(steps):
    run = steps(LowerLr(factor=0.25, steps=2))
    usual = [run()["learning_rate"] for _ in range(8)][-1]
    rates = [run(run.spike)["learning_rate"], *[run()["learning_rate"] for _ in range(3)]]
    np.testing.assert_allclose(rates, [usual, usual / 4, usual / 4, usual], rtol=1e-6)


def test_a_step_that_is_not_finite_stops_every_later_one_so_that_the_state_can_be_looked_into(steps):
    run = steps(Warn())
    for _ in range(2):
        run()
    before = run.state
    run(run.broken), run()
    assert same(before.model, run.state.model)
    assert int(run.state.step) == 2


def test_a_spike_counts_as_the_threshold_so_that_the_next_one_is_seen_too(steps):
    run = steps(Warn())
    for _ in range(8):
        run()
    assert run(run.spike)["spike"] == 1
    assert float(run.state.health.losses_W.max()) < 8


def events(run, kind) -> list[dict]:
    return [e for e in read_lines(epath.Path(run) / "events.jsonl") if e["kind"] == kind]


def test_warn_writes_an_event_and_stop_stops_before_the_spike_is_saved(train, spoil, tmp_path):
    spoil(SPIKE, "targets", RARE)
    train(tmp_path / "warn", steps=12, health=HealthConfig(**HEALTH), **QUIET)
    assert [e["step"] for e in events(tmp_path / "warn", "spike")] == [SPIKE]
    with pytest.raises(CheckFailed, match=f"sigmas.* at step {SPIKE}; leave its batch out"):
        train(tmp_path / "stop", steps=12, health=HealthConfig(policy=Stop(), **HEALTH), **QUIET)
    assert (manifest.latest(epath.Path(tmp_path / "stop" / "checkpoints")) or 0) < SPIKE


def test_a_rewind_leaves_batches_out_and_a_resume_leaves_out_the_same_ones(train, spoil, tmp_path, monkeypatch):
    from pretrain.train import Loop

    spoil(SPIKE, "targets", RARE)
    how = {"steps": 14, "health": HealthConfig(policy=Rewind(back=3, skip=4), **HEALTH), **QUIET}
    train(tmp_path / "calm", **how)
    assert [
        (e["step"], e["spike"], e["first_skipped"], e["last_skipped"]) for e in events(tmp_path / "calm", "rewind")
    ] == [(6, SPIKE, 7, 10)]
    lines = tiny.lines(tmp_path / "calm")
    assert [line["step"] for line in lines] == [*range(1, 9), *range(7, 15)]
    last = {line["step"]: line for line in lines}
    assert [s for s, line in last.items() if line.get("skipped")] == [7, 8, 9, 10]
    assert len({line["batch_hash"] for line in last.values()}) == 14, "no batch is moved to another step"

    log = Loop._log

    def killed(self, pending, values):
        if pending.step == 9 and values["skipped"]:
            self.job.checkpoints.wait()  # no thread of the dead writes on
            raise RuntimeError("killed")
        log(self, pending, values)

    monkeypatch.setattr(Loop, "_log", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "killed", **how)
    monkeypatch.setattr(Loop, "_log", log)
    train(tmp_path / "killed", **how)
    again = {line["step"]: line for line in tiny.lines(tmp_path / "killed")}
    assert len(events(tmp_path / "killed", "rewind")) == 1
    assert [{k: again[s].get(k) for k in SAME} for s in last] == [{k: last[s].get(k) for k in SAME} for s in last]


def test_a_run_that_skips_goes_on_behind_a_batch_that_is_not_finite_and_keeps_it(train, spoil, tmp_path):
    run = tmp_path / "skip"
    spoil(5, "tokens", OUTSIDE)
    ended = train(run, steps=8, health=HealthConfig(policy=Skip(), **HEALTH), **QUIET)
    assert ended["status"] == "done"
    assert [line["step"] for line in tiny.lines(run) if line["skipped"]] == [5]
    found = events(run, "not_finite")
    assert found[0]["first"] == "batch: tokens, an id that is not from 0 to 399"
    assert (np.load(run / "failed" / "5" / "batch-0.npz")["tokens"] == OUTSIDE).all()


def test_a_run_without_a_policy_stops_and_names_the_first_tensor(train, spoil, tmp_path):
    run = tmp_path / "warn"
    spoil(5, "weights", np.inf)
    with pytest.raises(CheckFailed, match="at step 5, expected finite; first not finite in batch: weights; parameters"):
        train(run, steps=8, health=HealthConfig(**HEALTH), **QUIET)
    assert (run / "failed" / "5" / "facts.json").exists()


def test_many_skips_in_a_row_stop_a_run(tmp_path):
    config = HealthConfig(policy=Skip(in_a_row=2), **HEALTH)
    spikes = Spikes(config, epath.Path(tmp_path), Recorder(epath.Path(tmp_path), tensorboard=False))
    seen = {"loss": math.nan, "grad_norm": math.nan, "loss_z": math.inf, "grad_norm_z": math.inf, "spike": 0.0}
    for n in (1, 2):
        spikes.see(n, {**seen, "skipped": n})
    with pytest.raises(CheckFailed, match=r"at step 3; lower optimizer\.peak_lr"):
        spikes.see(3, {**seen, "skipped": 3})


def test_the_module_in_which_numbers_overflow_is_named(steps):
    """Its parameters, the batch and what was computed before it are finite."""
    run = steps(Warn())
    wide = [name for name in tree.params(run.state.model) if "/mlp/" in name]
    large = tree.like(run.state.model, lambda name, p: p[...].at[1].set(1e30) if name in wide else p[...])
    objective = build(run.config.objective)
    with place.use(run.mesh, place.NOWHERE):
        found = triage.examine(objective, replace(run.state, model=large), run.batch, 1)
    assert str(found).startswith("forward: decoder/layer/1/mlp, decoder/layer/1")


def test_a_parameter_whose_gradient_alone_is_not_finite_is_named(steps):
    run = steps(Warn())

    def rooted(model, batch, key):
        zero = jnp.sqrt(jnp.sum(model.embed.tokens[...] * 0))
        return Loss(total=zero + jnp.sum(model.head.kernel[...]), weight=jnp.float32(1), metrics={})

    with place.use(run.mesh, place.NOWHERE):
        found = triage.examine(rooted, run.state, run.batch, 1)
    assert found == triage.Finding(where="gradients", names=("embed/tokens",))
