"""Every way in which the folder of an adapter may be wrong, each an error that says which."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from llm4rec_jax.peft.hf.save_load import InterchangeError, load
from tests.helpers.adapters import CONFIG, QUERY, WEIGHTS, edit, fields_of, refused, rewrite

# ------------------------------------------------------------------------------------------------------ what is refused
FIELDS = [
    ("lora", {"peft_type": "LOHA"}, "unknown peft_type 'LOHA'.*Choose from: LORA, .*PROMPT_TUNING can be read; merge"),
    ("lora", {"peft_type": None}, "unknown peft_type"),
    ("lora", {"peft_type": ["LORA"]}, "unknown peft_type"),
    ("lora", {"r": "8"}, "r is '8', must be an integer from 1 to 2147483647"),
    ("lora", {"r": -1}, "r is -1, must be an integer"),
    ("lora", {"r": True}, "r is True, must be an integer"),
    ("lora", {"r": 3.0}, r"r is 3\.0, must be an integer"),
    ("lora", {"r": None}, "r is missing, must be"),
    ("lora", {"r": 10**9}, r"lora_A\.weight is \(3, 16\), but must be \(1000000000, 16\)"),
    ("lora", {"r": 10**40}, "r is 1000.*, must be an integer from 1"),
    ("lora", {"lora_alpha": "8"}, "lora_alpha is '8', must be a finite number"),
    ("lora", {"lora_alpha": 10**400}, "lora_alpha is 1000.*, must be a finite number"),
    ("lora", {"lora_alpha": float("nan")}, "cannot be read as JSON .NaN is no number"),
    ("lora", {"lora_alpha": float("inf")}, "cannot be read as JSON .Infinity is no number"),
    ("lora", {"lora_dropout": 1.5}, r"lora: dropout is 1\.5, must be in \[0, 1\)"),
    ("lora", {"use_rslora": 1}, "use_rslora is 1, must be true or false"),
    ("lora", {"use_dora": True}, r"the configuration speaks of are missing: .*query\.lora_magnitude_vector"),
    ("dora", {"use_dora": False}, r"arrays that the configuration does not speak of: .*query\.lora_magnitude_vector"),
    ("lora", {"bias": "all"}, "bias is 'all', and trained biases are not read; merge it in peft"),
    ("lora", {"layers_to_transform": [0]}, r"'layers_to_transform' is \[0\], and an adapter that sets it is not"),
    ("lora", {"layers_to_transform": 1}, "'layers_to_transform' is 1"),
    ("lora", {"layers_pattern": "layer"}, "'layers_pattern' is"),
    ("lora", {"rank_pattern": {"query": 4}}, "'rank_pattern' is {'query': 4}"),
    ("lora", {"alpha_pattern": {"query": 4}}, "'alpha_pattern' is"),
    ("lora", {"modules_to_save": ["pooler"]}, r"'modules_to_save' is \['pooler'\]"),
    ("lora", {"fan_in_fan_out": True}, "'fan_in_fan_out' is True"),
    ("lora", {"layer_replication": [[0, 1]]}, "'layer_replication' is"),
    ("lora", {"use_qalora": True}, "'use_qalora' is True"),
    ("lora", {"lora_bias": True}, "'lora_bias' is True"),
    ("lora", {"exclude_modules": ["key"]}, "'exclude_modules' is"),
    ("lora", {"target_parameters": ["a"]}, "'target_parameters' is"),
    ("lora", {"trainable_token_indices": [1]}, "'trainable_token_indices' is"),
    ("lora", {"kasa_config": {"beta": 1}}, "'kasa_config' is"),
    ("lora", {"megatron_config": {"a": 1}}, "'megatron_config' is"),
    ("lora", {"something_new": 0.5}, r"'something_new' is 0\.5"),
    ("lora", {"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base's own weights"),
    ("lora", {"init_lora_weights": {"a": 1}}, "init_lora_weights is {'a': 1}"),
    ("lora", {"target_modules": None}, "target_modules is missing, must be a list of names or a regular expression"),
    ("lora", {"target_modules": []}, r"target_modules \[\] matches no module of this encoder"),
    ("lora", {"target_modules": [1]}, r"target_modules is \[1\], must be a list of names"),
    ("lora", {"target_modules": {"query": 1}}, "target_modules is {'query': 1}, must be a list of names"),
    ("lora", {"target_modules": "(query"}, r"target_modules '\(query' is not a regular expression"),
    ("lora", {"target_modules": "query"}, "target_modules 'query' matches no module of this encoder"),
    ("lora", {"target_modules": r"(.+\.?)+x"}, "repeats what repeats, .*may never end; merge it in peft"),
    ("lora", {"target_modules": r".*.*.*.*.*x"}, "has more than 4 repetitions in a row"),
    ("ia3", {"feedforward_modules": r"((a|.)+)+x"}, "feedforward_modules .* repeats what repeats"),
    ("lora", {"target_modules": ["query", "word_embeddings"]}, r"not read for: embeddings\.word_embeddings; merge"),
    ("lora", {"target_modules": ["query"]}, r"does not speak of: .*0\.attention\.self\.value\.lora_A\.weight"),
    ("lora", {"target_modules": ["query", "key", "value"]}, r"are missing: .*0\.attention\.self\.key\.lora_A\.weight"),
    ("lora", {"target_modules": ["query", "value", "q_proj"]}, "no module of this encoder is called: q_proj; merge"),
    ("lora", {"target_modules": ["query", "value", "../../x"]}, r"no module of this encoder is called: \.\./\.\./x"),
    ("lora", {"target_modules": ["query", "value", "LayerNorm"]}, "not read for: embeddings.LayerNorm, .*; merge it"),
    ("lora", {"target_modules": ["pooler.dense"]}, "names nothing that hidden states depend on"),
    ("layernorm", {"target_modules": r".*"}, r"not read for: .*query"),
    ("layernorm", {"target_modules": "all-linear"}, r"not read for: .*query"),
    ("layernorm", {"modules_to_save": ["x"]}, "'modules_to_save' is"),
    ("adalora", {"total_step": None}, "total_step is missing"),
    ("adalora", {"total_step": 0}, "total_step is 0, must be an integer from 1"),
    ("adalora", {"tinit": 900, "tfinal": 900}, "leave no time to prune"),
    ("adalora", {"init_r": 5}, r"lora_A is \(4, 16\), but must be \(5, 16\)"),
    ("adalora", {"init_r": None}, "init_r is missing"),
    ("adalora", {"beta1": 1.0}, r"adalora: beta1 is 1\.0, must be in"),
    ("adalora", {"rank_pattern": [1]}, r"rank_pattern is \[1\], must hold a list for every module"),
    ("adalora", {"rank_pattern": {"encoder.layer.0.attention.self.query.lora_E": [True]}}, "is not a list of 4 times"),
    ("adalora", {"rank_pattern": {"x.lora_E": [True] * 4}}, "rank_pattern speaks of 'x.lora_E', which no module"),
    ("adalora", {"rank_pattern": {"encoder.layer.0.attention.self.query.lora_E": [True, True, False, True]}},
     r"query\.lora_A is \(4, 16\), but must be \(3, 16\)"),
    ("adalora", {"use_rslora": True}, "'use_rslora' is True"),
    ("vera", {"save_projection": False}, "save_projection is false: .* only torch has its numbers; merge it in peft"),
    ("vera", {"r": 4}, r"vera_lambda_d is \(5,\), but must be \(4,\)"),
    ("ia3", {"feedforward_modules": None}, "feedforward_modules is missing"),
    ("ia3", {"feedforward_modules": "("}, r"feedforward_modules '\(' is not a regular expression"),
    ("ia3", {"feedforward_modules": ["key"]}, r"ia3_l is \(16, 1\), but must be \(1, "),
    ("ia3", {"feedforward_modules": []}, r"ia3_l is \(1, 32\), but must be \(16, 1\)"),
    ("oft", {"coft": True}, "'coft' is True"),
    ("oft", {"block_share": True}, "'block_share' is True"),
    ("oft", {"oft_block_size": 0}, "r is 0 and oft_block_size 0, one of which must be 0"),
    ("oft", {"r": 4}, "r is 4 and oft_block_size 4, one of which must be 0"),
    ("oft", {"oft_block_size": None}, "oft_block_size is missing"),
    ("oft", {"oft_block_size": 8}, r"oft_R\.weight is \(4, 6\), but must be \(2, 28\)"),
    ("oft", {"use_cayley_neumann": None}, "use_cayley_neumann is missing"),
    ("oft series", {"num_cayley_neumann_terms": 2}, "num_cayley_neumann_terms is 2, must be an integer from 3"),
    ("oft series", {"peft_version": "0.17.1"}, r"peft before 0\.18 had another series"),
    ("oft series", {"peft_version": None}, r"peft before 0\.18 had another series"),
    ("prefix", {"num_virtual_tokens": 4}, r"prompt_embeddings is \(3, 64\), but must be \(4, 64\)"),
    ("prefix", {"num_layers": 10**9}, r"prompt_embeddings is \(3, 64\), but|num_layers is 1000000000"),
    ("prefix", {"num_layers": None}, "num_layers is missing"),
    ("prefix", {"num_transformer_submodules": 2}, "num_transformer_submodules is not 1"),
    ("prefix", {"num_attention_heads": 3}, "token_dim 16 is not a multiple of num_attention_heads 3"),
    ("prompt", {"token_dim": 8}, r"is \(3, 16\), but must be \(3, 8\)|num_layers is 2 and token_dim 8"),
    ("prompt", {"peft_type": "PREFIX_TUNING"}, r"prompt_embeddings is \(3, 16\), but must be"),
    ("lora", {"peft_type": "ADALORA"}, "init_r is missing"),
]  # fmt: skip


@pytest.mark.parametrize("known", [True, False], ids=["with an encoder", "without"])
@pytest.mark.parametrize(("key", "changes", "message"), FIELDS, ids=[f"{k} {c}"[:60] for k, c, _ in FIELDS])
def test_fields_that_are_refused(params, copied, key, changes, message, known):
    refused(edit(copied(key), **changes), message, params if known else None)


def put(name: str, value: Any):
    return lambda tensors: tensors.update({name: np.asarray(value)})


def full(value: float, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.full(shape, value, dtype)


A, B, R = (f"{QUERY}.{name}.weight" for name in ("lora_A", "lora_B", "oft_R"))
NOT_FINITE = "has values that are not finite; go back to one from before they arose"
ARRAYS = [
    ("lora", lambda t: t.pop(f"{QUERY}.lora_B.weight"), rf"speaks of are missing: {QUERY}.lora_B.weight"),
    ("lora", lambda t: [t.pop(n) for n in list(t) if "layer.0" in n], rf"are missing: {QUERY}.lora_A.weight"),
    ("lora", lambda t: t.clear(), "are missing|matches no module|no module of this encoder"),
    ("lora", put("../../etc/passwd", np.ones(1)), r"does not speak of: \.\./\.\./etc/passwd"),
    ("lora", put("a\nb", np.ones(1)), r"does not speak of: 'a\\nb'"),
    ("lora", lambda t: t.update({f"{QUERY}.lora_A.default.weight": np.ones(1)}), "does not speak of: .*lora_A.default"),
    ("lora", put("base_model.model.encoder.layer.99999999.x", np.ones(1)), "not speak of: .*99999999"),
    ("lora", put("base_model.model.pooler.dense.lora_A.weight", np.ones(1)), "not speak of: .*pooler"),
    ("lora", put(A, full(1, 3, 17)), r"is \(\d+, \d+\), but must be \(\d+, \d+\); gi"),
    ("lora", put(A, full(1, 2, 16)), r"A.weight is \(2, 16\), but"),
    ("lora", put(A, full(1, 48)), r"A.weight is \(48,\), but"),
    ("lora", put(B, full(np.nan, 16, 3)), NOT_FINITE),
    ("lora", put(B, full(-np.inf, 16, 3)), NOT_FINITE),
    ("lora", put(B, full(1e300, 16, 3, dtype=float)), NOT_FINITE),
    ("lora", put(B, full(1, 16, 3, dtype=int)), "is of int64, not of floating point"),
    ("vera", lambda t: t.pop("base_model.vera_A"), "missing: base_model.vera_A"),
    ("vera", put("base_model.vera_A", full(1, 5, 15)), r"vera_A is \(5, 15\), but"),
    ("vera", put("base_model.vera_B", full(1, 16, 4)), r"vera_B is \(16, 4\), but"),
    ("vera", put("base_model.vera_B", full(1, 5)), r"vera_B is \(5,\), but"),
    ("vera", put("base_model.vera_B", full(np.nan, 16, 5)), NOT_FINITE),
    ("oft", put(R, full(1, 6)), r"oft_R.weight is \(6,\), but"),
    ("oft", put(R, full(1, 4, 7)), r"oft_R.weight is \(4, 7\), but"),
    ("oft", put(R, full(1, 3, 6)), r"oft_R.weight is \([34], 6\), but"),
    ("oft", put(R, full(1, 10**12, 0)), r"oft_R.weight is \(1000000000000, 0\), but"),
    ("oft", put(R, full(1, 0, 6)), r"oft_R.weight is \(0, 6\), but"),
    ("oft", put(R, full(1, 0, 0)), r"oft_R.weight is \([04], [06]\), but"),
    ("ia3", lambda t: t.update({n: a.T.copy() for n, a in t.items() if "key" in n}), r"key.ia3_l is \(1, 16\), but"),
    ("layernorm", lambda t: t.pop(next(n for n in t if "embeddings" in n)), "are missing: .*embeddings.LayerNorm"),
    ("prefix", put("prompt_embeddings", full(1, 3, 64, 1)), r"is \(3, 64, 1\), but"),
    ("prompt", put("prompt_embeddings", full(np.nan, 3, 16)), NOT_FINITE),
    ("prompt", put("extra", full(1, 1)), "does not speak of: extra"),
]  # fmt: skip


@pytest.mark.parametrize("known", [True, False], ids=["with an encoder", "without"])
@pytest.mark.parametrize(("key", "change", "message"), ARRAYS, ids=[f"{k} {m}"[:60] for k, _, m in ARRAYS])
def test_arrays_that_are_refused(params, copied, key, change, message, known):
    refused(rewrite(copied(key), change), message, params if known else None)


def test_vera_of_the_wrong_largest_size(params, copied):
    folder = rewrite(copied("vera"), lambda t: t.update({"base_model.vera_A": np.ones((5, 20), "f")}))
    refused(folder, r"vera_A is \(5, 20\), but must be \(5, 16\)", params)


def test_oft_with_blocks_of_several_sizes(params, copied, tmp_path):
    """A fixed number of blocks gives inputs of other widths blocks of other sizes."""
    fields = {"r": 4, "oft_block_size": 0, "target_modules": ["query", "encoder.layer.0.output.dense"]}
    folder = edit(copied("oft"), **fields)

    def change(tensors):
        tensors.clear()
        tensors |= {
            f"base_model.model.encoder.layer.{i}.attention.self.query.oft_R.weight": np.ones((4, 6), "f")
            for i in (0, 1)
        }
        tensors["base_model.model.encoder.layer.0.output.dense.oft_R.weight"] = np.ones((4, 28), "f")

    refused(rewrite(folder, change), "modules have blocks of 4, 8, and one size for all can be read; merge it", params)


def test_blocks_that_do_not_divide_are_pefts_nearest(params, copied):
    folder = edit(copied("oft"), oft_block_size=5)
    assert load(folder, params).method.options["block"] == load(folder).method.options["block"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ("[]", r"holds \[\] instead of the fields of an adapter"),
        ("null", "holds None instead"),
        ('{"r": 1, "r": 2}', "'r' stands there twice"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"r": ' + "1" * 5000 + "}", "cannot be read as JSON"),
        ("\udcff", "cannot be read as JSON"),
    ],
    ids=["cut", "empty", "list", "null", "twice", "deep", "long", "not UTF-8"],
)
def test_a_configuration_that_is_none(copied, text, message):
    folder = copied("lora")
    (folder / CONFIG).write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(folder, message)


def container(tensors: dict[str, Any], data: bytes, header: bytes | None = None) -> bytes:
    header = json.dumps(tensors).encode() if header is None else header
    return struct.pack("<Q", len(header)) + header + data


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 4,
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 1000) + b"{}",
        container({}, b"", b"no json at all"),
        container({}, b"", b"[" * 100_000),
        container({"a": ONE, "b": ONE}, b"\x00" * 4),
        container({"a": ONE, "b": {**ONE, "data_offsets": [2, 6]}}, b"\x00" * 6),
        container({"a": {**ONE, "data_offsets": [0, 400]}}, b"\x00" * 4),
        container({"a": {**ONE, "shape": [2**40]}}, b"\x00" * 4),
        container({"a": {**ONE, "shape": [-1]}}, b"\x00" * 4),
        container({"a": {**ONE, "dtype": "F99"}}, b"\x00" * 4),
        container({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, b"\x00" * 4),
        container({}, b"\x00" * 4, b'{"a": %s, "a": %s}' % ((json.dumps(ONE).encode(),) * 2)),
        b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x94.",
    ],
    ids=["empty", "short", "header beyond all", "header beyond the file", "no JSON", "deep", "same place", "overlap",
         "beyond the end", "too large", "negative", "type", "a type that numpy has not", "twice", "pickle"],
)  # fmt: skip
def test_weights_that_are_none(copied, content):
    folder = copied("lora")
    (folder / WEIGHTS).write_bytes(content)
    refused(folder, "cannot be read as safetensors|which are not read")
    # The same file beside good weights.
    other = save_and_restore(folder, copied)
    (other / "recommender.safetensors").write_bytes(content)
    refused(other, "recommender.safetensors")


def save_and_restore(folder: Path, copied) -> Path:
    shutil.rmtree(folder)
    return copied("lora")


def test_weights_that_are_cut_short(good, copied):
    folder = copied("lora")
    content = (folder / WEIGHTS).read_bytes()
    for size in (1, 7, 8, 100, len(content) // 2, len(content) - 1):
        (folder / WEIGHTS).write_bytes(content[:size])
        refused(folder, "cannot be read as safetensors")


def test_missing_files(copied, tmp_path):
    refused(tmp_path / "nowhere", "has no adapter_config.json .it is empty or no folder.: give a folder")
    folder = copied("lora")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    refused(
        folder, "has its weights in adapter_model.bin, and pickle is never read, since that runs code: open it in peft"
    )
    (folder / "adapter_model.bin").unlink()
    refused(folder, "adapter_model.safetensors is missing")
    (folder / CONFIG).unlink()
    (folder / "notes.txt").touch()
    refused(folder, "has no adapter_config.json .it holds notes.txt.")


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b/c", "a/b"), ("a//b",), ("/a",), ("",)])
def test_parts_whose_names_are_no_tree(copied, names):
    folder = copied("lora")
    save_file({name: np.ones(1) for name in names}, folder / "recommender.safetensors")
    refused(folder, "is no name beside the others there")


def test_parts_that_are_not_finite(copied):
    folder = copied("lora")
    save_file({"a/b": np.array([np.nan])}, folder / "recommender.safetensors")
    refused(folder, "a/b has values that are not finite")


def test_damage_at_random_is_an_error_of_ours(params, good, copied):
    """Whatever bytes and fields are changed: it loads, or says in our words why not."""
    rng = np.random.default_rng(0)
    folder = copied("lora")
    originals = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    outcomes = set()
    for _ in range(200):
        name = (CONFIG, WEIGHTS)[rng.integers(2)]
        content = bytearray(originals[name])
        for at in rng.integers(0, min(len(content), 900), rng.integers(1, 4)):
            content[at] = rng.integers(256)
        (folder / name).write_bytes(content)
        outcomes.add(loads(folder, params if rng.integers(2) else None))
        (folder / name).write_bytes(originals[name])
    assert outcomes == {True, False}


@pytest.mark.parametrize("key", ["lora", "adalora", "vera", "ia3", "oft series", "layernorm", "prefix", "prompt"])
def test_strange_values_are_errors_of_ours(copied, key):
    folder = copied(key)
    fields = fields_of(folder)
    strange = [None, True, 0, -1, 2**31, 0.5, 1e308, "", "\x00", [], [[]], {}, {"a": 1}]
    for name in fields:
        for value in strange:
            loads(edit(folder, **{name: value}))
            edit(folder, **fields)
        loads(edit(folder, drop=name))
        edit(folder, **fields)
    assert loads(folder)


def loads(folder: Path, params: Any = None) -> bool:
    try:
        load(folder, params, any_base=True)
    except InterchangeError:
        return False
    return True
