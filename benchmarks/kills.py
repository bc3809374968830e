"""Kills training or the preparation of its corpus at random moments and compares what is left with an undisturbed run.

    python benchmarks/kills.py --kills 20 --seed 0
    python benchmarks/kills.py --kills 100 --prepare
    python benchmarks/kills.py --kills 20 --streaming

Each kill is `kill -9`: of training at a random moment between the start of the process and some steps behind its last
checkpoint; of `data prepare`, with two workers, at a random moment of its time, in a new folder whenever one is done.
Prints one line a kill and a summary as JSON; exit code 3 when a loss or a batch differs, a checkpoint is damaged, `data
audit` finds a sample lost or repeated, or a prepared folder has other bytes. The moments are some with a number of
shards finished and some of the clock.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from etils import epath

from pretrain.checkpoint import manifest, reading
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


def kill_once(corpus: Path, run: Path, rng: random.Random, words: list[str]) -> dict:
    before = len(tiny.lines(run))
    process = tiny.start(corpus, run, *words)
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
    newest = manifest.latest(folder)
    problems = [] if newest is None else reading.verify(folder / str(newest))
    step = max((line["step"] for line in tiny.lines(run)), default=0)
    return {"killed": alive, "step": step, "checkpoint": newest, "problems": problems}


def prepare(source: Path, folder: Path) -> subprocess.Popen:
    """`data prepare` of many small units."""
    words = [
        sys.executable,
        "-m",
        "pretrain",
        "data",
        "prepare",
        "runs.smoke",
        "--data.path",
        str(folder),
        "--workers=2",
    ]
    words += ["--data.corpus.source", "text-files", "--data.corpus.source.paths", str(source)]
    words += ["--data.corpus.unit-bytes", "30000", "--data.corpus.record-tokens", "256"]
    words += ["--data.corpus.tokenizer.vocab-size", "400", "--data.corpus.tokenizer.sample-bytes", "20000"]
    words += ["--model.vocab-size", "400"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, cwd=tiny.ROOT, env=os.environ | {"PYTHONPATH": str(tiny.ROOT)}, text=True, **pipes)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def finished(process: subprocess.Popen) -> None:
    _, told = process.communicate(timeout=300)
    if process.returncode:
        raise SystemExit(f"data prepare failed: {told}")


def kill_preparations(source: Path, folder: Path, rng: random.Random, kills: int) -> dict:
    """Corpora that were finished after any number of kills, and which of them differ from the undisturbed one."""
    began = time.time()
    finished(prepare(source, folder / "calm"))
    seconds, calm = time.time() - began, contents(folder / "calm")
    shards = sum(name.startswith("train-") and name.endswith(".json") for name in calm)
    done, different, number, there = 0, [], 0, []
    while done < kills:
        here = folder / str(number)
        process = prepare(source, here)
        before = len(list(here.glob("train-*.json")))
        wanted = rng.randint(before, shards + 1)
        deadline = time.time() + seconds * rng.choice([rng.random(), 3])
        while process.poll() is None and time.time() < deadline and len(list(here.glob("train-*.json"))) < wanted:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        alive = process.poll() is None
        process.kill()
        process.communicate()
        done += alive
        units = len(list(here.glob("train-*.json"))) if here.is_dir() else 0
        there.append(units)
        print(json.dumps({"killed": alive, "units": units, "manifest": (here / "manifest.json").exists()}), flush=True)
        if not alive or (here / "manifest.json").exists() or done == kills:
            finished(prepare(source, here))
            found = contents(here)
            different += [f"{number}/{name}" for name in sorted(calm | found) if calm.get(name) != found.get(name)]
            number += 1
    return {"kills": done, "corpora": number, "units_at_kills": sorted(there), "different": different}


def audited(run: Path, corpus: Path) -> dict:
    """What `data audit` says of a run: its counts, and its exit code."""
    words = [sys.executable, "-m", "pretrain", "data", "audit", str(run), "--json"]
    environment = os.environ | {"PYTHONPATH": str(tiny.ROOT)}
    done = subprocess.run(words, cwd=corpus.parent, env=environment, capture_output=True, text=True)
    if not done.stdout:
        raise SystemExit(f"data audit failed: {done.stderr}")
    return {**json.loads(done.stdout), "exit": done.returncode}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of the run; default: more than the kills let it reach")
    parser.add_argument("--prepare", action="store_true", help="kill the preparation of a corpus, not training")
    parser.add_argument("--streaming", action="store_true", help="train straight from the files")
    options = parser.parse_args()
    rng, began = random.Random(options.seed), time.time()
    options.steps = options.steps or 2 * MOST_STEPS * options.kills
    if options.prepare:
        with tempfile.TemporaryDirectory() as folder:
            facts = kill_preparations(text(Path(folder) / "text"), Path(folder), rng, options.kills)
        print(json.dumps({**facts, "seconds": round(time.time() - began)}))
        return 3 if facts["different"] else 0
    with tempfile.TemporaryDirectory() as folder:
        corpus, run, calm = text(Path(folder) / "text"), Path(folder) / "killed", Path(folder) / "calm"
        words = [f"steps={options.steps}", *(["streaming=1"] if options.streaming else [])]
        tiny.finish(tiny.start(corpus, calm, *words))
        reference = {line["step"]: line for line in tiny.lines(calm)}
        kills = []
        while sum(k["killed"] for k in kills) < options.kills and len(kills) < 3 * options.kills:
            kills.append(kill_once(corpus, run, rng, words))
            print(json.dumps(kills[-1]), flush=True)
        tiny.finish(tiny.start(corpus, run, *words))
        lines, audit = tiny.lines(run), audited(run, corpus)
    different = [(x["step"], k) for x in lines for k in SAME if x[k] != reference[x["step"]][k]]
    summary = {
        "kills": sum(k["killed"] for k in kills),
        "logged_steps": len(lines),
        "repeated_steps": len(lines) - options.steps,
        "missing_steps": options.steps - len({x["step"] for x in lines}),
        "different": different,
        "unreadable_checkpoints": [k for k in kills if k["problems"]],
        "audit": audit,
        "seconds": round(time.time() - began),
    }
    print(json.dumps(summary))
    return 3 if audit["exit"] or different or summary["missing_steps"] or summary["unreadable_checkpoints"] else 0


if __name__ == "__main__":
    sys.exit(main())
