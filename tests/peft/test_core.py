"""The algebra: sites, chains, scopes, and the errors of names that are not there."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm4rec_jax.models.encoders.bert import Bert, BertConfig
from llm4rec_jax.models.recommender import init, recommender
from llm4rec_jax.models.users.base import UserInputs
from llm4rec_jax.peft import METHODS, Peft, chain, count, create, forward, within

ENCODER = Bert(
    BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
)
MASK = np.arange(4) < np.array([4, 2])[:, None]
IDS = np.random.default_rng(0).integers(1, 11, MASK.shape) * MASK
KEY = jax.random.key(0)


def noisy(tree, seed: int = 0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0.0, 0.3, a.shape), a.dtype), tree)


@pytest.fixture(scope="module")
def model():
    return recommender(encoder=ENCODER, users="transformer", options={"users": {"positions": 5}}, width=8)


@pytest.fixture(scope="module")
def params(model):
    return noisy(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(lambda: init(model, KEY))))


def encode(params):
    return ENCODER.apply({"params": params["encoder"]}, IDS, MASK)


class Double(nn.Module):
    """2 w x, in a child, for methods small enough to compute by hand."""

    @nn.compact
    def __call__(self, x):
        return 2 * Scale(name="scale")(x)


class Scale(nn.Module):
    @nn.compact
    def __call__(self, x):
        return self.param("w", nn.initializers.ones, ()) * x

    def unused(self, x):
        return x


def toy(function, site: str = "scale", **fields) -> Peft:
    """A method that runs `function(w, call, x)` at one site."""

    def tap(delta, where, call, *args):
        return function(delta["toy"]["w"], call, *args) if where == site else call(*args)

    return Peft(init=lambda key, params: {"toy": {"w": jax.random.normal(key)}}, tap=tap, **fields)


PLUS = toy(lambda w, call, x: call(x) + w)
TIMES = toy(lambda w, call, x: call(x) * w)
BEFORE = toy(lambda w, call, x: call(x + w))
W = {"scale": {"w": jnp.asarray(3.0)}}


def at(**values):
    return {str(k)[1:]: {"toy": {"w": jnp.asarray(v)}} for k, v in values.items()}


@pytest.mark.parametrize(
    ("methods", "want"),
    [
        ((PLUS, TIMES), 2 * ((3 * 5 + 10) * 100)),
        ((TIMES, PLUS), 2 * (3 * 5 * 10 + 100)),
        ((BEFORE, TIMES), 2 * (3 * (5 + 10) * 100)),
        ((TIMES, BEFORE), 2 * (3 * (5 + 100) * 10)),
    ],
)
def test_the_first_of_a_chain_is_nearest_to_the_module(methods, want):
    assert forward(Double(), chain(*methods), W, at(_0=10.0, _1=100.0), 5.0) == want


def test_chains_nest():
    nested = chain(chain(PLUS, TIMES), BEFORE)
    delta = {"0": at(_0=10.0, _1=100.0), "1": {"toy": {"w": 1.0}}}
    assert forward(Double(), nested, W, delta, 5.0) == 2 * ((3 * (5 + 1) + 10) * 100)


def test_a_call_need_not_be_made():
    assert forward(Double(), toy(lambda w, call, x: x), W, {"toy": {"w": 0.0}}, 5.0) == 10


def test_sites_of_methods_have_a_suffix():
    method = toy(lambda w, call, x: call(x) + w, site=".unused")
    assert forward(Scale(), method, {"w": 3.0}, {"toy": {"w": 1.0}}, 5.0, apply="unused") == 6.0
    assert forward(Scale(), method, {"w": 3.0}, {"toy": {"w": 1.0}}, 5.0) == 15.0


def test_chained_weights_apply_in_order():
    def add(params, delta):
        return {"scale": {"w": params["scale"]["w"] + delta["toy"]["w"]}}

    def double(params, delta):
        return {"scale": {"w": params["scale"]["w"] * delta["toy"]["w"]}}

    first, second = (Peft(lambda key, params: {}, reparam=f, merge=f) for f in (add, double))
    both = chain(first, second)
    assert both.tap is None
    assert forward(Double(), both, W, at(_0=10.0, _1=100.0), 5.0) == 2 * (3 + 10) * 100 * 5
    assert both.merge(W, at(_0=10.0, _1=100.0))["scale"]["w"] == 1300
    assert W["scale"]["w"] == 3
    assert chain(first, PLUS).merge is None


def test_chained_methods_draw_from_different_keys():
    delta = chain(PLUS, PLUS).init(KEY, W)
    assert delta["0"]["toy"]["w"] != delta["1"]["toy"]["w"]


def test_penalties_add_up():
    def penalised(factor):
        return toy(lambda w, call, x: call(x), penalty=lambda delta: factor * delta["toy"]["w"] ** 2)

    both = chain(penalised(2.0), PLUS, penalised(3.0))
    delta = at(_0=10.0, _1=7.0, _2=100.0)
    assert both.penalty(delta) == 2 * 100 + 3 * 10000
    grads = jax.grad(lambda d: both.penalty(d))(delta)
    assert [float(grads[i]["toy"]["w"]) for i in "012"] == [40.0, 0.0, 600.0]
    assert within(both, "scale").penalty({"scale": delta}) == both.penalty(delta)
    assert create("lora").penalty({}) == 0.0


def test_each_method_of_a_chain_changes_its_own_optimizer():
    faster = toy(lambda w, call, x: call(x), optimizer=lambda tx, steps: optax.chain(tx, optax.scale(10.0)))
    delta = {"0": {"toy": {"w": jnp.asarray(1.0)}}, "1": {"toy": {"w": jnp.asarray(1.0)}}, "2": {}}
    tx = chain(faster, PLUS, create("frozen")).optimizer(optax.sgd(0.5, momentum=0.9), 2)
    grads = jax.tree.map(lambda w: jnp.asarray(2.0), delta)
    state = tx.init(delta)
    for expected in (1.0, 1.9):  # momentum: 0.5 · 2, then 0.5 · (2 + 0.9 · 2)
        updates, state = jax.jit(tx.update)(grads, state, delta)
        assert float(updates["0"]["toy"]["w"]) == pytest.approx(-10 * expected)
        assert float(updates["1"]["toy"]["w"]) == pytest.approx(-expected)


def test_an_optimizer_sees_its_own_delta_however_deep():
    seen = []

    def spy(tx, steps):
        def update(updates, state, params=None):
            seen.append((updates, params))
            return jax.tree.map(lambda u: 10 * u, updates), state

        return optax.chain(tx, optax.GradientTransformation(lambda params: seen.append(params) or (), update))

    one = {"toy": {"w": jnp.asarray(1.0)}}
    delta = {"0": {"0": one, "1": one}, "1": {"scale": one}}
    nested = chain(chain(toy(lambda w, call, x: call(x), optimizer=spy), PLUS), within(PLUS, "scale"))
    tx = nested.optimizer(optax.sgd(1.0), 1)
    updates, _ = tx.update(jax.tree.map(lambda w: jnp.asarray(2.0), delta), tx.init(delta), delta)
    assert [float(u) for u in jax.tree.leaves(updates)] == [-20.0, -2.0, -2.0]
    assert seen == [one, ({"toy": {"w": -2.0}}, one)]


def test_methods_that_change_no_optimizer_leave_it_as_it_is():
    tx = optax.adam(1e-3)
    for method in (chain(PLUS, create("lora")), within(create("lora"), "encoder")):
        assert method.optimizer(tx, 1) is tx
        assert not method.changes_optimizer
    assert within(chain(PLUS, create("galore")), "encoder").changes_optimizer


def test_forward_leaves_the_module_as_it_was(params):
    method = create("houlsby", {"houlsby": {"reduction": 2}})
    delta = noisy(method.init(KEY, params["encoder"]))
    plain = encode(params)
    before = jax.tree.map(np.array, params)
    seen = []

    def run(module, *args):
        seen.append(jax.tree.structure(module.variables))
        return Bert.__call__(module, *args)

    changed = forward(ENCODER, method, params["encoder"], delta, IDS, MASK, apply=run)
    assert np.abs(changed - plain)[MASK].max() > 0.05
    assert seen == [jax.tree.structure({"params": params["encoder"]})]
    np.testing.assert_array_equal(encode(params), plain)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    drawn = jax.eval_shape(ENCODER.init, KEY, IDS, MASK)["params"]
    assert jax.tree.structure(drawn) == jax.tree.structure(params["encoder"])


def test_forward_leaves_no_interceptor_behind_an_error(params):
    def fail(w, call, x):
        raise RuntimeError("from a tap")

    with pytest.raises(RuntimeError, match="from a tap"):
        forward(Double(), toy(fail), W, {"toy": {"w": 0.0}}, 5.0)
    assert Double().apply({"params": W}, 5.0) == 30


def run(part, params, method, delta, apply, *args):
    return np.asarray(forward(part, method, params, delta, *args, apply=apply))


ITEMS = np.random.default_rng(1).normal(size=(2, 5, 8)).astype(np.float32)
ITEMS_MASK = np.arange(5) < np.array([5, 2])[:, None]


def calls(model):
    """A module for each scope, and a call of it."""
    return {
        "encoder": (model.text, "__call__", IDS, MASK),
        "users": (model.matcher, "user_embeddings", UserInputs(ITEMS, ITEMS_MASK)),
    }


SMALL = {
    "adalora": {"alpha": 100.0},
    "compacter": {"n": 2, "reduction": 2},
    "houlsby": {"reduction": 2},
    "k_adapter": {"width": 4, "heads": 2},
    "oft": {"block": 4},
    "parallel": {"reduction": 2},
    "pfeiffer": {"reduction": 2},
    "prefix": {"length": 2},
    "prompt": {"length": 2},
}


@pytest.mark.parametrize("scope", ["encoder", "users"])
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"frozen"}))
def test_within_reaches_its_scope_only(model, params, name, scope):
    inner = create(name, {name: SMALL.get(name, {})})
    method = within(inner, scope)
    if scope == "users" and name in ("k_adapter", "prompt", "side"):
        with pytest.raises(ValueError, match=f"{name}: .*encoder"):
            method.init(KEY, params)
        return
    delta = noisy(noisy(method.init(KEY, params), 2), 3)
    # Both have layers of the same names.
    assert jax.tree.structure(delta) == jax.tree.structure({scope: inner.init(KEY, params[scope])})
    for name, (part, *call) in calls(model).items():
        plain = np.asarray(part.apply({"params": params}, *call[1:], method=call[0]))
        change = np.abs(run(part, params, method, delta, *call) - plain).max()
        assert change > 0.02 if name == scope else change == 0.0
    if method.merge is not None:
        merged = method.merge(params, delta)
        assert {name for name in params if merged[name] is not params[name]} == {scope}
        part, *call = calls(model)[scope]
        ours = part.apply({"params": merged}, *call[1:], method=call[0])
        np.testing.assert_allclose(ours, run(part, params, method, delta, *call), atol=1e-5)


def test_within_the_encoder_is_the_method_on_the_encoder(model, params):
    lora = create("lora")
    delta = noisy(lora.init(KEY, params["encoder"]))
    states = forward(ENCODER, lora, params["encoder"], delta, IDS, MASK)
    pooled = np.stack([np.asarray(s)[m].mean(0) for s, m in zip(states, MASK, strict=True)])
    part, *call = calls(model)["encoder"]
    ours = run(part, params, within(lora, "encoder"), {"encoder": delta}, *call)
    np.testing.assert_allclose(ours, pooled, atol=1e-6)


def test_two_scopes_in_a_chain(model, params):
    encoder, users = create("lora"), create("houlsby", {"houlsby": {"reduction": 2}})
    both = chain(within(encoder, "encoder"), within(users, "users"))
    delta = noisy(both.init(KEY, params))
    alone = {"encoder": (within(encoder, "encoder"), delta["0"]), "users": (within(users, "users"), delta["1"])}
    for scope, (part, *call) in calls(model).items():
        np.testing.assert_array_equal(run(part, params, both, delta, *call), run(part, params, *alone[scope], *call))


def test_a_scope_is_a_whole_name():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Double(name="part")(x) + Scale(name="partscale")(x)

    params = {"part": W, "partscale": {"w": 6.0}}
    method = within(PLUS, "part")
    assert forward(Outer(), method, params, {"part": {"toy": {"w": 1.0}}}, 5.0) == 2 * (15 + 1) + 2 * 15
    root = within(toy(lambda w, call, x: call(x) + w, site=""), "part")
    assert forward(Outer(), root, params, {"part": {"toy": {"w": 1.0}}}, 5.0) == 30 + 1 + 30


def test_create_chains_in_order(params):
    method = create("lora + bitfit", {"lora": {"rank": 2}})
    delta = method.init(KEY, params["encoder"])
    assert set(delta) == {"0", "1"}
    assert delta["0"]["layer_0/attention/query"]["a"].shape == (8, 2)
    assert set(delta["1"]["layer_0/attention/query"]) == {"bias"}
    assert count(delta) == 2 * 2 * 2 * (8 + 8) + (8 + 2 * (4 * 8 + 12 + 8 + 2 * 8))
    assert count({}) == 0


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("lorra", None, "unknown parameter-efficient method 'lorra'; did you mean 'lora'? Choose from: "),
        ("lora+bitfti", None, "'bitfti'; did you mean 'bitfit'?"),
        ("", None, "unknown parameter-efficient method ''"),
        ("lora+", None, "unknown parameter-efficient method ''"),
        ("lora", {"lora": {"rnk": 4}}, "method 'lora': 'rnk'; did you mean 'rank'?"),
        ("bitfit", {"lora": {"rank": 4}}, "options for lora, but the method is 'bitfit'"),
    ],
)
def test_names_that_do_not_exist(spec, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        create(spec, options)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'lora' is registered already"):
        METHODS.register("lora")(create)


def test_what_is_trained_in_place_of_weights_merges_first(params):
    """In `forward` a replaced bias is there before IA3 scales it, whatever their order in the chain."""
    for spec in ("ia3+bitfit", "bitfit+ia3", "lora+full"):
        method = create(spec)
        delta = noisy(method.init(KEY, params["encoder"]))
        merged = ENCODER.apply({"params": method.merge(params["encoder"], delta)}, IDS, MASK)
        want = forward(ENCODER, method, params["encoder"], delta, IDS, MASK)
        np.testing.assert_allclose(merged[MASK], want[MASK], atol=1e-5)


def test_a_method_that_reads_weights_stands_first():
    with pytest.raises(ValueError, match=r"dora reads the weights that it adapts, .* write 'dora\+lora\+bitfit'"):
        create("lora+dora+bitfit")
    assert create("bitfit+dora+lora").name == "bitfit+dora+lora"


def test_the_table_of_methods():
    lines = repr(METHODS).splitlines()
    assert lines[0].split() == ["method", "options", "and", "defaults", "paper"]
    assert {line.split()[0] for line in lines[2:] if not line.startswith(" ")} == set(METHODS)
    assert "rank=8, alpha=8.0, dropout=0.0, rslora=False" in repr(METHODS)
    assert all(METHODS.papers[name] for name in METHODS)
    assert max(map(len, lines)) < 160


def test_a_method_knows_what_it_was_made_from():
    lora = create("lora", {"lora": {"rank": 4}})
    assert (lora.name, lora.options["rank"], lora.options["alpha"]) == ("lora", 4, 8.0)
    assert create("lora+bitfit").name == "lora+bitfit"
