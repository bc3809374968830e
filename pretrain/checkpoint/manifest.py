"""What a checkpoint says about itself, in the file that is written last: STEP/manifest.json. Imports no jax."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from etils import epath

from pretrain import untrusted
from pretrain.errors import UserError

NAME = "manifest.json"
COMMIT_MARKS = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Written by Orbax around its commit: the first changes with it; the second is the commit where nothing is renamed."""
DELETED = "deleted"
"""A step leaves the list by one rename into this folder before its files go."""
DAMAGED = "damaged"
"""Where steps go that cannot be trusted. Nothing in it is ever removed or read again."""
TEMPORARY = (".orbax-checkpoint-tmp", ".tmp")
"""What names of unfinished saves contain."""

Arrays = dict[str, list]
"""Name -> [shape, type, fingerprint]."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run knows beside its arrays. The data pipeline needs nothing but the step."""

    step: int
    tokens: int
    """Target tokens of all steps so far."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    progress: Progress
    arrays: Arrays
    files: dict[str, int]
    """Name -> bytes, of all files but the manifest and Orbax's commit marks."""
    loss: float | None
    """Of the validation split at this step, where there was an evaluation: ranks the best."""
    origin: dict[str, Any]
    """`config`: hash of the resolved config; `code`: commit and version; `parent`: what the session began from."""

    def text(self) -> str:
        facts = {f.name: getattr(self, f.name) for f in fields(self)} | {"progress": vars(self.progress)}
        return json.dumps({**facts, "digest": _digest(facts)}, indent=1)

    @property
    def digest(self) -> str:
        return json.loads(self.text())["digest"]


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read(step: epath.Path) -> Manifest:
    """Raises UserError where it is missing, torn, changed or of another step."""
    try:
        facts = untrusted.load(step / NAME)
        digest = facts.pop("digest")
        if digest != _digest(facts):
            raise UserError(_damaged(step, "its manifest is not the one that was written"))
        manifest = Manifest(**{**facts, "progress": Progress(**facts["progress"])})
        if wrong := next(_nonsense(manifest), None):
            raise UserError(_damaged(step, wrong))
    except OSError as error:
        raise UserError(_damaged(step, f"its manifest cannot be read ({type(error).__name__})")) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(_damaged(step, f"its manifest is no manifest ({type(error).__name__})")) from None
    if step.name.isdigit() and int(step.name) != manifest.progress.step:
        raise UserError(_damaged(step, f"its manifest is of step {manifest.progress.step}"))
    return manifest


def _nonsense(manifest: Manifest) -> Iterator[str]:
    """What no save writes, though the digest may be right: whoever can write the file can count its digest."""
    for name, count in vars(manifest.progress).items():
        if not _is_count(count):
            yield f"its {name} is {repr(count)[:40]}"
    if not isinstance(manifest.arrays, dict) or not all(_is_array(a) for a in manifest.arrays.values()):
        yield "it describes arrays that nothing can hold"
    if not isinstance(manifest.files, dict) or not all(map(_is_count, manifest.files.values())):
        yield "it lists no files"
    elif strange := [n for n in manifest.files if not all(map(untrusted.is_plain, n.split("/")))]:
        yield f"it names {strange[0][:100]!r}, which is no file of a checkpoint"
    if manifest.loss is not None and type(manifest.loss) not in (int, float):
        yield f"its loss is {repr(manifest.loss)[:40]}"
    if not isinstance(manifest.origin, dict):
        yield "it has no origin"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_array(described: Any) -> bool:
    match described:
        case [list(shape), str(), int()]:
            return len(shape) <= 32 and all(map(_is_count, shape)) and math.prod(n or 1 for n in shape) < 2**60
    return False


def _damaged(step: epath.Path, what: str) -> str:
    return f"checkpoint {step.name} is damaged: {what}, expected what a save wrote; pretrain doctor RUN lists all"


def complaint(error: UserError) -> str:
    """Of an error of `read`: only what is wrong."""
    return error.problems[0].split(" is damaged: ", 1)[-1].split(", expected", 1)[0]


def wrong_files(step: epath.Path, manifest: Manifest) -> list[str]:
    """Files that are missing or have another length, each in one line. Their contents are not read."""
    out = []
    for name, size in manifest.files.items():
        path = step / name
        found = path.stat().length if path.exists() else None
        if found is None:
            out.append(f"{name} is missing")
        elif found != size:
            out.append(f"{name} has {found} bytes, {size} were written")
    return out


def list_files(step: epath.Path, folder: str = "") -> dict[str, int]:
    """Bytes of each."""
    found = {}
    for path in sorted(step.iterdir()):
        if path.is_dir():
            found |= list_files(path, f"{folder}{path.name}/")
        elif path.name not in (NAME, *COMMIT_MARKS):
            found[folder + path.name] = path.stat().length
    return found


def is_finished(step: epath.Path) -> bool:
    """Committed, with a manifest that is whole. An interrupted save and an empty folder are not."""
    if "://" in str(step) and not (step / COMMIT_MARKS[1]).exists():
        return False
    try:
        read(step)
    except UserError:
        return False
    return True


def was_committed(step: epath.Path) -> bool:
    """Whether a save once ended here, whatever became of it since."""
    return any((step / name).exists() for name in (NAME, *COMMIT_MARKS))


def numbered(folder: epath.Path) -> list[int]:
    """Folders that are named like steps, newest first, finished or not."""
    if not folder.exists():
        return []
    return sorted((int(p.name) for p in folder.iterdir() if p.name.isdigit()), reverse=True)


def latest(folder: epath.Path) -> int | None:
    """The newest finished checkpoint of a run, without opening any array."""
    return next((step for step in numbered(folder) if is_finished(folder / str(step))), None)
