"""The run directory: what a run says about itself, and what may change when it goes on."""

import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from etils import epath

from pretrain import __version__, untrusted
from pretrain.config import RunConfig
from pretrain.data.mixture import continued
from pretrain.errors import UserError
from pretrain.serial import changes, decode, encode, shown

SAFE = ("mesh", "rules", "simulate", "log", "checkpoint", "evals", "batch.accumulate", "data.path", "data.workers")
SAFE += ("data.read_threads", "data.prefetch", "objective.loss.chunk", "model.decoder.remat", "model.encoder.remat")
SAFE += ("health.compare_every", "health.recompute_every", "health.hang_seconds")
SAFE += ("model.decoder.unroll", "model.encoder.unroll", "data.executor")
"""May change at any resume: they change where and how the run computes, not what."""

REFUSED = ("model", "data.corpus", "data.streaming", "data.sequence_length", "data.packing", "data.seed")
REFUSED += ("data.shuffle", "seed", "start_from", "health.window")
"""Make it another run."""

ARITHMETIC = ("model.decoder.matmul", "model.encoder.matmul")
"""Of a model, but no part of what it is: needs to be allowed."""

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def read(run: epath.Path) -> dict[str, Any] | None:
    """run.json, or None where there is no run yet."""
    path = run / "run.json"
    if not path.exists():
        return None
    try:
        facts = untrusted.load(path)
        return facts if isinstance(facts, dict) and "config" in facts else _unreadable(path, "no config")
    except (ValueError, OSError) as error:
        return _unreadable(path, type(error).__name__)


def read_config(run: epath.Path) -> RunConfig:
    facts = read(run)
    if facts is None:
        raise UserError(
            f"{run}: found no run.json, expected a run directory; start one with pretrain train CONFIG --run {run}"
        )
    return decode(facts["config"], RunConfig)


def write(run: epath.Path, config: RunConfig, **facts: Any) -> None:
    """Replaces run.json in one rename."""
    run.mkdir(parents=True, exist_ok=True)
    versions = {"pretrain": __version__, "python": sys.version.split()[0], **{p: _version(p) for p in PACKAGES}}
    content = {
        "config": encode(config),
        "versions": versions,
        "command": sys.argv,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": {"commit": _commit()},
        **facts,
    }
    temporary = run / f"run.json.{os.getpid()}"
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(run / "run.json")


def identity(run: epath.Path) -> str | None:
    """A name that no other run has, nor another one that was in the same folder; None: the run has not begun."""
    facts = read(run)
    if facts is None:
        return None
    return hashlib.sha256(f"{run.resolve()} {facts['created']}".encode()).hexdigest()[:16]


def origin(config: RunConfig) -> dict[str, Any]:
    """What every checkpoint says about the code and the config that made it."""
    digest = hashlib.sha256(json.dumps(encode(config), sort_keys=True).encode()).hexdigest()
    return {"config": digest, "code": {"version": __version__, "commit": _commit()}}


def require_resumable(
    old: RunConfig, new: RunConfig, allow: tuple[str, ...], run: epath.Path, step: int = 0
) -> list[str]:
    """One line for each change, which is safe or allowed. Raises UserError with the changes that are neither.

    `step`: of the newest checkpoint.
    """
    notes, problems = [], []
    same_past = continued(old.data.mixture, new.data.mixture, step)
    for key, sides in changes(old, new, inside=False).items():
        before, now = map(shown, sides)
        if under(key, ("data.mixture",)) and step:
            if not same_past:
                problems.append(_another_mixture(run, key, before, now, step))
            else:
                notes.append(f"{key}: {before} -> {now} (from step {step} on)")
        elif under(key, SAFE):
            notes.append(f"{key}: {before} -> {now} (safe)")
        elif under(key, REFUSED) and not under(key, ARITHMETIC):
            problems.append(f"{run} exists with a different {key} ({before}, now {now}); use another --run")
        elif under(key, allow):
            notes.append(f"{key}: {before} -> {now} (allowed)")
        else:
            problems.append(
                f"{run} exists with a different {key} ({before}, now {now}); --allow {key} continues with it"
            )
    if problems:
        raise UserError(*problems)
    return notes


def _another_mixture(run: epath.Path, key: str, before: str, now: str, step: int) -> str:
    return (
        f"{run} is at step {step} and drew with another {key} ({before}, now {now}); keep the phases before "
        f"that step and add one from step {step} on"
    )


def under(key: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of these or below one."""
    return any(key == p or key.startswith(f"{p}.") for p in prefixes)


def _unreadable(path: epath.Path, why: str) -> Any:
    raise UserError(
        f"{path}: not readable ({why}), expected the JSON that pretrain wrote; restore it or use another --run"
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        here = Path(__file__).resolve().parent
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
