"""A matrix in blocks of columns gives the same products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.sharding import place
from pretrain.sharding.columns import ROWS, Columns


@pytest.mark.parametrize("rows", [1, 2, ROWS, ROWS + 1])
@pytest.mark.parametrize("outputs", [(32,), (5,), (3, 7)])
def test_a_product_with_blocks_is_that_with_the_matrix(rows, outputs):
    keys = jax.random.split(jax.random.key(0))
    x, w = jax.random.normal(keys[0], (rows, 1, 4, 6)), jax.random.normal(keys[1], (4, 6, *outputs))
    got = place.project(x, Columns.of(w, 2), None, None, *(None for _ in outputs), contract=2)
    np.testing.assert_allclose(got, np.tensordot(np.asarray(x), np.asarray(w), 2), atol=1e-5)
    assert got.dtype == jnp.float32
