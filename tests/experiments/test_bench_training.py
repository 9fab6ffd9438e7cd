"""Benchmarks of training show that both sides compute the same."""

import pytest

from experiments.benchmarks import cache, sasrec, train
from llm4rec_jax.runs.assemble import Assembly
from tests.helpers import tiny


@pytest.fixture
def assembly():
    """SASRec over the tiny dataset, histories shorter than its users' sequences."""
    config = sasrec.configuration()
    config.model.width, config.train.batch_size, config.train.history = 8, 16, 5
    assembly = Assembly(config)
    assembly.__dict__["dataset"] = tiny.dataset()
    return assembly


@pytest.mark.parametrize("dropout", [False, True])
def test_both_sides_of_sasrec_compute_the_same(assembly, dropout):
    measured = sasrec.measure(assembly, dropout, repeats=1)
    assert measured["parity_profiles"] < 1e-5
    assert measured["parity_loss"] < 1e-5
    assert measured["parity_gradients"] < 1e-4
    # 48 users of 9 items, of which two are for evaluation: windows of 5 and 1 targets.
    assert (measured["steps"], measured["positions"], measured["items"]) == (6, 48 * 6, 40)
    assert {"ratio_torch", "ratio_torch_foreach", "step_ratio_torch", "step_ratio_torch_foreach"} < set(measured)


@pytest.mark.long
@pytest.mark.parametrize(("lowest", "sides"), [(0, {"ours"}), (1, {"ours", "uncached"})])
def test_states_computed_once_train_to_the_same_losses(lowest, sides, tmp_path):
    config = cache.configuration(lowest, blocks=2)
    config.model.width, config.train.batch_size, config.train.history = 8, 16, 5
    config.encoder.path, config.text.item = str(tiny.encoder_folder(tmp_path)), "the {title}."
    assembly = Assembly(config)
    assembly.__dict__["dataset"] = tiny.dataset()
    measured = cache.measure(assembly, repeats=3)
    assert (measured["lowest"], measured["steps"], set(measured["programs"])) == (lowest, 5, sides)
    assert measured["largest_relative_difference_of_losses"] < 1e-5
    # Texts of six tokens, what stands around them included, 16 floats each.
    assert measured["states_mib"] == (40 * 6 * 16 * 4 / 2**20 if lowest else None)


@pytest.mark.long
@pytest.mark.parametrize("method", train.METHODS)
def test_both_sides_of_training_over_texts_compute_the_same(method, tmp_path):
    config = train.configuration(method)
    config.model.width, config.train.batch_size, config.train.history = 8, 16, 5
    folder = tiny.encoder_folder(tmp_path)
    config.encoder.path, config.text.item = str(folder), "the {title}."
    if method == "lora":
        config.peft.options.lora.target = "layer_1/.*"
    assembly = Assembly(config)
    assembly.__dict__["dataset"] = tiny.dataset()
    measured = train.measure(assembly, folder, repeats=1, usual_repeats=1)
    assert measured["parity_loss"] < 1e-5
    assert measured["parity_gradients"] < 1e-4
    assert {"ratio_usual", "ratio_strong", "ratio_sorted", "examples_per_s_ours", "examples_per_s_usual"} < set(
        measured
    )
    assert (measured["items"], measured["states_cached_below"]) == (40, 1 if method == "lora" else 0)
