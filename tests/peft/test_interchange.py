"""Adapters written and read again, and every way in which a folder may be wrong. Against peft itself: tests/parity."""

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import llm4rec_jax
from llm4rec_jax.checkpoint import digest
from llm4rec_jax.models.bert import Bert, BertConfig
from llm4rec_jax.peft import Peft, create, forward, within
from llm4rec_jax.peft.interchange import InterchangeError, load, merge, save

D, F, N = 16, 32, 2
ENCODER = Bert(
    BertConfig(
        vocab_size=24,
        hidden_size=D,
        num_hidden_layers=N,
        num_attention_heads=4,
        intermediate_size=F,
        max_position_embeddings=12,
    )
)
MASK = np.arange(5) < np.array([5, 3])[:, None]
IDS = np.random.default_rng(0).integers(1, 24, MASK.shape) * MASK
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
QUERY = "base_model.model.encoder.layer.0.attention.self.query"

METHODS = {
    "lora": ("lora", {"rank": 3, "alpha": 2.5, "dropout": 0.25, "rslora": True}),
    "lora_plus": ("lora_plus", {"rank": 3, "target": r".*"}),
    "dora": ("dora", {"rank": 3}),
    "adalora": ("adalora", {"init_rank": 4, "rank": 2, "penalty": 0.25, "every": 3}),
    "vera": ("vera", {"rank": 5}),
    "ia3": ("ia3", {}),
    "ia3 of outputs": ("ia3", {"target": r".*/value"}),
    "ia3 of inputs": ("ia3", {"target": r".*/(query|down)", "feedforward": r".*"}),
    "oft": ("oft", {"block": 4}),
    "oft series": ("oft", {"block": 8, "neumann": 6}),
    "layernorm": ("layernorm", {"target": r".*(_|/)norm"}),
    "prefix": ("prefix", {"length": 3}),
    "prompt": ("prompt", {"length": 3}),
}


def seeded(seed: int = 0, encoder: Bert = ENCODER) -> dict[str, Any]:
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), IDS, MASK)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0.0, 0.2, a.shape), a.dtype), shapes)


def moved(tree: Any, seed: int = 1) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0.0, 0.2, a.shape), a.dtype), tree)


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return seeded()


def made(params, key: str) -> tuple[Peft, Any]:
    name, options = METHODS[key]
    method = create(name, {name: options})
    return method, moved(method.init(jax.random.key(0), params))


def states(method, params, delta) -> np.ndarray:
    return np.asarray(forward(ENCODER, method, params, delta, IDS, MASK))[MASK]


@pytest.fixture(scope="module")
def good(params, tmp_path_factory):
    """Folders of good adapters, by key."""
    root = tmp_path_factory.mktemp("good")
    return {key: save(root / key, *made(params, key), params) for key in METHODS}


@pytest.fixture
def copied(good, tmp_path):
    def copy(key: str) -> Path:
        return Path(shutil.copytree(good[key], tmp_path / "adapter"))

    return copy


def fields_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text())


def edit(folder: Path, drop: str = "", **changes: Any) -> Path:
    fields = {name: value for name, value in (fields_of(folder) | changes).items() if name != drop}
    (folder / CONFIG).write_text(json.dumps(fields))
    return folder


def notes_of(folder: Path) -> dict[str, str]:
    with safe_open(folder / WEIGHTS, "np") as file:
        return file.metadata()


def rewrite(folder: Path, change) -> Path:
    tensors = load_file(folder / WEIGHTS)
    notes = notes_of(folder)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata=notes)
    return folder


def refused(folder: Path, message: str, params: Any = None, **options: Any) -> None:
    with pytest.raises(InterchangeError, match=message) as caught:
        load(folder, params, **options)
    assert folder.name in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- round trip
