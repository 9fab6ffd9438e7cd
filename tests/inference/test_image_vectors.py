"""The feature `images`: vectors of a frozen vision encoder, cached, with damaged images named or counted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from llm4rec_jax.data.features.columns import Rows, fit
from llm4rec_jax.data.features.image_processing import PROCESSOR, read_processor
from llm4rec_jax.data.features.images import Images
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.inference import image_vectors

NAMES = [f"i{n}" for n in range(7)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
    )
    ViTModel(config).eval().save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    (folder / PROCESSOR).write_text(json.dumps(processor))
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng, path = np.random.default_rng(0), tmp_path / "images"
    path.mkdir()
    for name in NAMES[:-1]:
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(path / f"{name}.png")
    return path


def rows() -> Rows:
    return Rows(pl.DataFrame({"item_id": NAMES, "title": NAMES}), np.arange(len(NAMES)) < 5, "item")


def options(folder: Path, model: Path, **more):
    return {"kind": "images", "path": str(folder), "model": str(model), "batch_size": 4, "standardise": False, **more}


def test_vectors_are_those_of_transformers_and_cached(folder, model, monkeypatch):
    feature = fit(rows(), "picture", options(folder, model))
    assert feature.column.present.tolist() == [True] * 6 + [False]
    assert not feature.column.values[6].any()
    processor, vit = read_processor(model), ViTModel.from_pretrained(model).eval()
    pixels = np.stack([processor(Image.open(folder / f"{name}.png")) for name in NAMES[:-1]])
    with torch.no_grad():
        want = vit(torch.tensor(pixels.transpose(0, 3, 1, 2))).pooler_output
    np.testing.assert_allclose(feature.column.values[:6], want, atol=1e-5)
    assert feature.fitted == {"kind": "images", "rows": 6, "damaged": 0, "width": 16}

    monkeypatch.setattr(image_vectors, "decoded", None)
    again = fit(rows(), "picture", options(folder, model, batch_size=3))
    np.testing.assert_array_equal(again.column.values, feature.column.values)
    monkeypatch.undo()
    Image.new("RGB", (9, 9)).save(folder / "i2.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
    other = fit(rows(), "picture", options(folder, model)).column.values
    assert (np.abs(other - feature.column.values).max(1) > 1e-3).tolist() == [name == "i2" for name in NAMES]


def test_a_damaged_image_is_an_error_that_names_the_item_or_is_masked_and_counted(folder, model):
    file = folder / "i3.png"
    file.write_bytes(file.read_bytes()[:50])
    for _ in range(2):  # The second time vectors come from the cache.
        with pytest.raises(DataError, match=r"the image of item 'i3' cannot be decoded \(.+\); replace it, or mask"):
            fit(rows(), "picture", options(folder, model))
    feature = fit(rows(), "picture", options(folder, model, damaged="missing", standardise=True))
    assert feature.column.present.tolist() == [name not in ("i3", "i6") for name in NAMES]
    assert (feature.fitted["damaged"], feature.fitted["rows"]) == (1, 5)
    known = feature.column.values[feature.column.present & rows().trained]
    np.testing.assert_allclose(known.mean(0), 0, atol=1e-5)


def test_wrong_options_are_refused(folder, model):
    for wrong, message in (
        ({"damaged": "ignore"}, "unknown treatment of damaged images 'ignore'"),
        ({"workers": 0}, "both must be at least 1"),
        ({"size": 3}, "unknown option of kind of feature 'images': 'size'"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(rows(), "picture", options(folder, model, **wrong))
    for name in NAMES[:-1]:
        (folder / f"{name}.png").rename(folder / f"x{name}.png")
    with pytest.raises(DataError, match=r"has an image of no item; its ids are xi0, .* those of the data i0, "):
        fit(rows(), "picture", options(folder, model))


def test_the_store_is_read_in_order_of_its_files_with_few_images_ahead(folder, model):
    """Images are decoded a few ahead of the encoder, however many there are."""
    read: list[str] = []
    content = (folder / "i0.png").read_bytes()

    def stream(wanted):
        for n in range(200):
            read.append(str(n))
            yield str(n), content

    store = Images(folder, frozenset(map(str, range(200))), stream)
    processor = read_processor(model)
    images: Any = image_vectors.decoded(store, store.ids, processor, 2)
    assert next(images).name == "0"
    assert len(read) < 40
    images.close()
