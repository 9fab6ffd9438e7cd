"""Runs whose language model answers prompts: trained, zero-shot, in context; loss and scores are transformers'."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
import pytest
import torch
import transformers

from configs import prompt_scoring_movie as study
from experiments import tables
from experiments.sweeps import trials
from llm4rec_jax.data.labeled import LABELED_SOURCES
from llm4rec_jax.inference.generate.likelihood import AnswerScorer
from llm4rec_jax.models.encoders.huggingface import names_of, parameter_shapes
from llm4rec_jax.runs.load import evaluate_again
from llm4rec_jax.runs.prompt_assembly import PromptAssembly
from llm4rec_jax.runs.run import assemble, run
from llm4rec_jax.training import metric_writer
from llm4rec_jax.trees import flatten
from tests.helpers import rating, tiny, words


@pytest.fixture(scope="module", autouse=True)
def source():
    LABELED_SOURCES["colours"] = lambda path=None: rating.DATA
    yield
    del LABELED_SOURCES["colours"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a tokenizer of words."""
    return words.llama_folder(tmp_path_factory.mktemp("llama"))


def config(folder: Path, arg: str = "lora", **values: Any) -> Any:
    config: Any = study.get_config(arg)
    with config.unlocked():
        config.data.source, config.data.few_shot = "colours", 24
        config.text.item, config.text.user, config.text.max_prompt_tokens = "{item_id}", words.TEMPLATE, 40
        config.encoder.path = str(folder)
        if config.train.steps:
            config.train.update({"steps": 4, "eval_every": 4, "log_every": 1, "warmup": 0, "batch_size": 8})
        config.update_from_flattened_dict(values)
    return config


def test_a_trained_and_an_untrained_run_share_a_table(folder, tmp_path):
    result = run(config(folder, **{"train.learning_rate": 0.03}), tmp_path / "lora")
    losses = [r["loss"] for r in metric_writer.read(tmp_path / "lora" / "metrics.jsonl") if r["kind"] == "train"]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert result["parameters"]["trainable"] == result["parameters"]["delta"] == 2 * 8 * (16 + 16 + 16 + 8)
    again = evaluate_again(tmp_path / "lora")
    assert again["test"] == pytest.approx(result["test"], abs=1e-6)
    zero = run(config(folder, "zero_shot"), tmp_path / "zero")
    assert (zero["steps"], zero["parameters"]["trainable"]) == (0, 0)
    assert evaluate_again(tmp_path / "zero")["test"] == pytest.approx(zero["test"], abs=1e-6)
    assert zero["test"]["log_loss"] != result["test"]["log_loss"]
    assert "lora" in tables.write([tmp_path / "lora", tmp_path / "zero"], "markdown")
    # Each text read whole gives the AUC that the run has with keys and values kept.
    assembly = assemble(config(folder, "zero_shot"))
    assert isinstance(assembly, PromptAssembly)
    task, encoder = assembly.task, assembly.pretrained.encoder
    score = AnswerScorer(encoder, task._bare, assembly.mesh, assembly.answers, cached=False)
    whole = score((assembly.params()["encoder"], {}), task._prompts["test"])
    written = pl.read_parquet(tmp_path / "zero" / "per_row_test.parquet")["score"].to_numpy()
    np.testing.assert_allclose(whole[:, 0] - whole[:, 1], written, atol=1e-5)


def test_loss_and_gradients_are_those_of_transformers(folder):
    assembly = assemble(config(folder, **{"prompt.answers": ["Yes", "No No ."]}))
    task, encoder = assembly.task, assembly.pretrained.encoder
    task.bind(assembly.mesh)
    params = task.init(jax.random.key(0))
    batch = next(task.batches(0))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    at = np.arange(batch.ids.shape[1])
    learned = batch.mask & (at >= batch.start[:, None])
    assert {1, 3} == set(learned.sum(1))
    wanted = model(
        input_ids=torch.tensor(batch.ids),
        attention_mask=torch.tensor(batch.mask.astype(int)),
        labels=torch.tensor(np.where(learned, batch.ids, -100)).long(),
    ).loss
    wanted.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    theirs = names_of(encoder.family).to_params(gradients, parameter_shapes(encoder))

    def loss(weights: Any, texts_at_once: int) -> Any:
        return task.loss(params.trainable, {"params": {"encoder": weights}}, batch, None, texts_at_once)

    for texts_at_once in (0, 4):
        value, grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params.frozen["encoder"], texts_at_once)
        assert float(value) == pytest.approx(wanted.item(), rel=1e-5)
        for name, array in flatten(grad).items():
            scale = np.abs(theirs[name]).max()
            np.testing.assert_allclose(array / scale, theirs[name] / scale, atol=1e-4, err_msg=name)