@pytest.mark.parametrize("key", METHODS)
def test_round_trip(params, good, key):
    method, delta = made(params, key)
    for loaded in (load(good[key], params), load(good[key])):
        assert loaded.method.name == ("lora" if key == "lora_plus" else method.name)
        assert loaded.others is None
        assert jax.tree.structure(loaded.delta) == jax.tree.structure(delta)
        jax.tree.map(np.testing.assert_array_equal, loaded.delta, delta)
    np.testing.assert_allclose(
        states(loaded.method, params, loaded.delta), states(method, params, delta), rtol=0, atol=1e-6
    )
    # What was drawn anew by its `init` is for the same places.
    again = loaded.method.init(jax.random.key(0), params)
    assert jax.tree.map(np.shape, again) == jax.tree.map(np.shape, delta)


@pytest.mark.parametrize("key", METHODS)
def test_options_come_back(params, good, key):
    method, _ = made(params, key)
    lost = {"ratio", "target", "feedforward", "seed", "projections", "stddev"}
    options = load(good[key], params).method.options
    for name, value in method.options.items():
        assert name in lost or options[name] == pytest.approx(value), name


def test_vera_of_several_sizes(params, tmp_path):
    """One A for all sites: what differs in scale by size is taken up by λ_d."""
    method = create("vera", {"vera": {"rank": 5, "target": r".*"}})
    delta = moved(method.init(jax.random.key(0), params))
    save(tmp_path, method, delta, params)
    tensors = load_file(tmp_path / WEIGHTS)
    assert tensors["base_model.vera_A"].shape == (5, F)
    assert tensors["base_model.vera_B"].shape == (F, 5)
    loaded = load(tmp_path, params)
    np.testing.assert_allclose(
        states(loaded.method, params, loaded.delta), states(method, params, delta), rtol=0, atol=1e-5
    )
    # Those of the largest input are as they were, and from there on nothing changes.
    np.testing.assert_array_equal(loaded.delta["layer_0/ffn/down"]["d"], delta["layer_0/ffn/down"]["d"])
    save(tmp_path / "again", loaded.method, loaded.delta, params)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "again", params).delta, loaded.delta)


def test_a_reparametrised_prefix_is_written_plain(params, tmp_path):
    method = create("prefix", {"prefix": {"length": 3, "reparametrise": True, "bottleneck": 5}})
    delta = moved(method.init(jax.random.key(0), params))
    loaded = load(save(tmp_path, method, delta, params), params)
    assert loaded.delta.keys() == {"layer_0/attention", "layer_1/attention"}
    np.testing.assert_allclose(
        states(loaded.method, params, loaded.delta), states(method, params, delta), rtol=0, atol=1e-5
    )


def test_a_prefix_of_pefts_is_in_front_of_the_positions(params, copied):
    """Where nothing says otherwise the text takes the positions after the prefix, as peft's model has it."""
    folder = copied("prefix")
    ours = load(folder, params)
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"format": "pt"})
    theirs = load(folder, params)
    jax.tree.map(np.testing.assert_array_equal, ours.delta, theirs.delta)
    table = params["embeddings"]["position"]["embedding"]
    shifted = {"embeddings": {**params["embeddings"], "position": {"embedding": jnp.roll(table, -3, axis=0)}}}
    np.testing.assert_array_equal(
        states(theirs.method, params, theirs.delta), states(ours.method, params | shifted, ours.delta)
    )
    again = load(save(folder, theirs.method, theirs.delta, params), params)
    np.testing.assert_array_equal(
        states(again.method, params, again.delta), states(theirs.method, params, theirs.delta)
    )
    with pytest.raises(ValueError, match="10 tokens after a prefix of 3 need 13 positions, but the encoder has 12"):
        forward(ENCODER, theirs.method, params, theirs.delta, np.ones((1, 10), int), np.ones((1, 10)))


