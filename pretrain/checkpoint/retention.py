"""Which checkpoints stay. Imports no jax."""

from collections.abc import Mapping

from pretrain.config import CheckpointConfig


def kept(losses: Mapping[int, float | None], config: CheckpointConfig) -> set[int]:
    """Of finished steps, with the validation loss where there is one: the latest, the best, every so many-th."""
    steps = sorted(losses)
    measured = [step for step in steps if losses[step] is not None]
    best = sorted(measured, key=lambda step: (losses[step], -step))[: config.keep_best]
    forever = [step for step in steps if config.keep_every and step % config.keep_every == 0]
    return {*steps[-config.keep_latest :], *best, *forever}
