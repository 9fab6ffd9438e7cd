"""Processes that make batches, and their end."""

import multiprocessing
import os
import threading
from multiprocessing import connection


def end_with_parent(worker: int, count: int) -> None:
    """Lets this process end when the one that started it has ended, be it by SIGKILL.

    Without this, a process that waits for room in the queue of batches would wait forever.

    Args:
      worker, count: Number of this process, and of all; Grain gives them, they have no use here.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError(f"worker {worker} of {count} was not started by multiprocessing")

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="end_with_parent", daemon=True).start()
