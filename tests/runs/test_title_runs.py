"""Runs that rank items by the likelihood of their titles: the whole catalogue, drawn candidates, and trained."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from configs import title_likelihood_movielens as study
from experiments.reports.spec import checked
from llm4rec_jax.data.sources import SOURCES
from llm4rec_jax.data.splits.split import Sequences
from llm4rec_jax.evaluation.sampled import draw_candidates
from llm4rec_jax.inference.generate.likelihood import AnswerScorer
from llm4rec_jax.inference.generate.memorization import completed_texts
from llm4rec_jax.inference.recommend import recommend
from llm4rec_jax.peft import create
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs.load import evaluate_again, restore_scorer
from llm4rec_jax.runs.run import assemble, run
from llm4rec_jax.runs.title_assembly import TitleAssembly
from llm4rec_jax.training import metric_writer
from tests.helpers import tiny
from tests.runs.test_prompt_runs import folder as folder

TEMPLATE = "Liked: {history}; Next:"


@pytest.fixture(scope="module", autouse=True)
def source():
    SOURCES["walks"] = lambda path=None: tiny.dataset(users=12)
    yield
    del SOURCES["walks"]


def config(folder: Path, arg: str, **values: Any) -> Any:
    config: Any = study.get_config(arg)
    with config.unlocked():
        config.data.source, config.data.min_rating, config.data.k_core = "walks", None, None
        config.data.path = config.data.published = None
        config.text.item, config.text.user, config.text.max_prompt_tokens = "{title}", TEMPLATE, 40
        config.encoder.path = str(folder)
        if config.train.steps:
            config.train.update({"steps": 6, "eval_every": 6, "log_every": 1, "warmup": 0, "batch_size": 8})
        config.update_from_flattened_dict(values)
    return config


def test_a_run_ranks_as_each_title_alone_would(folder, tmp_path):
    workdir = tmp_path / "zero"
    result = run(config(folder, "zero_shot_normalized", **{"evaluation.candidates": "all"}), workdir)
    restored, scorer = restore_scorer(workdir)
    assert isinstance(restored, TitleAssembly)
    assembly, scorer = cast(Any, restored), cast(Any, scorer)
    history, targets = assembly.split.history("test"), assembly.split.targets_of("test")
    users = np.arange(12)
    titles, encoder = assembly.title_tokens, assembly.pretrained.encoder
    alone = AnswerScorer(encoder, create("frozen"), assembly.mesh, titles, cached=False)
    weights = assembly.params()["encoder"], {}
    wanted = alone(weights, assembly.scorer._written(history, users)) / [len(title) for title in titles]
    np.testing.assert_allclose(scorer.user_embeddings(scorer.item_embeddings(), history, users), wanted, atol=1e-5)
    ranks = []
    for user, target in enumerate(targets.items):
        others = np.setdiff1d(np.arange(40), [*history.of(user), target])
        ranks.append(1 + (wanted[user, others] > wanted[user, target] + 1e-6).sum())
    assert result["test"]["mrr"] == pytest.approx(np.mean(1 / np.array(ranks)), abs=0.02)
    some = np.array([[3, 9], [0, 39]])
    found = scorer.score(history, users[:2], some, mesh=assembly.mesh)
    np.testing.assert_allclose(found, np.take_along_axis(wanted[:2], some, axis=1), atol=1e-5)
    assert evaluate_again(workdir)["test"] == pytest.approx(result["test"], abs=1e-6)
    best = recommend(scorer, [0, 1], 3, 12, mesh=assembly.mesh)
    assert len(best) == 3
    assert best[0].score >= best[1].score
    probes = run_folder.read(workdir / "dataset.json")["language_model"]
    assert probes["candidates"] == {"validation": 40, "test": 40}
    assert set(probes) == {"memorized_titles", "candidates", "cold_targets"}


def test_titles_are_learnt_and_ranked_among_twenty(folder, tmp_path):
    result = run(config(folder, "lora", **{"train.learning_rate": 0.03}), tmp_path / "lora")
    losses = [r["loss"] for r in metric_writer.read(tmp_path / "lora" / "metrics.jsonl") if r["kind"] == "train"]
    assert losses[-1] < losses[0]
    assert result["parameters"]["delta"] > 0
    popular = run(config(folder, "popularity"), tmp_path / "popular")
    assert popular["test"]["sampled_candidates"] == result["test"]["sampled_candidates"] == 20
    protocols = {run_folder.read(tmp_path / name / "dataset.json")["protocol"] for name in ("lora", "popular")}
    assert len(protocols) == 1
    assert "among 20 drawn items" in protocols.pop()


def test_candidates_are_listed_in_several_orders(folder, tmp_path):
    listed = {
        "text.user": "Liked: {history}. Next: {candidates} Answer:",
        "text.max_prompt_tokens": 90,
        "text.max_items": 1,
    }
    result = run(config(folder, "listwise", **listed), tmp_path / "listwise")
    assert 0 <= result["listwise"]["position_bias"] < 1
    assert evaluate_again(tmp_path / "listwise")["listwise"] == pytest.approx(result["listwise"], abs=1e-6)
    assembly, scorer = restore_scorer(tmp_path / "listwise")
    history, items = assembly.split.history("test"), np.array([[4, 9, 30], [1, 2, 3]])
    found = scorer.score(history, np.arange(2), items, mesh=assembly.mesh)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
    # In as many orders as items, the order that is given does not matter.
    every: Any = assemble(config(folder, "listwise", **listed, **{"prompt.orders": 3}))
    parts, delta = every.params(), {"encoder": {}}
    places, orders = every.scorer.probabilities((parts["encoder"], {}), history, np.arange(2), items)
    assert all(sorted(column) == [0, 1, 2] for column in orders[0].T.tolist())
    by_item = every.scorer.of(parts, delta).score(history, np.arange(2), items, mesh=every.mesh)
    wanted = [[places[u][orders[u] == i].mean() for i in range(3)] for u in range(2)]
    np.testing.assert_allclose(by_item, wanted, atol=1e-6)
    other: Any = assemble(config(folder, "listwise", **{"evaluation.candidates": "all"}))
    with pytest.raises(ValueError, match="which lists drawn candidates"):
        _ = other.scorer


def test_drawn_candidates_are_others_and_the_same_again():
    split = tiny.split()
    history, targets = split.history("test"), split.targets_of("test")
    drawn = draw_candidates(history, targets, np.ones(40, bool), 20)
    np.testing.assert_array_equal(drawn, draw_candidates(history, targets, np.ones(40, bool), 20))
    for user, (items, target) in enumerate(zip(drawn, targets.items, strict=True)):
        assert items[0] == target
        assert len(set(items.tolist())) == 20
        assert not set(items[1:].tolist()) & {*history.of(user).tolist(), int(target)}
    one = Sequences(np.array([0, 1]), np.array([2], np.int32), None, None)
    with pytest.raises(ValueError, match="user row 0 has 4 candidates beside the history"):
        draw_candidates(one, one, np.ones(5, bool), 20)


def test_completed_texts_are_those_of_greedy_generation(folder):
    assembly: Any = assemble(config(folder, "zero_shot"))
    encoder, params = assembly.pretrained.encoder, assembly.params()["encoder"]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    rng = np.random.default_rng(0)
    texts = [rng.integers(2, 20, n).tolist() for n in (1, 4, 5)]
    # One that the model goes on with by itself.
    begun = torch.tensor([[3, 8]])
    with torch.no_grad():
        for _ in range(2):
            begun = torch.cat([begun, model(begun).logits[:, -1:].argmax(-1)], dim=1)
    texts.append(begun[0].tolist())
    found = completed_texts(encoder, create("frozen"), (params, {}), assembly.mesh, texts)
    wanted = []
    for text in texts:
        half = (len(text) + 1) // 2
        with torch.no_grad():
            likeliest = model(torch.tensor([text])).logits[0, half - 1 : -1].argmax(-1).tolist()
        wanted.append(len(text) > 1 and likeliest == text[half:])
    assert found.tolist() == wanted
    assert found[-1]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("prompt.title", "no field", "must have the field"),
        ("loss.name", "bpr", "leave it out"),
        ("init_from", "runs/x", "leave it out"),
    ],
)
def test_a_wrong_key_is_named(folder, key, value, said):
    with pytest.raises(ValueError, match=said):
        _ = assemble(config(folder, "zero_shot", **{key: value})).task


def test_the_study_has_a_row_for_each_model():
    for arg in study.ARGS:
        assert isinstance(assemble(study.get_config(arg)), TitleAssembly) == (arg not in ("popularity", "id"))
    assert {group for section in checked(study.table()).rows for group in section} == {t.group for t in study.sweep()}
    with pytest.raises(ValueError, match="zero_shot"):
        study.get_config("zero_shots")
