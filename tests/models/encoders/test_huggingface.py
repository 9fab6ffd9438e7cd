"""Folders as transformers has written them over the years, and folders that are not what they claim to be."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from safetensors.numpy import load_file, save_file

from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.huggingface import PretrainedError
from llm4rec_jax.trees import flatten
from tests.conftest import random_bert
from tests.helpers.torch_side import NAMES

LAYER = "encoder.layer.1."


@pytest.fixture
def folder(tmp_path: Path, bert_folder: Path) -> Path:
    return Path(shutil.copytree(bert_folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def expected(bert_folder: Path) -> dict[str, np.ndarray]:
    return flat(bert_folder)


def flat(folder: Path, **options: Any) -> dict[str, np.ndarray]:
    return {path: np.asarray(a) for path, a in flatten(pretrained.load(folder, **options)[1]).items()}


def edit(folder: Path, change) -> None:
    """Rewrites the weights as `change` maps {name: array}."""
    file = folder / "model.safetensors"
    tensors = {name: array.copy() for name, array in load_file(file).items()}
    save_file(change(tensors), file, metadata={"format": "pt"})


def configure(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def assert_same(ours: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert set(ours) == set(want)
    for path, array in want.items():
        np.testing.assert_array_equal(ours[path], array, err_msg=path)


def fails(folder: Path, *parts: str, **options: Any) -> None:
    """Loading is refused, in words that hold every part and name the folder."""
    with pytest.raises(PretrainedError) as error:
        pretrained.load(folder, **options)
    for part in (str(folder), *parts):
        assert part in str(error.value)


def test_prefixed_names(folder, expected):
    edit(folder, lambda tensors: {f"bert.{name}": a for name, a in tensors.items()})
    assert_same(flat(folder), expected)


def test_shards(tmp_path, expected):
    random_bert().save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(flat(tmp_path), expected)


@pytest.mark.parametrize(
    ("kind", "dropped"),
    [
        (transformers.BertForMaskedLM, {"cls"}),
        (transformers.BertForSequenceClassification, {"classifier", "pooler"}),
        (transformers.BertForQuestionAnswering, {"qa_outputs"}),
        (transformers.BertForPreTraining, {"cls", "pooler"}),
        (transformers.BertModel, {"pooler"}),
    ],
)
def test_heads_are_dropped(tmp_path, expected, kind, dropped):
    body = random_bert()
    model = kind(body.config)
    inner = model if kind is transformers.BertModel else model.bert
    inner.load_state_dict(body.state_dict(), strict=False)
    model.save_pretrained(tmp_path)
    saved = {name.removeprefix("bert.") for name in load_file(tmp_path / "model.safetensors")}
    assert {name.split(".")[0] for name in saved} == dropped | {"embeddings", "encoder"}
    assert_same(flat(tmp_path), expected)


def test_old_names(folder, expected):
    def rename(tensors):
        norms = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
        for new, old in norms:
            tensors = {name.replace(new, old): a for name, a in tensors.items()}
        return tensors | {"embeddings.position_ids": np.arange(37)[None]}

    edit(folder, rename)
    assert any(name.endswith("gamma") for name in load_file(folder / "model.safetensors"))
    assert_same(flat(folder), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_load_as_float32(tmp_path, expected, dtype):
    model = random_bert().to(dtype)
    model.save_pretrained(tmp_path)
    ours = flat(tmp_path)
    assert {a.dtype for a in ours.values()} == {np.dtype(np.float32)}
    rounded = {path: torch.tensor(a).to(dtype).float().numpy() for path, a in expected.items()}
    assert_same(ours, rounded)


def test_config_becomes_the_encoder(tmp_path):
    random_bert(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3, layer_norm_eps=1e-5).save_pretrained(
        tmp_path
    )
    config = pretrained.load(tmp_path)[0].config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (
        97,
        24,
        3,
        4,
    )
    assert (config.intermediate_size, config.max_position_embeddings, config.layer_norm_eps) == (40, 37, 1e-5)
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.2, 0.3)
    assert (config.compute_dtype, config.remat) == ("float32", False)
    config = pretrained.load(tmp_path, dropout=0.4, compute_dtype="bfloat16", remat=True, layers=2)[0].config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.4, 0.4)
    assert (config.compute_dtype, config.remat, config.num_hidden_layers) == ("bfloat16", True, 2)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="this is about a machine without a GPU")
def test_cudnn_attention_without_its_gpu(bert_folder):
    with pytest.raises(ValueError, match="runs on an NVIDIA GPU, and this is a cpu: give xla"):
        pretrained.load(bert_folder, compute_dtype="bfloat16", dropout=0.0, attention="cudnn")


@pytest.mark.skipif(jax.default_backend() == "tpu", reason="this is about a machine without a TPU")
def test_splash_attention_without_its_tpu(bert_folder):
    with pytest.raises(ValueError, match=r"runs on a TPU, and this is a .pu: give xla"):
        pretrained.load(bert_folder, dropout=0.0, attention="splash")


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers(bert_folder, expected, layers):
    parts = ("embeddings", *(f"layer_{i}" for i in range(layers)))
    kept = {path: a for path, a in expected.items() if path.split("/")[0] in parts}
    assert_same(flat(bert_folder, layers=layers), kept)


@pytest.mark.parametrize("layers", [0, -1, 4])
def test_layers_out_of_range(bert_folder, layers):
    fails(bert_folder, f"cannot keep the first {layers} layers of an encoder that has 3", layers=layers)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: {n: a for n, a in t.items() if n != f"{LAYER}attention.self.key.bias"},
         ["missing: ", f"{LAYER}attention.self.key.bias"]),
        (lambda t: {n: a for n, a in t.items() if "word" not in n}, ["missing: embeddings.word_embeddings.weight"]),
        (lambda t: t | {"adapter.weight": np.ones(3)}, ["no rule", "adapter.weight"]),
        (lambda t: t | {f"{LAYER}crossattention.self.key.bias": np.ones(24)}, ["no rule", f"{LAYER}crossattention"]),
        (lambda t: t | {n.replace(".2.", ".3."): a for n, a in t.items() if ".2." in n},
         ["beyond what config.json describes", "encoder.layer.3.output.dense.weight"]),
        (lambda t: t | {f"{LAYER}output.dense.weight": np.zeros((24, 41), np.float32)},
         [f"{LAYER}output.dense.weight is (24, 41), but config.json makes it (24, 40)"]),
        (lambda t: t | {f"{LAYER}output.dense.bias": np.zeros(23, np.float32)},
         [f"{LAYER}output.dense.bias is (23,), but config.json makes it (24,)"]),
        (lambda t: t | {"bert.embeddings.LayerNorm.bias": np.zeros(24, np.float32)},
         ["embeddings.LayerNorm.bias", "both stand for embeddings/norm/bias"]),
    ],
    ids=["missing", "missing word", "unknown", "cross attention", "extra layer", "matrix shape", "bias shape", "twice"],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(folder, change, parts):
    edit(folder, change)
    fails(folder, *parts)


def test_a_long_list_of_names_is_cut_and_counted(folder):
    edit(folder, lambda tensors: {n: a for n, a in tensors.items() if ".layer." not in n})
    with pytest.raises(PretrainedError, match=r"encoder\.layer\.0\.attention.*, … \(48 in all\)$"):
        pretrained.load(folder)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"model_type": "berd"}, ["unknown model_type 'berd'; did you mean 'bert'? Choose from: "]),
        ({"model_type": None}, ["unknown model_type 'None'"]),
        ({"model_type": ["bert"]}, ["unknown model_type"]),
        ({"position_embedding_type": "relative_key"}, ["'relative_key' is not supported"]),
        ({"is_decoder": True}, ["is_decoder is set"]),
        ({"add_cross_attention": True}, ["add_cross_attention is set"]),
        ({"num_attention_heads": 5}, ["hidden_size 24 is not a multiple of num_attention_heads 5"]),
        ({"num_attention_heads": 0}, ["num_attention_heads is 0, must be at least 1"]),
        ({"hidden_act": "mish"}, ["'mish' is not one of gelu"]),
        ({"hidden_size": "24"}, ["hidden_size is '24', must be of type int"]),
        ({"layer_norm_eps": None}, ["layer_norm_eps is None, must be of type float"]),
    ],
)
def test_configs_that_cannot_be_read(folder, fields, parts):
    configure(folder, **fields)
    fails(folder, *parts)


@pytest.mark.parametrize("content", [b'{"model_type": "bert", ', b"\xff\xfe\x00", b"", b"[]", b"null"])
def test_damaged_config(folder, content):
    (folder / "config.json").write_bytes(content)
    fails(folder, "config.json", "damaged")


def test_no_config(folder):
    (folder / "config.json").unlink()
    fails(folder, "has no config.json (it holds model.safetensors)")


@pytest.mark.parametrize("keep", [0, 7, 200, 5000, -1])
def test_truncated_weights(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    fails(folder, "model.safetensors cannot be read", "damaged or cut short")


def test_pickled_weights_are_not_opened(folder):
    (folder / "model.safetensors").unlink()
    torch.save(random_bert().state_dict(), folder / "pytorch_model.bin")
    fails(folder, "neither model.safetensors nor", "pytorch_model.bin", "save_pretrained")


@pytest.mark.parametrize("content", ["{", "{}", "[]", "null", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_damaged_index(folder, content):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)
    fails(folder, "model.safetensors.index.json")


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/passwd", "..", "absent.safetensors", "sub/a.safetensors"]
)
def test_index_that_points_elsewhere(folder, shard):
    (folder / "sub").mkdir()
    shutil.copyfile(folder / "model.safetensors", folder / "sub" / "a")
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {"embeddings.word_embeddings.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    fails(folder, repr(shard), "not a file of")


def test_index_that_promises_more(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    names = dict.fromkeys([*tensors, "embeddings.lost"], "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    fails(folder, "promises tensors that no shard holds: embeddings.lost")


def test_wrong_paths(tmp_path, bert_folder):
    with pytest.raises(PretrainedError, match=r"no such folder, and not the form of a hub name"):
        pretrained.load(tmp_path / "absent")
    with pytest.raises(PretrainedError, match=r"model\.safetensors is a file: give the folder"):
        pretrained.load(bert_folder / "model.safetensors")
    with pytest.raises(PretrainedError, match=r"a/b/c: no such folder"):
        pretrained.load("a/b/c")


@pytest.mark.parametrize("name", ["nobody/no-such-bert", "no-such-bert"])
def test_hub_name_without_a_connection(name):
    start = time.monotonic()
    with pytest.raises(PretrainedError, match=rf"^{name}: no such folder here, and not to be had from the hub"):
        pretrained.load(name)
    assert time.monotonic() - start < 10


def test_round_trip_is_bitwise(tmp_path, bert_folder, expected):
    encoder, params = pretrained.load(bert_folder)
    assert pretrained.save(tmp_path / "a" / "b", encoder, params) == tmp_path / "a" / "b"
    again, _ = pretrained.load(tmp_path / "a" / "b")
    assert again.config == encoder.config
    assert_same(flat(tmp_path / "a" / "b"), expected)
    theirs, ours = (load_file(f / "model.safetensors") for f in (bert_folder, tmp_path / "a" / "b"))
    assert_same(ours, theirs)
    assert {p.name for p in (tmp_path / "a" / "b").iterdir()} == {"config.json", "model.safetensors"}


def test_save_over_an_older_model(tmp_path, bert_folder, expected):
    encoder, params = pretrained.load(bert_folder)
    pretrained.save(tmp_path, encoder, jax.tree.map(jnp.zeros_like, params))
    pretrained.save(tmp_path, encoder, params)
    assert_same(flat(tmp_path), expected)


def test_save_copies_the_tokenizer(tmp_path, bert_folder):
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    (source / "tokenizer_config.json").write_text("{}")
    carried = ("added_tokens.json", "sentencepiece.bpe.model", "tokenizer.model", "spiece.model", "merges.txt")
    for name in carried:
        (source / name).write_text(name)
    (source / "model.safetensors").write_text("not weights")
    pretrained.save(tmp_path / "out", *pretrained.load(bert_folder), tokenizer_from=source)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt", *carried,
    }  # fmt: skip
    assert (tmp_path / "out" / "vocab.txt").read_text() == "[PAD]\n[UNK]\n"
    assert len(flat(tmp_path / "out")) == 5 + 3 * 16


def test_save_checks_the_parameters(tmp_path, bert_folder):
    encoder, params = pretrained.load(bert_folder)
    del params["layer_1"]["ffn"]["up"]["bias"]
    with pytest.raises(PretrainedError, match=r"missing: encoder\.layer\.1\.intermediate\.dense\.bias"):
        pretrained.save(tmp_path / "out", encoder, params)
    params["layer_1"]["ffn"]["up"]["bias"] = jnp.zeros(40)
    params["layer_1"]["ffn"]["adapter"] = {"kernel": jnp.zeros((2, 2))}
    with pytest.raises(PretrainedError, match=r"layer_1/ffn/adapter/kernel is not a parameter of this family"):
        pretrained.save(tmp_path / "out", encoder, params)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_names_map_one_to_one():
    model = random_bert()
    names = [name for name, _ in model.named_parameters()]
    converted = [path for name in names for path in NAMES.paths(name) or ()]
    assert len(set(converted)) == len(names)
    assert sorted(map(NAMES.tensor, converted)) == sorted(names)


def test_a_stale_copy_in_another_shard_does_not_win(folder, expected):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    word = "embeddings.word_embeddings.weight"
    save_file({word: tensors[word]}, folder / "model-1.safetensors")
    save_file(tensors | {word: tensors[word] + 1}, folder / "model-2.safetensors")
    names = dict.fromkeys(tensors, "model-2.safetensors") | {word: "model-1.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert_same(flat(folder), expected)


def test_a_tensor_in_another_shard_than_the_index_says(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    word = "embeddings.word_embeddings.weight"
    save_file({name: a for name, a in tensors.items() if name != word}, folder / "model-1.safetensors")
    save_file(tensors, folder / "model-2.safetensors")
    names = dict.fromkeys(tensors, "model-2.safetensors") | {word: "model-1.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    fails(folder, f"promises tensors that no shard holds: {word}")


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_that_are_no_floats_are_refused(folder, kind):
    name = f"{LAYER}attention.self.query.weight"
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors[name] = (tensors[name] * 100).round().to(kind)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    fails(folder, f"{name} is of type", "not of floating point", "dequantise")


def test_integers_that_are_not_used_are_no_reason_to_refuse(folder, expected):
    edit(folder, lambda tensors: tensors | {"embeddings.position_ids": np.arange(37)[None]})
    assert_same(flat(folder), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(folder, value):
    name = f"{LAYER}output.dense.bias"

    def change(tensors):
        tensors[name][3] = value
        return tensors

    edit(folder, change)
    fails(folder, f"{name} has values that are not finite", "fetch it again")


def test_quantised_models_are_refused(folder):
    configure(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    fails(folder, "quantization_config is set", "dequantise")


@pytest.mark.parametrize("depth", [4, 20_000, 10**15])
def test_more_layers_than_there_are_tensors(folder, depth):
    configure(folder, num_hidden_layers=depth)
    start = time.monotonic()
    fails(folder, "missing: encoder.layer.3.attention")
    assert time.monotonic() - start < 2
