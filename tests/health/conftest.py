from dataclasses import replace

import numpy as np
import pytest

from pretrain.data.pipeline import Pipeline
from tests.train.conftest import train  # noqa: F401

RARE, OUTSIDE = 399, 400
"""A token that the corpus does not hold, and one that the vocabulary does not."""


@pytest.fixture
def spoil(monkeypatch):
    """spoil(step, array, value): that array of that step's batch is filled with a value from now on."""
    spoilt: dict[int, tuple[str, float]] = {}
    whole = Pipeline.rows

    def rows(self, step, rows=slice(None)):
        batch = whole(self, step, rows)
        if step + 1 in spoilt:
            name, value = spoilt[step + 1]
            batch = {**batch, name: np.full_like(batch[name], value)}
        return batch

    monkeypatch.setattr(Pipeline, "rows", rows)
    return lambda step, name, value: spoilt.__setitem__(step, (name, value))


def spoilt_targets(batch):
    return replace(batch, targets=batch.targets * 0 + RARE)
