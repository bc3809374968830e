"""On 8 simulated devices in explicit mode: the same updates, and state that lies where its parameter lies."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json
from dataclasses import replace
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
jax.config.update("jax_num_cpu_devices", 8)
from pretrain.optimizer.build import build, clip_by_global_norm
from pretrain.optimizer.config import *

mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 3)
LEAVES = {  # name: (shape, matrix axes, layout)
    "embed/tokens": ((32, 16), (0, 1, 1), P("tensor", "fsdp")),
    "block/query": ((8, 16, 2, 4, 4), (1, 1, 3), P(None, "fsdp", "tensor")),
    "block/out": ((8, 2, 4, 4, 16), (1, 3, 1), P(None, "tensor", None, None, "fsdp")),
    "block/both": ((8, 16, 8), (1, 1, 1), P(None, ("data", "fsdp"), "tensor")),
    "block/odd": ((3, 16, 8), (1, 1, 1), P(None, "fsdp", "tensor")),
    "block/experts": ((4, 2, 16, 8), (2, 1, 1), P(None, "tensor", "fsdp")),
    "single/up": ((16, 8), (0, 1, 1), P("fsdp", "tensor")),
    "norm/scale": ((8, 16), None, P(None, "fsdp")),
}
NAMES, AXES = {k: k for k in LEAVES}, {k: v[1] for k, v in LEAVES.items()}
BASE = OptimizerConfig(schedule=Constant(warmup_steps=1), peak_lr=0.01)
CONFIGS = {
    "adamw": BASE,
    "lion": replace(BASE, kind=Lion()),
    "adafactor": replace(BASE, kind=Adafactor(factored_from=8, momentum=Momentum())),
    "muon": replace(BASE, kind=Muon(), groups=MUON_GROUPS),
}

def draw(seed, place):
    rng = np.random.default_rng(seed)
    return {k: place(rng.normal(size=s).astype(np.float32), spec) for k, (s, _, spec) in LEAVES.items()}

def specs(tree):
    full = lambda x: [list(s) if isinstance(s, tuple) else s for s in (*x.sharding.spec, *[None] * x.ndim)][: x.ndim]
    return jax.tree.map(full, tree)

def run(config, place):
    tx = build(config, NAMES, AXES, 10)
    params = draw(0, place)
    state = jax.jit(tx.init)(params)
    shapes = jax.eval_shape(tx.init, params)
    apply = jax.jit(lambda g, s, p: (lambda u, s: (optax.apply_updates(p, u), s))(*tx.update(g, s, p)))
    updates, _ = jax.eval_shape(tx.update, params, state, params)
    for i in range(3):
        params, state = apply(draw(1 + i, place), state, params)
    return params, state, shapes, updates

report = {}
for name, config in CONFIGS.items():
    alone, one, _, _ = run(config, lambda x, spec: jnp.asarray(x))
    with jax.set_mesh(mesh):
        params, state, shapes, updates = run(config, lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)))
        eager = build(config, NAMES, AXES, 10).init(draw(0, lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))))
        report[name] = {
            "difference": max(jax.tree.leaves(jax.tree.map(lambda a, b: float(abs(np.array(a) - np.array(b)).max()), alone, params))),
            "norm": [float(one.grad_norm), float(state.grad_norm)],
            "params": specs(params), "updates": specs(updates), "eager": specs(eager.slots),
            "slots": specs(state.slots), "shapes": specs(shapes.slots),
        }
with jax.set_mesh(mesh):
    grads = draw(0, lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)))
    clipped, norm = jax.jit(lambda g: clip_by_global_norm(g, 1.0))(grads)
    alone, expected = clip_by_global_norm(draw(0, lambda x, spec: jnp.asarray(x)), 1.0)
    report["clip"] = {"norm": [float(norm), float(expected)], "specs": specs(clipped)}
report["layout"] = {k: [list(s) if isinstance(s, tuple) else s for s in (*v[2], *[None] * 5)][: len(v[0])] for k, v in LEAVES.items()}
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def process():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def report(process):
    return json.loads(process.stdout)


every_kind = pytest.mark.parametrize("kind", ["adamw", "lion", "adafactor", "muon"])


@every_kind
def test_sharded_updates_are_the_single_devices(kind, report):
    assert report[kind]["difference"] < 1e-5
    one, many = report[kind]["norm"]
    assert many == pytest.approx(one, rel=1e-6)


@every_kind
def test_parameters_and_updates_keep_their_layout(kind, report):
    assert report[kind]["params"] == report["layout"]
    assert report[kind]["updates"] == report["layout"]


@every_kind
def test_moments_lie_where_their_parameter_lies(kind, report):
    for name, slots in report[kind]["slots"].items():
        for slot in {"mean", "square"} & set(slots):
            assert slots[slot] == report["layout"][name], (name, slot)


@every_kind
def test_layouts_of_state_are_known_before_any_array_exists(kind, report):
    assert report[kind]["shapes"] == report[kind]["slots"] == report[kind]["eager"]


def test_adafactors_rows_and_columns_keep_the_layout_of_their_axes(report):
    slots = report["adafactor"]["slots"]
    assert slots["block/query"]["row"] == [None, "fsdp"]
    assert slots["block/query"]["column"] == [None, "tensor", None, None]
    assert slots["block/experts"]["row"] == [None, "tensor", "fsdp"]
    assert slots["block/experts"]["column"] == [None, "tensor", None]


def test_clipping_works_on_sharded_gradients(report):
    norm, expected = report["clip"]["norm"]
    assert norm == pytest.approx(expected, rel=1e-6)
    assert report["clip"]["specs"] == report["layout"]


def test_muon_moves_matrices_without_full_rematerialisation(process):
    assert "rematerialization" not in process.stderr
