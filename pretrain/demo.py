"""The tour: one real run on real text, killed and resumed on the way, then sampled, exported and reported."""

import os
import subprocess
import sys
import time
from typing import Any

from etils import epath

from pretrain import run as runs
from pretrain.checkpoint import manifest
from pretrain.errors import CheckFailed
from pretrain.metrics.sinks import read_lines

CONFIG = "runs.demo"


def demo(run: epath.Path, fresh: bool) -> dict[str, Any]:
    """Trains `runs.demo` in `run` (or goes on with it) and shows what one can do with it; returns the facts."""
    began = time.time()
    if fresh and run.exists():
        run.rmtree()
    if runs.read(run) is not None:
        newest = manifest.latest(run / "checkpoints")
        say(f"Going on with {run}, from step {newest or 0}. `pretrain demo --fresh` starts anew.")
    else:
        say(f"Training a tokenizer and a small Llama on the Python standard library, in {run}.")
        killed = _train_and_kill(run)
        say(f"Killed it (kill -9) at step {killed}. The same command again goes on from the last checkpoint:")
    _train(run)
    repeated = _repeated_steps(run)
    if repeated:
        say(f"{repeated} steps were computed twice, with equal losses and equal batches, bit for bit.")
    return {**_show(run), "repeated_steps": repeated, "seconds": round(time.time() - began, 1)}


def say(text: str) -> None:
    print(f"\n── {text}", file=sys.stderr, flush=True)


def _command(run: epath.Path) -> list[str]:
    return [sys.executable, "-m", "pretrain", "train", CONFIG, "--run", os.fspath(run)]


def _train_and_kill(run: epath.Path) -> int:
    """The step that the run had reached when it was killed, a few steps behind its first checkpoint."""
    from pretrain.configs.runs import demo as preset

    stop_behind = preset.run().checkpoint.every + preset.run().log.every
    process = subprocess.Popen(_command(run), stdout=subprocess.DEVNULL)
    reached = 0
    while process.poll() is None and reached <= stop_behind:
        time.sleep(0.1)
        reached = max((line["step"] for line in read_lines(run / "metrics.jsonl")), default=0)
    process.kill()
    process.wait()
    if not reached:
        raise CheckFailed(
            f"the demo ended before its first step (exit code {process.returncode}); run: pretrain doctor"
        )
    return reached


def _train(run: epath.Path) -> None:
    ended = subprocess.run(_command(run), stdout=subprocess.DEVNULL, check=False)
    if ended.returncode:
        raise CheckFailed(f"training ended with exit code {ended.returncode}, expected 0; see the lines above")


def _repeated_steps(run: epath.Path) -> int:
    """How many logged steps appear more than once. Raises CheckFailed where two lines of a step disagree."""
    seen: dict[int, dict] = {}
    repeated = 0
    for line in read_lines(run / "metrics.jsonl"):
        before = seen.setdefault(line["step"], line)
        repeated += before is not line
        for key in ("loss", "batch_hash"):
            if before[key] != line[key]:
                raise CheckFailed(f"step {line['step']}: {key} was {before[key]}, now {line[key]}; expected equal")
    return repeated


def _show(run: epath.Path) -> dict[str, Any]:
    from pretrain.exchange import export_run
    from pretrain.opened import open_run
    from pretrain.report import write_report

    opened = open_run(run)
    samples = run / "samples" / f"{opened.step}.md"
    if samples.exists():
        say("What the model writes now (prompt⟨continuation⟩):")
        print(samples.read_text(), file=sys.stderr)
    say("Exporting it to the Hugging Face layout, and checking the export:")
    proof = export_run(opened, run / "export", check=True)
    page = write_report(run)
    say(f"Open {page} in a browser.")
    metrics = read_lines(run / "metrics.jsonl")
    evaluations = [e for e in read_lines(run / "events.jsonl") if e.get("kind") == "evaluation"]
    return {
        "run": os.fspath(run),
        "first_loss": metrics[0]["loss"],
        "validation_loss": evaluations[-1]["loss"],
        "bits_per_byte": evaluations[-1]["bits_per_byte"],
        "export": proof,
        "report": os.fspath(page),
    }
