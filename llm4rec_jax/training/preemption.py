"""Saving and stopping when a process is told to end."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils


class Preempted(SystemExit):
    """The process received SIGTERM and the state has been saved. Exits with code 0.

    Attributes:
      step: Step that was saved; None where there was nothing to save.
    """

    def __init__(self, step: int | None) -> None:
        super().__init__(0)
        self.step = step


@contextlib.contextmanager
def sigterm_event() -> Iterator[threading.Event]:
    """Context manager yielding an event that is set when the process receives SIGTERM.

    Outside the main thread it is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)


def should_stop(stop: threading.Event, step: int, log_every: int) -> bool:
    """Returns whether to save and end after this step. Several processes agree on it, at the steps of a record."""
    if jax.process_count() == 1:
        return stop.is_set()
    return step % log_every == 0 and bool(multihost_utils.process_allgather(np.array(stop.is_set())).any())
