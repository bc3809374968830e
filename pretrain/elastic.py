"""The same global batch on fewer devices: more micro-batches, none larger than those that fitted. Imports no jax."""

from dataclasses import replace

from pretrain.config import RunConfig
from pretrain.mesh_checks import row_pieces


def device_rows(config: RunConfig, devices: int) -> int:
    """Rows of one micro-batch on one device."""
    return config.batch.rows // config.batch.accumulate // row_pieces(config, devices)


def adapted(config: RunConfig, fitted: int | None, devices: int) -> tuple[RunConfig, list[str]]:
    """`config` for so many devices, and one line where it had to change.

    Args:
        fitted: Rows of a micro-batch on one device that the run began with; None: it begins now.
    """
    rows, given, shards = config.batch.rows, config.batch.accumulate, row_pieces(config, devices)
    if fitted is None or rows // given <= fitted * shards:
        return config, []
    for accumulate in range(given, rows + 1):
        if rows % (accumulate * shards) == 0 and rows // accumulate <= fitted * shards:
            note = (
                f"{devices} devices: batch.accumulate {given} -> {accumulate}, so that a device holds {fitted} rows as "
                f"before; the global batch stays {rows} rows"
            )
            return replace(config, batch=replace(config.batch, accumulate=accumulate)), [note]
    return config, []
