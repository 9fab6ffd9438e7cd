"""Runs on made data in which numbers, categories or vectors alone tell the taste: they reach what can be reached."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image
from transformers import ViTConfig, ViTModel

from llm4rec_jax.runs.folder import RunFolderError
from llm4rec_jax.runs.load import evaluate_again, load
from llm4rec_jax.runs.run import run
from llm4rec_jax.runs.schema import default_config
from tests.helpers import tiny

GROUPS, SIZE, USERS = 4, 30, 160
ITEMS = GROUPS * SIZE
# Items that nobody has in training, which only their features can tell: all those of a user's group are the targets, so
# that NDCG@10 can be 1. By chance it is their share of the items that the user has not had.
COLD = np.arange(SIZE) % 5 >= 3
CHANCE = COLD.sum() / (ITEMS - SIZE + COLD.sum())


def write(path: Path, events: list[tuple[Any, ...]]) -> None:
    pl.DataFrame(events, ["user_id", "item_id", "time", "part"], orient="row").write_parquet(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each user likes one group of items. Price, genre and vector tell an item's group; title and shuffled ones don't.

    Prices of a group lie together, and groups of a kind of user are not in order of price.
    """
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    group, nth = np.divmod(np.arange(ITEMS), SIZE)
    price = 10 * np.array([2, 0, 3, 1])[group] + rng.uniform(0, 4, ITEMS)
    tags = [",".join(rng.choice([f"tag {k}" for k in range(12)], 2, replace=False)) for _ in group]
    genre = [f"genre {g},{tag}" for g, tag in zip(group, tags, strict=True)]
    vector = np.eye(GROUPS)[group] + rng.normal(0, 0.2, (ITEMS, GROUPS))
    order = rng.permutation(ITEMS)
    pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(ITEMS)],
            # Every title occurs once in every group.
            "title": [f"{tiny.COLOURS[n % 3]} {tiny.THINGS[n // 3]}" for n in nth],
            "price": price,
            "genre": genre,
            "shuffled_price": price[order],
            "shuffled_genre": [genre[n] for n in order],
        }
    ).write_parquet(folder / "items.parquet")
    names = np.array([f"i{n}" for n in range(ITEMS)])
    np.savez(folder / "vector.npz", ids=names, vectors=vector)
    np.savez(folder / "shuffled_vector.npz", ids=names, vectors=vector[order])
    taste = np.arange(USERS) % GROUPS
    events = []
    for user, g in enumerate(taste):
        warm = rng.permutation(np.flatnonzero(~COLD))
        for part, own in (("train", warm[:-2]), ("validation", warm[-2:]), ("test", np.flatnonzero(COLD))):
            events += [(user, item, len(events), part) for item in names[g * SIZE + own].tolist()]
    write(folder / "events.parquet", events)
    pl.DataFrame({"user_id": np.arange(USERS), "age": taste * 10 + 20, "city": [f"c{g}" for g in taste]}).write_parquet(
        folder / "users.parquet"
    )
    tiny.encoder_folder(folder / "encoder")
    return folder


OPTIONS = {
    "price": {"embedding": "piecewise_linear", "bins": 12},
    "genre": {"separator": ","},
    "vector": {"kind": "vectors", "path": "vector.npz"},
}
OPTIONS["picture"] = {"kind": "images", "path": "picture.zip", "model": "vision"}
OPTIONS |= {f"shuffled_{name}": options for name, options in OPTIONS.items()}


