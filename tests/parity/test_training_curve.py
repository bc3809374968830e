"""The same weights, batches and AdamW give the same losses in torch and here, step by step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from pretrain.health.config import HealthConfig
from pretrain.models import convert, tree
from pretrain.models.transformer import Inputs
from pretrain.objectives.batch import Batch
from pretrain.objectives.build import build as build_objective
from pretrain.objectives.config import LossConfig, NextToken
from pretrain.optimizer.build import build
from pretrain.optimizer.config import AdamW, Constant, Cosine, OptimizerConfig
from pretrain.state import TrainState
from pretrain.step import make_step
from tests.parity import zoo

STEPS, ROWS, WARMUP = 50, 4, 5
RATE, DECAY, CLIP, BETAS = 3e-3, 0.1, 1.0, (0.9, 0.95)
SCHEDULES = {"constant": Constant(warmup_steps=WARMUP), "cosine": Cosine(warmup_steps=WARMUP, final_fraction=0.1)}


def batches() -> np.ndarray:
    """Rows of a noisy counting game, which is learned in a few steps."""
    rng = np.random.default_rng(0)
    start, stride = rng.integers(0, zoo.VOCAB, (STEPS, ROWS, 1)), rng.integers(1, 4, (STEPS, ROWS, 1))
    noise = rng.integers(0, zoo.VOCAB, (STEPS, ROWS, zoo.LENGTH + 1)) * (
        rng.random((STEPS, ROWS, zoo.LENGTH + 1)) < 0.1
    )
    return ((start + stride * np.arange(zoo.LENGTH + 1) + noise) % zoo.VOCAB).astype(np.int32)


def rate(schedule: str, step: int) -> float:
    """Of step 0, 1, ..., written down anew."""
    if step < WARMUP:
        return RATE * (step + 1) / WARMUP
    done = (step - WARMUP) / (STEPS - WARMUP)
    return RATE if schedule == "constant" else RATE * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def their_losses(model, schedule: str) -> np.ndarray:
    torch = zoo.torch
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer, losses = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=1e-8), []
    for step, rows in enumerate(torch.from_numpy(batches().astype(np.int64))):
        for group in optimizer.param_groups:
            group["lr"] = rate(schedule, step)
        logits = model(rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def our_losses(model, schedule: str, accumulate: int) -> np.ndarray:
    b1, b2 = BETAS
    kind = AdamW(b1=b1, b2=b2, eps=1e-8)
    config = OptimizerConfig(kind=kind, schedule=SCHEDULES[schedule], peak_lr=RATE, weight_decay=DECAY, clip_norm=CLIP)
    optimizer = build(config, tree.names(model), tree.matrix_axes(model), STEPS)
    objective = build_objective(NextToken(loss=LossConfig(chunk=7)))
    step = make_step(objective, optimizer, accumulate, HealthConfig())
    step = jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})
    state = TrainState(step=jnp.int32(0), model=model, optimizer=optimizer.init(model), key=jax.random.key(0))
    losses = []
    for rows in batches():
        inputs, targets = Inputs(tokens=jnp.asarray(rows[:, :-1])), jnp.asarray(rows[:, 1:])
        batch = Batch(inputs=inputs, targets=targets, weights=jnp.ones(targets.shape))
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
    return np.array(losses)


@pytest.mark.parametrize(
    ("name", "schedule", "accumulate"),
    [("llama_gqa", "cosine", 1), ("llama_mqa", "constant", 2), ("gpt2", "cosine", 1)],
)
def test_fifty_steps_of_training_have_the_same_losses(name, schedule, accumulate, tmp_path):
    theirs = zoo.theirs(name).train()
    theirs.save_pretrained(tmp_path)
    ours = our_losses(convert.load(tmp_path)[1], schedule, accumulate)
    expected = their_losses(theirs, schedule)
    assert expected[-5:].mean() < expected[0] - 0.5
    assert np.abs(ours - expected).max() <= 1e-4
