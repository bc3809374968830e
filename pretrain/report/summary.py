"""The head of the page: a run in a few numbers and facts."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from statistics import median

from pretrain.metrics.progress import count, duration
from pretrain.report.curves import hours, utilisation
from pretrain.report.record import Record, number

RECENT = 20
"""Lines of metrics, at most a tenth of all, that a "now" is the median of."""
QUIET_SECONDS = 1800
"""A running run whose last event and end are further back says when it was last heard of."""

Tile = tuple[str, str, str]


def subtitle(record: Record) -> str:
    facts, parts = record.facts, []
    if parameters := number(facts.get("parameters")):
        parts.append(f"{count(parameters)} parameters")
    if seen := _tokens(record):
        parts.append(f"{count(seen)} tokens")
        if parameters:
            parts.append(f"{seen / parameters:.3g} tokens per parameter")
    if hardware := _hardware(record):
        parts.append(hardware)
    return " · ".join(parts) or "run.json does not say what this run trains"


def tiles(record: Record) -> list[Tile]:
    """Label, value and a note each; only what is known."""
    return list(_tiles(record))


def _tiles(record: Record) -> Iterator[Tile]:
    last = record.metrics[-1] if record.metrics else {}
    total = (record.facts.get("config") or {}).get("steps")
    if last:
        yield "Step", f"{last['step']:,}", f"of {total:,}, {min(1, last['step'] / total):.0%}" if total else ""
        if (loss := _recent(record, "loss")) is not None:
            yield "Training loss", f"{loss:.3f}", _fall(record, loss)
    evaluations = [e for e in record.evaluations if number(e.get("loss")) is not None]
    if evaluations:
        best = min(evaluations, key=lambda e: e["loss"])
        note = "the best so far" if best is evaluations[-1] else f"best {best['loss']:.3f} at step {best['step']:,}"
        yield "Validation loss", f"{evaluations[-1]['loss']:.3f}", note
        if (bits := number(evaluations[-1].get("bits_per_byte"))) is not None:
            yield "Bits per byte", f"{bits:.3f}", "validation"
    if (speed := _recent(record, "tokens_per_second")) is not None:
        devices = (record.facts.get("hardware") or {}).get("devices") or 1
        yield "Throughput", f"{count(speed)}/s", f"{count(speed / devices)}/s a device" if devices > 1 else "tokens"
        if (used := utilisation(record, speed)) is not None:
            yield "MFU", f"{used:.1%}", "causal attention once"
    if (wall := wall_seconds(record)) is not None:
        yield "Wall time", duration(wall), _training_share(record, wall)


def facts(record: Record) -> list[tuple[str, str]]:
    said = record.facts
    versions = said.get("versions") or {}
    commit = (said.get("code") or {}).get("commit")
    compiled = [e["seconds"] for e in record.of_kind("compiled") if number(e.get("seconds")) is not None]
    saved = record.of_kind("checkpoint")
    found = [
        ("Started", _date(said.get("created"))),
        ("Hardware", _hardware(record)),
        ("Parameters", f"{said['parameters']:,}" if isinstance(said.get("parameters"), int) else ""),
        ("Tokens", f"{_tokens(record):,.0f}" if _tokens(record) else ""),
        ("FLOPs per token", count(said["flops_per_token"]) if number(said.get("flops_per_token")) else ""),
        ("Training FLOPs", _flops(record)),
        ("Resumes", _resumes(record)),
        (
            "Changed later",
            "; ".join(f"step {e.get('step', '?')}: {e.get('what', '?')}" for e in record.of_kind("changed")),
        ),
        ("Compilation", f"{duration(sum(compiled))}{_sessions(len(compiled))}" if compiled else ""),
        ("Checkpoints", f"{len(saved)}, the last at step {saved[-1].get('step', '?')}" if saved else ""),
        ("Commit", str(commit) if commit else "not recorded" if said else ""),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return [(name, value) for name, value in found if value]


def notices(record: Record) -> list[str]:
    """What a reader has to know first: how it failed, what is missing."""
    out = [
        f"Failed at step {e.get('step', '?')}: {e.get('reason', 'no reason recorded')}"
        for e in record.of_kind("failed")[-1:]
        if record.status == "failed"
    ]
    bad = [line["step"] for line in record.metrics if line.get("loss") is not None and number(line["loss"]) is None]
    if bad:
        out.append(f"The loss was not finite at step {bad[0]:,}" + (f" and {len(bad) - 1} more." if bad[1:] else "."))
    heard = number(record.events[-1].get("time")) if record.events else None
    if record.status == "running" and heard and time.time() - heard > QUIET_SECONDS:
        out.append(f"No event since {_date(heard)}: a run that was killed leaves no word and is shown as running.")
    return out + list(record.gaps)


def wall_seconds(record: Record) -> float | None:
    """From the first event to the last, interruptions included."""
    times = [t for e in record.events if (t := number(e.get("time"))) is not None]
    return times[-1] - times[0] if len(times) > 1 else None


def _recent(record: Record, key: str) -> float | None:
    lines = max(1, min(RECENT, len(record.metrics) // 10))
    values = [v for line in record.metrics[-lines:] if (v := number(line.get(key))) is not None]
    return median(values) if values else None


def _fall(record: Record, loss: float) -> str:
    first = next((v for line in record.metrics if (v := number(line.get("loss"))) is not None), None)
    return f"from {first:.3f}" if first is not None and len(record.metrics) > 1 and first != loss else ""


def _tokens(record: Record) -> float | None:
    return next((t for line in reversed(record.metrics) if (t := number(line.get("tokens")))), None)


def _flops(record: Record) -> str:
    per_token, tokens = number(record.facts.get("flops_per_token")), _tokens(record)
    return f"{per_token * tokens:.2e}" if per_token and tokens else ""


def _hardware(record: Record) -> str:
    hardware = record.facts.get("hardware") or {}
    if not hardware:
        return ""
    kind = hardware.get("device_kind") or hardware.get("platform") or "device"
    processes = hardware.get("processes") or 1
    return f"{hardware.get('devices', '?')} × {kind}" + (f" in {processes} processes" if processes > 1 else "")


def _resumes(record: Record) -> str:
    steps = [f"{e['step']:,}" for e in record.of_kind("resume") if isinstance(e.get("step"), int)]
    if not steps:
        return ""
    again = f"; {record.repeated:,} logged lines were trained once more" if record.repeated else ""
    return f"{len(steps)}, at step {', '.join(steps[:8])}{', ...' if len(steps) > 8 else ''}{again}"


def _sessions(n: int) -> str:
    return f" in {n} sessions" if n > 1 else ""


def _training_share(record: Record, wall: float) -> str:
    spent: list[float] | None = hours(record.metrics)
    return f"{min(1.0, spent[-1] * 3600 / wall):.0%} in training steps" if spent and wall > 0 else ""


def _date(value: object) -> str:
    """An ISO time or seconds since 1970, to the minute."""
    seconds = number(value)
    if seconds is not None and 0 <= seconds < 2**37:  # to the year 6325
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    try:
        return datetime.fromisoformat(str(value)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return str(value or "")
