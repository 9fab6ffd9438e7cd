"""Benchmarks say what they measured; whether it is fast is for people to read."""

from pathlib import Path

import numpy as np
import pytest
import transformers

from experiments.bench import BENCHES
from experiments.benchmarks import attention, machine, step, timing, trials
from tests.helpers.commands import command


def test_an_unknown_benchmark_is_named():
    done = command("bench", "trails", check=False)
    assert done.returncode == 2
    assert "unknown benchmark 'trails'; did you mean 'trials'?" in done.stderr


def test_sides_are_timed_by_turns():
    calls = []
    times = timing.interleaved({"ours": lambda: calls.append("a"), "peer": lambda: calls.append("b")}, 3, warm=1)
    assert "".join(calls) == "abbaabba"
    assert {name: len(seconds) for name, seconds in times.items()} == {"ours": 3, "peer": 3}


def test_a_ratio_says_how_many_times_as_long_the_peer_takes():
    figures = timing.summary({"ours": np.array([1.0, 2.0, 3.0]), "torch": np.array([2.0, 4.0, 9.0])})
    assert figures["ours_s"] == 2.0
    assert figures["torch_quartiles_s"] == [3.0, 6.5]
    assert figures["ratio_torch"] == 2.0


@pytest.mark.parametrize("backward", [False, True])
def test_attention_is_what_its_equation_says(backward):
    measured = attention.measure(2, 5, backward, repeats=1)
    assert measured["largest_difference"] < 1e-5
    assert {"ratio_equation", "ratio_torch"} < set(measured)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=1100, hidden_size=24, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
        intermediate_size=40, max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("method", "decoder"), [("full", False), ("lora", False), ("lora", True)])
def test_both_sides_of_a_step_compute_the_same(llama, method, decoder):
    measured = step.measure(method, texts=6, length=8, repeats=1, folder=llama if decoder else None)
    assert measured["parity_vectors"] < 1e-5
    assert measured["parity_loss"] < 1e-5
    assert measured["parity_gradients"] < 1e-4
    assert measured["ratio_torch"] == pytest.approx(measured["torch_s"] / measured["ours_s"])


def test_a_measurement_says_what_it_was_made_on():
    about = machine.describe()
    assert set(about["versions"]) == set(machine.PACKAGES)
    assert about["cores"] >= 1
    names = "attention cache encode quantize rank sasrec scaling startup step train trials"
    assert set(BENCHES) == set(names.split())


@pytest.mark.long
def test_trials_together_come_to_the_same_losses():
    (measured,) = trials.measure(trials.Case("id", 2, 12, {"train.log_every": 4}))
    assert measured["largest_relative_difference_of_losses"] < 1e-5
    assert measured["ratio"] == pytest.approx(measured["together_per_hour"] / measured["one_by_one_per_hour"])
