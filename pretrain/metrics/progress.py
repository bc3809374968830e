"""The progress line of a run: a live bar on a terminal, plain lines in a log."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

Facts = Mapping[str, Any]


def line(facts: Facts) -> str:
    """One step in one line; whatever is unknown is left out.

    Args:
        facts: A line of metrics.jsonl, and beside it `steps` (of the run), `bits_per_byte`, `mfu` (0 to 1) and
            `eta_seconds` where they are known.
    """
    return " ".join(_parts(facts))


def _parts(facts: Facts) -> Iterator[str]:
    step, steps = facts["step"], facts.get("steps")
    yield f"step {step}/{steps} {_percent(step, steps)}%" if steps else f"step {step}"
    for key, text in (
        ("loss", "loss {:.3f}"),
        ("bits_per_byte", "bpb {:.2f}"),
        ("grad_norm", "grad {:.2f}"),
    ):
        if facts.get(key) is not None:
            yield text.format(float(facts[key]))
    if facts.get("learning_rate") is not None:
        yield f"lr {short_exponent(facts['learning_rate'])}"
    if facts.get("tokens_per_second") is not None:
        yield f"{count(facts['tokens_per_second'])} tok/s"
    if facts.get("mfu") is not None:
        yield f"mfu {facts['mfu']:.0%}"
    if facts.get("data_wait_seconds") is not None and facts.get("step_seconds"):
        yield f"data-wait {facts['data_wait_seconds'] / facts['step_seconds']:.1%}"
    left = facts.get("eta_seconds")
    if left is None and steps and facts.get("step_seconds"):
        left = (steps - step) * facts["step_seconds"]
    if left is not None and math.isfinite(left):
        yield f"eta {duration(left)}"


def _percent(step: int, steps: int) -> int:
    """Rounded, but 100 only at the end."""
    return 100 if step >= steps else min(99, round(100 * step / steps))


def count(n: float) -> str:
    """Three digits and a unit: 950, 18.2k, 626k, 1.25M, 6.74B."""
    n = float(n)
    if not math.isfinite(n):
        return str(n)
    for unit in ("", "k", "M", "B", "T"):
        if abs(n) < 999.5 or unit == "T":
            break
        n /= 1000
    digits = 0 if abs(n) >= 99.95 or (not unit and n == int(n)) else 1 if abs(n) >= 9.995 else 2
    return f"{n:.{digits}f}{unit}"


def duration(seconds: float) -> str:
    """The two largest units: 12s, 3m12s, 2h05m, 3d04h."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d{h:02}h"
    if hours:
        return f"{h}h{m:02}m"
    return f"{m}m{s:02}s" if minutes else f"{s}s"


def short_exponent(x: float) -> str:
    """3.0e-4, where Python writes 3.0e-04."""
    mantissa, _, exponent = f"{float(x):.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


class Progress:
    """What a run says while it trains.

    Args:
        stream: Where to; None: the standard error of the first process, and nothing from the others.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        stream: TextIO | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._stream, self._clock = total_steps, stream or _first_stderr(), clock
        self._first: tuple[int, float] | None = None
        self._bar = None
        if self._stream is not None and self._stream.isatty():
            self._bar, self._task = _bar(total_steps, start_step, self._stream)

    def update(self, facts: Facts) -> None:
        """One line for a finished step: `facts` as in `line`; the run's steps and the time left are added."""
        if self._stream is None:
            return
        text = line({"steps": self._total, "eta_seconds": self._left(facts["step"]), **facts})
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.update(self._task, completed=facts["step"], description=text, refresh=True)

    def note(self, text: str) -> None:
        """A sentence of its own (a resume, a checkpoint), above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._stream is not None:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the last line on the terminal. Safe to call twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _left(self, step: int) -> float | None:
        """Seconds to the end at the pace since the first update: evaluations and saves count, compilation does not."""
        now = self._clock()
        if self._first is None:
            self._first = step, now
        first, since = self._first
        return (self._total - step) * (now - since) / (step - first) if step > first else None


def _first_stderr() -> TextIO | None:
    import jax

    return sys.stderr if jax.process_index() == 0 else None


def _bar(total_steps: int, start_step: int, stream: TextIO) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    # Drawn on each update and no thread beside: the step's host work is the only one that may run.
    columns = BarColumn(bar_width=16), TextColumn("{task.description}", markup=False)
    bar = Bar(*columns, console=Console(file=stream), auto_refresh=False)
    task = bar.add_task(f"step {start_step}/{total_steps} compiling", total=total_steps, completed=start_step)
    bar.start()
    bar.refresh()
    return bar, task
