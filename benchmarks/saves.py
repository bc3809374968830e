"""What a checkpoint costs the steps beside it, on the model of train_cpu.py (W1) with its optimizer.

    python benchmarks/saves.py [--steps 6] [--repeats 3]

Times STEPS steps alone, then a save and STEPS steps beside it until it is on disk, interleaved; the difference is the
cost of a save, and its share of 50 steps is the cost of `checkpoint.every=50`. Also the seconds of all fingerprints and
how long the loop stood still. One JSON line.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.train_cpu import program

EVERY = 50


def measure(steps: int, repeats: int) -> dict[str, list[float]]:
    """Seconds by what was timed, the first of each with its compilation; and the bytes of the state."""
    from etils import epath

    from pretrain.checkpoint import layout
    from pretrain.checkpoint.manager import Checkpoints
    from pretrain.checkpoint.manifest import Progress
    from pretrain.config import CheckpointConfig
    from pretrain.sharding import fingerprint

    step, state, batch = program()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(epath.Path(folder), CheckpointConfig())
        alone, beside, stood, prints = [], [], [], []
        for number in range(repeats + 1):  # the first compiles
            for times, saves in ((alone, False), (beside, True)):
                began = time.perf_counter()
                if saves:
                    checkpoints.save(state, Progress(step=number + 1, tokens=0), None)
                    stood.append(time.perf_counter() - began)
                for _ in range(steps):
                    state, metrics = step(state, batch())
                    float(metrics["loss"])
                checkpoints.wait()
                times.append(time.perf_counter() - began)
            began = time.perf_counter()
            fingerprint.whole(layout.flatten(state))
            prints.append(time.perf_counter() - began)
        checkpoints.close()
        size = sum(x.nbytes for x in layout.flatten(state).values())
    return {"alone": alone, "beside": beside, "stood": stood, "prints": prints, "bytes": [size]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    found = measure(options.steps, options.repeats)
    save = statistics.median(b - a for a, b in zip(found["alone"][1:], found["beside"][1:]))
    seconds = statistics.median(found["alone"][1:]) / options.steps
    facts = {
        "megabytes": round(found["bytes"][0] / 1e6),
        "step_seconds": seconds,
        "save_seconds": save,
        "stood_still_seconds": statistics.median(found["stood"][1:]),
        "fingerprint_seconds": statistics.median(found["prints"][1:]),
        "share_of_50_steps": save / (EVERY * seconds + save),
    }
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
