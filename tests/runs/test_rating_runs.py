"""Runs on a pointwise source: folders like any other, evaluated again, tabled, and refused where they differ."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from configs import tallrec_movie
from experiments import tables
from experiments.sweeps import trials
from llm4rec_jax.data.features.prompts import rating_prompts
from llm4rec_jax.evaluation.metrics import auc
from llm4rec_jax.inference import text_vectors
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs import rating_assembly
from llm4rec_jax.runs.load import evaluate_again
from llm4rec_jax.runs.rating_assembly import RatingAssembly
from llm4rec_jax.runs.run import run
from llm4rec_jax.training import metric_writer as journal
from tests.helpers import tiny

USERS, EACH = 10, 22


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small MovieLens, its films the tiny dataset's items, with an encoder that knows their words."""
    folder = tmp_path_factory.mktemp("movies")
    rng = np.random.default_rng(0)
    titles = [f"{colour} {thing}" for colour in tiny.COLOURS for thing in tiny.THINGS]
    inter = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(USERS):
        for at, item in enumerate(rng.choice(len(titles), EACH, replace=False)):
            inter.append(f"u{user}\ti{item}\t{rng.integers(3, 5)}\t{at}")
    item = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    item += [f"i{i}\t{title}\t{1950 + i}\tDrama" for i, title in enumerate(titles)]
    user = ["user_id:token\tage:token", *(f"u{i}\t30" for i in range(USERS))]
    for suffix, lines in (("inter", inter), ("item", item), ("user", user)):
        (folder / f"ml-100k.{suffix}").write_text("\n".join(lines) + "\n")
    tiny.encoder_folder(folder / "encoder")
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def config(place: Path, arg: str, **overrides: Any) -> Any:
    config: Any = tallrec_movie.get_config(arg)
    with config.unlocked():
        config.data.options.movielens = str(place)
        config.encoder.path = str(place / "encoder")
        config.data.few_shot = 24
        config.text.max_prompt_tokens = 32
        config.train.update({"steps": 1, "eval_every": 1, "batch_size": 8})
        if arg.endswith("_lora"):
            config.peft.options.lora.target = ".*/(query|value)"
        config.update_from_flattened_dict(overrides)
    return config


