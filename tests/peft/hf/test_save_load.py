"""Adapters written and read again, and every way in which a folder may be wrong. Against peft itself: tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from llm4rec_jax.checksums import MANIFEST
from llm4rec_jax.models.encoders.bert import Bert, BertConfig
from llm4rec_jax.peft import Peft, create, within
from llm4rec_jax.peft.hf.save_load import InterchangeError, load, save
from llm4rec_jax.sharding import digest
from tests.helpers.adapters import (
    ADAPTERS,
    CONFIG,
    QUERY,
    WEIGHTS,
    edit,
    fields_of,
    made,
    notes_of,
    refused,
    rewrite,
    seeded,
    states,
)
from tests.helpers.small import D, F, N, encoder, moved


# ---------------------------------------------------------------------------------------------------------- round trip
@pytest.mark.parametrize("key", ADAPTERS)
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
    # Its `init` draws arrays for the same sites.
    again = loaded.method.init(jax.random.key(0), params)
    assert jax.tree.map(np.shape, again) == jax.tree.map(np.shape, delta)


@pytest.mark.parametrize("key", ADAPTERS)
def test_options_come_back(params, good, key):
    method, _ = made(params, key)
    lost = {"ratio", "target", "feedforward", "seed", "projections", "stddev"}
    options = load(good[key], params).method.options
    for name, value in method.options.items():
        assert name in lost or options[name] == pytest.approx(value), name


def test_vera_of_several_sizes(params, tmp_path):
    """One A for all sites: λ_d takes up the scale that differs by size."""
    method = create("vera", {"vera": {"rank": 5, "target": r".*"}})
    delta = moved(method.init(jax.random.key(0), params), 1)
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
    delta = moved(method.init(jax.random.key(0), params), 1)
    loaded = load(save(tmp_path, method, delta, params), params)
    assert loaded.delta.keys() == {"layer_0/attention", "layer_1/attention"}
    np.testing.assert_allclose(
        states(loaded.method, params, loaded.delta), states(method, params, delta), rtol=0, atol=1e-5
    )


def test_a_prefix_that_leaves_positions_is_not_written(params, tmp_path):
    method = create("prefix", {"prefix": {"length": 3, "shift": False}})
    with pytest.raises(InterchangeError, match=r"peft moves the text behind the prefix, .* train it with shift=True"):
        save(tmp_path, method, method.init(jax.random.key(0), params), params)


def test_adalora_with_triplets_pruned_away(params, good, copied):
    """After pruning, peft saves fewer rows and a rank_pattern. The scale is that of the rank at the start."""
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
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS, MANIFEST]


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
    other = seeded(3, encoder())
    refused(
        good["lora"], "was made over an encoder with digest .*: give the encoder that it was trained with, or", other
    )
    jax.tree.map(
        np.testing.assert_array_equal, load(good["lora"], other, any_base=True).delta, load(good["lora"]).delta
    )


def test_an_encoder_of_another_size(good):
    wide = Bert(BertConfig(vocab_size=24, hidden_size=20, num_hidden_layers=N, num_attention_heads=4,
                           intermediate_size=F, max_position_embeddings=12))  # fmt: skip
    deep = Bert(BertConfig(**{**vars(encoder().config), "num_hidden_layers": 3}))
    for model, messages in (
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
        params = seeded(0, model)
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
    with pytest.raises(InterchangeError, match="peft has a prefix in every layer, and layer_0/attention has no prefix"):
        save(tmp_path, method, method.init(jax.random.key(0), params), params)
    method = create("adalora", {"adalora": {"alpha": 0.0}})
    with pytest.raises(InterchangeError, match=r"alpha is 0\.0, which peft takes for init_r; it must be above 0"):
        save(tmp_path, method, method.init(jax.random.key(0), params), params)
    method, delta = made(params, "lora")
    with pytest.raises(InterchangeError, match=r"not the parameters of an encoder, but encoder .*params\['encoder"):
        save(tmp_path, method, delta, {"encoder": params})
    with pytest.raises(InterchangeError, match=r"unknown part of the model"):
        save(tmp_path, within(method, "encoder"), {"encoder": delta}, params)
    with pytest.raises(InterchangeError, match="lora_alpha is inf, must be a finite number"):
        save(tmp_path, create("lora", {"lora": {"rank": 3, "alpha": float("inf")}}), delta, params)
    (tmp_path / "file").touch()
    with pytest.raises(InterchangeError, match="cannot be made a folder"):
        save(tmp_path / "file", method, delta, params)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
