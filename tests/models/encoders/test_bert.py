"""The encoder on its own: dropout, dtypes, rematerialisation, padding, and the names of its joints."""

import dataclasses
from collections import Counter
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.models.encoders.attention import Attention
from llm4rec_jax.models.encoders.base import first_layers
from llm4rec_jax.models.encoders.bert import Bert, BertConfig
from llm4rec_jax.trees import flatten

CONFIG = BertConfig(
    vocab_size=24,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=12,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
MASK = np.arange(6) < np.array([6, 3, 1])[:, None]
IDS = np.random.default_rng(0).integers(1, 24, MASK.shape) * MASK


def encoder(**changes: Any) -> Bert:
    return Bert(dataclasses.replace(CONFIG, **changes))


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    shapes = jax.eval_shape(encoder().init, jax.random.key(0), IDS, MASK)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0.0, 0.3, s.shape), s.dtype), shapes)


def sites(encoder: Bert, params: dict[str, Any]) -> Counter[str]:
    seen: Counter[str] = Counter()

    def record(function, args, kwargs, context):
        suffix = "" if context.method_name == "__call__" else f".{context.method_name}"
        seen["/".join(context.module.path) + suffix] += 1
        return function(*args, **kwargs)

    with nn.intercept_methods(record):
        encoder.apply({"params": params}, IDS, MASK)
    # Flax's own: every module with a `setup`, and the function that `nn.remat` lifts.
    return Counter({site: n for site, n in seen.items() if not site.endswith((".setup", ".<lambda>"))})


@pytest.mark.parametrize("remat", [False, True])
def test_joints(params, remat):
    layer = ["", "/attention", "/attention.attend", "/attention_norm", "/ffn", "/ffn/down", "/ffn/up", "/ffn_norm"]
    layer += [f"/attention/{name}" for name in ("query", "key", "value", "output")]
    stack = [f"layer_{i}{joint}" for i in (0, 1) for joint in layer]
    embeddings = [f"embeddings/{name}" for name in ("word", "position", "token_type", "norm")]
    assert sites(encoder(remat=remat), params) == Counter(["", ".layers", "embeddings", *embeddings, *stack])


def test_parameter_count(params):
    vocabulary, width, hidden, layers, positions, types = 24, 16, 32, 2, 12, 2
    norm = 2 * width
    embeddings = (vocabulary + positions + types) * width + norm
    attention = 4 * (width * width + width)
    ffn = width * hidden + hidden + hidden * width + width
    assert sum(a.size for a in jax.tree.leaves(params)) == embeddings + layers * (attention + ffn + 2 * norm)
    assert set(params) == {"embeddings", "layer_0", "layer_1"}


@pytest.mark.parametrize("rate", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_needs_a_dropout_rng(params, rate):
    model = encoder(**{rate: 0.3})
    plain = encoder().apply({"params": params}, IDS, MASK)
    np.testing.assert_array_equal(model.apply({"params": params}, IDS, MASK), plain)

    def run(seed):
        return model.apply({"params": params}, IDS, MASK, rngs={"dropout": jax.random.key(seed)})

    assert np.abs(run(0) - plain)[MASK].max() > 0.1
    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1))[MASK].max() > 0.1


def test_dropout_keeps_the_expectation_and_drops_at_its_rate(params):
    model = encoder(hidden_dropout_prob=0.3)

    @jax.jit
    @jax.vmap
    def embed(key):
        return model.apply(
            {"params": params}, IDS, MASK, method=lambda m, *texts: m.embeddings(*texts), rngs={"dropout": key}
        )

    draws = np.asarray(embed(jax.random.split(jax.random.key(0), 2000)))
    whole = encoder().apply({"params": params}, IDS, MASK, method=lambda m, *texts: m.embeddings(*texts))
    # Six standard errors of a mean of 2000 values x · Bernoulli(0.7) / 0.7, and of the share of zeros.
    np.testing.assert_array_less(np.abs(draws.mean(0) - whole), 6 * np.abs(whole) * (0.3 / 0.7 / 2000) ** 0.5 + 1e-6)
    assert abs((draws == 0).mean() - 0.3) < 6 * (0.21 / draws.size) ** 0.5
    assert len({draw.tobytes() for draw in draws == 0}) == 2000


