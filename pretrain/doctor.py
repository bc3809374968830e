"""What is wrong with this machine or with a run, each with what to do. Nothing is changed."""

import math
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from etils import epath

from pretrain.checkpoint.manifest import DAMAGED, DELETED, TEMPORARY, complaint, numbered, read, wrong_files
from pretrain.errors import UserError
from pretrain.metrics.sinks import scan_lines
from pretrain.report.record import ENDS, Line, read_object

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PYTHON = (3, 11)
LOW_DISK_BYTES, NO_DISK_BYTES = 20e9, 2e9
OPEN_FILES = 4096
"""A checkpoint and its readers hold thousands of files open at the same time on a big model."""
Severity = Literal["ok", "warning", "error"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    severity: Severity
    where: str
    what: str
    do: str = ""


def _ok(where: str, what: str, do: str = "") -> Finding:
    return Finding(severity="ok", where=where, what=what, do=do)


def _warning(where: str, what: str, do: str) -> Finding:
    return Finding(severity="warning", where=where, what=what, do=do)


def _error(where: str, what: str, do: str) -> Finding:
    return Finding(severity="error", where=where, what=what, do=do)


# This machine


def environment() -> list[Finding]:
    """Python, packages, devices, disk and limits of this machine. Imports jax."""
    return [_python(), *_packages(_requirements()), *_devices(), *_free_disk(Path.cwd()), *_open_files()]


def _python() -> Finding:
    found, wanted = ".".join(map(str, sys.version_info[:3])), ".".join(map(str, PYTHON))
    if sys.version_info < PYTHON:
        return _error("python", f"{found}, expected {wanted} or newer", "make the environment with a newer Python")
    return _ok("python", f"{found} at {sys.executable}")


def _requirements() -> "list[Requirement]":
    """Of the installed package, or of the clone this file lies in."""
    from packaging.requirements import Requirement

    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if not project.exists():
        return [Requirement(text) for text in metadata.requires("pretrain") or []]
    import tomllib

    table = tomllib.loads(project.read_text())["project"]
    found = [Requirement(text) for text in table["dependencies"]]
    for extra, texts in table["optional-dependencies"].items():
        found += [_of_extra(Requirement(text), extra) for text in texts]
    return found


def _of_extra(requirement: "Requirement", extra: str) -> "Requirement":
    from packaging.markers import Marker

    condition = f'extra == "{extra}"'
    both = f"({requirement.marker}) and {condition}" if requirement.marker else condition
    requirement.marker = Marker(both)
    return requirement


def _packages(requirements: "Sequence[Requirement]") -> Iterator[Finding]:
    """One finding a required package that is wrong, and one an extra."""
    needed = [r for r in requirements if _wanted(r, "")]
    problems = {r.name: problem for r in needed if (problem := _problem(r))}
    for name, problem in problems.items():
        yield _error(f"package {name}", problem, "install again: pip install -e . (or make a new .venv)")
    if not problems:
        shown = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "flax", "orbax-checkpoint"))
        yield _ok("packages", f"all {len(needed)} there, among them {shown}")
    extras = dict.fromkeys(v for r in requirements for v in _extras_named(r))
    for extra in extras:
        of_extra = [r for r in requirements if extra in _extras_named(r) and _wanted(r, extra)]
        missing = [f"{r.name}: {problem}" for r in of_extra if r.name != "pretrain" and (problem := _problem(r))]
        install = f"pip install 'pretrain[{extra}]' if you want it"
        yield _ok(f"extra {extra}", "; ".join(missing) if missing else "there", install if missing else "")


