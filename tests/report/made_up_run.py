"""A made-up run, as the train loop would leave it."""

import json
import math
import random

from etils import epath

from pretrain.config import RunConfig
from pretrain.configs.runs.smoke import run as smoke
from pretrain.serial import encode

CREATED = 1_763_971_200.0  # 2025-11-24 08:00 UTC
DEVICE = {"platform": "tpu", "device_kind": "TPU v5p", "devices": 8, "processes": 2}

SAMPLE = "# step {step}\n\n```text\ndef ⟨close(self):\n    return <b>None</b>⟩\n```\n\n```text\nimport ⟨os```⟩\n```\n"


def metrics_line(step: int, *, steps: int, tokens: int = 524_288) -> dict:
    r = random.Random(step)
    progress = step / steps
    rate = min(step / (0.05 * steps), 0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
    seconds = 1.61 + 0.05 * r.random() + (0.6 if r.random() < 0.01 else 0)
    return {
        "step": step,
        "loss": 2.1 + 8.3 * math.exp(-14 * progress) * 0.8 + 0.9 * (1 - progress) + r.gauss(0, 0.04),
        "weight": tokens,
        "tokens": step * tokens,
        "grad_norm": 0.35 + 2 * math.exp(-30 * progress) + abs(r.gauss(0, 0.05)) + (1.5 if r.random() < 0.004 else 0),
        "learning_rate": 3e-4 * rate,
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "data_wait_seconds": seconds * (0.002 + 0.004 * r.random()),
        "batch_hash": f"{step:016x}",
    }


def make_run(
    folder, config: RunConfig | None = None, *, steps: int = 60, every: int = 1, resume_at: int | None = 40, **facts
):
    """A finished run that was killed ten log lines after `resume_at` and went on from there."""
    run = epath.Path(folder)
    run.mkdir(parents=True, exist_ok=True)
    described = {
        "config": encode(config or smoke()),
        "versions": {"python": "3.12.4", "jax": "0.10.2", "flax": "0.12.8", "orbax-checkpoint": "0.12.8"},
        "hardware": DEVICE,
        "command": ["/venv/bin/pretrain", "train", "runs.smoke", "--run", "runs/a run", "--steps", str(steps)],
        "parameters": 1_100_048_384,
        "flops_per_token": 7.1e9,
        "created": "2025-11-24T08:00:00+00:00",
        "code": {"commit": "d32ca8d4c1"},
        **facts,
    }
    (run / "run.json").write_text(json.dumps(described))
    logged = [s for s in range(1, steps + 1) if s % every == 0]
    if resume_at:
        first = [s for s in logged if s <= resume_at + 10 * every]
        logged = first + [s for s in logged if s > resume_at]
    write_lines(run / "metrics.jsonl", [metrics_line(s, steps=steps) for s in logged])
    write_lines(run / "events.jsonl", events(steps, resume_at))
    (run / "samples").mkdir(exist_ok=True)
    for step in (steps // 2, steps):
        (run / "samples" / f"{step}.md").write_text(SAMPLE.format(step=step))
    return run


def events(steps: int, resume_at: int | None) -> list[dict]:
    seconds = 1.7
    out = [{"time": CREATED, "kind": "start"}, {"time": CREATED + 41, "kind": "compiled", "seconds": 38.2}]
    for i in range(1, 6):
        step = i * steps // 5
        loss = metrics_line(step, steps=steps)["loss"] + 0.06
        at = CREATED + 60 + step * seconds
        facts = {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": loss / 2.9, "tokens": 2_097_152}
        out.append({"time": at, "kind": "evaluation", "step": step, **facts})
        out.append({"time": at + 5, "kind": "checkpoint", "step": step, "seconds": 3.1})
    if resume_at:
        out.append({"time": CREATED + 65 + resume_at * seconds, "kind": "resume", "step": resume_at})
    out.append({"time": CREATED + 120 + steps * seconds, "kind": "done", "step": steps})
    return sorted(out, key=lambda e: e["time"])


def write_lines(path, lines) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
