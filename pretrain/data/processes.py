"""A worker process must not outlive the process it works for, however that one ends."""

import os
import threading
import time

INTERVAL = 0.5  # seconds between two looks


def die_with_parent(parent: int) -> None:
    """Ends this process soon after process `parent`, which started it, has ended, also by SIGKILL.

    The number must come from the parent: it may be dead before this process gets to ask for it.
    """

    def watch():
        while os.getppid() == parent:
            time.sleep(INTERVAL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