def _wanted(requirement: "Requirement", extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _extras_named(requirement: "Requirement") -> list[str]:
    parts = str(requirement.marker or "").split('extra == "')[1:]
    return [part.split('"')[0] for part in parts]


def _problem(requirement: "Requirement") -> str:
    """Why a requirement does not hold, or "". An extra of another package (jax[tpu]) is looked into."""
    from packaging.requirements import Requirement

    try:
        distribution = metadata.distribution(requirement.name)
    except metadata.PackageNotFoundError:
        return "not installed"
    if not requirement.specifier.contains(distribution.version, prereleases=True):
        return f"found {distribution.version}, expected {requirement.specifier}"
    modules = (distribution.read_text("top_level.txt") or "").split()
    if modules and not any(find_spec(m) for m in modules if "/" not in m):
        return f"{distribution.version} is installed, but {modules[0]} cannot be imported"
    for text in distribution.requires or [] if requirement.extras else []:
        inner = Requirement(text)
        added = not _wanted(inner, "") and any(_wanted(inner, extra) for extra in requirement.extras)
        if added and (why := _problem(inner)):
            return f"{inner.name} {why}"
    return ""


def _devices() -> Iterator[Finding]:
    try:
        import jax

        devices = jax.devices()
    except Exception as error:  # a broken driver raises whatever it likes
        reason = (str(error).splitlines() or [""])[0][:160]
        yield _error(
            "devices", f"jax finds none ({type(error).__name__}: {reason})", "set JAX_PLATFORMS=cpu to go without"
        )
        return
    kind, platform = devices[0].device_kind, devices[0].platform
    yield _ok("devices", f"{len(devices)} x {kind} ({platform})")
    for there, what, extra in (
        (shutil.which("nvidia-smi"), "an NVIDIA driver", "cuda"),
        (Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists(), "a TPU device file", "tpu"),
    ):
        if platform == "cpu" and there:
            yield _warning(
                "devices", f"this machine has {what}, but jax uses the CPU", f"pip install 'pretrain[{extra}]'"
            )


def _free_disk(folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    where, what = f"disk of {folder}", f"{free / 1e9:.1f} GB free"
    if free < NO_DISK_BYTES:
        yield _error(where, what, "make room or write to another disk with --run")
    elif free < LOW_DISK_BYTES:
        yield _warning(where, what, "enough for small models; a checkpoint takes 12 bytes a parameter")
    else:
        yield _ok(where, what)


def _open_files() -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # not a POSIX system: no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        yield _warning(
            "open files", f"at most {soft}, expected {OPEN_FILES} or more", f"ulimit -n {max(hard, OPEN_FILES)}"
        )
    else:
        yield _ok("open files", "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft}")


# A run


def examine(run: epath.Path, *, arrays: bool = True) -> list[Finding]:
    """Every finding about a run directory.

    Args:
        arrays: Also read every array of every checkpoint, which takes the memory of one and imports jax.
    """
    run = epath.Path(run)
    if not run.exists():
        return [_error(str(run), "no such run directory", "give the folder that holds run.json")]
    metrics, _ = scan_lines(run / "metrics.jsonl")
    events, _ = scan_lines(run / "events.jsonl")
    return [
        *_run_json(run / "run.json"),
        *_lines(run / "metrics.jsonl"),
        *_growth(metrics, events),
        *_repeats(metrics, events),
        *_lines(run / "events.jsonl"),
        *_ending(events),
        *_checkpoints(run / "checkpoints", events, arrays),
    ]


def _run_json(path: epath.Path) -> Iterator[Finding]:
    from pretrain.config import RunConfig
    from pretrain.serial import decode

    facts, problem = read_object(path)
    if problem:
        yield _error("run.json", problem, "copy it back from a backup; without it the run cannot be resumed")
        return
    try:
        config = decode(facts.get("config"), RunConfig)
        config.check()
    except UserError as error:
        for line in error.problems:
            yield _error("run.json", line, "use the version of pretrain that wrote it, or correct the field")
        return
    yield _ok("run.json", f"a config of {config.steps} steps")


def _lines(path: epath.Path) -> Iterator[Finding]:
    lines, broken = scan_lines(path)
    key = "step" if path.name == "metrics.jsonl" else "kind"
    nameless = sum(key not in line for line in lines)
    if not path.exists():
        yield _warning(path.name, "is missing", "normal before the first step; otherwise copy it back from a backup")
    if broken:
        numbers = ", ".join(map(str, broken[:5])) + (", ..." if broken[5:] else "")
        yield _warning(path.name, f"torn at line {numbers}", "a kill leaves such lines; every reader skips them")
    if nameless:
        yield _error(path.name, f"{nameless} lines have no {key}", "something else wrote into it; remove these lines")
    if lines and not nameless:
        yield _ok(path.name, f"{len(lines)} lines")


def _growth(metrics: Sequence[Line], events: Sequence[Line]) -> Iterator[Finding]:
    """Within a session steps grow; only a resume from an earlier step may go back."""
    resumes = [e["step"] for e in events if e.get("kind") in ("resume", "rewind") and isinstance(e.get("step"), int)]
    starts = sum(e.get("kind") == "start" for e in events)
    steps = [line["step"] for line in metrics if isinstance(line.get("step"), int)]
    unused = [*resumes, *[0] * max(0, starts - 1)]  # a session killed before its first checkpoint starts anew
    for before, step in pairwise(steps):
        if step > before:
            continue
        reason = next((r for r in unused if r < step), None)
        if reason is None:
            yield _error(
                "metrics.jsonl",
                f"goes from step {before} to {step} without a resume",
                "two runs wrote into one directory: give each its own --run",
            )
            return
        unused.remove(reason)


def _repeats(metrics: Sequence[Line], events: Sequence[Line]) -> Iterator[Finding]:
    """A step that is trained once more must see the same batch and find the same loss."""
    lines: Mapping[Any, list[Line]] = defaultdict(list)
    rewound = min((e["first_skipped"] for e in events if e.get("kind") == "rewind"), default=math.inf)
    for line in (x for x in metrics if x.get("step", 0) < rewound):  # from there on it is trained otherwise on purpose
        lines[line.get("step")].append(line)
    repeated = {step: found for step, found in lines.items() if len(found) > 1}
    for key, do in (
        ("batch_hash", "the data changed: compare data.path and its manifest with those of the first session"),
        ("loss", "the same mesh repeats every bit; another mesh, device count or version changes the last digits"),
    ):
        wrong = [(s, values) for s, found in repeated.items() if len(values := _values(found, key)) > 1]
        if wrong:
            step, values = wrong[0]
            more = f"; and {len(wrong) - 1} more steps" if wrong[1:] else ""
            yield _error(
                "metrics.jsonl", f"step {step} was repeated with another {key}: {', then '.join(values)}{more}", do
            )
    if repeated and not any(len(_values(found, k)) > 1 for found in repeated.values() for k in ("batch_hash", "loss")):
        yield _ok("metrics.jsonl", f"{len(repeated)} steps were repeated after a resume and are equal")


def _values(lines: Sequence[Line], key: str) -> list[str]:
    return list(dict.fromkeys(str(line.get(key)) for line in lines))


def _ending(events: Sequence[Line]) -> Iterator[Finding]:
    sessions = ("start", "resume", *ENDS)
    last = next((e for e in reversed(events) if e.get("kind") in sessions), {})
    if last.get("kind") == "failed":
        what = f"the run failed at step {last.get('step', '?')}: {last.get('reason', 'no reason recorded')}"
        yield _warning("events.jsonl", what, "remove the reason, then repeat the command: it resumes")


# Checkpoints


def _checkpoints(folder: epath.Path, events: Sequence[Line], arrays: bool) -> Iterator[Finding]:
    names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    for name in names:
        if name == DELETED or any(t in name for t in TEMPORARY):
            what = "a temporary directory: an interrupted save or removal, or one that is running"
            yield _warning(f"checkpoints/{name}", what, "nothing; the next session of the run removes it")
        if name == DAMAGED:
            for path in sorted(p.name for p in (folder / name).iterdir()):
                what = "set aside by a resume, which found it damaged; nothing reads it"
                yield _warning(f"checkpoints/{name}/{path}", what, "look for the cause in the disk; then delete it")
    steps = numbered(folder)
    if not steps:
        yield _warning("checkpoints", "none", "normal before checkpoint.every steps; a resume would start anew")
        return
    problems = {step: _problems(folder / str(step), arrays) for step in steps}
    newest = next((step for step in steps if not problems[step]), None)
    falls_back = f"a resume uses {newest}" if newest is not None else "a resume refuses to start: copy one back"
    for step in reversed(steps):
        for problem in problems[step]:
            yield _error(f"checkpoints/{step}", problem, f"{falls_back} and sets this one aside")
        if not problems[step]:
            yield _ok(f"checkpoints/{step}", "every bit is as saved" if arrays else "finished and complete")
    saved = max(
        (e["step"] for e in events if e.get("kind") == "checkpoint" and isinstance(e.get("step"), int)), default=0
    )
    if saved > steps[0]:
        yield _warning(
            "checkpoints",
            f"events.jsonl names {saved}, the newest here is {steps[0]}",
            "it was set aside or its folder moved; a resume computes these steps again",
        )
    if newest is not None:
        yield from _room(folder, newest)


def _problems(step: epath.Path, arrays: bool) -> list[str]:
    """Of its manifest and files; of every bit of its arrays too where `arrays`, which imports jax."""
    if arrays:
        from pretrain.checkpoint.reading import verify

        return [problem.removeprefix(f"{step.name}: ") for problem in verify(step)]
    try:
        return wrong_files(step, read(step))
    except UserError as error:
        return [complaint(error)]


def _room(folder: epath.Path, step: int) -> Iterator[Finding]:
    """Space for one more checkpoint: the old ones are only deleted once the new one is whole."""
    if "://" in str(folder):
        return
    needs = sum(p.stat().st_size for p in Path(folder / str(step)).rglob("*") if p.is_file())
    free = shutil.disk_usage(folder).free
    what = f"{free / 1e9:.2f} GB free, a checkpoint takes {needs / 1e9:.2f} GB"
    if free < needs:
        yield _error("disk", what, "make room: the next save would fail")
    elif free < 2 * needs:
        yield _warning("disk", what, "make room: old checkpoints go only after the new one is written")
    else:
        yield _ok("disk", what)
