"""Checkpoints of a run: written in the background, committed by one rename, proven before they are believed."""

import errno
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from pretrain.checkpoint import layout, manifest, reading
from pretrain.checkpoint.local import LocalCopies
from pretrain.checkpoint.manifest import DAMAGED, DELETED, TEMPORARY, Manifest, Progress
from pretrain.checkpoint.retention import kept
from pretrain.config import CheckpointConfig
from pretrain.errors import UserError
from pretrain.sharding import fingerprint

News = tuple[str, dict[str, Any]]
"""Kind and facts of an event: `checkpoint`, `save_failed`, `damaged`, `local_copy`, `local_failed` or `local_used`."""
LOOK_SECONDS = 0.5
"""Between looks whether a save is committed."""
COPIES = 100  # of one step in damaged/


def news_line(kind: str, facts: Mapping[str, Any]) -> str:
    """A sentence for people, or "" for what needs none."""
    if kind == "damaged":
        where = f"it is now in checkpoints/{DAMAGED}; an older one is used, or none if none is left"
        return f"checkpoint {facts['step']} is damaged ({facts['reason']}); {where}"
    if kind == "local_used":
        return f"step {facts['step']} comes from the copies in {facts['folder']}, newer than any checkpoint"
    if kind == "local_failed":
        return f"the copy of step {facts['step']} in {facts['folder']} is of no use ({facts['reason']})"
    return f"checkpoint {facts['step']} was not saved ({facts['reason']})" if kind == "save_failed" else ""


class _Handler(ocp.PyTreeCheckpointHandler):
    """Writes the manifest as the last file of a save, before the rename that commits all of it."""

    pending: "_Saving"

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        (directory / manifest.NAME).write_text(self.pending.manifest(directory).text())


@ocp.args.register_with_handler(_Handler, for_save=True)
class _Save(ocp.args.PyTreeSave):
    pass


@ocp.args.register_with_handler(_Handler, for_restore=True)
class _Restore(ocp.args.PyTreeRestore):
    pass


@dataclass(frozen=True, kw_only=True)
class _Saving:
    """A save on its way to the disk."""

    progress: Progress
    loss: float | None
    origin: Mapping[str, Any]
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    found: jax.Array
    """Fingerprints of the parts, being computed."""
    waited: float
    """Seconds that the loop stood still for it."""

    def manifest(self, directory: epath.Path) -> Manifest:
        parts, names = np.asarray(jax.device_get(self.found)), sorted(self.shapes)
        values = {name: fingerprint.summed(parts[:, i], self.shapes[name]) for i, name in enumerate(names)}
        described = layout.describe(dict(self.shapes))
        return Manifest(
            progress=self.progress,
            arrays={name: [*described[name], values[name]] for name in described},
            files=manifest.list_files(directory),
            loss=self.loss,
            origin=dict(self.origin),
        )


