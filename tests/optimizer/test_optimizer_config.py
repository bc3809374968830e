"""An optimizer config: every field changes the updates, wrong values say so, the command line reaches all of it."""

import subprocess
import sys
from dataclasses import fields, is_dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro

from pretrain.errors import problems
from pretrain.optimizer import config as C
from pretrain.optimizer.build import build

STEPS = 12
NAMES = {"kernel": "block/kernel", "other": "block/other", "third": "block/other/third", "scale": "norm/scale"}
AXES = {"kernel": (1, 1, 1), "other": (0, 1, 2), "third": (0, 1, 1), "scale": None}
SHAPES = {"kernel": (2, 16, 8), "other": (8, 4, 4), "third": (8, 4), "scale": (2, 16)}

GROUPS = (
    C.Group(pattern="norm", weight_decay=0.0, kind=C.AdamW()),
    C.Group(pattern="other", lr_scale=0.5),
    C.Group(pattern=""),
)


ADAMW, COSINE = C.AdamW(), C.Cosine(warmup_steps=2)


def base(kind=ADAMW, schedule=COSINE):
    return C.OptimizerConfig(kind=kind, schedule=schedule, peak_lr=0.1, groups=GROUPS)


BASES = {
    "adamw": base(),
    "adafactor": base(C.Adafactor(factored_from=4, momentum=C.Momentum())),
    "lion": base(C.Lion()),
    "muon": base(C.Muon(tables="third")),
    "linear": base(schedule=C.Linear(warmup_steps=2)),
    "wsd": base(schedule=C.WSD(warmup_steps=2, decay=C.DecayFraction(fraction=0.5))),
    "wsd_steps": base(schedule=C.WSD(warmup_steps=2, decay=C.DecaySteps(steps=4))),
    "inverse_sqrt": base(schedule=C.InverseSqrt(warmup_steps=2)),
    "constant": base(schedule=C.Constant(warmup_steps=2)),
}

OTHER = {
    C.AdamW: {"b1": 0.5, "b2": 0.5, "eps": 1e-2, "first_dtype": "bfloat16", "second_dtype": "bfloat16"},
    C.Momentum: {"b1": 0.5, "dtype": "bfloat16"},
    C.Adafactor: {
        "decay_exponent": 0.5,
        "eps": 1e-3,
        "factored_from": 64,
        "clip_rms": None,
        "minimum_scale": None,
        "momentum": None,
    },
    C.Lion: {"b1": 0.5, "b2": 0.5, "first_dtype": "bfloat16"},
    C.Muon: {
        "momentum": 0.5,
        "nesterov": False,
        "iterations": 3,
        "scale": "spectral",
        "iteration_dtype": "bfloat16",
        "first_dtype": "bfloat16",
        "rest": C.AdamW(b2=0.7),
        "tables": "other",
    },
    C.Constant: {"warmup_steps": 4},
    C.Linear: {"warmup_steps": 4, "final_fraction": 0.5},
    C.Cosine: {"warmup_steps": 4, "final_fraction": 0.5},
    C.DecaySteps: {"steps": 6},
    C.DecayFraction: {"fraction": 0.25},
    C.WSD: {"warmup_steps": 4, "decay": C.DecaySteps(steps=3), "shape": "linear", "final_fraction": 0.5},
    C.InverseSqrt: {"warmup_steps": 4},
    C.Group: {"pattern": "kernel", "lr_scale": 2.0, "weight_decay": 0.5, "kind": C.Adafactor(), "frozen": True},
    C.OptimizerConfig: {
        "kind": C.AdamW(b1=0.1),
        "schedule": C.Constant(warmup_steps=1),
        "peak_lr": 0.05,
        "weight_decay": 0.0,
        "clip_norm": None,
        "groups": (GROUPS[0], C.Group(pattern="", weight_decay=0.0)),
        "offload": True,
    },
}
SAME = ("offload",)
"""Gives the same updates from another memory: tests/train/test_offload.py."""


def changed(node, path=""):
    """(path, the whole tree with that one field changed) for every field below `node`."""
    if isinstance(node, tuple):
        for i, item in enumerate(node):
            for name, new in changed(item, f"{path}.{i}"):
                yield name, (*node[:i], new, *node[i + 1 :])
    elif is_dataclass(node):
        for field in fields(node):
            if field.name in SAME:
                continue
            yield f"{path}.{field.name}", replace_field(node, field.name)
            for name, new in changed(getattr(node, field.name), f"{path}.{field.name}"):
                yield name, replace(node, **{field.name: new})


def replace_field(node, name):
    new = OTHER[type(node)][name]
    if name == "frozen":
        return C.Group(pattern=node.pattern, frozen=True)
    if name == "pattern":
        # Every group keeps a parameter. The last takes what the others leave, so changing them changes it.
        new = {"norm": "norm|third", "other": "kernel", "": ".*"}[node.pattern]
    return replace(node, **{name: new})


