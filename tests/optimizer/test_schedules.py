"""Every schedule against its formula written again in numpy, and the places where schedules go wrong."""

from math import cos, pi, sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.errors import UserError
from pretrain.optimizer.config import (
    WSD,
    Constant,
    Cosine,
    DecayFraction,
    DecaySteps,
    InverseSqrt,
    Linear,
    OptimizerConfig,
)
from pretrain.optimizer.schedules import learning_rate

PEAK, TOTAL, WARM = 3e-4, 50, 8


def rates(schedule, total=TOTAL, steps=range(TOTAL)):
    config = OptimizerConfig(schedule=schedule, peak_lr=PEAK)
    return np.asarray(jax.vmap(lambda step: learning_rate(config, step, total))(jnp.asarray(steps, jnp.int32)))


def left(step, start, end=TOTAL):
    """The part of a decay still to come."""
    return (end - step) / (end - start)


AFTER_WARMUP = {
    "constant": (Constant(warmup_steps=WARM), lambda s: 1),
    "linear": (Linear(warmup_steps=WARM, final_fraction=0.2), lambda s: 0.2 + 0.8 * left(s, WARM)),
    "cosine": (Cosine(warmup_steps=WARM), lambda s: 0.55 + 0.45 * cos(pi * (1 - left(s, WARM)))),
    "inverse_sqrt": (InverseSqrt(warmup_steps=WARM), lambda s: sqrt(WARM) / sqrt(s + 1)),
    "wsd_linear": (
        WSD(warmup_steps=WARM, decay=DecaySteps(steps=20), shape="linear"),
        lambda s: min(1, left(s, 30)),
    ),
    "wsd_cosine": (
        WSD(warmup_steps=WARM, decay=DecaySteps(steps=20), shape="cosine", final_fraction=0.5),
        lambda s: 1 if s < 30 else 0.75 - 0.25 * cos(pi * left(s, 30)),
    ),
    "wsd_1-sqrt": (
        WSD(warmup_steps=WARM, decay=DecayFraction(fraction=0.4), shape="1-sqrt"),
        lambda s: 1 if s < 30 else 1 - sqrt((s - 30) / 20),
    ),
}


@pytest.mark.parametrize("name", AFTER_WARMUP)
def test_a_schedule_follows_its_formula(name):
    schedule, after = AFTER_WARMUP[name]
    expected = [PEAK * ((s + 1) / WARM if s < WARM else after(s)) for s in range(TOTAL)]
    np.testing.assert_allclose(rates(schedule), expected, rtol=2e-6)


@pytest.mark.parametrize("name", AFTER_WARMUP)
def test_every_step_of_the_run_has_a_positive_rate(name):
    assert rates(AFTER_WARMUP[name][0]).min() > 0


def test_inverse_sqrt_is_the_transformers_formula_up_to_a_factor():
    step = np.arange(1, TOTAL + 1)
    vaswani = 512**-0.5 * np.minimum(step**-0.5, step * WARM**-1.5)
    ratio = rates(InverseSqrt(warmup_steps=WARM)) / vaswani
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)


@pytest.mark.parametrize("schedule", [Cosine(warmup_steps=0), Constant(warmup_steps=0), WSD(warmup_steps=0)])
def test_without_warmup_the_first_step_has_the_peak(schedule):
    assert rates(schedule)[0] == np.float32(PEAK)


def test_beyond_the_last_step_the_rate_stays_at_its_final_value():
    late = rates(Cosine(warmup_steps=WARM), steps=[TOTAL, TOTAL + 1, 10 * TOTAL])
    np.testing.assert_allclose(late, 0.1 * PEAK, rtol=1e-6)


def test_a_long_run_is_exact_at_its_last_steps():
    total = 3_000_000
    [last] = rates(Linear(warmup_steps=2000), total=total, steps=[total - 1])
    np.testing.assert_allclose(last, PEAK / (total - 2000), rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            Cosine(warmup_steps=60),
            "optimizer.schedule.warmup_steps=60 leaves nothing of steps=50 to decay; expected fewer, use at most 49",
        ),
        (
            WSD(warmup_steps=20, decay=DecaySteps(steps=31)),
            "optimizer.schedule warms up for 20 and decays for 31 of steps=50; expected both to fit, shorten one",
        ),
    ],
)
def test_a_schedule_longer_than_the_run_is_refused(schedule, message):
    with pytest.raises(UserError) as caught:
        rates(schedule)
    assert str(caught.value) == message
