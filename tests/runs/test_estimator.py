"""The estimator over data frames: the command's numbers, frames of three libraries, folders that move."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import llm4rec_jax as lr
from llm4rec_jax.runs.folder import RunFolderError
from tests.helpers import tiny
from tests.helpers.compiling import environment

ROOT = Path(__file__).parents[2]
TINY = {"train.steps": 2, "train.batch_size": 16, "train.history": 8, "model.width": 8}
SMALL = {"train.steps": 2, "train.eval_every": 2, "model.width": 8}

STUDY = """
from configs import base
from ml_collections import ConfigDict

def get_config():
    config = base.get_config()
    with config.unlocked():
        config.data.source = "table"
        config.data.path = "interactions.csv"
        config.data.options = ConfigDict(dict(
            user="user_id", item="item_id", timestamp="timestamp", items_path="items.csv",
        ))
        config.text.item = "{{title}}"
        config.encoder.path = "minilm"
        config.peft.method = "lora"
        config.loss.name = "in_batch"
        config.update_from_flattened_dict({tiny})
    return config
"""


def frames() -> tuple[pl.DataFrame, pl.DataFrame]:
    data = tiny.dataset()
    i = data.interactions
    columns = {"user_id": data.users["user_id"].gather(i.user), "item_id": data.items["item_id"].gather(i.item)}
    return pl.DataFrame({**columns, "timestamp": i.timestamp}), data.items


def test_the_example_has_the_metrics_of_the_command_to_the_last_digit(tmp_path):
    page = (ROOT / "docs" / "guides" / "python.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- estimator -->\n```python\n(.*?)```", page, re.DOTALL)
    interactions, items = frames()
    interactions.write_csv(tmp_path / "interactions.csv")
    items.write_csv(tmp_path / "items.csv")
    # A folder of this name comes before the asset.
    tiny.encoder_folder(tmp_path / "minilm")
    (tmp_path / "study.py").write_text(STUDY.format(tiny=TINY), encoding="utf-8")
    small = ", ".join(f'"{key}": {value}' for key, value in TINY.items())
    code = code.replace('"train.steps": 400', small) + "\nimport json; print(json.dumps(again.metrics))"

    def last_line(*arguments: str) -> dict:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path, env={**environment(), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    fitted = last_line("-c", code)
    trained = last_line("-m", "experiments.train", "--config=study.py", "--workdir=runs/command")
    assert fitted == {phase: trained[phase] for phase in ("validation", "test")}
    assert fitted["test"]["users"] == 48
    assert (tmp_path / "my_recommender" / "data" / "items.parquet").exists()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> lr.LLM4Rec:
    """Over whole numbers as ids, without times."""
    interactions, _ = frames()
    numbers = interactions.select(pl.col("user_id", "item_id").str.slice(1).cast(pl.Int64)).to_pandas()
    model = lr.LLM4Rec(encoder=None, users="mean", settings=SMALL)
    return model.fit(numbers, timestamp=None, workdir=tmp_path_factory.mktemp("fitted"))


def test_recommendations_for_many_are_those_for_each_in_a_frame_of_the_same_library(fitted):
    users = [7, 3, 40]
    found = fitted.recommend(users, k=4)
    assert isinstance(found, pd.DataFrame)
    assert found.columns.to_list() == ["user_id", "item_id", "rank", "score"]
    assert found["item_id"].dtype == np.int64
    assert found["user_id"].to_list() == np.repeat(users, 4).tolist()
    for user, rows in found.groupby("user_id"):
        alone = fitted.run.recommend(user=str(user), k=4)
        assert rows["item_id"].to_list() == [int(item.item_id) for item in alone]
        np.testing.assert_allclose(rows["score"], [item.score for item in alone], rtol=1e-6)
        assert rows["rank"].to_list() == [1, 2, 3, 4]
    assert len(fitted.recommend([])) == 0
    with pytest.raises(ValueError, match="unknown user '48'; did you mean '8'"):
        fitted.recommend([48])


def test_a_saved_recommender_works_where_it_was_moved_to(fitted, tmp_path):
    before = fitted.recommend([1, 2], k=3)
    fitted.save(tmp_path / "saved").rename(tmp_path / "moved")
    again = lr.LLM4Rec.load(tmp_path / "moved")
    assert again.metrics == fitted.metrics
    found = again.recommend([1, 2], k=3)
    assert isinstance(found, pl.DataFrame)
    assert found.to_dict(as_series=False) == before.to_dict(orient="list")
    with pytest.raises(ValueError, match="exists: give a folder that does not"):
        fitted.save(tmp_path / "moved")


def test_other_data_in_the_folder_of_a_run_is_refused(fitted):
    interactions, _ = frames()
    model = lr.LLM4Rec(encoder=None, users="mean", settings=SMALL)
    with pytest.raises(RunFolderError, match="holds other data: give another workdir"):
        model.fit(interactions, timestamp=None, workdir=fitted.run.workdir)


def test_arrow_tables_are_read_and_returned():
    interactions, items = (frame.to_arrow() for frame in frames())
    model = lr.LLM4Rec(encoder=None, users="mean", settings=SMALL).fit(interactions, items)
    found = model.recommend(pa.array(["u1"]).to_pylist(), k=2)
    assert isinstance(found, pa.Table)
    assert model.run.recommend(user="u1", k=1)[0].item_id == found["item_id"][0].as_py()


@pytest.mark.parametrize(
    ("made", "fit", "words"),
    [
        ({"encoder": None, "settings": {"train.step": 1}}, {}, "unknown key of config.train: 'step'; did you mean"),
        ({"encoder": None}, {"user": "user"}, "unknown column of interactions 'user'; did you mean 'user_id'"),
        ({"encoder": "minilm"}, {}, "there is no frame of items: give one, or encoder=None"),
    ],
)
def test_wrong_arguments_are_named_before_any_work(made, fit, words):
    with pytest.raises(ValueError, match=words):
        lr.LLM4Rec(**made).fit(frames()[0], **fit)


def test_a_recommender_that_is_not_fitted_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"not fitted: call fit"):
        lr.LLM4Rec(encoder=None).recommend(["u1"])
    with pytest.raises(RunFolderError, match="holds no recommender that LLM4Rec has fitted"):
        lr.LLM4Rec.load(tmp_path)