def test_attention_dropout_falls_on_the_weights():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 3, 6, 4, 4)).astype(np.float32)
    # Values one-hot by key, so that the output is the weights themselves.
    v = np.broadcast_to(np.eye(6, 4, dtype=np.float32)[:, None], (3, 6, 4, 4))

    def attend(rate, **rngs):
        layer = Attention(dataclasses.replace(CONFIG, attention_probs_dropout_prob=rate))
        return np.asarray(layer.apply({}, q, k, v, MASK[:, None], method="attend", rngs=rngs))

    weights, dropped = attend(0.0), attend(0.5, dropout=jax.random.key(0))
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 2 * weights[kept], rtol=1e-6)
    assert 0.3 < kept[0].mean() < 0.7


def test_bfloat16_computes_with_float32_parameters(params):
    model = encoder(compute_dtype="bfloat16")
    drawn = jax.eval_shape(model.init, jax.random.key(0), IDS, MASK)["params"]
    assert {a.dtype for a in jax.tree.leaves(drawn)} == {np.dtype(np.float32)}
    states = model.apply({"params": params}, IDS, MASK)
    assert states.dtype == jnp.bfloat16
    exact = np.asarray(encoder().apply({"params": params}, IDS, MASK))
    error = np.abs(np.asarray(states, np.float32) - exact)[MASK].max()
    assert 0 < error < 2e-2 * np.abs(exact).max()


def test_bfloat16_loses_no_gradient_of_what_many_tokens_share(params):
    ids = np.random.default_rng(2).integers(1, 5, (2000, 8))
    toward = np.random.default_rng(3).normal(0.5, 1.0, (*ids.shape, 16)).astype(np.float32)

    def grads(dtype):
        def loss(params):
            states = encoder(compute_dtype=dtype).apply({"params": params}, ids, np.ones(ids.shape, bool))
            return (states.astype(jnp.float32) * toward).mean()

        return jax.grad(loss)(params)

    exact, rounded = flatten(grads("float32")), flatten(grads("bfloat16"))
    largest = {name: float(np.abs(rounded[name] - exact[name]).max() / np.abs(exact[name]).max()) for name in exact}
    # A key's bias adds the same to all keys of a softmax, so its gradient is zero.
    assert {name: error for name, error in largest.items() if error > 0.05 and "key/bias" not in name} == {}


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN's attention runs on NVIDIA GPUs only")
def test_cudnn_attention_computes_the_same(params):
    toward = np.random.default_rng(3).normal(size=(*IDS.shape, 16)).astype(np.float32) * MASK[..., None]

    def run(attention):
        def loss(params):
            model = encoder(compute_dtype="bfloat16", attention=attention, num_attention_heads=2)
            return (model.apply({"params": params}, IDS, MASK).astype(jnp.float32) * toward).mean()

        return flatten(jax.grad(loss)(params))

    ours, cudnn = run("xla"), run("cudnn")
    for name, value in ours.items():
        np.testing.assert_allclose(cudnn[name], value, atol=0.05 * max(np.abs(value).max(), 1e-3), err_msg=name)


def test_cudnn_attention_wants_an_even_number_of_tokens(params):
    model = encoder(compute_dtype="bfloat16", attention="cudnn", num_attention_heads=2)
    with pytest.raises(ValueError, match="an even number of tokens, and there are 5 over 5"):
        model.apply({"params": params}, IDS[:, :5], MASK[:, :5])