def test_adalora_with_triplets_pruned_away(params, good, copied):
    """What peft saves after pruning: fewer rows and a rank_pattern. The scale is that of the rank at the start."""
    _, delta = made(params, "adalora")
    pruned = {site: {**own, "lambda": own["lambda"].at[jnp.array([1, 3])].set(0)} for site, own in delta.items()}
    method = load(good["adalora"]).method
    folder = copied("adalora")
    modules = fields_of(folder)["target_modules"]
    edit(folder, rank_pattern={f"{name}.lora_E": [True, False, True, False] for name in modules})

    def prune(tensors):
        for name, array in tensors.items():
            tensors[name] = np.ascontiguousarray(array[:, ::2] if "lora_B" in name else array[::2])

    loaded = load(rewrite(folder, prune), params)
    assert {own["p"].shape for own in loaded.delta.values()} == {(D, 2)}
    want = states(method, params, pruned)
    np.testing.assert_allclose(states(loaded.method, params, loaded.delta), want, rtol=0, atol=1e-6)
    # Written again they are full of zeros, and the same.
    again = load(save(folder, loaded.method, loaded.delta, params), params)
    assert {own["p"].shape for own in again.delta.values()} == {(D, 4)}
    np.testing.assert_allclose(states(again.method, params, again.delta), want, rtol=0, atol=1e-6)


def test_triplets_that_are_zero_are_kept(params, tmp_path):
    method, delta = made(params, "adalora")
    delta = {site: {**own, "lambda": own["lambda"].at[1].set(0)} for site, own in delta.items()}
    save(tmp_path, method, delta, params)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path, params).delta, delta)
    fields = fields_of(tmp_path)
    assert "rank_pattern" not in fields
    assert fields["tinit"] < fields["total_step"] - fields["tfinal"]


@pytest.mark.parametrize(("initial", "final"), [(0.9999, 0.0), (0.0, 0.9999), (0.4996, 0.5), (0.0, 0.0)])
def test_adaloras_schedule_leaves_time_to_prune(params, tmp_path, initial, final):
    method = create("adalora", {"adalora": {"init_rank": 4, "rank": 2, "initial": initial, "final": final}})
    save(tmp_path, method, method.init(jax.random.key(0), params), params)
    fields = fields_of(tmp_path)
    assert 0 <= fields["tinit"] < fields["total_step"] - fields["tfinal"] <= fields["total_step"]
    load(tmp_path, params)


def test_others(params, tmp_path):
    method, delta = made(params, "lora")
    others = {
        "head": {"scale": jnp.asarray(2.0), "layers": {"0": {"kernel": jnp.ones((2, 3))}}},
        "users": {"counts": np.arange(3), "half": jnp.ones(2, jnp.bfloat16), "seen": np.array([True, False])},
    }
    back = load(save(tmp_path, method, delta, params, others=others), params).others
    assert jax.tree.structure(back) == jax.tree.structure(others)
    jax.tree.map(np.testing.assert_array_equal, back, others)
    assert [a.dtype for a in jax.tree.leaves(back)] == [a.dtype for a in jax.tree.leaves(others)]
    # Those of an earlier adapter do not stay behind.
    save(tmp_path, method, delta, params)
    assert load(tmp_path, params).others is None
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS]


def test_what_is_written(params, good):
    fields = fields_of(good["lora"])
    assert fields == {
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": 2.5,
        "lora_dropout": 0.25,
        "peft_type": "LORA",
        "peft_version": "0.21.0",
        "r": 3,
        "target_modules": [f"encoder.layer.{i}.attention.self.{n}" for i in range(N) for n in ("query", "value")],
        "task_type": "FEATURE_EXTRACTION",
        "use_dora": False,
        "use_rslora": True,
    }
    assert notes_of(good["lora"]) == {"format": "pt", "llm4rec_jax.base": digest(params)}
    _, delta = made(params, "lora")
    tensors = load_file(good["lora"] / WEIGHTS)
    own = delta["layer_0/attention/query"]
    np.testing.assert_array_equal(tensors[f"{QUERY}.lora_A.weight"], own["a"].T)
    np.testing.assert_array_equal(tensors[f"{QUERY}.lora_B.weight"], own["b"].T)


def test_the_name_of_the_base(params, tmp_path):
    method, delta = made(params, "ia3")
    assert fields_of(save(tmp_path, method, delta, params, base="a/b"))["base_model_name_or_path"] == "a/b"