class Checkpoints:
    """The checkpoints of one run directory; every process of the run calls every method.

    Args:
        origin: What every manifest says beside the arrays: `config`, `code`; `parent` is added.
        identity: What tells this run from others whose copies are in `config.local`; None: it has no name yet.
    """

    def __init__(
        self,
        folder: epath.Path,
        config: CheckpointConfig,
        origin: Mapping[str, Any] | None = None,
        identity: Callable[[], str | None] = lambda: "run",
    ):
        self.folder, self.config = folder, config
        self.origin: dict[str, Any] = {"parent": None, **(origin or {})}
        self.saved: int | None = None
        """The newest step that is on disk or on its way."""
        self._news: list[News] = []
        self._saving: _Saving | None = None
        self._looked = 0.0
        self._cleaners: list[threading.Thread] = []
        self._first = jax.process_index() == 0
        self._local = LocalCopies(Path(config.local), identity) if config.local else None
        folder.mkdir(parents=True, exist_ok=True)
        self._handler = _Handler()
        self._writer = ocp.AsyncCheckpointer(self._handler)
        if self._first:
            self._clean()

    # Saving

    def save(self, state: Any, progress: Progress, evaluation: Mapping[str, float] | None) -> None:
        """Starts a save; only the copy to host memory is waited for. `evaluation["loss"]` ranks the best.

        Raises UserError when the save before it failed and `on_failure` is "stop".
        """
        self.wait()
        began = time.perf_counter()
        arrays = layout.flatten(state)
        shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for name, a in arrays.items()}
        saving = _Saving(
            progress=progress,
            loss=None if evaluation is None else evaluation["loss"],
            origin=self.origin,
            shapes=shapes,
            found=fingerprint.parts(arrays),
            waited=0.0,
        )
        self._handler.pending = self._saving = saving
        self.saved, error = progress.step, None
        try:
            self._writer.save((self.folder / str(progress.step)).resolve(), args=_Save(layout.nest(arrays)))
        except Exception as found:
            error = found
        waited = time.perf_counter() - began
        self._saving = _Saving(**{**vars(saving), "waited": waited})
        if error is not None and jax.process_count() == 1:
            self._ended(error)

    def keep(self, state: Any, progress: Progress) -> None:
        """Starts a copy on this machine, where the config asks for such; only that to host memory is waited for."""
        if self._local is None:
            return
        began = time.perf_counter()
        error = self._local.save(state, progress)
        if error is not None:
            self._tell_local("local_failed", progress.step - self.config.local_every, reason=reading.reason(error))
        self._tell_local("local_copy", progress.step, seconds=time.perf_counter() - began)

    def _tell_local(self, kind: str, step: int, **facts: Any) -> None:
        self._news.append((kind, {"step": step, "folder": self.config.local, **facts}))

    def news(self) -> list[News]:
        """What happened since the last call, never waiting for the disk; the first process hears all of it.

        Raises UserError when a save failed and `on_failure` is "stop".
        """
        if self._saving and jax.process_count() == 1 and time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            try:
                self._writer.check_for_errors()
            except Exception as error:
                self._ended(error)
            else:
                if (self.folder / str(self._saving.progress.step) / manifest.NAME).exists():
                    self._ended(None)
        news, self._news = self._news, []
        return news

    def wait(self) -> None:
        """Until the last save is on disk or has failed, which all processes then know."""
        if self._saving is None:
            return
        error = None
        try:
            self._writer.wait_until_finished()
        except Exception as found:
            error = found
        if not _everywhere(error is None):
            error = error or OSError("another process could not write its part")
        self._ended(error)

    def _ended(self, error: Exception | None) -> None:
        saving, self._saving = self._saving, None
        assert saving is not None
        step = saving.progress.step
        if error is None:
            self._news.append(("checkpoint", {"step": step, "seconds": saving.waited}))
            if self._first:
                self._losses[step] = saving.loss
                self._retire()
            return
        self.saved = None
        self._news.append(("save_failed", {"step": step, "reason": reading.reason(error)}))
        if self._first:
            self._clean()
        if self.config.on_failure == "stop":
            raise UserError(self.unsaved(step, reading.reason(error)))

    def unsaved(self, step: int, why: str = "see events.jsonl") -> str:
        newest = manifest.latest(self.folder)
        goes_on = f"goes on from step {newest}" if newest is not None else "starts anew"
        return (
            f"checkpoint {step} could not be saved ({why}), expected room and permission to write in {self.folder}; "
            f"make both, then repeat the command: it {goes_on}"
        )

    def close(self) -> None:
        self.wait()
        self._writer.close()
        for thread in self._cleaners:
            thread.join()
        if self._local is not None:
            self._local.close(self.saved)
        if self._first:
            _erase(self.folder / DELETED)

    # Removing

    def drop_from(self, step: int) -> None:
        """The checkpoints of `step` and later ones are given up. Every process must call it."""
        self.wait()
        if self._local is not None:
            self._local.drop_from(step)
        for later in [s for s in self._losses if s >= step] if self._first else []:
            del self._losses[later]
            self._remove(self.folder / str(later))

    def _retire(self) -> None:
        """Steps that need not stay leave by one rename; their files go in a thread of their own."""
        for step in sorted(set(self._losses) - kept(self._losses, self.config)):
            del self._losses[step]
            self._remove(self.folder / str(step))

    def _remove(self, path: epath.Path) -> None:
        try:
            target = self.folder / DELETED / f"{path.name}.{time.monotonic_ns()}"
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
        except OSError as error:  # a disk that can only be read: the next session removes it
            self._news.append(("save_failed", {"step": int(path.name), "reason": f"removal: {reading.reason(error)}"}))
            return
        thread = threading.Thread(target=_erase, args=(target,), name="remove-checkpoint")
        self._cleaners = [t for t in self._cleaners if t.is_alive()] + [thread]
        thread.start()

    def _clean(self) -> None:
        """Removes what interrupted saves and removals left."""
        self._losses = {}
        for path in list(self.folder.iterdir()):
            if path.name == DELETED or any(word in path.name for word in TEMPORARY):
                _erase(path)
        for step in manifest.numbered(self.folder):
            if manifest.is_finished(self.folder / str(step)):
                self._losses[step] = manifest.read(self.folder / str(step)).loss

    # Resuming

    def resume(self, abstract: Any) -> tuple[Any, Progress] | None:
        """State and progress of the newest checkpoint that proves itself, on the layout of `abstract`; None: none yet.

        Steps that do not are moved into damaged/ and told in `news`. Copies on the machines come first where they are
        newer. All processes choose the same step. Raises UserError when damaged ones are all there is, or when the
        arrays are not those of `abstract`.
        """
        if self._local is not None and (found := self._from_copies(self._local, abstract)):
            return found
        while (step := self._propose()) is not None:
            state, facts, problem = self._attempt(step, abstract)
            if state is not None and facts is not None:
                self.saved = step
                self.origin["parent"] = {"run": str(self.folder.parent), "step": step, "digest": facts.digest}
                return state, facts.progress
            self._set_aside(step, problem or "another process could not read it")
        aside = self.folder / DAMAGED
        if aside.exists() and any(manifest.was_committed(p) for p in aside.iterdir()):
            raise UserError(
                f"{self.folder} has no checkpoint that is whole, expected one; copy one back from a backup, or remove "
                f"{aside} to start anew"
            )
        return None

    def _from_copies(self, local: LocalCopies, abstract: Any) -> tuple[Any, Progress] | None:
        newest = self._propose()
        found = local.resume(abstract, -1 if newest is None else newest)
        for step, why in local.refused:
            self._tell_local("local_failed", step, reason=why)
        if found is not None:
            self.origin["parent"] = {"run": str(self.folder.parent), "step": found[1].step, "digest": None}
            self._tell_local("local_used", found[1].step)
        return found

    def _propose(self) -> int | None:
        """The newest step whose manifest and file lengths are right, as the first process sees it."""
        found = -1
        for step in manifest.numbered(self.folder) if self._first else []:
            path = self.folder / str(step)
            try:
                wrong = manifest.wrong_files(path, manifest.read(path))
            except UserError as error:
                wrong = [manifest.complaint(error)]
            if not wrong:
                found = step
                break
            self._set_aside(step, wrong[0])
        found = _told(found)
        return None if found < 0 else found

    def _attempt(self, step: int, abstract: Any) -> tuple[Any, Manifest | None, str]:
        """(state, manifest, ""), or (None, None, what is wrong here); nothing where it is wrong on another process."""
        path, state, problem, refusal = self.folder / str(step), None, "", None
        facts = None
        try:
            facts = manifest.read(path)
            state = reading.restore(path, facts, abstract)
        except UserError as error:
            refusal, problem = error, "refused"
        except Exception as error:  # whatever Orbax and TensorStore raise on damaged files
            if reading.is_transient(error):
                raise
            problem = reading.reason(error)
        if not _everywhere(refusal is None):
            raise refusal or UserError(f"checkpoint {step}: another process refused it; look at its output")
        if not _everywhere(not problem):
            return None, None, problem
        assert facts is not None
        if bad := reading.altered(facts, state):
            return None, None, reading.listed(bad)
        return state, facts, ""

    def _set_aside(self, step: int, why: str) -> None:
        if self._first:
            aside = self.folder / DAMAGED
            aside.mkdir(exist_ok=True)
            names = (str(step), *(f"{step}.{n}" for n in range(2, COPIES)))
            (self.folder / str(step)).rename(next(aside / n for n in names if not (aside / n).exists()))
            self._losses.pop(step, None)
        self._news.append(("damaged", {"step": step, "reason": why}))


def _erase(path: epath.Path) -> None:
    if not path.exists():
        return
    try:
        shutil.rmtree(Path(path)) if "://" not in str(path) else path.rmtree(missing_ok=True)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EROFS, errno.EACCES, errno.ENOTEMPTY):
            raise


def _told(number: int) -> int:
    """The first process's; all of them must ask."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _everywhere(holds: bool) -> bool:
    """Whether it holds on every process; all of them must ask."""
    if jax.process_count() == 1:
        return holds
    return bool(np.all(multihost_utils.process_allgather(np.array(holds))))
