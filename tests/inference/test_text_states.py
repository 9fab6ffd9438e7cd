"""The feature `text_states`, and `images` with layers: hidden states of frozen encoders, beside transformers'."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from transformers import BertModel, BertTokenizerFast, ViTConfig, ViTModel

from llm4rec_jax.data.features.columns import Rows, fit
from llm4rec_jax.data.features.image_processing import PROCESSOR, read_processor
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.inference import text_states
from tests.helpers import tiny

TITLES = ["red lamp", "green chair", None, "  ", "the blue white table door clock vase shelf bench"]
NAMES = [f"i{n}" for n in range(len(TITLES))]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.encoder_folder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def rows() -> Rows:
    table = pl.DataFrame({"item_id": NAMES, "title": TITLES, "year": range(len(NAMES))})
    return Rows(table, np.array([1, 1, 1, 1, 0], bool), "item")


def options(encoder: Path, **more):
    return {"kind": "text_states", "model": str(encoder), "layers": [0, 2], "standardise": False, **more}


def test_states_of_texts_are_those_of_transformers_and_cached(encoder, monkeypatch):
    feature = fit(rows(), "title", options(encoder))
    assert feature.column.present.tolist() == [True, True, False, False, True]
    assert feature.fitted == {"kind": "text_states", "rows": 3, "width": 16, "layers": [0, 2]}
    bert, tokenizer = BertModel.from_pretrained(encoder).eval(), BertTokenizerFast.from_pretrained(encoder)
    for row in (0, 1, 4):
        with torch.no_grad():
            states = bert(**tokenizer(TITLES[row], return_tensors="pt"), output_hidden_states=True).hidden_states
        want = np.stack([states[layer][0, 0] for layer in (0, 2)])
        np.testing.assert_allclose(feature.column.values[row], want, atol=1e-5)
    assert not feature.column.values[2:4].any()

    monkeypatch.setattr(text_states, "map_in_fixed_batches", None)
    again = fit(rows(), "titles", options(encoder, column="title", standardise=True)).column.values
    np.testing.assert_allclose(again[:2, 1].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(again[:2, 1].std(0), 1, atol=1e-2)
    # Other layers are computed, for which the function is missing now.
    with pytest.raises(TypeError):
        fit(rows(), "title", options(encoder, layers=[1]))


def test_wrong_options_of_texts_are_refused(encoder):
    for wrong, message in (
        ({"layers": [0, 3]}, r"layers is \[0, 3\], and the encoder has 2 blocks: give ascending numbers from 0"),
        ({"layers": [1, 1]}, r"layers is \[1, 1\]"),
        ({"layers": []}, r"layers is \[\]"),
        ({"column": "titel"}, "unknown item column 'titel'; did you mean 'title'?"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(rows(), "title", options(encoder, **wrong))
    with pytest.raises(DataError, match="the item column 'year' holds Int64 and no texts"):
        fit(rows(), "year", options(encoder))
    with pytest.raises(DataError, match="has a text in no training row"):
        fit(rows()._replace(trained=np.zeros(5, bool)), "title", options(encoder))


def test_states_of_images_are_those_of_transformers(tmp_path):
    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    model, folder = tmp_path / "model", tmp_path / "images"
    ViTModel(ViTConfig(**small, image_size=8, patch_size=4)).eval().save_pretrained(model)
    (model / PROCESSOR).write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}})
    )
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES[:3]:
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    given = {"kind": "images", "path": str(folder), "model": str(model), "batch_size": 2, "standardise": False}
    feature = fit(rows(), "picture", {**given, "layers": [0, 1]})
    processor, vit = read_processor(model), ViTModel.from_pretrained(model).eval()
    pixels = np.stack([processor(Image.open(folder / f"{name}.png")) for name in NAMES[:3]])
    with torch.no_grad():
        states = vit(torch.tensor(pixels.transpose(0, 3, 1, 2)), output_hidden_states=True).hidden_states
    want = np.stack([states[layer][:, 0] for layer in (0, 1)], axis=1)
    np.testing.assert_allclose(feature.column.values[:3], want, atol=1e-5)
    assert feature.column.present.tolist() == [True] * 3 + [False] * 2
    assert not feature.column.values[3:].any()
    assert (feature.layer, feature.fitted["layers"]) == ("states", [0, 1])
    for wrong, message in (
        ({"layers": [3]}, "has 2 blocks"),
        ({"layers": [1], "project": "mlp"}, "for pooled vectors"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(rows(), "picture", {**given, **wrong})