def test_another_base(params, good):
    other = seeded(3)
    refused(
        good["lora"], "was made over an encoder with digest .*: give the encoder that it was trained with, or", other
    )
    jax.tree.map(
        np.testing.assert_array_equal, load(good["lora"], other, any_base=True).delta, load(good["lora"]).delta
    )


def test_an_encoder_of_another_size(good):
    wide = Bert(BertConfig(vocab_size=24, hidden_size=20, num_hidden_layers=N, num_attention_heads=4,
                           intermediate_size=F, max_position_embeddings=12))  # fmt: skip
    deep = Bert(BertConfig(**{**vars(ENCODER.config), "num_hidden_layers": 3}))
    for encoder, messages in (
        (wide, {
            "lora": r"query\.lora_A\.weight is \(3, 16\), but must be \(3, 20\)",
            "vera": r"vera_lambda_b is \(16,\), but",
            "oft": r"oft_R\.weight is \(4, 6\), but must be \(5, 6\)",
            "layernorm": r"LayerNorm\.ln_tuning_layers\.bias is \(16,\), but",
            "prefix": r"num_layers is 2 and token_dim 16, but the encoder has 2 layers of 20",
            "prompt": r"num_layers is 2 and token_dim 16",
        }),
        (deep, {
            "lora": None,
            "prefix": r"num_layers is 2 and token_dim 16, but the encoder has 3 layers of 16",
        }),
    ):  # fmt: skip
        params = seeded(0, encoder)
        for key, message in messages.items():
            if message is None:
                # It names its modules in full, and a deeper encoder has those too.
                load(good[key], params, any_base=True)
            else:
                refused(good[key], message, params, any_base=True)


@pytest.mark.parametrize(
    "target",
    [
        ["query", "value"],
        ["self.query", "value"],
        r".*\.(query|value)",
        r"encoder\.layer\.\d+\.attention\.self\.[qv].*",
    ],
)
def test_ways_to_name_modules(params, copied, target):
    folder = edit(copied("lora"), target_modules=target)
    assert load(folder, params).delta.keys() == load(folder).delta.keys() == made(params, "lora")[1].keys()


@pytest.mark.parametrize("target", ["all-linear", "All-Linear", ["query", "key", "value", "dense"]])
def test_every_linear_layer(params, copied, target):
    folder = edit(copied("lora_plus"), target_modules=target)
    assert len(load(folder, params).delta) == len(load(folder).delta) == 6 * N


def test_feedforward_may_begin_within_a_name(params, copied):
    """peft asks for the end of the name only, and not for a point before it."""
    folder = edit(copied("ia3 of inputs"), feedforward_modules=["ery", "nse"])
    np.testing.assert_array_equal(
        states(*(loaded := load(folder, params))[:1], params, loaded.delta),
        states(*made(params, "ia3 of inputs")[:1], params, loaded.delta),
    )
    edit(folder, feedforward_modules=r".*(query|dense)")
    assert load(folder, params).delta.keys() == loaded.delta.keys()


