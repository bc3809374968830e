"""Which mesh, rematerialisation and micro-batches: arithmetic proposes, the compiler decides."""

from dataclasses import replace
from typing import Any

from pretrain.config import RunConfig
from pretrain.models.remat import PRESETS as REMATS
from pretrain.plan import analytic
from pretrain.plan.chips import Slice
from pretrain.plan.plan import legal, meshes, plan, with_remat

SLACK = 1.15
"""Arithmetic may be wrong by so much before a candidate is not worth compiling."""


def search(config: RunConfig, on: Slice, *, compiles: int, quick: bool) -> list[dict[str, Any]]:
    """Rows of a table, the fastest first: at most so many compiled plans, or as many by arithmetic alone. "best" marks
    those that no other beats in both time and memory."""
    rows = []
    for candidate in proposals(config, on)[:compiles]:
        found = plan(candidate, on, quick=quick)
        rows.append({**describe(candidate, on), **_summary(found)})
    rows.sort(key=lambda r: (not r["fits"], r["step_seconds"] or 0.0))
    return [{**row, "best": row["fits"] and not any(_beats(other, row) for other in rows)} for row in rows]


def proposals(config: RunConfig, on: Slice) -> list[RunConfig]:
    """Legal candidates that may fit, fastest by arithmetic first; of equal ones the smallest."""
    judged = []
    for base in meshes(config, on):
        if not legal(base, on):
            continue
        parts = analytic.stored(base, on.devices)
        for name in REMATS:
            for accumulate in (1, 2, 4, 8):
                batch = base.batch
                if batch.rows % accumulate:
                    continue
                candidate = replace(with_remat(base, name), batch=replace(batch, accumulate=accumulate))
                if not legal(candidate, on):
                    continue
                peak = analytic.memory(candidate, on, parts).peak
                if peak <= SLACK * on.chip.memory:
                    seconds = analytic.seconds(analytic.work(candidate, on.devices, parts), on)[1]
                    judged.append((round(seconds, 6), peak, len(judged), candidate))
    return [candidate for *_, candidate in sorted(judged, key=lambda j: j[:3])]


def describe(config: RunConfig, on: Slice) -> dict[str, Any]:
    stack = config.model.stack
    remat = next((name for name, value in REMATS.items() if value == stack.remat), "own")
    mesh = " ".join(f"{axis}={n}" for axis, n in config.mesh.shape(on.devices).items() if n > 1) or "one device"
    return {"mesh": mesh, "remat": remat, "accumulate": config.batch.accumulate}


def _summary(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "fits": found["fits"],
        "peak_bytes": found["memory"]["peak_bytes"],
        "step_seconds": found["step_seconds"][1] or None,
        "mfu": found["mfu"],
        "basis": found["basis"],
    }


def _beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if one is other or not one["fits"]:
        return False
    pairs = [(one[k], other[k]) for k in ("step_seconds", "peak_bytes")]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
