"""HLLM from a configuration: two language models, either of them frozen, tuned or trained whole."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import transformers

from configs import hllm_movielens as study
from experiments.reports.spec import checked
from llm4rec_jax.data.sources import SOURCES
from llm4rec_jax.models.encoders import huggingface
from llm4rec_jax.models.encoders.checkpoint import PretrainedError
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.runs.load import evaluate_again
from llm4rec_jax.runs.run import run
from llm4rec_jax.training.checkpoint import best_state
from llm4rec_jax.trees import flatten
from tests.helpers import tiny

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module", autouse=True)
def tiny_source():
    SOURCES["tiny"] = lambda path=None: tiny.dataset(users=24)
    yield
    del SOURCES["tiny"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with the tokenizer of the tiny dataset; beside it is a BERT."""
    place = tmp_path_factory.mktemp("models")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny.encoder_folder(place / "bert"))
    config = transformers.LlamaConfig(**SIZES, vocab_size=len(tokenizer), num_key_value_heads=1, pad_token_id=0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(place / "llama")
    tokenizer.save_pretrained(place / "llama")
    return place / "llama"


def small(llama: Path, arg: str, **values: Any) -> Any:
    """A row of the study on the tiny dataset, for a few steps."""
    config: Any = study.get_config(arg)
    with config.unlocked():
        config.data.source, config.text.item = "tiny", "the {title}."
        config.encoder.path, config.encoder.layers, config.model.width = str(llama), 2, 16
        config.model.user_options.llm.path, config.model.user_options.llm.layers = str(llama), 1
        config.train.update({"steps": 4, "batch_size": 8, "history": 8, "warmup": 0, "eval_every": 4, "log_every": 1})
        config.update_from_flattened_dict(values)
    return config


def test_a_run_starts_from_the_decoders_weights_and_trains_them(llama, tmp_path):
    config = small(llama, "hllm", **{"train.learning_rate": 3e-2})
    _, weights = huggingface.load(llama, layers=1)
    start = Assembly(config).params()
    assert set(start["users"]) == {"layer_0", "final_norm"}
    for name in ("layer_0", "final_norm"):
        jax.tree.map(np.testing.assert_array_equal, start["users"][name], weights[name])
    result = run(config, tmp_path)
    trained = best_state(tmp_path)["params"]
    assert {"users", "project"} <= set(trained)
    moved = np.abs(
        trained["users"]["layer_0"]["attention"]["query"]["kernel"] - weights["layer_0"]["attention"]["query"]["kernel"]
    )
    assert moved.max() > 1e-3
    assert evaluate_again(tmp_path)["test"] == pytest.approx(result["test"], abs=1e-6)


def test_random_weights_are_drawn_by_the_seed(llama):
    def query(seed: int) -> np.ndarray:
        params = Assembly(small(llama, "random", seed=seed)).params()
        return np.asarray(params["users"]["layer_0"]["attention"]["query"]["kernel"])

    np.testing.assert_array_equal(query(0), query(0))
    assert np.abs(query(0) - query(1)).max() > 1e-3


@pytest.mark.parametrize(
    ("values", "trained", "frozen"),
    [
        ({}, {"encoder", "users"}, {"encoder", "users"}),
        ({"peft.users": "frozen"}, {"encoder"}, {"encoder", "users"}),
        ({"peft.method": "frozen", "peft.users": "lora"}, {"users"}, {"encoder", "users"}),
        ({"peft.within": "encoder"}, {"encoder"}, {"encoder"}),
    ],
)
def test_either_model_is_frozen_tuned_or_trained_whole(llama, values, trained, frozen):
    assembly = Assembly(small(llama, "hllm_lora", **values))
    task = assembly.task
    task.bind(assembly.mesh)
    params = task.init(jax.random.key(0))
    names = {name for path in flatten(params.trainable["delta"]) for name in path.split("/") if not name.isdigit()}
    assert names & {"encoder", "users"} == trained
    assert set(params.frozen) == frozen
    assert ("users" in params.trainable["params"]) == ("users" not in frozen)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model.user_options.llm.pth": "x"}, "did you mean 'path'"),
        ({"model.user_options.llm.path": "bert"}, "a bert model: give the folder of a causal decoder"),
        ({"model.width": 8}, "give config.model.width=16"),
        ({"peft.users": "frozen"}, "config.peft.users is 'frozen', but within is 'encoder'"),
    ],
)
def test_wrong_options_are_told(llama, values, said):
    if values.get("model.user_options.llm.path"):
        values = {"model.user_options.llm.path": str(llama.parent / "bert"), "model.user_options.llm.layers": None}
    config = small(llama, "hllm")
    with config.unlocked():
        config.update_from_flattened_dict(values)
    with pytest.raises((ValueError, PretrainedError), match=said):
        _ = Assembly(config).task


def test_rows_of_the_study():
    table = checked(study.table())
    groups = {trial.group for trial in study.sweep()}
    assert table.rows is not None
    assert {group for section in table.rows for group in section} == groups == {*study.ARGS} - {"hllm_full"}
    for arg in study.ARGS:
        assert study.get_config(arg).encoder.layers == study.BLOCKS
    with pytest.raises(ValueError, match="did you mean 'hllm'"):
        study.get_config("hlm")
