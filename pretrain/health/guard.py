"""Finds hardware that counts or remembers wrongly (Dixit et al. 2021, arXiv:2102.11245): replicas that differ, a state
that changed at rest, a step that comes out otherwise when it is computed again."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from pretrain.checkpoint import layout
from pretrain.errors import CheckFailed
from pretrain.health.config import HealthConfig
from pretrain.sharding import fingerprint
from pretrain.state import TrainState
from pretrain.step import Metrics, Step

SHOWN = 6
"""Arrays or devices in a message before "and N more"."""


class Guard:
    """Watches the state of one run; every process of the run calls every method.

    `tell`: of the facts of a finding, before CheckFailed is raised.
    """

    def __init__(self, config: HealthConfig, devices: Sequence[Any], tell: Callable[..., None]):
        self.config, self.devices, self.tell = config, devices, tell
        self._resting: tuple[int, jax.Array] | None = None
        self._checks: list[Callable[[], None]] = []

    def step(self, step: Step, state: TrainState, batch: Any, at: int) -> tuple[TrainState, Metrics]:
        """Step `at`, twice where it is due."""
        self._woken(state)
        every = self.config.recompute_every
        return self._again(step, state, batch, at) if every and at % every == 0 else step(state, batch)

    def rest(self, state: TrainState, at: int, *, long: bool) -> None:
        """The state after step `at`, which lies still until the next one; `long`: for an evaluation or a save."""
        every = self.config.compare_every
        if not every or at < every or not (long or at % every == 0):
            return  # a run shorter than that is not worth compiling for
        found = fingerprint.parts(layout.flatten(state))
        groups = {name: fingerprint.replicas(a) for name, a in sorted(layout.flatten(state).items())}
        self._resting = at, found
        self._checks.append(lambda: self._compare(found, groups, at))

    def check(self) -> None:
        """What is known by now. Waits for the devices."""
        checks, self._checks = self._checks, []
        for check in checks:
            check()

    def forget(self) -> None:
        """Of a state that is given up."""
        self._resting, self._checks = None, []

    def _woken(self, state: TrainState) -> None:
        if self._resting is None:
            return
        (at, before), self._resting = self._resting, None
        after, names = fingerprint.parts(layout.flatten(state)), sorted(layout.flatten(state))

        def unchanged() -> None:
            if wrong := _differences(before, after, names):
                self._fail("rest", at, wrong, f"changed between step {at} and step {at + 1}")

        self._checks.append(unchanged)

    def _compare(self, found: jax.Array, groups: dict[str, list[list[int]]], at: int) -> None:
        values = np.asarray(jax.device_get(found))
        wrong = {}
        for column, (name, parts) in enumerate(groups.items()):
            odd = [d for part in parts for d in _odd(values[:, column], part)]
            if odd:
                wrong[name] = odd
        if wrong:
            self._fail("replicas", at, wrong, f"differ from their replicas after step {at}")

    def _again(self, step: Step, state: TrainState, batch: Any, at: int) -> tuple[TrainState, Metrics]:
        names, kept = sorted(layout.flatten(state)), _Copy(state)
        runs: list[tuple[jax.Array, dict[str, Any]]] = []

        def run(state: TrainState) -> tuple[TrainState, Metrics]:
            new, metrics = step(state, batch)
            runs.append((fingerprint.parts(layout.flatten(new)), jax.device_get(metrics)))
            return new, metrics

        run(state)
        new, metrics = run(kept.again())
        wrong = _differences(runs[0][0], runs[1][0], names)
        values = [name for name, x in runs[0][1].items() if _bits(x) != _bits(runs[1][1][name])]
        if not wrong and not values:
            return new, metrics
        del new
        run(kept.again())
        same = [not _differences(runs[i][0], runs[2][0], names) for i in (0, 1)]
        which = {(True, False): "second", (False, True): "first"}.get((same[0], same[1]), "no two of three")
        told = f"step {at} was computed three times, {which} {'agree' if which.startswith('no') else 'time otherwise'}"
        self._fail("recompute", at, wrong or {f"metrics/{name}": [] for name in values}, told)
        raise AssertionError

    def _fail(self, guard: str, at: int, wrong: dict[str, list[int]], what: str) -> None:
        devices = sorted({d for found in wrong.values() for d in found})
        named = [f"{self.devices[d]} of process {self.devices[d].process_index}" for d in devices]
        self.tell(guard=guard, step=at, arrays=list(wrong)[:100], devices=named, what=what)
        on = f" on {_listed(named)}" if named else ""
        raise CheckFailed(
            f"{_listed(list(wrong))}{on}: {what}, expected equal bits; take that machine out and go on from the last "
            "checkpoint with the same command"
        )


class _Copy:
    """A state in this host's memory, from which it can be put back any number of times."""

    def __init__(self, state: TrainState):
        leaves, self._structure = jax.tree.flatten(jax.tree.map(layout.integers, state))
        self._typed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        self._arrays = [
            (x.shape, x.sharding, [(s.device, np.array(s.data)) for s in x.addressable_shards]) for x in leaves
        ]

    def again(self) -> TrainState:
        leaves = [
            jax.make_array_from_single_device_arrays(shape, sharding, [jax.device_put(x, d) for d, x in shards])
            for shape, sharding, shards in self._arrays
        ]
        data = jax.tree.unflatten(self._structure, leaves)
        return jax.tree.map(layout.typed, self._typed, data)


def _bits(x: Any) -> bytes:
    return np.asarray(x).tobytes()


def _odd(values: np.ndarray, part: list[int]) -> list[int]:
    """Devices against the majority of those that hold the same part; all where there is none."""
    counts = Counter(int(values[d]) for d in part).most_common()
    if len(counts) == 1:
        return []
    clear = counts[0][1] > counts[1][1]
    return [d for d in part if not clear or int(values[d]) != counts[0][0]]


def _differences(a: jax.Array, b: jax.Array, names: list[str]) -> dict[str, list[int]]:
    """Name -> devices on which two sets of fingerprints differ."""
    differ = np.asarray(jax.device_get(a)) != np.asarray(jax.device_get(b))
    return {name: np.flatnonzero(differ[:, i]).tolist() for i, name in enumerate(names) if differ[:, i].any()}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
