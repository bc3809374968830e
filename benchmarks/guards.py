"""What the guards of a run's health cost at their defaults: shares of a training step in CPU seconds, one thread.

Workload W1 of train_cpu.py. Two processes take turns: the step as `pretrain train` runs it, and the same without the
norms of its parts. The first also measures what comes now and then: fingerprints of the whole state (twice every
`compare_every` steps) and a step computed again from a copy (every `recompute_every`).

    python benchmarks/guards.py [--rounds 9] [--core 1] [--json]
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.sides import Side, serve
from benchmarks.train_cpu import program

STEP, FINGERPRINT, AGAIN = range(3)
"""What a process is asked to do."""


def guarded() -> Callable[[int], object]:
    import jax

    from pretrain.checkpoint import layout
    from pretrain.health.config import HealthConfig
    from pretrain.health.guard import Guard
    from pretrain.sharding import fingerprint

    compiled, state, batch = program()
    guard = Guard(HealthConfig(recompute_every=1), jax.devices(), lambda **facts: print(facts, file=sys.stderr))
    marks = jax.jit(lambda state: fingerprint.parts(layout.flatten(state)))

    def run(what: int) -> object:
        nonlocal state
        if what == FINGERPRINT:
            return jax.block_until_ready(marks(state))
        state, metrics = guard.step(compiled, state, batch(), 1) if what == AGAIN else compiled(state, batch())
        return float(metrics["loss"])

    return run


def bare() -> Callable[[int], object]:
    from pretrain.health import norms

    norms.by_part = lambda kind, model: {}
    compiled, state, batch = program()

    def run(what: int) -> object:
        nonlocal state
        state, metrics = compiled(state, batch())
        return float(metrics["loss"])

    return run


def measure(rounds: int, core: int) -> dict:
    from pretrain.health.config import HealthConfig

    sides = {name: Side(__file__, name, core) for name in ("guarded", "bare")}
    work = [("guarded", STEP), ("bare", STEP), ("guarded", FINGERPRINT), ("guarded", AGAIN)]
    for name, what in work:
        sides[name](what), sides[name](what)
    seconds = {key: [] for key in work}
    for _ in range(rounds):
        for name, what in work:
            seconds[name, what].append(sides[name](what))
    for side in sides.values():
        side.close()
    median = {key: statistics.median(values) for key, values in seconds.items()}
    defaults, step = HealthConfig(), median["bare", STEP]
    assert defaults.compare_every
    assert defaults.recompute_every
    pairs = zip(seconds["guarded", STEP], seconds["bare", STEP], strict=True)
    shares = {
        "norms": statistics.median(a / b - 1 for a, b in pairs),
        "fingerprints": 2 * median["guarded", FINGERPRINT] / defaults.compare_every / step,
        "recomputed": (median["guarded", AGAIN] - median["guarded", STEP]) / defaults.recompute_every / step,
    }
    facts = {"step_seconds": step, "fingerprint_seconds": median["guarded", FINGERPRINT]}
    return facts | {"share": shares, "all": sum(shares.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", choices=["guarded", "bare"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve({"guarded": guarded, "bare": bare}[args.serve](), args.core)
    found = measure(args.rounds, args.core)
    if args.json:
        return print(json.dumps(found))
    print(f"a step takes {found['step_seconds']:.2f} CPU seconds, a fingerprint {found['fingerprint_seconds']:.4f}")
    for name, share in found["share"].items():
        print(f"{name:>12} {share:7.3%} of a step")
    print(f"{'all':>12} {found['all']:7.3%}")


if __name__ == "__main__":
    main()