def changes():
    for name, config in BASES.items():
        for path, new in changed(config):
            # What all bases share is changed in the first alone.
            if (name == "adamw" or path.startswith((".kind.", ".schedule."))) and path != ".groups.2.pattern":
                yield f"{name}{path}", (config, new)


CHANGES = dict(changes())


@pytest.fixture(scope="module")
def trajectory():
    """The parameters after 12 steps on gradients whose norms lie on both sides of 1."""
    rng = np.random.default_rng(0)
    shapes, structure = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))

    def draw(scale):
        return structure.unflatten([jnp.asarray(scale * rng.normal(size=s), jnp.float32) for s in shapes])

    start, grads = draw(1.0), [draw(0.2 * 0.8**i) for i in range(STEPS)]
    done = {}

    def run(config):
        if config not in done:
            tx = build(config, NAMES, AXES, STEPS)
            params, state = start, tx.init(start)
            for grad in grads:  # Without jit: small operations are compiled once for all configs.
                updates, state = tx.update(grad, state, params)
                params = optax.apply_updates(params, updates)
            done[config] = np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])
        return done[config]

    return run


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_updates(name, trajectory):
    before, after = (trajectory(c) for c in CHANGES[name])
    assert np.abs(before - after).max() > 1e-6


def test_every_config_class_is_among_the_changed_ones():
    classes = {c for c in vars(C).values() if isinstance(c, type) and is_dataclass(c)}
    assert classes == set(OTHER)
    assert all({f.name for f in fields(c)} == set(OTHER[c]) for c in classes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (C.AdamW(b1=1.0), "b1=1.0: expected a decay in [0, 1); 0.9 to 0.999 is usual"),
        (C.AdamW(eps=0.0), "eps=0.0: expected a positive number; 1e-8 is usual"),
        (C.Muon(iterations=0), "iterations=0: expected at least 1; 5 is usual"),
        (C.Muon(tables="("), "tables='(' is no regular expression; escape with a backslash"),
        (C.Adafactor(clip_rms=0.0), "clip_rms=0.0: expected 1.0, or None for none"),
        (C.Adafactor(momentum=C.Momentum(b1=-1)), "momentum.b1=-1: expected a decay in [0, 1); 0.9 to 0.999 is usual"),
        (C.Cosine(warmup_steps=-1), "warmup_steps=-1: expected at least 0; 1% of all steps is usual"),
        (C.InverseSqrt(warmup_steps=0), "warmup_steps=0: expected at least 1; 1% of all steps is usual"),
        (
            C.Linear(warmup_steps=1, final_fraction=2.0),
            "final_fraction=2.0: expected a fraction in [0, 1]; 0.1 is usual",
        ),
        (C.Group(pattern="("), "pattern='(' is no regular expression; escape with a backslash"),
        (C.Group(pattern="a", lr_scale=0.0), "lr_scale=0.0: expected above 0; use frozen=True to stop a group"),
        (
            C.Group(pattern="a", frozen=True, weight_decay=0.0),
            "frozen=True with lr_scale, weight_decay or kind, which a frozen group does not use; leave them out",
        ),
        (replace(base(), peak_lr=-1.0), "peak_lr=-1.0: expected a positive rate; 3e-4 is usual"),
        (replace(base(), clip_norm=0.0), "clip_norm=0.0: expected a positive norm; 1.0 is usual, None clips nothing"),
        (
            replace(base(), groups=()),
            'groups is empty: expected every parameter in one; Group(pattern="") takes them all',
        ),
    ],
)
def test_a_wrong_value_says_what_was_found_and_what_to_do(config, message):
    assert list(problems(config)) == [message]


@pytest.mark.parametrize("config", BASES.values(), ids=list(BASES))
def test_the_usual_values_have_no_problem(config):
    assert list(problems(config)) == []


def test_the_command_line_reaches_nested_fields():
    config = base(C.Muon(), C.WSD(warmup_steps=3))
    line = "--peak-lr 3e-4 --clip-norm None --kind.momentum 0.9 --kind.no-nesterov --kind.rest.b2 0.98 "
    line += "--schedule.warmup-steps 100 --schedule.decay.fraction 0.2 --groups.0.kind.b2 0.99 "
    line += "--groups.1.weight-decay 0.5"
    parsed = tyro.cli(C.OptimizerConfig, default=config, args=line.split(), config=(tyro.conf.AvoidSubcommands,))
    first, second, last = GROUPS
    assert parsed == C.OptimizerConfig(
        kind=C.Muon(momentum=0.9, nesterov=False, rest=C.AdamW(b2=0.98)),
        schedule=C.WSD(warmup_steps=100, decay=C.DecayFraction(fraction=0.2)),
        peak_lr=3e-4,
        clip_norm=None,
        groups=(replace(first, kind=C.AdamW(b2=0.99)), replace(second, weight_decay=0.5), last),
    )


def test_the_config_does_not_import_jax():
    code = "import sys, pretrain.optimizer.config; sys.exit('jax' in sys.modules or 'optax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
