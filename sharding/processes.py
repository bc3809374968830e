"""Devices and processes: simulated ones on a laptop, many hosts on a pod."""

import ctypes
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec

from pretrain.errors import UserError

LAST_SECONDS = 30
"""A process that fails waits so long for the others, which wait for it; then it ends, and with it they do."""


SIMULATION = (
    "--xla_cpu_collective_call_terminate_timeout_seconds=600 --xla_cpu_enable_concurrency_optimized_scheduler=false"
)
"""Simulated devices are threads that wait for one another: on a busy or suspended machine longer than XLA's 40 s, after
which it ends the process. What hangs is the watchdog's to find. Scheduled for concurrency, two passes of a ring that do
not depend on each other are under way at once, each device begins with the one it likes, and all wait for ever."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """One of `count` processes that train together; the first one listens on `coordinator` (host:port)."""

    coordinator: str
    count: int
    index: int

    def checks(self) -> tuple[tuple[bool, str], ...]:
        return (
            (":" in self.coordinator, f"coordinator={self.coordinator!r}: expected HOST:PORT of the first process"),
            (0 <= self.index < self.count, f"index={self.index}: expected 0 to {self.count - 1}"),
        )


def start(processes: Processes | None, simulate: int | None) -> None:
    """Call once, before any array exists.

    Args:
        processes: None for a single process.
        simulate: So many CPU devices in all, instead of the real ones.
    """
    import jax

    count = processes.count if processes else 1
    if simulate is not None:
        if simulate % count:
            raise UserError(f"simulate={simulate} is not a multiple of {count} processes; give each the same number")
        simulated(simulate // count)
    if processes is not None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            processes.coordinator, processes.count, processes.index, shutdown_timeout_seconds=LAST_SECONDS
        )


def simulated(devices: int) -> None:
    """This process has so many CPU devices; call before any array exists."""
    import jax

    os.environ["XLA_FLAGS"] = f"{SIMULATION} {os.environ.get('XLA_FLAGS', '')}".rstrip()  # the last one counts
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def keep_memory() -> None:
    """On a machine without accelerators: glibc keeps what XLA frees, instead of faulting it in again at every step.

    Helps only before jax is imported. Does nothing beside an accelerator's plugin or with another C library.
    """
    if "jax" in sys.modules or any(find_spec(p) for p in ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")):
        return
    M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
            libc.mallopt(option, value)
