"""Folders of sentence-transformers: vectors are compared with what the library itself computes."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from llm4rec_jax.data.features.tokens import tokenise
from llm4rec_jax.models.encoders.checkpoint import PretrainedError
from llm4rec_jax.models.encoders.sentence_folder import MODES, describe, load_text_encoder
from tests.conftest import random_bert

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["the", "red", "green", "lamp", "door", "a", "story", "of", "toys"],
]
TEXTS = ["the red lamp", "green door", "a story of toys the red green lamp door", "lamp"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A language model with its tokenizer, without a word on sentences."""
    folder = tmp_path_factory.mktemp("model")
    random_bert().save_pretrained(folder)
    vocabulary = folder / "words.txt"
    vocabulary.write_text("\n".join(WORDS))
    transformers.BertTokenizer(vocab=str(vocabulary)).save_pretrained(folder)
    return folder


def saved(model: Path, folder: Path, *after: Any, mode: Any = "mean", **options: Any) -> Path:
    torch.manual_seed(0)
    modules = [Transformer(str(model)), Pooling(24, pooling_mode=mode), *after]
    SentenceTransformer(modules=modules, device="cpu", **options).save(str(folder), create_model_card=False)
    return folder


def theirs(folder: Path, texts: list[str], **options: Any) -> np.ndarray:
    return SentenceTransformer(str(folder), device="cpu").encode(texts, **options)


def ours(folder: Path, texts: list[str], tmp_path: Path, prompt: str | None = None, **options: Any) -> np.ndarray:
    text = load_text_encoder(folder, **options)
    tokens = tokenise(text.folder.prepare(texts, prompt), text.folder.model, 32, tmp_path / "cache")
    mask = np.arange(tokens.ids.shape[1]) < tokens.lengths[:, None]
    states = text.encoder.apply({"params": text.params["encoder"]}, tokens.ids, mask)
    return np.asarray(text.pooling.apply({"params": text.params.get("pooling", {})}, states, mask))


@pytest.mark.parametrize("mode", [theirs for theirs, _ in MODES.values()] + [("cls", "mean"), ("lasttoken", "max")])
def test_poolings(model, tmp_path, mode):
    folder = saved(model, tmp_path / "st", mode=mode)
    np.testing.assert_allclose(ours(folder, TEXTS, tmp_path), theirs(folder, TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    "activation",
    [torch.nn.Tanh(), torch.nn.Identity(), torch.nn.GELU(), torch.nn.ReLU(), torch.nn.SiLU(), torch.nn.Sigmoid()],
    ids=str,
)
@pytest.mark.parametrize("bias", [True, False])
def test_dense_and_normalize(model, tmp_path, activation, bias):
    after = (Dense(24, 7, bias=bias, activation_function=activation), Normalize(), Dense(7, 5))
    folder = saved(model, tmp_path / "st", *after)
    text = load_text_encoder(folder)
    assert text.pooling.output_width(24) == 5
    np.testing.assert_allclose(ours(folder, TEXTS, tmp_path), theirs(folder, TEXTS), atol=1e-5)


def test_flags_of_the_first_releases(model, tmp_path):
    folder = saved(model, tmp_path / "st", mode="cls")
    flags = {flag: name == "cls" for name, (_, flag) in MODES.items()}
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 24, **flags}))
    np.testing.assert_allclose(ours(folder, TEXTS, tmp_path), theirs(folder, TEXTS), atol=1e-5)


def test_prompts_by_name_and_by_default(model, tmp_path):
    prompts = {"query": "the red ", "passage": "a story of "}
    folder = saved(model, tmp_path / "st", prompts=prompts, default_prompt_name="query")
    default = ours(folder, TEXTS, tmp_path)
    np.testing.assert_allclose(default, theirs(folder, TEXTS), atol=1e-5)
    passage = ours(folder, TEXTS, tmp_path, "passage")
    np.testing.assert_allclose(passage, theirs(folder, TEXTS, prompt_name="passage"), atol=1e-5)
    assert np.abs(default - passage).max() > 0.01
    with pytest.raises(ValueError, match="unknown prompt 'qery'; did you mean 'query'"):
        ours(folder, TEXTS, tmp_path, "qery")


