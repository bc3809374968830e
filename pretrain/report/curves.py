"""The numbers of a run as what a plot needs: few points, several x axes, marks."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from pretrain.metrics.throughput import mfu
from pretrain.report.record import Line, Record, number

Numbers = list[float | None]
BUCKETS = 1200
"""Beyond so many lines, each bucket of them shows its extremes only."""
SMOOTH_FROM = 60
"""Lines from which a running mean says more than the points."""

CHARTS = (
    # key, title, unit, d3 format, whether a running mean is drawn over it
    ("learning_rate", "Learning rate", "", ".3~g", False),
    ("grad_norm", "Gradient norm", "before clipping", ".3~g", False),
    ("tokens_per_second", "Throughput", "tokens per second", ".3~s", True),
    ("mfu", "Model FLOPs utilisation", "of the chips' bfloat16 peak", ".1~%", True),
    ("data_wait", "Data wait", "share of the step", ".2~%", True),
    ("accuracy", "Accuracy", "of the next token", ".1~%", True),
    ("z_loss", "Z-loss", "", ".3~g", True),
)


def curves(record: Record) -> dict[str, Any]:
    """JSON values: `axes` (name -> title, x), `loss`, `charts`, `evaluations`, `resumes`; x and y of equal length."""
    axes = _axes(record)
    rows = list(record.metrics)
    loss = [number(row.get("loss")) for row in rows]
    columns = {key: [_value(row, key, record) for row in rows] for key, *_ in CHARTS}
    kept = thin(loss, columns["grad_norm"])

    def pick(values: Sequence) -> list:
        return [values[i] for i in kept]

    def mean(values: Numbers) -> Numbers | None:
        return pick(smooth(values)) if len(rows) >= SMOOTH_FROM else None

    steps = [row["step"] for row in rows]
    evaluations = [(e["step"], y) for e in record.evaluations if (y := number(e.get("loss"))) is not None]
    marks = sorted({e["step"] for e in record.of_kind("resume") if isinstance(e.get("step"), int)})
    return {
        "axes": {name: {"title": title, "x": pick(x)} for name, (title, x) in axes.items()},
        "loss": {"raw": pick(loss), "smooth": mean(loss)},
        "charts": [
            {
                "key": key,
                "title": title,
                "unit": unit,
                "format": form,
                "raw": pick(y),
                "smooth": mean(y) if noisy else None,
            }
            for (key, title, unit, form, noisy), y in zip(CHARTS, columns.values())
            if any(y)  # a term that is switched off is 0 everywhere
        ],
        "evaluations": {
            "x": {name: [_at(s, steps, x) for s, _ in evaluations] for name, (_, x) in axes.items()},
            "y": [y for _, y in evaluations],
        },
        "resumes": {name: [_at(s, steps, x) for s in marks] for name, (_, x) in axes.items()},
        "thinned": len(kept) < len(rows),
    }


def hours(rows: Sequence[Line]) -> list[float] | None:
    """Hours of training up to each line; None where a line does not say how long its steps took."""
    total, before, out = 0.0, 0, []
    for row in rows:
        seconds = number(row.get("step_seconds"))
        if seconds is None:
            return None
        total += (row["step"] - before) * seconds / 3600
        before = row["step"]
        out.append(total)
    return out


def smooth(values: Numbers) -> Numbers:
    """A running mean over up to a fiftieth of the values, as many before as after: a falling curve is not lagged."""
    totals, counts = [0.0], [0]
    for value in values:
        totals.append(totals[-1] + (value or 0.0))
        counts.append(counts[-1] + (value is not None))
    n, out = len(values), []
    for i in range(n):
        half = min(i, n - 1 - i, n // 100)
        low, high = i - half, i + half + 1
        known = counts[high] - counts[low]
        out.append((totals[high] - totals[low]) / known if known and values[i] is not None else None)
    return out


def thin(*columns: Numbers) -> list[int]:
    """Indices to draw: all of few, or the lowest and highest of each column in each of `BUCKETS` parts."""
    n = len(columns[0])
    if n <= 2 * BUCKETS:
        return list(range(n))
    kept = {0, n - 1}
    for bucket in range(BUCKETS):
        part = range(bucket * n // BUCKETS, (bucket + 1) * n // BUCKETS)
        for c in columns:
            if known := [(v, i) for i in part if (v := c[i]) is not None]:
                kept |= {min(known)[1], max(known)[1]}
    return sorted(kept)


def _axes(record: Record) -> dict[str, tuple[str, list[float]]]:
    rows = record.metrics
    per_token = number(record.facts.get("flops_per_token"))
    tokens = [number(row.get("tokens")) for row in rows]
    known = [t for t in tokens if t is not None]
    axes = {"steps": ("Step", [row["step"] for row in rows])}
    if rows and len(known) == len(rows):
        axes["tokens"] = ("Target tokens", known)
        if per_token:
            axes["FLOPs"] = ("Training FLOPs", [t * per_token for t in known])
    if rows and (x := hours(rows)) is not None:
        axes["hours"] = ("Hours of training", x)
    return axes


def _value(row: Line, key: str, record: Record) -> float | None:
    if key == "data_wait":
        wait, seconds = number(row.get("data_wait_seconds")), number(row.get("step_seconds"))
        return wait / seconds if wait is not None and seconds else None
    if key == "mfu":
        return utilisation(record, number(row.get("tokens_per_second")))
    return number(row.get(key))


def utilisation(record: Record, tokens_per_second: float | None) -> float | None:
    hardware = record.facts.get("hardware") or {}
    per_token, devices = number(record.facts.get("flops_per_token")), hardware.get("devices")
    if not (tokens_per_second and per_token and devices):
        return None
    return mfu(per_token, tokens_per_second, devices, str(hardware.get("device_kind", "")))


def _at(step: float, steps: Sequence[int], x: Sequence[float]) -> float | None:
    """x at a step, on the line through the steps that were logged before and after it."""
    if not steps:
        return None
    i = min(bisect_left(steps, step), len(steps) - 1)
    s0, x0 = (steps[i - 1], x[i - 1]) if i else (0, 0.0)
    return x0 + (x[i] - x0) * (step - s0) / (steps[i] - s0)
