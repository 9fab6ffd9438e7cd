"""Signals that end a run: they are noted, and only a second Ctrl-C ends the process at once."""

import os
import signal

import pytest

from llm4rec_jax.training.preemption import stop_request


def test_a_sigterm_after_a_ctrl_c_changes_nothing_and_a_second_ctrl_c_ends_the_process():
    # A shell starts what runs in the background without Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with stop_request() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