def test_lower_case(model, tmp_path):
    folder = saved(model, tmp_path / "st")
    vocabulary = folder / "words.txt"
    vocabulary.write_text("\n".join(WORDS))
    transformers.BertTokenizer(vocab=str(vocabulary), do_lower_case=False).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": True}))
    assert describe(folder).max_tokens == 16
    shouted = [text.upper() for text in TEXTS]
    np.testing.assert_allclose(ours(folder, shouted, tmp_path), theirs(folder, shouted), atol=1e-5)
    np.testing.assert_allclose(ours(folder, shouted, tmp_path), ours(folder, TEXTS, tmp_path), atol=1e-5)


def test_the_model_may_lie_in_a_folder_of_its_own(model, tmp_path):
    folder = saved(model, tmp_path / "st", mode="max")
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in [path for path in folder.iterdir() if path.is_file() and "modules" not in path.name]:
        shutil.move(file, inner / file.name)
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(listed))
    np.testing.assert_allclose(ours(folder, TEXTS, tmp_path), theirs(folder, TEXTS), atol=1e-5)


def test_another_pooling_is_a_notice(model, tmp_path):
    folder = saved(model, tmp_path / "st", Dense(24, 7), mode="cls")
    text = load_text_encoder(folder, "mean")
    assert [notice.removeprefix(str(folder)) for notice in text.notices] == [
        " was trained with pooling cls, not mean",
        " has dense layers to 7 values, which are left out",
    ]
    assert ours(folder, TEXTS, tmp_path, pooling="mean").shape == (4, 24)
    assert load_text_encoder(folder).notices == []
    assert load_text_encoder(saved(model, tmp_path / "plain"), "mean").notices == []


def test_a_model_alone_pools_as_its_family_does(model):
    text = load_text_encoder(model)
    assert text.pooling.poolings == ("mean",)
    assert text.folder.prepare(["Red"]) == ["Red"]
    assert list(text.params) == ["encoder"]


def break_modules(folder: Path) -> None:
    (folder / "modules.json").write_text("[")


def lie_about_modules(folder: Path) -> None:
    (folder / "modules.json").write_text(json.dumps([{"path": "../..", "type": "a.Transformer"}]))


def add_module(folder: Path) -> None:
    listed = json.loads((folder / "modules.json").read_text())
    listed.append({"idx": 2, "name": "2", "path": "2_WKPooling", "type": "sentence_transformers.models.WKPooling"})
    (folder / "modules.json").write_text(json.dumps(listed))


def change(file: str, **fields: Any):
    def edit(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | fields))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_modules, "cannot be read as JSON"),
        (lie_about_modules, "where a module should be"),
        (add_module, "Transformer, Pooling, Dense, WKPooling"),
        (change("1_Pooling/config.json", pooling_mode="median"), "pooling_mode is 'median'|pooling_mode is"),
        (change("1_Pooling/config.json", include_prompt=False), "include_prompt is false"),
        (change("2_Dense/config.json", activation_function="os.system"), "unknown activation_function 'system'"),
        (change("2_Dense/config.json", use_residual=True), "use_residual is set"),
        (change("2_Dense/config.json", bias=False), "holds linear.bias, linear.weight, must hold linear.weight"),
        (change("config_sentence_transformers.json", default_prompt_name="q"), "default_prompt_name is 'q'"),
    ],
)
def test_what_is_not_supported_is_refused(model, tmp_path, damage, message):
    folder = saved(model, tmp_path / "st", Dense(24, 7))
    damage(folder)
    with pytest.raises(PretrainedError, match=message) as error:
        load_text_encoder(folder)
    assert str(folder) in str(error.value)


def test_a_folder_without_a_tokenizer_is_refused(bert_folder, tmp_path):
    with pytest.raises(ValueError, match=r"holds no tokenizer \(none of tokenizer\.json, .*copy the files"):
        tokenise(TEXTS, bert_folder, 16, tmp_path)
