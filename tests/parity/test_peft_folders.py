"""Adapters' folders as peft, transformers and sentence-transformers read and write them: heads, bases, tokenizers."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import peft as hf
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer

from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.peft import create, forward
from llm4rec_jax.peft.hf.save_load import InterchangeError, load, merge, save
from tests.conftest import random_bert
from tests.helpers.small import moved
from tests.helpers.tiny import encoder_folder

MASK = np.arange(7) < np.array([7, 4, 1])[:, None]
IDS = np.random.default_rng(0).integers(1, 15, MASK.shape) * MASK
TEXTS = ["red lamp", "blue chair ; green door", "unknown"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return encoder_folder(tmp_path_factory.mktemp("encoder"))


def torch_states(model) -> np.ndarray:
    with torch.no_grad():
        out = model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK).long(), output_hidden_states=True)
    return out.hidden_states[-1].numpy()[MASK]


def our_states(encoder, method, params, delta) -> np.ndarray:
    return np.asarray(forward(encoder, method, params, delta, IDS, MASK))[MASK]


@pytest.mark.parametrize("target", [["query", "value"], ["query", "dense"], r"bert\..*\.(query|key)", "all-linear"])
def test_adapters_of_a_model_with_a_head(folder, tmp_path, target):
    """Names begin with `bert.`, and there may be arrays for the head."""
    encoder, params = pretrained.load(folder)
    base = transformers.BertForMaskedLM.from_pretrained(folder)
    model = hf.get_peft_model(base, hf.LoraConfig(r=2, lora_alpha=3, target_modules=target)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(0.0, 0.2)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, params)
    np.testing.assert_allclose(
        our_states(encoder, loaded.method, params, loaded.delta), torch_states(model), rtol=0, atol=1e-5
    )
    assert load(tmp_path).delta.keys() == loaded.delta.keys()


@pytest.mark.filterwarnings("ignore:.*eva:UserWarning")
def test_eva_leaves_the_base_and_is_read(folder, tmp_path):
    encoder, params = pretrained.load(folder)
    base = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
    config = hf.LoraConfig(r=2, lora_alpha=3, target_modules=["query"], init_lora_weights="eva")
    model = hf.get_peft_model(base, config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(0.0, 0.2)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, params)
    np.testing.assert_allclose(
        our_states(encoder, loaded.method, params, loaded.delta), torch_states(model), rtol=0, atol=1e-5
    )


def test_adapters_of_embeddings_are_refused_for_that_reason(folder, tmp_path):
    base = transformers.BertModel.from_pretrained(folder)
    config = hf.LoraConfig(r=2, lora_alpha=3, target_modules=["query", "word_embeddings"])
    hf.get_peft_model(base, config).save_pretrained(tmp_path)
    for params in (pretrained.load(folder)[1], None):
        with pytest.raises(InterchangeError, match=r"not read for: embeddings\.word_embeddings; merge it in peft"):
            load(tmp_path, params)


def test_a_shortened_encoder_has_its_base_beside_it(folder, tmp_path):
    encoder, params = pretrained.load(folder, layers=1)
    method = create("lora", {"lora": {"rank": 2}})
    delta = moved(method.init(jax.random.key(0), params), 1)
    out = save(tmp_path / "adapter", method, delta, params, base=str(folder), tokenizer_from=folder, max_tokens=9)
    named = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert os.path.samefile(named, out / "base")
    base = transformers.BertModel.from_pretrained(named, add_pooling_layer=False)
    assert base.config.num_hidden_layers == 1
    want = torch_states(hf.PeftModel.from_pretrained(base, str(out)).eval())
    np.testing.assert_allclose(our_states(encoder, method, params, delta), want, rtol=0, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, load(out, params).delta, delta)
    # An encoder with all its layers keeps the name that was given.
    whole = pretrained.load(folder)[1]
    out = save(tmp_path / "whole", method, method.init(jax.random.key(0), whole), whole, base=str(folder))
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)
    assert not (out / "base").exists()


@pytest.mark.parametrize(("name", "pooling"), [("lora", "mean"), ("ia3", "cls"), ("lora", "max")])
def test_sentence_transformers_opens_an_adapter(folder, tmp_path, name, pooling):
    encoder, params = pretrained.load(folder)
    method = create(name)
    delta = moved(method.init(jax.random.key(0), params), 1)
    save(tmp_path, method, delta, params, base=str(folder), tokenizer_from=folder, pooling=pooling, max_tokens=9)
    vectors = SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        TEXTS, truncation=True, max_length=9, padding=True, return_tensors="np"
    )
    ids, mask = tokens["input_ids"], tokens["attention_mask"].astype(bool)
    ours = POOLINGS[pooling]().apply({}, forward(encoder, method, params, delta, ids, mask), jnp.asarray(mask))
    np.testing.assert_allclose(ours, vectors, rtol=0, atol=1e-5)


def test_added_tokens_are_carried(tmp_path):
    """A tokenizer of word pieces with tokens in a file of their own."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "lamp"]
    source = tmp_path / "source"
    random_bert(vocab_size=len(words) + 2).save_pretrained(source)
    (source / "vocab.txt").write_text("\n".join(words) + "\n")
    (source / "added_tokens.json").write_text(json.dumps({"sofa": 7, "<brand>": 8}))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    encoder, params = pretrained.load(source)
    out = merge(tmp_path / "out", encoder, params, create("frozen"), {}, tokenizer_from=source, max_tokens=9)
    for text in ("red sofa", "<brand> lamp"):
        before, after = (transformers.AutoTokenizer.from_pretrained(f)(text).input_ids for f in (source, out))
        assert before == after
        assert max(after) >= len(words)


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt", "bpe.codes"])
def test_files_of_other_tokenizers_are_carried(folder, tmp_path, name):
    source = tmp_path / "source"
    source.mkdir()
    for file in ("vocab.txt", name):
        (source / file).write_text("{}")
    encoder, params = pretrained.load(folder)
    out = merge(tmp_path / "out", encoder, params, create("frozen"), {}, tokenizer_from=source, max_tokens=9)
    assert (out / name).read_text() == "{}"
