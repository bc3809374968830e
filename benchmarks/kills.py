"""Kills a training run at random moments, restarts it, and compares every line it wrote with an undisturbed run.

    python benchmarks/kills.py --kills 20 --seed 0

Each kill is `kill -9`, at a random moment between the start of the process and some steps behind its last checkpoint.
Prints one line a kill and a summary as JSON; exit code 3 when a loss or a batch differs, or a checkpoint is damaged.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from etils import epath

from pretrain.checkpoint import manager
from tests.train import tiny

MOST_STEPS = 25
"""Of a session before it is killed."""
SAME = ("loss", "grad_norm", "weight", "tokens", "batch_hash", "learning_rate")


def text(folder: Path) -> Path:
    """A small corpus: the standard library's json and email packages."""
    import email
    import json as json_package

    folder.mkdir()
    for package in (json_package, email):
        for path in Path(package.__file__).parent.glob("*.py"):
            (folder / f"{package.__name__}_{path.stem}.txt").write_text(path.read_text())
    return folder


def kill_once(corpus: Path, run: Path, rng: random.Random, steps: int) -> dict:
    before = len(tiny.lines(run))
    process = tiny.start(corpus, run, f"steps={steps}")
    starting = rng.random() < 0.25
    more, patience = (1, rng.uniform(0, 8)) if starting else (rng.randint(1, MOST_STEPS), 120)
    deadline = time.time() + patience  # while it starts, restores or compiles; or some steps later
    while process.poll() is None and len(tiny.lines(run)) < before + more and time.time() < deadline:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.05))
    alive = process.poll() is None
    process.kill()
    process.wait()
    folder = epath.Path(run / "checkpoints")
    newest = manager.latest(folder)
    problems = [] if newest is None else manager.verify(folder / str(newest))
    step = max((line["step"] for line in tiny.lines(run)), default=0)
    return {"killed": alive, "step": step, "checkpoint": newest, "problems": problems}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of the run; default: more than the kills let it reach")
    options = parser.parse_args()
    rng, began = random.Random(options.seed), time.time()
    options.steps = options.steps or 2 * MOST_STEPS * options.kills
    with tempfile.TemporaryDirectory() as folder:
        corpus, run, calm = text(Path(folder) / "text"), Path(folder) / "killed", Path(folder) / "calm"
        tiny.finish(tiny.start(corpus, calm, f"steps={options.steps}"))
        reference = {line["step"]: line for line in tiny.lines(calm)}
        kills = []
        while sum(k["killed"] for k in kills) < options.kills and len(kills) < 3 * options.kills:
            kills.append(kill_once(corpus, run, rng, options.steps))
            print(json.dumps(kills[-1]), flush=True)
        tiny.finish(tiny.start(corpus, run, f"steps={options.steps}"))
        lines = tiny.lines(run)
    different = [(x["step"], k) for x in lines for k in SAME if x[k] != reference[x["step"]][k]]
    summary = {
        "kills": sum(k["killed"] for k in kills),
        "logged_steps": len(lines),
        "repeated_steps": len(lines) - options.steps,
        "missing_steps": options.steps - len({x["step"] for x in lines}),
        "different": different,
        "unreadable_checkpoints": [k for k in kills if k["problems"]],
        "seconds": round(time.time() - began),
    }
    print(json.dumps(summary))
    return 3 if different or summary["missing_steps"] or summary["unreadable_checkpoints"] else 0


if __name__ == "__main__":
    sys.exit(main())
