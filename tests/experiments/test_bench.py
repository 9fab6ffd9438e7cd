"""Benchmarks say what they measured; whether it is fast is for people to read."""

import pytest

from experiments.bench import BENCHES
from experiments.benches import machine, trials
from tests.experiments.commands import command


def test_an_unknown_benchmark_is_named():
    done = command("bench", "trails", check=False)
    assert done.returncode == 2
    assert "unknown benchmark 'trails'; did you mean 'trials'?" in done.stderr


def test_a_measurement_says_what_it_was_made_on():
    about = machine.describe()
    assert set(about["versions"]) == set(machine.PACKAGES)
    assert about["cores"] >= 1
    assert set(BENCHES) == {"trials"}


@pytest.mark.long
def test_trials_together_come_to_the_same_losses(monkeypatch):
    monkeypatch.setattr(trials, "CASES", (trials.Case("id", 2, 12, {"train.log_every": 4}),))
    (measured,) = trials.run()
    assert measured["largest_relative_difference_of_losses"] < 1e-5
    assert measured["ratio"] == pytest.approx(measured["together_per_hour"] / measured["one_by_one_per_hour"])
