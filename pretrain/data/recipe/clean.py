"""The recipe of a corpus carried out: clean shards, one a unit, and the funnel of what became of every document.

FOLDER/clean/00000.jsonl.zst   documents that stay, with the file and row each came from
FOLDER/clean/00000.json        what the last steps counted in that unit
FOLDER/clean/funnel.json       what all steps counted in all units; it stands when the rest does
FOLDER/clean/work/             what is between; gone at the end
"""

import glob
import os
import shutil
from functools import reduce
from pathlib import Path

from pretrain.data.manifest import read_json, write_json
from pretrain.data.recipe.config import Decontaminate, Executor, Step
from pretrain.data.recipe.shards import Funnel, added
from pretrain.errors import UserError


def clean(steps: tuple[Step, ...], units: list, folder: Path, executor: Executor, workers: int, progress) -> Funnel:
    """Writes what is missing; the same bytes for any executor and workers, and however often it was killed.

    `progress` is called with a job's name, its finished tasks and all of them.
    """
    done, work = folder / "funnel.json", folder / "work"
    if not done.is_file():
        try:
            from pretrain.data.recipe.execute import run_job
            from pretrain.data.recipe.steps import phases
        except ImportError as e:
            message = f"found no package {e.name}, expected it for corpus.steps"
            raise UserError(f"{message}; pip install 'pretrain[prepare]'") from None
        folder.mkdir(parents=True, exist_ok=True)
        made = phases(steps, units, work.absolute(), folder.absolute())
        for job in made.jobs:
            run_job(job, work / "logs" / job.name, executor, workers, progress)
        for stale in folder.glob("*.tmp-*"):  # of a kill; no task is left that could be writing it
            stale.unlink()
        write_json(done, [row for written in made.written for row in _summed(written, len(units))])
    if work.is_dir():
        shutil.rmtree(work)
    return read_json(done)


def evaluations(steps: tuple[Step, ...]) -> list[str]:
    """The evaluation files of all steps. Raises UserError for a path at which there is none."""
    return [file for step in steps if isinstance(step, Decontaminate) for file in evaluation_files(step.paths)]


def evaluation_files(paths: tuple[str, ...]) -> list[str]:
    """Every file once, sorted."""
    found: dict[str, str] = {}
    for pattern in paths:
        below = f"{glob.escape(pattern)}/**" if os.path.isdir(pattern) else pattern
        matches = [p for p in sorted(glob.glob(below, recursive=True)) if os.path.isfile(p)]
        if not matches:
            raise UserError(f"found no evaluation file at {pattern}, expected one or more; correct the path")
        for path in matches:
            found.setdefault(os.path.realpath(path), path)
    return sorted(found.values())


def _summed(folder: Path, units: int) -> Funnel:
    return reduce(added, (read_json(folder / f"{number:05d}.json") for number in range(units)))
