"""A run that is asked to stop in its midst."""

import os
import signal

import pytest

from llm4rec_jax.training.log import TrainingLog


def terminate_at(step: int, monkeypatch: pytest.MonkeyPatch, number: signal.Signals = signal.SIGTERM) -> None:
    """Makes this process get a signal, from now on, when a run has made `step` steps."""
    real = TrainingLog.advance

    def advance(self: TrainingLog, made: int) -> None:
        if made == step:
            os.kill(os.getpid(), number)
        real(self, made)

    monkeypatch.setattr(TrainingLog, "advance", advance)
