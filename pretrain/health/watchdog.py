"""Ends a process that hangs, and says where and which process the others wait for."""

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from pretrain import untrusted

HUNG = 75
"""Exit code: EX_TEMPFAIL of sysexits.h, start it again."""
PATIENCE = {"compile": 4, "evaluate": 4, "save": 4, "restore": 4}
"""Times `hang_seconds` that a phase may take; others have one."""
TICKS, TICK_SECONDS = 10, 10.0
"""Looks in `hang_seconds`, and the longest time between two. Heartbeats are as old at most."""
BEAT = {"process": int, "host": str, "pid": int, "step": int, "doing": str, "time": (int, float)}
"""What a heartbeat says."""
LAST_WORDS_SECONDS = 30
"""For writing stacks to a file system that may hang too."""


class Watchdog:
    """A thread that looks at what the loop last said it was doing. `seconds` None: only heartbeats are written."""

    def __init__(self, run: epath.Path, seconds: float | None, process: int, tell: Callable[..., None]):
        self.run, self.seconds, self.process, self.tell = run, seconds, process, tell
        self.at, self.doing = 0, "start"
        self._idle, self._over = 0.0, threading.Event()
        self._tick = min(TICK_SECONDS, (seconds or TICKS * TICK_SECONDS) / TICKS)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        (self.run / "heartbeats").mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def done(self, step: int) -> None:
        """A step has finished."""
        self.at, self._idle = step, 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is done until the end of the block; the time of a block that has an allowance of its own starts anew."""
        before, self.doing = self.doing, name
        if name in PATIENCE:
            self._idle = 0.0
        try:
            yield
        finally:
            self.doing = before
            if name in PATIENCE:
                self._idle = 0.0

    @property
    def limit(self) -> float:
        return (self.seconds or float("inf")) * PATIENCE.get(self.doing, 1)

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._over.wait(self._tick):
            now = time.monotonic()
            self._idle += min(now - last, 2 * self._tick)  # a process that was itself stopped has not been waiting
            last = now
            with contextlib.suppress(OSError):
                write(self.run, self._heartbeat())
            if self.seconds is None:
                continue
            # Where a thread keeps the interpreter's lock, this one cannot run: C code ends the process, with code 1.
            latest = max(PATIENCE.values()) * self.seconds + 2 * self._tick
            faulthandler.dump_traceback_later(latest, exit=True, file=sys.__stderr__ or sys.stderr)
            if self._idle > self.limit:
                self._end()

    def _heartbeat(self) -> dict[str, Any]:
        where = {"process": self.process, "host": socket.gethostname(), "pid": os.getpid()}
        return {**where, "step": self.at, "doing": self.doing, "time": time.time()}

    def _end(self) -> None:
        timer = threading.Timer(LAST_WORDS_SECONDS, os._exit, [HUNG])
        timer.daemon = True
        timer.start()
        try:
            what = f"no step finished in {self.limit:.0f} s behind step {self.at} (in: {self.doing})"
            lines = [f"process {self.process}: {what}; ends with code {HUNG}", *lagging(read(self.run), self._tick)]
            stderr = sys.__stderr__ or sys.stderr
            print("\n".join(lines), file=stderr, flush=True)
            faulthandler.dump_traceback(file=stderr, all_threads=True)
            self.tell(step=self.at, process=self.process, doing=self.doing, what=what, behind=lines[1:])
            self._write_stacks(lines)
        finally:
            os._exit(HUNG)

    def _write_stacks(self, lines: list[str]) -> None:
        import tempfile

        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
            file.seek(0)
            stacks = file.read()
        folder = self.run / "stacks"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.process}-step-{self.at}.txt").write_text("\n".join([*lines, "", stacks]))


def write(run: epath.Path, heartbeat: dict[str, Any]) -> None:
    path = run / "heartbeats" / f"{heartbeat['process']}.json"
    new = path.with_suffix(".new")
    new.write_text(json.dumps(heartbeat))
    new.replace(path)


def read(run: epath.Path) -> list[dict[str, Any]]:
    """The last heartbeat of every process, by its number; without those that cannot be read."""
    out = []
    folder = run / "heartbeats"
    for path in folder.iterdir() if folder.exists() else ():
        with contextlib.suppress(OSError, ValueError):
            if path.suffix == ".json":
                out.append(untrusted.load(path))
    whole = [b for b in out if isinstance(b, dict) and all(isinstance(b.get(k), t) for k, t in BEAT.items())]
    return sorted((b for b in whole if 0 <= b["time"] < 2**40), key=lambda beat: beat["process"])


def lagging(beats: list[dict[str, Any]], tick: float, now: float | None = None) -> list[str]:
    """One line for each process that is silent, or behind or elsewhere than most are."""
    now = time.time() if now is None else now
    alive = [b for b in beats if now - b["time"] <= 4 * tick]
    usual = Counter((b["step"], b["doing"]) for b in alive).most_common(1)
    out = []
    for beat in beats:
        name = f"process {beat['process']} on {beat['host']} (pid {beat['pid']})"
        if beat not in alive:
            out.append(f"{name}: silent for {now - beat['time']:.0f} s, last at step {beat['step']} in {beat['doing']}")
        elif (beat["step"], beat["doing"]) != usual[0][0]:
            out.append(
                f"{name}: at step {beat['step']} in {beat['doing']}, most are at {usual[0][0][0]} in {usual[0][0][1]}"
            )
    return out
