"""Where a run is, from what was typed."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.errors import UserError

if TYPE_CHECKING:
    from etils import epath

HOME = "runs"


def find(name: str) -> "epath.Path":
    """The folder of that path, or of that name under runs/. Raises UserError with the nearest runs."""
    from etils import epath

    for path in (epath.Path(name), epath.Path(HOME) / name):
        if path.is_dir():
            return path
    if epath.Path(name).exists():
        raise UserError(f"{name}: found a file, expected the folder of a run; name the folder")
    from pretrain.cli import flags

    here = sorted(p.name for p in Path(HOME).iterdir() if p.is_dir()) if Path(HOME).is_dir() else []
    raise UserError(flags.no_such(name, here, "run", "start one with pretrain train CONFIG --run DIR"))


def default(config: str) -> str:
    """The run directory of a CONFIG: runs/ and the last part of its name; of a run, its own."""
    path = Path(config)
    if config.endswith(".json"):
        return os.fspath(path.parent)
    if config.endswith(".py"):
        return os.path.join(HOME, path.stem)
    if "/" in config or path.is_dir():
        return config
    return os.path.join(HOME, config.rsplit(".", 1)[-1])


def must_be_new(path: str) -> Path:
    """A folder that does not exist yet, or is empty. Raises UserError, so that nothing is overwritten."""
    folder = Path(path)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        found = "a file" if folder.is_file() else "files"
        raise UserError(f"{path}: found {found} there, expected a new or empty folder; name another")
    return folder
