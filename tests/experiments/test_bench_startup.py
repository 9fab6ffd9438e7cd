"""The benchmark of starts times real ones."""

import pytest

from experiments.benchmarks import startup


@pytest.mark.long
def test_a_start_is_timed_with_empty_caches_and_with_full_ones(config):
    measured = startup.measure(f"--config={config}:id", repeats=1)
    for kind in ("cold", "warm"):
        assert 0 < measured[f"{kind}_to_first_step_s"] < measured[f"{kind}_to_its_end_s"]
    assert measured["warm_starts"] == 1


@pytest.mark.long
def test_a_run_that_does_not_start_says_why(config):
    with pytest.raises(RuntimeError, match=r'ended before its first step:\n.*Did you mean "source"'):
        startup.measure(f"--config={config}:id", "--config.data.sourse=table", repeats=0)
