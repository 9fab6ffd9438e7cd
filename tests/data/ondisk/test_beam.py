"""The pipeline on Beam's direct runner. It needs neither jax nor torch: `make test-beam` runs it beside Beam's pins."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from transformers import BertTokenizerFast

from llm4rec_jax.data.interactions import DataError, Dataset, Interactions
from llm4rec_jax.data.ondisk import mmap
from llm4rec_jax.data.ondisk.writer import Texts, prepare

pytest.importorskip("apache_beam", reason='needs the extra "beam"')

from llm4rec_jax.data.ondisk.beam import pipeline

# Beam's own, about modules of the cloud and of Python that it looks for.
pytestmark = pytest.mark.filterwarnings("default")

EVENTS, USERS, ITEMS = 5000, 300, 200


def dataset(seed: int = 0, title: str = "red lamp") -> Dataset:
    rng = np.random.default_rng(seed)
    return Dataset(
        "random",
        Interactions(
            (USERS * rng.random(EVENTS) ** 2).astype(np.int32),
            rng.integers(ITEMS, size=EVENTS, dtype=np.int32),
            rng.random(EVENTS, dtype=np.float32),
            rng.integers(100, size=EVENTS),
        ),
        pl.DataFrame(
            {"item_id": [f"i{i}" for i in range(ITEMS)], "title": [f"{title} " * (i % 4) for i in range(ITEMS)]}
        ),
        pl.DataFrame({"user_id": [f"u{i}" for i in range(USERS)]}),
    )


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def texts(tmp_path, monkeypatch) -> Texts:
    """Short chunks, so that every range of users comes out of several and there are several of items."""
    whole = mmap.chunks
    monkeypatch.setattr(mmap, "chunks", lambda total, size=0: whole(total, 77))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\nlamp\ni\n", encoding="utf-8")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "tokenizer")
    return Texts("{item_id}: {title}", str(tmp_path / "tokenizer"), 16)


@pytest.mark.parametrize("order", ["time", "input"])
def test_the_pipeline_writes_what_the_local_path_writes(order, texts, tmp_path):
    prepare(dataset(), tmp_path / "local", order=order, texts=texts, part=10**6)
    prepare(
        dataset(), tmp_path / "beam", order=order, texts=texts, part=400, engine=pipeline(["--runner=DirectRunner"])
    )
    assert content(tmp_path / "beam") == content(tmp_path / "local")


def test_an_error_in_a_worker_is_told_and_leaves_nothing(texts, tmp_path):
    with pytest.raises(DataError, match="item 'i0': title are all empty"):
        prepare(dataset(), tmp_path / "beam", texts=texts._replace(template="{title}"), engine=pipeline())
    assert not (tmp_path / "beam").exists()
