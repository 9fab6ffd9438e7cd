"""Saving and stopping when a process is told to end."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils


class Preempted(SystemExit):
    """The process was told to end and the state has been saved. Exits with code 0, or 130 after Ctrl-C.

    Args:
      step: Step that was saved; None where there was nothing to save.
      received: The signal.
    """

    def __init__(self, step: int | None, received: signal.Signals = signal.SIGTERM) -> None:
        super().__init__(0 if received == signal.SIGTERM else 128 + received)
        self.step, self.received = step, received


class StopRequest:
    """The signal that told this process to end, if one has."""

    received: signal.Signals | None = None


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Context manager yielding a request that is made when the process receives SIGTERM or SIGINT (Ctrl-C).

    After a Ctrl-C the next one does what it did before, so it ends the process at once. Further SIGTERMs do nothing: a
    sweep that is interrupted sends one to trials that the terminal has interrupted already. Outside the main thread no
    signal is seen.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, _: object) -> None:
        stop.received = stop.received or signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(number, previous[signal.SIGINT])

    previous = {each: signal.signal(each, note) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def should_stop(stop: StopRequest, step: int, log_every: int) -> signal.Signals | None:
    """Returns the signal by which to save and end after this step; None goes on.

    Several processes agree on it, at the steps of a record, and end as by SIGTERM.
    """
    if jax.process_count() == 1:
        return stop.received
    told = np.array(stop.received is not None)
    if step % log_every == 0 and bool(multihost_utils.process_allgather(told).any()):
        return signal.SIGTERM
    return None
