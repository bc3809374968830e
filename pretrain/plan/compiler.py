"""Compiles in a subprocess, once for each content."""

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pretrain import untrusted
from pretrain.config import RunConfig
from pretrain.errors import UserError
from pretrain.plan.chips import Slice
from pretrain.serial import encode
from pretrain.sharding import mesh as meshes

ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
"""JAX runs nothing on a chip; libtpu neither asks for a machine's metadata nor insists on being alone."""
SOURCES = ("models", "sharding", "pretrain/objectives", "pretrain/optimizer", "pretrain/plan", "pretrain/data")
PARTS = {
    "tpu": ("libtpu",),
    "cuda": ("jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cudnn-cu13"),
}
"""What compiles for a platform beside jax."""
VERSIONS = ("jax", "jaxlib", "flax", "optax", "tokamax", *(name for parts in PARTS.values() for name in parts))


def compiled(
    config: RunConfig, on: Slice, options: dict[str, Any] | None = None, save: str | None = None
) -> dict[str, Any]:
    """What `program.compile_step` found out, from the cache where nothing has changed since; "cached" says so.

    Raises UserError without the chip's compiler or for a slice that it does not know.
    """
    require(on)
    meshes.require(config.mesh)
    request = {"config": encode(config), "topology": on.topology, "options": {**on.chip.compiler, **(options or {})}}
    path = cache_folder() / f"{fingerprint(request)}.json"
    if save is None and (kept := _kept(path)):
        return kept
    facts = _run({**request, "save": save}, on)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(facts))
    part.replace(path)
    return {**facts, "cached": False}


def cached(config: RunConfig, on: Slice) -> dict[str, Any] | None:
    """The same, where it has been compiled before."""
    request = {"config": encode(config), "topology": on.topology, "options": dict(on.chip.compiler)}
    path = cache_folder() / f"{fingerprint(request)}.json"
    return _kept(path)


def _kept(path: Path) -> dict[str, Any] | None:
    """The facts in a file of the cache; one that is not whole is made again."""
    try:
        return {**untrusted.load(path), "cached": True}
    except (ValueError, OSError, TypeError):
        return None


def require(on: Slice) -> None:
    """Raises UserError without the compiler."""
    platform = on.described["platform"]
    missing = [name for name in PARTS[platform] if _version(name) is None]
    if missing:
        raise UserError(
            f"on={on.vendor}: found no {', '.join(missing)}, expected the compiler for these chips; pip install "
            f"'pretrain[{platform}]', or add --quick to plan by arithmetic"
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    return Path(home) / "pretrain" / "plans"


def fingerprint(request: dict[str, Any]) -> str:
    """Of the request, of the code that makes the program, and of the compilers."""
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode())
    for name in VERSIONS:
        digest.update(f"{name}={_version(name)};".encode())
    root = Path(__file__).resolve().parents[1]
    folders = [root / s.removeprefix("pretrain/") for s in SOURCES]
    files = [p for folder in folders for p in folder.resolve().rglob("*.py")]
    files += [root / name for name in ("step.py", "loss.py", "state.py", "feed.py", "job.py")]
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


def _run(request: dict[str, Any], on: Slice) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="pretrain-plan-") as folder:
        answer = Path(folder) / "answer.json"
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment.pop("XLA_FLAGS", None)
        process = subprocess.run(
            [sys.executable, "-m", "pretrain.plan.program"],
            input=json.dumps({**request, "answer": str(answer)}),
            text=True,
            capture_output=True,
            env=environment,
        )
        if answer.exists():
            return json.loads(answer.read_text())
    last = _last_error(process.stderr)
    if "topology" in last.lower() and "UserError" not in last:
        raise UserError(f"on={on.topology}: the compiler knows no such slice ({last}); name another shape")
    if last.startswith("pretrain.errors.UserError: "):
        raise UserError(last.removeprefix("pretrain.errors.UserError: "))
    raise RuntimeError(f"the compiler ended with exit code {process.returncode}: {last}")


def _last_error(stderr: str) -> str:
    """The line that names the exception."""
    lines = [line for line in stderr.splitlines() if line.strip() and not line.startswith((" ", "---", "For simp"))]
    named = [line for line in lines if "Error: " in line or "Exception" in line]
    return (named or lines or ["no output"])[-1][:1000]