def test_what_has_no_say_is_passed_over(params, copied):
    folder = edit(
        copied("lora"),
        task_type=None,
        inference_mode=False,
        revision="main",
        auto_mapping={"base_model_class": "BertModel"},
        peft_version="0.9.0",
        megatron_core="megatron.core",
        qalora_group_size=16,
        init_lora_weights="gaussian",
        rank_pattern={},
        loftq_config={},
        modules_to_save=None,
        lora_bias=False,
        something_new=None,
    )
    load(folder, params)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_floating_point(params, copied, dtype):
    folder = copied("lora")
    want = load(folder, params).delta
    rewrite(folder, lambda tensors: tensors.update({name: a.astype(dtype) for name, a in tensors.items()}))
    delta = load(folder, params).delta
    assert {a.dtype for a in jax.tree.leaves(delta)} == {np.dtype(np.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.01), delta, want)


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
    ("lora", {"target_modules": []}, r"target_modules \[\] matches no module of this BERT"),
    ("lora", {"target_modules": [1]}, r"target_modules is \[1\], must be a list of names"),
    ("lora", {"target_modules": {"query": 1}}, "target_modules is {'query': 1}, must be a list of names"),
    ("lora", {"target_modules": "(query"}, r"target_modules '\(query' is not a regular expression"),
    ("lora", {"target_modules": "query"}, "target_modules 'query' matches no module of this BERT"),
    ("lora", {"target_modules": ["query"]}, r"does not speak of: .*0\.attention\.self\.value\.lora_A\.weight"),
    ("lora", {"target_modules": ["query", "key", "value"]}, r"are missing: .*0\.attention\.self\.key\.lora_A\.weight"),
    ("lora", {"target_modules": ["query", "value", "q_proj"]}, "lists what no module of this BERT is called: q_proj"),
    ("lora", {"target_modules": ["query", "value", "../../x"]}, r"no module of this BERT is called: \.\./\.\./x"),
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
    ("ia3", {"feedforward_modules": "("}, r"feedforward_modules is not a regular expression"),
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
    ("lora", lambda t: t.clear(), "are missing|matches no module|no module of this BERT"),
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
    """Of a number of blocks, an input of another width has blocks of another size."""
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


# -------------------------------------------------------------------------------------------------- what is not written
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "bitfit",
            "no counterpart of the method 'bitfit', only of lora, .*: write the model that it makes with `merge`",
        ),
        ("houlsby", "no counterpart of the method 'houlsby', .*: keep the run's own checkpoint of it"),
        ("lora+bitfit", r"no counterpart of the method 'lora\+bitfit', .*: write the model that it makes with `merge`"),
        ("lora+prefix", r"no counterpart of the method 'lora\+prefix', .*: keep the run's own checkpoint"),
    ],
)
def test_methods_that_peft_has_not(params, tmp_path, spec, message):
    method = create(spec)
    with pytest.raises(InterchangeError, match=message):
        save(tmp_path / "adapter", method, method.init(jax.random.key(0), params), params)
    assert not (tmp_path / "adapter").exists()


def test_a_method_without_a_name(params, tmp_path):
    with pytest.raises(InterchangeError, match="no counterpart of the method ''"):
        save(tmp_path, Peft(lambda key, params: {}), {}, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: {"encoder": d},
            r"not a delta of 'lora' over this encoder: encoder/layer_0/.* for nothing.*delta\['enc",
        ),
        (lambda d: {s: own for s, own in d.items() if "query" in s}, "layer_0/attention/value/a is missing for"),
        (
            lambda d: d | {"layer_9/attention/query": {"a": jnp.ones(1)}},
            r"layer_9/attention/query/a is \(1,\) for nothing",
        ),
        (lambda d: jax.tree.map(lambda a: a[:1], d), r"query/a is \(1, 3\) for \(16, 3\)"),
        (lambda d: None, "not a delta of 'lora'"),
        (
            lambda d: jax.tree.map(lambda a: a.at[0].set(jnp.nan), d),
            r"lora_[AB]\.weight has values that are not finite",
        ),
    ],
)
def test_deltas_that_are_not_written(params, tmp_path, change, message):
    method, delta = made(params, "lora")
    with pytest.raises(InterchangeError, match=message):
        save(tmp_path / "adapter", method, change(delta), params)
    assert not (tmp_path / "adapter").exists()


def test_a_refused_save_leaves_the_old_adapter(params, copied):
    folder = copied("lora")
    before = (folder / WEIGHTS).read_bytes()
    method, delta = made(params, "ia3")
    with pytest.raises(InterchangeError, match="others: 'x/y' under the root is no name"):
        save(folder, method, delta, params, others={"x/y": np.ones(1)})
    assert (folder / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"": np.ones(1)}, "others: '' under the root is no name"),
        ({"a": {1: np.ones(1)}}, "others: 1 under a/ is no name"),
        ({"a": {"b": np.array([np.inf])}}, "others: a/b has values that are not finite"),
        ({"a": np.array(["text"])}, "others: a is of <U4, which safetensors has not"),
        ({"a": None}, "others: a is of object"),
    ],
)
def test_parts_that_are_not_written(params, tmp_path, others, message):
    with pytest.raises(InterchangeError, match=message):
        save(tmp_path, *made(params, "lora"), params, others=others)