@pytest.fixture(scope="module")
def runs(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs")
    for name, arg, overrides in (
        ("share", "liked_share", {}),
        ("gp-0", "gp", {}),
        ("gp-1", "gp", {"seed": 1}),
        ("gp-all", "gp", {"data.few_shot": None}),
    ):
        run(config(place, arg, **overrides), workdir / name)
    return workdir


def test_a_baseline_is_a_run(runs):
    folder = runs / "gp-0"
    result = json.loads((folder / "result.json").read_text())
    assert {"validation", "test", "parameters", "seconds", "step"} <= set(result)
    assert (folder / "environment.json").exists()
    data = json.loads((folder / "dataset.json").read_text())
    assert (data["name"], data["few_shot"]["questions"], data["few_shot"]["seed"]) == ("tallrec_movie", 24, 0)
    assert data["statistics"]["train"] == USERS * (EACH - 10) * 8 // 10
    for phase in ("validation", "test"):
        rows = pl.read_parquet(folder / f"per_row_{phase}.parquet")
        assert auc(rows["score"].to_numpy(), rows["label"].to_numpy()) == result[phase]["auc"]


def test_draws_differ_and_share_a_table(runs):
    folders = [runs / name for name in ("share", "gp-0", "gp-1", "gp-all")]
    data = [json.loads((folder / "dataset.json").read_text()) for folder in folders]
    assert len({own["fingerprint"] for own in data}) == 1
    assert data[1]["few_shot"]["fingerprint"] != data[2]["few_shot"]["fingerprint"]
    assert data[3]["few_shot"] is None
    assert "| gp |" in tables.write(folders, "markdown")


def test_evaluated_again_it_is_the_same(place, runs):
    result = run_folder.read(runs / "gp-0" / "result.json")
    assert evaluate_again(runs / "gp-0") == {name: result[name] for name in ("validation", "test")}
    assert run(config(place, "gp"), runs / "gp-0") == result


@pytest.mark.parametrize("arg", ["text", "hierarchical_lora"])
def test_what_is_trained_is_a_run_too(place, tmp_path, arg):
    result = run(config(place, arg), tmp_path)
    assert (result["parameters"]["delta"] > 0) == arg.endswith("_lora")
    assert result["step"]["flops"] > 0
    (step,) = (record for record in journal.read(tmp_path / "metrics.jsonl") if record["kind"] == "train")
    assert step["grad_norm"] > 0
    kinds = [record["kind"] for record in journal.read(tmp_path / "metrics.jsonl")]
    assert kinds.count("validation") == 2
    again = evaluate_again(tmp_path)
    assert again["test"] == pytest.approx(result["test"], abs=1e-6)


def test_a_prompt_tells_likes_dislikes_and_target(place):
    assembly = RatingAssembly(config(place, "text"))
    rows = assembly.whole.test
    (written,) = rating_prompts(rows.take(np.array([3])), assembly.titles, assembly.config.text.user)
    liked, disliked = (
        "; ".join(assembly.titles[i] for i in rows.history[3][rows.liked[3] == want]) for want in (True, False)
    )
    assert written == f"Liked: {liked}. Disliked: {disliked}. Next: {assembly.titles[rows.target[3]]}."
    # An empty list of dislikes takes its clause along.
    all_liked = rows.take(np.array([3]))._replace(liked=np.ones((1, 10), bool))
    assert "Disliked" not in rating_prompts(all_liked, assembly.titles, assembly.config.text.user)[0]


def test_vectors_are_read_once(place, monkeypatch):
    assembly = RatingAssembly(config(place, "gp"))
    tokens = rating_assembly.tokenise(["red lamp", "blue door"], assembly._folder.model, 8)
    first = assembly.vectors(tokens)
    files = {file: file.read_bytes() for file in Path(run_cache()).glob("*.npz")}
    monkeypatch.setattr(text_vectors, "BatchTextEncoder", None)
    np.testing.assert_array_equal(assembly.vectors(tokens), first)
    monkeypatch.undo()
    for file, content in files.items():
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(UserWarning, match="are damaged; they are made again"):
        np.testing.assert_array_equal(assembly.vectors(tokens), first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assembly.vectors(tokens)
    for file, content in files.items():
        file.write_bytes(content)


def run_cache() -> str:
    return os.path.join(os.environ["XDG_CACHE_HOME"], "llm4rec_jax", "vectors")


def test_other_data_is_refused(place, runs, tmp_path):
    for file in ("run.json", "config.json", "dataset.json", "result.json"):
        (tmp_path / file).write_text((runs / "gp-1" / file).read_text())
    data = run_folder.read(tmp_path / "dataset.json")
    run_folder.write(tmp_path / "dataset.json", {**data, "fingerprint": "ab" * 32})
    with pytest.raises(run_folder.RunFolderError, match=r"data changed since .* its fingerprint was 'abab"):
        evaluate_again(tmp_path)


@pytest.mark.parametrize(
    ("arg", "overrides", "words"),
    [
        ("gp", {"baseline.name": "gpp"}, "did you mean 'gp'"),
        ("gp", {"text.number": "yaer"}, "did you mean 'year'"),
        ("hierarchical", {"model.users": "hierarchic"}, "did you mean 'hierarchical'"),
        ("hierarchical", {"loss.name": "bpr"}, "ratings are learnt by 'bce_pointwise'"),
        ("hierarchical", {"peft.within": "users"}, "adapts 'encoder' only"),
        ("text", {"text.user": "{likd}"}, "did you mean 'liked'"),
        ("text", {"train.input_workers": 2}, "input_workers is 2, but a batch of labeled examples"),
        ("text", {"train.micro_batches": 4}, "micro_batches is 4, but a batch of labeled examples"),
        ("hierarchical", {"encoder.center": True}, "center and whiten are for runs that rank"),
        ("gp", {"data.few_shot": 9999}, "asks for 9999 training examples"),
    ],
)
def test_misuse(place, tmp_path, arg, overrides, words):
    with pytest.raises(ValueError, match=words):
        run(config(place, arg, **overrides), tmp_path)


def test_the_sweep_and_its_table_name_the_same_groups(tmp_path):
    study = trials.load("configs/tallrec_movie.py")
    groups = {trial.group for trial in study.trials}
    table = tallrec_movie.table()
    assert {group for section in table.rows or () for group in section} == groups == set(table.tried)
    assert len(trials.plan(study, tmp_path)) == len(study.trials)
    for arg in tallrec_movie.ARGS:
        RatingAssembly(tallrec_movie.get_config(arg))
    with pytest.raises(ValueError, match="did you mean 'gp'"):
        tallrec_movie.get_config("gpt")
