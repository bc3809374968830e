"""Every test process simulates eight devices, so that layouts are real everywhere and golden numbers mean one thing."""

from pathlib import Path

import jax
import pytest

from pretrain.sharding import processes

processes.simulated(8)

OWN = Path("/proc/self/maps")
MAPS = 10_000
"""Linux gives a process 65530 maps of memory; a compiled program takes three or more."""


@pytest.fixture(autouse=True)
def programs_are_let_go():
    """Compiled programs of earlier tests, when they have become many: a worker would end in the middle of a test."""
    yield
    if not OWN.exists():  # not Linux
        return
    with OWN.open("rb") as maps:
        if sum(1 for _ in maps) > MAPS:
            jax.clear_caches()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder of small text files, the same in every test process."""
    import random

    folder = tmp_path_factory.mktemp("text")
    words = [
        "the",
        "a",
        "of",
        "to",
        "and",
        "in",
        "is",
        "it",
        "for",
        "on",
        "with",
        "as",
        "by",
        "at",
        "from",
        "token",
        "model",
        "batch",
        "loss",
        "step",
        "mesh",
        "axis",
        "shard",
        "row",
    ]
    rng = random.Random(0)
    for i in range(60):
        lines = [" ".join(rng.choices(words, k=rng.randint(4, 12))) + "." for _ in range(rng.randint(3, 40))]
        (folder / f"{i:03}.txt").write_text("\n".join(lines))
    return folder
