"""A run that is asked to stop in its midst."""

import os
import signal

import pytest

from llm4rec_jax.training import metric_writer as journal


def terminate_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, this process gets SIGTERM when a run has made so many steps."""
    real = journal.Journal.advance

    def advance(self: journal.Journal, made: int) -> None:
        if made == step:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, made)

    monkeypatch.setattr(journal.Journal, "advance", advance)