def test_remat_keeps_values_and_gradients(params):
    def run(model):
        def loss(params):
            states = model.apply({"params": params}, IDS, MASK)
            return jnp.square(states * MASK[..., None]).sum(), states

        return loss

    plain, remat = run(encoder()), run(encoder(remat=True))
    (_, ours), ours_grad = jax.value_and_grad(remat, has_aux=True)(params)
    (_, want), want_grad = jax.value_and_grad(plain, has_aux=True)(params)
    np.testing.assert_allclose(ours, want, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours_grad, want_grad)
    primitives = [str(e.primitive) for e in jax.make_jaxpr(remat)(params).eqns]
    assert sum("remat" in name or "checkpoint" in name for name in primitives) == CONFIG.num_hidden_layers
    assert not any("remat" in str(e.primitive) for e in jax.make_jaxpr(plain)(params).eqns)


def test_padding_content_and_length_do_not_reach_real_tokens(params):
    states = encoder().apply({"params": params}, IDS, MASK)
    other = np.where(MASK, IDS, np.random.default_rng(5).integers(1, 24, IDS.shape))
    assert (other != IDS).any()
    np.testing.assert_array_equal(encoder().apply({"params": params}, other, MASK)[MASK], states[MASK])
    longer = encoder().apply({"params": params}, np.pad(IDS, ((0, 0), (0, 4))), np.pad(MASK, ((0, 0), (0, 4))))
    np.testing.assert_allclose(longer[:, :6][MASK], states[MASK], atol=1e-5)


def test_a_row_without_tokens_is_finite(params):
    states = encoder().apply({"params": params}, IDS, np.zeros_like(MASK))
    assert np.isfinite(states).all()


def test_mask_may_be_integers(params):
    states = encoder().apply({"params": params}, IDS, MASK)
    np.testing.assert_array_equal(encoder().apply({"params": params}, IDS, MASK.astype(np.int32)), states)


def test_more_tokens_than_positions(params):
    ids = np.ones((1, 13), int)
    with pytest.raises(ValueError, match="13 tokens, but the encoder has 12 positions"):
        encoder().apply({"params": params}, ids, ids)


def test_first_layers(params):
    full = encoder().apply({"params": params}, IDS, MASK)
    states = encoder().apply(
        {"params": params}, IDS, MASK, method=lambda m, ids, mask: m.layers(m.embeddings(ids, mask), mask)
    )
    assert len(states) == 3
    np.testing.assert_array_equal(states[-1], full)
    for k in (1, 2):
        model, kept = first_layers(encoder(), params, k)
        np.testing.assert_array_equal(model.apply({"params": kept}, IDS, MASK), states[k])
        assert set(kept) == {"embeddings", *(f"layer_{i}" for i in range(k))}
        assert kept["layer_0"]["ffn"]["up"]["kernel"] is params["layer_0"]["ffn"]["up"]["kernel"]


def test_first_layers_goes_by_number_not_by_spelling():
    params = {"embeddings": {}, **{f"layer_{i}": {} for i in range(12)}}
    _, kept = first_layers(encoder(num_hidden_layers=12), params, 2)
    assert set(kept) == {"embeddings", "layer_0", "layer_1"}


@pytest.mark.parametrize("k", [0, -1, 3])
def test_first_layers_out_of_range(params, k):
    with pytest.raises(ValueError, match=f"first {k} layers of an encoder that has 2"):
        first_layers(encoder(), params, k)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3}, "hidden_size 16 is not a multiple of num_attention_heads 3"),
        ({"hidden_act": "gleu"}, "hidden_act 'gleu' is not one of gelu, gelu_new"),
        ({"compute_dtype": "float8"}, "compute_dtype 'float8' is not one of float32, bfloat16, float16"),
        ({"attention": "flash"}, "attention 'flash' is not one of xla, cudnn, splash"),
        ({"attention": "cudnn"}, "computes in 16 bits: give bfloat16"),
        (
            {"attention": "cudnn", "compute_dtype": "bfloat16", "attention_probs_dropout_prob": 0.1},
            "drops no weights, but 0.1 of them are to be: give an encoder dropout of 0",
        ),
        ({"attention": "cudnn", "compute_dtype": "bfloat16"}, "wants heads of a multiple of 8, and these are 4 wide"),
    ],
)
def test_impossible_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        encoder(**changes)
