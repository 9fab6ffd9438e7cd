"""Options of methods that are refused, the reach of a target, and dropout."""

import jax
import numpy as np
import pytest

from llm4rec_jax.peft import create, forward
from tests.helpers.small import IDS, MASK, D, F, N, encoder, moved


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lora", {"rank": 0}, "rank is 0, must be at least 1"),
        ("lora", {"dropout": 1.0}, r"dropout is 1\.0, must be in \[0, 1\)"),
        ("prefix", {"length": 0}, "length is 0, must be at least 1"),
        ("houlsby", {"reduction": 17}, "reduction 17 leaves nothing of layer_0/attention's width 16"),
        ("lora", {"target": ".*/qeury"}, r"'\.\*/qeury' matches nothing; there are: .*layer_N/attention/query"),
        ("lora", {"target": ".*_norm"}, "matches nothing; there are: .*layer_N/ffn/down$"),
        ("bitfit", {"target": "layer_9/.*"}, "matches nothing; there are: .*layer_N/ffn_norm"),
        ("full", {"target": "nowhere"}, "matches nothing; there are: embeddings/.*layer_N/ffn_norm"),
        ("houlsby", {"target": r"layer_\d+/attention_norm"}, "there are: layer_N/attention, layer_N/ffn$"),
        ("prefix", {"target": r"layer_\d+/ffn"}, "matches nothing; there are: layer_N/attention$"),
    ],
)
def test_impossible_options(params, name, options, message):
    with pytest.raises(ValueError, match=message):
        create(name, {name: options}).init(jax.random.key(0), params)


@pytest.mark.parametrize(
    ("name", "target", "sites"),
    [
        ("lora", r"layer_1/ffn/(up|down)", {"layer_1/ffn/up", "layer_1/ffn/down"}),
        ("lora", r".*/(query|value)", {f"layer_{i}/attention/{n}" for i in range(N) for n in ("query", "value")}),
        ("bitfit", r".*_norm", {f"layer_{i}/{n}_norm" for i in range(N) for n in ("attention", "ffn")}),
        ("full", r"layer_1/.*", {f"layer_1/{n}" for n in ("attention_norm", "ffn_norm", "ffn/up", "ffn/down")}
         | {f"layer_1/attention/{n}" for n in ("query", "key", "value", "output")}),
        ("houlsby", r".*/ffn", {"layer_0/ffn", "layer_1/ffn"}),
        ("prefix", r"layer_1/.*", {"layer_1/attention"}),
    ],
)  # fmt: skip
def test_targets(params, name, target, sites):
    assert set(create(name, {name: {"target": target}}).init(jax.random.key(0), params)) == sites


def test_lora_start(params):
    delta = create("lora", {"lora": {"rank": 4, "target": ".*/down"}}).init(jax.random.key(0), params)
    a, b = delta["layer_0/ffn/down"]["a"], delta["layer_0/ffn/down"]["b"]
    assert (a.shape, b.shape) == ((F, 4), (4, D))
    assert not b.any()
    bound = F**-0.5
    assert 0.9 * bound < np.abs(a).max() <= bound
    assert abs(a.std() - bound / 3**0.5) < 0.1 * bound


def test_lora_dropout_is_on_the_low_rank_branch_only(params):
    def run(method, delta, key=None):
        rngs = None if key is None else {"dropout": key}
        return forward(encoder(), method, params, delta, IDS, MASK, rngs=rngs)

    plain, dropping = (create("lora", {"lora": {"dropout": rate}}) for rate in (0.0, 0.5))
    start = plain.init(jax.random.key(0), params)
    delta = moved(start, 0)
    key = jax.random.key(1)
    np.testing.assert_array_equal(run(dropping, delta), run(plain, delta))
    np.testing.assert_array_equal(run(plain, delta, key), run(plain, delta))
    np.testing.assert_array_equal(run(dropping, delta, key), run(dropping, delta, key))
    assert np.abs(run(dropping, delta, key) - run(plain, delta))[MASK].max() > 0.01
    # With B = 0 nothing shows: the branch beside it is never dropped.
    np.testing.assert_array_equal(run(dropping, start, key), encoder().apply({"params": params}, IDS, MASK))


def test_dropout_reaches_sites_under_remat(params):
    method = create("lora", {"lora": {"dropout": 0.5}})
    delta = moved(method.init(jax.random.key(0), params), 0)
    model = encoder(remat=True)
    on = forward(model, method, params, delta, IDS, MASK, rngs={"dropout": jax.random.key(1)})
    assert np.abs(on - forward(model, method, params, delta, IDS, MASK))[MASK].max() > 0.01
