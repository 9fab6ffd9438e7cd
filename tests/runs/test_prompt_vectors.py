"""Prompts with item vectors of a trained run: logits and gradients are those of transformers' `inputs_embeds`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
import pytest
import torch
import transformers
from ml_collections import ConfigDict

from configs import prompt_scoring_movie as study
from llm4rec_jax.data.features.vector_tokens import tokenise_with_vectors
from llm4rec_jax.data.labeled import LABELED_SOURCES
from llm4rec_jax.inference.generate.likelihood import AnswerScorer
from llm4rec_jax.peft.core import forward
from llm4rec_jax.peft.item_vectors import item_vector_tokens
from llm4rec_jax.runs.folder import RunFolderError, read, write
from llm4rec_jax.runs.item_vectors import item_vectors_of
from llm4rec_jax.runs.load import evaluate_again
from llm4rec_jax.runs.run import assemble, run
from llm4rec_jax.runs.schema import default_config
from llm4rec_jax.training import metric_writer
from tests.helpers import rating, words

WITH_VECTORS = "{item_id} {item_vector}"


@pytest.fixture(scope="module", autouse=True)
def source():
    LABELED_SOURCES["colours"] = lambda path=None: rating.DATA
    yield
    del LABELED_SOURCES["colours"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return words.llama_folder(tmp_path_factory.mktemp("llama"))


def ranking_run(place: Path, items: list[str]) -> Path:
    """Trains a model of ids on users each of whom likes one of two colours."""
    rng, half = np.random.default_rng(0), len(items) // 2
    rows = [
        (f"u{user}", items[user % 2 * half + item], time)
        for user in range(24)
        for time, item in enumerate(rng.choice(half, 6, replace=False))
    ]
    place.mkdir()
    pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row").write_csv(place / "interactions.csv")
    config: Any = default_config()
    with config.unlocked():
        config.inputs, config.model.users, config.model.width = "id", "mean", 6
        config.data.source, config.data.path = "table", str(place / "interactions.csv")
        config.data.options = ConfigDict({"timestamp": "timestamp"})
        config.train.update({"steps": 20, "eval_every": 20, "warmup": 0, "batch_size": 8, "learning_rate": 0.03})
    run(config, place / "run")
    return place / "run"


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ranking_run(tmp_path_factory.mktemp("ids") / "same", rating.TITLES)


def config(folder: Path, ids: Path | None, **values: Any) -> Any:
    config: Any = study.get_config("lora")
    with config.unlocked():
        config.data.source, config.data.few_shot = "colours", 24
        config.text.item, config.text.user, config.text.max_prompt_tokens = WITH_VECTORS, words.TEMPLATE, 40
        config.encoder.path = str(folder)
        config.prompt.vectors_from = None if ids is None else str(ids)
        config.train.update({"steps": 4, "eval_every": 4, "log_every": 1, "warmup": 0, "batch_size": 8})
        config.update_from_flattened_dict(values)
    return config


def test_logits_and_gradients_are_those_of_transformers(folder, ids):
    assembly = assemble(config(folder, ids))
    task, decoder = assembly.task, assembly.pretrained.encoder
    task.bind(assembly.mesh)
    params, batch, size = task.init(jax.random.key(0)), next(task.batches(0)), decoder.config.vocab_size
    delta, weights = params.trainable["delta"]["encoder"], params.frozen["encoder"]
    # Each of four items of a history and the target have one token.
    assert set((batch.ids >= size).sum(axis=1)) == {5}

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    vectors = assembly.item_vectors.vectors.astype(np.float64)
    vectors = vectors - vectors.mean(axis=0)
    items = torch.tensor(vectors / vectors.std()).float()
    mlp = {name: torch.tensor(np.asarray(a), requires_grad=True) for name, a in delta["1"]["embeddings/word"].items()}
    ids_of, mask = torch.tensor(batch.ids), torch.tensor(batch.mask.astype(int))
    hidden = torch.nn.functional.gelu(items @ mlp["first"] + mlp["first_bias"], approximate="tanh")
    table = torch.cat([model.get_input_embeddings().weight, hidden @ mlp["second"] + mlp["second_bias"]])
    at = np.arange(batch.ids.shape[1])
    labels = torch.tensor(np.where(batch.mask & (at >= batch.start[:, None]), batch.ids, -100)).long()
    theirs = model(inputs_embeds=table[ids_of], attention_mask=mask, labels=labels)
    theirs.loss.backward()

    @jax.jit
    def logits_of(ids: Any, mask: Any) -> Any:
        states = forward(decoder, task._bare, weights, delta, ids, mask)
        return forward(decoder, task._bare, weights, delta, states, apply="logits")

    logits = np.asarray(logits_of(batch.ids, batch.mask))
    np.testing.assert_allclose(logits[batch.mask], theirs.logits.detach().numpy()[batch.mask], atol=1e-5)

    def loss(trainable: Any) -> Any:
        return task.loss(trainable, {"params": params.frozen}, batch._replace(users=None), None)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params.trainable)
    assert float(value) == pytest.approx(theirs.loss.item(), rel=1e-5)
    for name, array in gradient["delta"]["encoder"]["1"]["embeddings/word"].items():
        wanted = mlp[name].grad.numpy()
        assert np.abs(wanted).max() > 0
        np.testing.assert_allclose(array / np.abs(wanted).max(), wanted / np.abs(wanted).max(), atol=1e-4)


def test_texts_without_vectors_are_read_to_the_bit_as_before(folder, ids):
    without = assemble(config(folder, None, **{"text.item": "{item_id}"})).task
    assembly = assemble(config(folder, ids))
    task, batch = assembly.task, next(without.batches(0))
    params, before = task.init(jax.random.key(0)), without.init(jax.random.key(0))
    decoder, weights = assembly.pretrained.encoder, params.frozen["encoder"]
    assert without.method.name == "lora"
    delta = {**params.trainable["delta"]["encoder"], "0": before.trainable["delta"]["encoder"]}
    now = forward(decoder, task._bare, weights, delta, batch.ids, batch.mask)
    then = forward(decoder, without._bare, weights, delta["0"], batch.ids, batch.mask)
    np.testing.assert_array_equal(now, then)


def test_a_run_learns_and_is_evaluated_again(folder, ids, tmp_path):
    chosen = config(folder, ids, **{"train.learning_rate": 0.03})
    with chosen.unlocked():
        chosen.peft.options = ConfigDict({"lora": {"rank": 8, "target": ".*/(query|value)"}})
    result = run(chosen, tmp_path / "run")
    losses = [r["loss"] for r in metric_writer.read(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "train"]
    assert losses[-1] < losses[0]
    projection = 6 * 16 + 16 + 16 * 16 + 16
    assert result["parameters"]["delta"] == projection + 2 * 8 * (16 + 16 + 16 + 8)
    again = evaluate_again(tmp_path / "run")
    assert again["test"] == pytest.approx(result["test"], abs=1e-6)
    assembly = assemble(chosen)
    task, params = assembly.task, assembly.task.init(jax.random.key(0))
    both = [
        AnswerScorer(assembly.pretrained.encoder, task._bare, assembly.mesh, assembly.answers, cached=cached)(
            (params.frozen["encoder"], params.trainable["delta"]["encoder"]), task._prompts["test"]
        )
        for cached in (True, False)
    ]
    np.testing.assert_allclose(*both, atol=1e-5)
    described = read(tmp_path / "run" / "dataset.json")
    write(tmp_path / "run" / "dataset.json", {**described, "item_vectors": "another"})
    with pytest.raises(RunFolderError, match="its item_vectors was 'another'"):
        evaluate_again(tmp_path / "run")
    with pytest.raises(ValueError, match="run is no trained run that ranks by vectors of items"):
        item_vectors_of(tmp_path / "run", rating.TITLES)


def test_a_notice_counts_test_examples_that_the_ranking_run_was_trained_on(folder, ids):
    assembly = assemble(config(folder, ids))
    trained = set(assembly.item_vectors.trained.iter_rows())
    test = rating.DATA.test
    known = sum((f"u{user}", rating.TITLES[item]) in trained for user, item in zip(test.user, test.target, strict=True))
    (notice,) = assembly.notices
    assert 0 < known < test.size
    assert f"{known} of {test.size} test examples" in notice.message
    assert assemble(config(folder, None, **{"text.item": "{item_id}"})).notices == []


def test_misuse(folder, ids, tmp_path):
    with pytest.raises(ValueError, match="no run has vectors for it: give the folder"):
        run(config(folder, None), tmp_path / "a")
    with pytest.raises(ValueError, match=r"text\.item is '\{item_id\}': write \{item_vector\}"):
        run(config(folder, ids, **{"text.item": "{item_id}"}), tmp_path / "b")
    with pytest.raises(ValueError, match="but the prompts of task 'rating' have no vectors"):
        run(config(folder, ids, task="rating"), tmp_path / "c")
    with pytest.raises(ValueError, match="nowhere the folder of a run"):
        run(config(folder, tmp_path / "nowhere"), tmp_path / "d")
    others = [*rating.TITLES[1:], "another", "more"]
    with pytest.raises(ValueError, match="lacks 2 of the 21 items, such as 'another': give a run on the same"):
        item_vectors_of(ids, others)
    with pytest.raises(
        ValueError, match="gives the token 7, and the language model has embeddings of the tokens below 7"
    ):
        tokenise_with_vectors(["a"], lambda texts, special: [[7] for _ in texts], 7, 4)
    with pytest.raises(ValueError, match="the vectors of all 3 items are the same"):
        item_vector_tokens(np.ones((3, 2)), 7)