def test_examples_stand_before_every_prompt_and_are_not_trained_on(folder):
    assembly = assemble(config(folder, "in_context", **{"prompt.examples": 2, "text.max_prompt_tokens": 90}))
    task, tokens = assembly.task, transformers.AutoTokenizer.from_pretrained(folder)
    rows = assembly.data.train
    shown = assembly.demonstrations
    assert shown.count("Answer:") == 2
    assert [line[-3:].strip() for line in shown.strip().split("\n\n")] == [
        "Yes" if label else "No" for label in rows.label[:2]
    ]
    for ids in task._prompts["test"].ids[:5]:
        assert tokens.decode(ids).startswith(tokens.decode(tokens(shown)["input_ids"]))
    stream, train = task.batches(0), task._prompts["train"]
    kept = {tuple(ids[:n]) for ids, n in zip(train.ids[2:], train.lengths[2:], strict=True)}
    batches = [next(stream) for _ in range(9)]
    seen = {tuple(row[:n]) for batch in batches for row, n in zip(batch.ids, batch.start, strict=True)}
    assert seen <= kept


def test_a_long_prompt_loses_its_oldest_items(folder):
    longest = assemble(config(folder)).task._prompts["test"]
    assembly = assemble(config(folder, **{"text.max_prompt_tokens": 20}))
    prompts = assembly.task._prompts["test"]
    assert int(prompts.lengths.max()) <= 20 < int(longest.lengths.max())
    tokens, row = transformers.AutoTokenizer.from_pretrained(folder), rating.DATA.test.history[0]
    written = tokens.decode(prompts.ids[0])
    assert rating.TITLES[row[0]] not in written
    assert rating.TITLES[row[-1]] in written
    assert written.endswith("Answer :") or "Answer : <pad>" in written


@pytest.mark.parametrize(
    ("arg", "values", "message"),
    [
        ("lora", {"loss.name": "bpr"}, "answers are learnt by 'language_model'"),
        ("lora", {"task": "ranking"}, "config.task is 'ranking', and the source 'colours' has labeled examples"),
        ("lora", {"prompt.answers": ["Yes"]}, "config.prompt.answers has 1 texts"),
        ("lora", {"prompt.answers": [" Yes", "Yes"]}, "both texts have the tokens"),
        ("lora", {"prompt.examples": 24}, "config.prompt.examples is 24, and there are 24 training examples"),
        ("lora", {"text.max_prompt_tokens": 6}, "without any history, more than the 6 of max_prompt_tokens"),
        ("lora", {"prompt.examples": 4, "text.max_prompt_tokens": 200}, "and the encoder has 96 positions"),
        ("zero_shot", {"peft.method": "k_adapter", "train.steps": 1}, "k_adapter lets tokens read later ones"),
    ],
)
def test_misuse(folder, tmp_path, arg, values, message):
    with pytest.raises(ValueError, match=message):
        run(config(folder, arg, **values), tmp_path)


def test_an_encoder_and_a_tokenizer_that_ends_texts_are_refused(folder, tmp_path):
    bert = tiny.encoder_folder(tmp_path / "bert")
    with pytest.raises(ValueError, match="bert has no language head"):
        run(config(bert), tmp_path / "run")
    transformers.AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "both")
    for file in folder.glob("*.safetensors"):
        (tmp_path / "both" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "both" / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"ends every text with '\[SEP\]'"):
        _ = assemble(config(tmp_path / "both")).answers


def test_the_sweep_and_its_table_name_the_same_groups():
    loaded = trials.load("configs/prompt_scoring_movie.py")
    table = study.table()
    groups = {trial.group for trial in loaded.trials}
    assert {group for section in table.rows or () for group in section} == groups == set(table.tried)
    for arg in study.ARGS:
        assemble(study.get_config(arg))
