"""A configuration and its data as files."""

from pathlib import Path

import polars as pl
import pytest

from tests.helpers import tiny
from tests.helpers.commands import CONFIG


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    data = tiny.dataset()
    i = data.interactions
    pl.DataFrame(
        {
            "user": data.users["user_id"].gather(i.user),
            "item": data.items["item_id"].gather(i.item),
            "rating": i.rating,
            "timestamp": i.timestamp,
        }
    ).write_csv(folder / "interactions.csv")
    data.items.rename({"item_id": "item"}).write_csv(folder / "items.csv")
    encoder = tiny.encoder_folder(folder / "encoder")
    text = CONFIG.format(
        interactions=str(folder / "interactions.csv"), items=str(folder / "items.csv"), encoder=str(encoder)
    )
    (folder / "study.py").write_text(text, encoding="utf-8")
    return folder / "study.py"
