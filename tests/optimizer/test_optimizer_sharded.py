"""On 8 simulated devices in explicit mode: the same updates, and state that lies where its parameter lies."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
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
CONFIG = {
    "adamw": BASE,
    "stochastic": replace(BASE, kind=AdamW(first_dtype="bfloat16_stochastic", second_dtype="bfloat16_stochastic")),
    "lion": replace(BASE, kind=Lion()),
    "adafactor": replace(BASE, kind=Adafactor(factored_from=8, momentum=Momentum())),
    "muon": replace(BASE, kind=Muon()),
}[sys.argv[1]]
tx = build(CONFIG, NAMES, AXES, 10)

@jax.jit
def apply(grads, state, params):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

def alone(x, spec):
    return jnp.asarray(x)

def sharded(x, spec):
    return jax.device_put(x, NamedSharding(mesh, spec))

def draw(seed, place):
    rng = np.random.default_rng(seed)
    return {k: place(rng.normal(size=s).astype(np.float32), spec) for k, (s, _, spec) in LEAVES.items()}

def run(place):
    params = draw(0, place)
    state = tx.init(params)
    for i in range(3):
        params, state = apply(draw(1 + i, place), state, params)
    return params, state

def entries(spec, ndim):
    return [list(s) if isinstance(s, tuple) else s for s in (*spec, *[None] * ndim)][:ndim]

def specs(tree):
    return jax.tree.map(lambda x: entries(x.sharding.spec, x.ndim), tree)

def difference(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(abs(np.array(a) - np.array(b)).max()), a, b)))

one_params, one_state = run(alone)
_, one_norm = clip_by_global_norm(one_params, 1.0)
with jax.set_mesh(mesh):
    params, state = run(sharded)
    clipped, norm = jax.jit(lambda g: clip_by_global_norm(g, 1.0))(params)
    start = draw(0, sharded)
    report = {
        "layout": {k: entries(spec, len(shape)) for k, (shape, _, spec) in LEAVES.items()},
        "difference": difference(one_params, params),
        "norms": [[float(one_state.grad_norm), float(state.grad_norm)], [float(one_norm), float(norm)]],
        "params": specs(params),
        "clipped": specs(clipped),
        "slots": specs(state.slots),
        "updates": specs(jax.eval_shape(tx.update, start, state, start)[0]),
        "slots before": [specs(tx.init(start).slots), specs(jax.eval_shape(tx.init, start).slots)],
    }
print(json.dumps(report))
"""


# One test for each kind, not one for each claim: a process with 8 devices takes seconds, and xdist workers share none.
@pytest.mark.parametrize("kind", ["adamw", "stochastic", "lion", "adafactor", "muon"])
def test_sharded_updates_are_the_single_devices_and_keep_every_layout(kind):
    done = subprocess.run([sys.executable, "-c", SCRIPT, kind], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    layout = report["layout"]

    assert report["difference"] < 1e-5
    for one, many in report["norms"]:
        assert many == pytest.approx(one, rel=1e-6)
    assert report["params"] == report["clipped"] == report["updates"] == layout
    for name, slots in report["slots"].items():
        for slot in {"mean", "square"} & set(slots):
            assert slots[slot] == layout[name], (name, slot)
    # Eager or only traced, `init` already says where every moment lies.
    assert report["slots before"] == [report["slots"], report["slots"]]
    # Muon moves whole matrices by all-to-all.
    assert "rematerialization" not in done.stderr

    if kind == "adafactor":
        rows_columns = {"row": [None, "fsdp"], "column": [None, "tensor", None, None]}
        assert {k: report["slots"]["block/query"][k] for k in rows_columns} == rows_columns
        assert report["slots"]["block/experts"]["row"] == [None, "tensor", "fsdp"]
        assert report["slots"]["block/experts"]["column"] == [None, "tensor", None]
