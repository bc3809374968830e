"""Which process the others wait for: the times of all of them side by side."""

from collections.abc import Sequence
from statistics import median

import jax
import numpy as np

SLOW = 1.2
"""Times the median that make a process slow."""
LEAST = 0.01
"""Share of the step that its own time must be above the median: less is noise."""

Row = dict[str, float]
COLUMNS = ("step_seconds", "own_seconds", "data_wait_seconds")
"""A step; its part in which the process was not waiting for devices, its own or those of others; and for data."""


def gathered(mine: Row) -> list[Row]:
    """One row a process. Every process must call it for the same step."""
    from jax.experimental import multihost_utils

    row = np.array([mine[name] for name in COLUMNS], np.float32)
    if jax.process_count() == 1:
        return [mine]
    table = multihost_utils.process_allgather(row).reshape(-1, len(COLUMNS))
    return [dict(zip(COLUMNS, map(float, found))) for found in table]


def slow(rows: Sequence[Row]) -> list[int]:
    """Processes whose step or own time is above the median of all by `SLOW`."""
    if len(rows) < 2:
        return []
    usual = {name: median(row[name] for row in rows) for name in COLUMNS}
    room = LEAST * usual["step_seconds"]

    def is_slow(row: Row) -> bool:
        return any(row[n] > SLOW * usual[n] and row[n] > usual[n] + room for n in ("step_seconds", "own_seconds"))

    return [i for i, row in enumerate(rows) if is_slow(row)]