@pytest.fixture(scope="module")
def pictures(data: Path) -> Path:
    """The data with images whose colour tells an item's group, among noise, and a random vision encoder."""
    rng, colours = np.random.default_rng(1), np.array([[220, 60, 60], [60, 200, 60], [60, 60, 220], [200, 200, 40]])
    drawn = []
    for item in range(ITEMS):
        shape = rng.integers(20, 40, 2)
        levels = colours[item // SIZE] + rng.normal(0, 20, (*shape, 3))
        file = io.BytesIO()
        Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(file, "png")
        drawn.append(file.getvalue())
    for name, order in (("picture", np.arange(ITEMS)), ("shuffled_picture", rng.permutation(ITEMS))):
        with zipfile.ZipFile(data / f"{name}.zip", "w") as archive:
            for item in range(ITEMS):
                archive.writestr(f"i{item}.png", drawn[order[item]])
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    ViTModel(ViTConfig(**small, image_size=16, patch_size=8)).save_pretrained(data / "vision")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (data / "vision" / "preprocessor_config.json").write_text(json.dumps(processor))
    return data


def config(data: Path, inputs: str, **features: Any) -> Any:
    config: Any = default_config()
    config.inputs = inputs
    with config.unlocked():
        config.data.source, config.data.path = "table", str(data / "events.parquet")
        config.data.options = ConfigDict(
            {
                "timestamp": "time", "part": "part", "items_path": str(data / "items.parquet"),
                "users_path": str(data / "users.parquet"),
            }
        )  # fmt: skip
        config.data.split = "given"
        config.encoder.path, config.text.item = str(data / "encoder"), "the {title}."
        for name in inputs.split("+"):
            options = dict(OPTIONS.get(name, {}))
            if "path" in options:
                options["path"] = str(data / f"{name}{Path(options['path']).suffix}")
            if "model" in options:
                options["model"] = str(data / options["model"])
            if options:
                config.features.item_options[name] = ConfigDict(options)
        config.features.update(ConfigDict(features))
    config.model.users, config.model.width = "mean", 32
    # Compared with items of the batch only: those that nobody has are never wrong answers.
    config.loss.name = "in_batch"
    config.train.steps = config.train.eval_every = config.train.log_every = config.train.checkpoint_every = 200
    config.train.batch_size, config.train.learning_rate = 64, 1e-2
    return config


def ndcg(workdir: Path, chosen: Any) -> float:
    return run(chosen, workdir)["test"]["ndcg@10"]


long = pytest.mark.long


@pytest.mark.parametrize(
    ("inputs", "features"),
    [
        ("price", {}),
        pytest.param("text+genre", {"fusion": "concat"}, marks=long),
        pytest.param("genre", {}, marks=long),
        pytest.param("vector", {}, marks=long),
        pytest.param("text+price", {}, marks=long),
        pytest.param("text+price", {"fusion": "gated"}, marks=long),
        pytest.param("text+vector", {"fusion": "attention"}, marks=long),
        pytest.param("text+genre+vector", {"fusion": "gated", "dropout": 0.2}, marks=long),
    ],
)
def test_a_feature_that_tells_the_taste_reaches_what_can_be_reached(data, tmp_path, inputs, features):
    assert ndcg(tmp_path, config(data, inputs, **features)) >= 0.95


@pytest.mark.long
@pytest.mark.parametrize(("inputs", "fusion"), [("picture", "sum"), ("text+picture", "concat")])
def test_images_that_tell_the_taste_reach_what_can_be_reached(pictures, tmp_path, monkeypatch, inputs, fusion):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ndcg(tmp_path / "run", config(pictures, inputs, fusion=fusion)) >= 0.95


@pytest.mark.parametrize("steps", [2, pytest.param(200, marks=long)])
def test_side_networks_read_states_of_texts_and_images(pictures, tmp_path, monkeypatch, steps):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chosen = config(pictures, "title+picture", fusion="iisan", fusion_options=ConfigDict({"side_width": 16}))
    with chosen.unlocked():
        title = {"kind": "text_states", "model": str(pictures / "encoder"), "layers": [0, 1, 2]}
        chosen.features.item_options.title = ConfigDict(title)
        chosen.features.item_options.picture.layers = [0, 1, 2]
    chosen.train.steps = chosen.train.eval_every = chosen.train.checkpoint_every = steps
    held = run(chosen, tmp_path / "run")
    described = json.loads((tmp_path / "run" / "dataset.json").read_text())["item_features"]
    assert {name: each["layers"] for name, each in described.items()} == {"title": [0, 1, 2], "picture": [0, 1, 2]}
    assert evaluate_again(tmp_path / "run")["test"] == held["test"]
    assert steps == 2 or held["test"]["ndcg@10"] >= 0.95


@pytest.mark.long
def test_images_of_other_items_are_no_better_than_chance(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Vectors of 32 dimensions tell items of other groups that training had, which leaves those that nobody had: a
    # quarter of them is of the user's group. The 40 places of four groups' lists vary by .075 around it.
    assert ndcg(tmp_path / "run", config(pictures, "shuffled_picture")) < 1 / GROUPS + 2 * 0.075


@pytest.mark.long
def test_a_periodic_embedding_reaches_it_too_and_a_linear_one_cannot(data, tmp_path):
    reached = {}
    for embedding in ("periodic", "linear"):
        chosen = config(data, "price")
        with chosen.unlocked():
            chosen.features.item_options.price = ConfigDict({"embedding": embedding})
        reached[embedding] = ndcg(tmp_path / embedding, chosen)
    assert reached["periodic"] >= 0.95
    assert reached["linear"] < 0.8


@pytest.mark.parametrize(
    "inputs",
    [
        "shuffled_price",
        pytest.param("text", marks=long),
        pytest.param("shuffled_genre", marks=long),
        pytest.param("shuffled_vector", marks=long),
    ],
)
def test_columns_without_information_are_at_chance(data, tmp_path, inputs):
    # The 40 places of four groups' lists vary by .05 around the chance of .12.
    assert ndcg(tmp_path, config(data, inputs)) < 2.2 * CHANCE < 0.3


@pytest.mark.parametrize("users", ["city", pytest.param("age", marks=long), pytest.param(None, marks=long)])
def test_features_of_users_enter_their_embeddings(data, tmp_path, users):
    """With a history of one item from a common pool, only the user's age or city tells the taste."""
    rng, pool, events = np.random.default_rng(1), 20, []
    for user in range(USERS):
        common, own = rng.permutation(pool).tolist(), (pool + user % GROUPS * 20 + rng.permutation(20)).tolist()
        read = [item for pair in zip(common[:4], own[:4], strict=True) for item in pair]
        events += [(user, item, n, "train") for n, item in enumerate(read)]
        events += [(user, item, 8, "validation") for item in own[4:6]]
        events += [(user, common[4], 9, "train")]
        events += [(user, item, 10, "test") for item in own[6:]]
    write(tmp_path / "events.parquet", events)
    chosen = config(data, "id", users=users)
    chosen.data.path, chosen.train.history, chosen.model.users = str(tmp_path / "events.parquet"), 1, "two_tower"
    with chosen.unlocked():
        del chosen.data.options["items_path"]
        if users == "age":
            chosen.features.user_options.age = ConfigDict({"embedding": "piecewise_linear"})
    reached = ndcg(tmp_path / "run", chosen)
    assert reached >= 0.95 if users else reached < 1.5 * 14 / 80
    if users:
        # Somebody who is not in the data has neither.
        assert len(load(tmp_path / "run").recommend(history=["3"], k=3)) == 3


def test_a_run_keeps_what_was_fitted_and_refuses_other_vectors(data, tmp_path):
    chosen = config(data, "id+price+vector", users="age")
    chosen.train.steps = chosen.train.eval_every = chosen.train.checkpoint_every = 2
    held = run(chosen, tmp_path / "run")
    described = json.loads((tmp_path / "run" / "dataset.json").read_text())
    assert set(described["item_features"]) == {"price", "vector"}
    assert len(described["item_features"]["price"]["edges"]) == 13
    assert set(described["user_features"]["age"]) == {"kind", "column", "transform", "mean", "deviation"}
    assert evaluate_again(tmp_path / "run")["test"] == held["test"]
    kept = (data / "vector.npz").read_bytes()
    try:
        (data / "vector.npz").write_bytes((data / "shuffled_vector.npz").read_bytes())
        with pytest.raises(RunFolderError, match=r"data changed .* its features was"):
            evaluate_again(tmp_path / "run")
    finally:
        (data / "vector.npz").write_bytes(kept)


@pytest.mark.parametrize(
    ("inputs", "features", "message"),
    [
        ("pice", {}, "unknown item column 'pice'; did you mean 'price'?"),
        ("", {}, "config.inputs is empty"),
        ("id+id", {}, "names 'id' twice"),
        ("id+my price", {}, "'my price' in it is no name of a feature"),
        ("id", {"users": "agee"}, "unknown user column 'agee'; did you mean 'age'?"),
        ("id", {"item_options": {"price": {}}}, "'price'"),
        ("id", {"fusion": "gate"}, "unknown fusion of features 'gate'; did you mean 'gated'?"),
    ],
)
def test_features_that_do_not_exist(data, tmp_path, inputs, features, message):
    with pytest.raises(ValueError, match=message):
        run(config(data, inputs, **features), tmp_path)


@pytest.mark.parametrize("known", [True, pytest.param(False, marks=long)])
def test_facts_in_the_graph_tell_items_that_nobody_has(data, tmp_path, known):
    """Entities, one for each group and some at random, connect new items with those that a user has."""
    rng = np.random.default_rng(0)
    triples = [(f"i{n}", "genre", f"group {n // SIZE}") for n in range(ITEMS)]
    triples += [(f"tag {rng.integers(12)}", "tag of", f"i{n}") for n in range(ITEMS)]
    pl.DataFrame(triples, ["head", "relation", "tail"], orient="row").write_csv(tmp_path / "triples.csv")
    chosen = config(data, "id", graph_options=ConfigDict({"path": str(tmp_path / "triples.csv")} if known else {}))
    chosen.model.users = "lightgcn"
    reached = ndcg(tmp_path / "run", chosen)
    assert reached >= 0.95 if known else reached < 2.2 * CHANCE
    if known:
        pl.DataFrame(triples[1:], ["head", "relation", "tail"], orient="row").write_csv(tmp_path / "triples.csv")
        with pytest.raises(RunFolderError, match="graph"):
            evaluate_again(tmp_path / "run")


def test_a_graph_is_for_graph_encoders(data, tmp_path):
    chosen = config(data, "id", graph_options=ConfigDict({"path": "triples.csv"}))
    with pytest.raises(ValueError, match=r"is for config\.model\.users=lightgcn, and that is 'mean'"):
        run(chosen, tmp_path / "run")
    chosen.model.users = "lightgcn"
    for options, words in (
        ({"file": "triples.csv"}, "unknown option of config.features.graph"),
        ({"links": "l"}, "no path"),
    ):
        chosen.features.graph_options = ConfigDict(options)
        with pytest.raises(ValueError, match=words):
            run(chosen, tmp_path / "run")
