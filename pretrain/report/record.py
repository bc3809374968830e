"""What a run directory says about its run, whatever of it is there."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from etils import epath

from pretrain import untrusted
from pretrain.metrics.sinks import scan_lines

Line = dict[str, Any]
Status = Literal["not started", "running", "finished", "failed", "pre-empted", "interrupted"]
ENDS: dict[str, Status] = {
    "done": "finished",
    "failed": "failed",
    "preempted": "pre-empted",
    "interrupted": "interrupted",
}


KINDS: dict[str, Any] = {**dict.fromkeys(("config", "hardware", "versions", "code"), dict), "parameters": int}
LARGEST = 1e100
"""No number of a run comes near it, and the product of three is finite."""
COUNTS = {"config": ("steps",), "hardware": ("devices", "processes")}
"""What run.json may hold under these names; anything else is left out."""


@dataclass(frozen=True, kw_only=True)
class Record:
    name: str
    facts: Mapping[str, Any]
    """Of run.json; empty where it cannot be read."""
    metrics: tuple[Line, ...]
    """One line a step, in order; of a repeated step the last."""
    every: tuple[Line, ...]
    """All lines in the order of the file."""
    repeated: int
    """Lines of steps that a resume trained once more."""
    events: tuple[Line, ...]
    samples: Mapping[int, str]
    gaps: tuple[str, ...]
    """Files that are missing or torn, in sentences."""

    @property
    def status(self) -> Status:
        """By the last event that starts or ends a session; a killed process leaves no word and counts as running."""
        for event in reversed(self.events):
            if event["kind"] in ENDS:
                return ENDS[event["kind"]]
            if event["kind"] in ("start", "resume"):
                return "running"
        return "running" if self.metrics else "not started"

    def of_kind(self, kind: str) -> list[Line]:
        return [event for event in self.events if event["kind"] == kind]

    @property
    def evaluations(self) -> list[Line]:
        """One a step, in order; of a repeated one the last."""
        return by_step(self.of_kind("evaluation"))


def read(run: epath.Path) -> Record:
    said, problem = read_object(run / "run.json")
    facts = {name: _of_kind(name, value) for name, value in said.items() if isinstance(value, KINDS.get(name, object))}
    metrics, broken_metrics = scan_lines(run / "metrics.jsonl")
    events, broken_events = scan_lines(run / "events.jsonl")
    metrics = [line for line in metrics if isinstance(line.get("step"), int)]
    kept = by_step(metrics)
    gaps = [
        problem and f"run.json {problem}: no config, hardware or command.",
        not metrics and "metrics.jsonl has no line yet: no curves.",
        broken_metrics and f"metrics.jsonl: {_broken(broken_metrics)}.",
        not events and "events.jsonl has no line yet: status and wall time are not known.",
        broken_events and f"events.jsonl: {_broken(broken_events)}.",
    ]
    return Record(
        name=run.name,
        facts=facts,
        metrics=tuple(kept),
        every=tuple(metrics),
        repeated=len(metrics) - len(kept),
        events=tuple(e for e in events if isinstance(e.get("kind"), str)),
        samples=_samples(run / "samples"),
        gaps=tuple(g for g in gaps if g),
    )


def _of_kind(name: str, value: Any) -> Any:
    """Without what is no count where the page counts with it."""
    if name not in COUNTS:
        return value
    return {k: v for k, v in value.items() if k not in COUNTS[name] or (type(v) is int and 0 < v < 2**63)}


def read_object(path: epath.Path) -> tuple[dict[str, Any], str]:
    """A JSON object and "", or {} and what is wrong with the file."""
    try:
        found = untrusted.load(path)
    except FileNotFoundError:
        return {}, "is missing"
    except (OSError, ValueError) as error:
        return {}, f"cannot be read ({type(error).__name__})"
    return (found, "") if isinstance(found, dict) else ({}, "is not an object")


def by_step(lines: Iterable[Line]) -> list[Line]:
    """One line a step, in order; the last of a step wins."""
    found = {line["step"]: line for line in lines if isinstance(line.get("step"), int)}
    return [found[step] for step in sorted(found)]


def number(value: Any) -> float | None:
    """A finite number or None; the sinks write the others by name."""
    try:
        x = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return x if abs(x) < LARGEST else None


def _samples(folder: epath.Path) -> dict[int, str]:
    if not folder.exists():
        return {}
    files = {int(p.stem): p for p in folder.iterdir() if p.suffix == ".md" and p.stem.isdigit()}
    return {step: files[step].read_bytes().decode(errors="replace") for step in sorted(files)}


def _broken(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return (
        f"line {shown} is torn and was left out" if len(numbers) == 1 else f"lines {shown} are torn and were left out"
    )