def test_other_saves_that_are_refused(params, tmp_path):
    method = create("prefix", {"prefix": {"length": 3, "target": "layer_1/attention"}})
    with pytest.raises(InterchangeError, match="peft has one in every layer, and there is none at layer_0/attention"):
        save(tmp_path, method, method.init(jax.random.key(0), params), params)
    method = create("adalora", {"adalora": {"alpha": 0.0}})
    with pytest.raises(InterchangeError, match=r"alpha is 0\.0, which peft takes for init_r; it must be above 0"):
        save(tmp_path, method, method.init(jax.random.key(0), params), params)
    method, delta = made(params, "lora")
    with pytest.raises(
        InterchangeError, match=r"not the parameters of a BERT encoder, but encoder: .*params\['encoder"
    ):
        save(tmp_path, method, delta, {"encoder": params})
    with pytest.raises(InterchangeError, match=r"unknown part of the model"):
        save(tmp_path, within(method, "encoder"), {"encoder": delta}, params)
    with pytest.raises(InterchangeError, match="lora_alpha is inf, must be a finite number"):
        save(tmp_path, create("lora", {"lora": {"rank": 3, "alpha": float("inf")}}), delta, params)
    (tmp_path / "file").touch()
    with pytest.raises(InterchangeError, match="cannot be made a folder"):
        save(tmp_path / "file", method, delta, params)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# --------------------------------------------------------------------------------------------------------------- merge
@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (
            "prefix",
            {},
            "the method 'prefix' cannot be folded into the encoder's weights: write the adapter with `save`",
        ),
        ("houlsby", {}, "the method 'houlsby' cannot be folded .*: keep the run's own checkpoint"),
        ("lora+prefix", {}, r"the method 'lora\+prefix' cannot be folded .*: keep the run's own checkpoint"),
        (
            "lora",
            {"pooling": "attention"},
            "sentence-transformers has no pooling 'attention', only mean, cls, max: choose",
        ),
        ("lora", {"pooling": "meen"}, "unknown pooling 'meen'; did you mean 'mean'"),
        ("lora", {"max_tokens": 13}, "max_tokens is 13, but the encoder has 12 positions: give 1 to 12"),
        ("lora", {"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_merges_that_are_refused(params, tmp_path, spec, options, message):
    method = create(spec)
    delta = method.init(jax.random.key(0), params)
    with pytest.raises(InterchangeError, match=message):
        merge(tmp_path / "model", ENCODER, params, method, delta, **{"max_tokens": 12, **options})
    assert not (tmp_path / "model").exists()


def test_merges_of_something_else(params, tmp_path):
    method, delta = made(params, "lora")
    with pytest.raises(InterchangeError, match="not a delta of 'lora'"):
        merge(tmp_path, ENCODER, params, method, {"encoder": delta}, max_tokens=12)
    both, broken = create("lora+bitfit"), jax.tree.map(lambda a: a * jnp.nan, delta)
    with pytest.raises(InterchangeError, match=r"not a delta of 'lora\+bitfit'"):
        merge(tmp_path, ENCODER, params, both, {"0": delta}, max_tokens=12)
    with pytest.raises(
        InterchangeError, match="merged, these have values that are not finite: layer_0/attention/query"
    ):
        merge(tmp_path, ENCODER, params, method, broken, max_tokens=12)
    with pytest.raises(InterchangeError, match=r"holds no tokenizer: give a folder with"):
        merge(tmp_path, ENCODER, params, method, delta, max_tokens=12, tokenizer_from=tmp_path)
    assert not any(tmp_path.iterdir())


def test_nothing_of_torch_is_imported():
    for file in (Path(llm4rec_jax.__file__).parent / "peft").glob("*.py"):
        assert not re.search(r"^\s*(import|from) (torch|peft|transformers|pickle)\b", file.read_text(), re.MULTILINE), (
            file
        )
