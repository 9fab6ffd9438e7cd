"""The decoder on its own: names of its parts, windows, dropout, dtypes, pruning, and what its configurations refuse."""

import dataclasses
import json
from collections import Counter
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.models.decoders.config import FULL, SLIDING, DecoderConfig
from llm4rec_jax.models.decoders.decoder import Decoder
from llm4rec_jax.models.encoders.base import families, find_family, first_layers
from llm4rec_jax.models.encoders.huggingface import PretrainedError, flatten, load, parameter_shapes, read_config
from llm4rec_jax.sharding import make_mesh, specs

CONFIG = DecoderConfig(
    model_type="gemma3_text",
    vocab_size=23,
    hidden_size=12,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    intermediate_size=20,
    qk_norm=True,
    post_norms=True,
    layer_types=(SLIDING, FULL, SLIDING),
    sliding_window=2,
)
MASK = np.arange(6) < np.array([6, 3, 1])[:, None]
IDS = np.random.default_rng(0).integers(1, 23, MASK.shape) * MASK


def decoder(**changes: Any) -> Decoder:
    return Decoder(dataclasses.replace(CONFIG, **changes))


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    shapes = jax.eval_shape(decoder().init, jax.random.key(0), IDS, MASK)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0.0, 0.3, s.shape), s.dtype), shapes)


@pytest.mark.parametrize("remat", [False, True])
def test_parts_have_the_names_of_all_families(params, remat):
    seen: Counter[str] = Counter()

    def record(function, args, kwargs, context):
        suffix = "" if context.method_name == "__call__" else f".{context.method_name}"
        seen["/".join(context.module.path) + suffix] += 1
        return function(*args, **kwargs)

    with nn.intercept_methods(record):
        decoder(remat=remat).apply({"params": params}, IDS, MASK)
    block = ["", "/attention", "/attention.attend", "/ffn"]
    block += [f"/attention/{name}" for name in ("query", "key", "value", "output", "query_norm", "key_norm")]
    block += [f"/ffn/{name}" for name in ("gate", "up", "down")]
    block += [f"/{name}" for name in ("attention_norm", "attention_post_norm", "ffn_norm", "ffn_post_norm")]
    wanted = {f"layer_{i}{part}" for i in range(3) for part in block}
    wanted |= {"", ".layers", "embeddings", "embeddings/word", "final_norm", ".positions"}
    assert wanted <= set(seen)
    # Flax's own: modules with a `setup`, and the function that `nn.remat` lifts.
    ours = {name: calls for name, calls in seen.items() if not name.endswith((".setup", ".<lambda>"))}
    assert {name for name, calls in ours.items() if calls > 1} == {".positions"}


def test_states_of_a_part_of_the_blocks_are_those_of_all(params):
    model, variables = decoder(), {"params": params}
    whole = model.apply(variables, IDS, MASK)
    below = model.apply(variables, IDS, MASK, 2, method="hidden_states")
    np.testing.assert_allclose(model.apply(variables, 2, below, MASK, method="encode_from"), whole, atol=1e-6)
    every = model.apply(variables, IDS, MASK, method="all_hidden_states")
    np.testing.assert_allclose(every[:, :, 2], below, atol=1e-6)
    np.testing.assert_allclose(model.apply(variables, None, every, MASK, method="encode_from"), whole, atol=1e-6)
    shorter, fewer = first_layers(model, params, 2)
    assert shorter.config.layer_types == (SLIDING, FULL)
    states = shorter.apply({"params": fewer}, IDS, MASK)
    np.testing.assert_allclose(states, model.apply(variables, below, method=lambda m, x: m.final_norm(x)), atol=1e-6)


@pytest.mark.parametrize(("kind", "reach"), [(FULL, 6), (SLIDING, 2)])
def test_a_token_reaches_no_further_than_its_window(params, kind, reach):
    model = decoder(layer_types=(kind,), num_hidden_layers=1)
    words = model.apply({"params": params}, IDS[:1], jnp.arange(6)[None], method=lambda m, i, p: m.embeddings(i, p))

    def last(x):
        return model.apply({"params": params}, 0, x, MASK[:1], method="encode_from")[0, 4].sum()

    moved = np.abs(jax.grad(last)(words)[0]).max(-1) > 0
    np.testing.assert_array_equal(moved, [4 - reach < i <= 4 for i in range(6)])


def test_remat_keeps_values_and_gradients(params):
    def run(model):
        return jax.value_and_grad(lambda p: jnp.square(model.apply({"params": p}, IDS, MASK)[MASK]).sum())(params)

    (ours, gradients), (wanted, others) = run(decoder(remat=True)), run(decoder())
    np.testing.assert_allclose(ours, wanted, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradients, others)


def test_bfloat16_computes_with_float32_parameters(params):
    states = decoder(compute_dtype="bfloat16").apply({"params": params}, IDS, MASK)
    exact = np.asarray(decoder().apply({"params": params}, IDS, MASK))
    assert states.dtype == jnp.bfloat16
    assert 0 < np.abs(np.asarray(states, np.float32) - exact)[MASK].max() < 5e-2 * np.abs(exact).max()
    logits = decoder(compute_dtype="bfloat16").apply({"params": params}, states, method="logits")
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("rate", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_needs_a_dropout_rng(params, rate):
    model = decoder(**{rate: 0.4})
    plain = decoder().apply({"params": params}, IDS, MASK)
    np.testing.assert_array_equal(model.apply({"params": params}, IDS, MASK), plain)
    dropped = model.apply({"params": params}, IDS, MASK, rngs={"dropout": jax.random.key(0)})
    assert np.abs(dropped - plain)[MASK].max() > 0.05


def test_a_row_without_tokens_is_finite(params):
    assert np.isfinite(decoder().apply({"params": params}, IDS, np.zeros_like(MASK))).all()
    learned = decoder(learned_positions=True, max_position_embeddings=6)
    variables = learned.init(jax.random.key(0), IDS, MASK)
    assert np.isfinite(learned.apply(variables, IDS, MASK[:, ::-1])).all()
    with pytest.raises(ValueError, match="7 tokens, but the encoder has 6 positions"):
        learned.apply(variables, np.ones((1, 7), int), np.ones((1, 7), bool))


FIELDS = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "ffn_dim": 32,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "query_pre_attn_scalar": 4,
}
DECODERS = ["gemma", "gemma2", "gemma3_text", "gpt2", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3"]


def test_the_decoders_are_registered():
    assert set(DECODERS) <= {name for name, record in families().items() if record.causal}
    assert {find_family(name).pooling for name in DECODERS} == {"last"}


@pytest.mark.parametrize("model_type", [*DECODERS, "modernbert", "nomic_bert"])
def test_heads_and_hidden_units_are_cut_over_the_model_axis(model_type):
    family = find_family(model_type)
    encoder = family.build(family.config_from_hf(dict(FIELDS)))
    shapes = {"encoder": jax.eval_shape(encoder.init, jax.random.key(0), IDS[:1], MASK[:1])["params"]}
    placed = flatten(specs(shapes, make_mesh(1), family.sharding_rules))
    cut = {name.partition("/layer_0/")[2]: spec for name, spec in placed.items() if "/layer_0/" in name and any(spec)}
    wanted = {f"{site}/kernel" for site in family.sites.linear.values()}
    assert wanted <= set(cut)
    assert set(flatten(shapes)) == {f"encoder/{path}" for path in parameter_shapes(encoder)}
    for rule in family.weight_rules:
        assert all(path.startswith(("embeddings", "layer_{i}", "final_norm", "lm_head")) for path in rule.paths)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("llama", {"hidden_size": None}, "hidden_size is missing"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is set"),
        ("llama", {"rope_scaling": {"type": "spiral", "factor": 2.0}}, "rope_type 'spiral' is not one of"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, but this family rotates whole"),
        ("llama", {"hidden_act": "xielu"}, "hidden_act 'xielu' is not one of"),
        ("llama", {"num_key_value_heads": 3}, "is not a multiple of num_key_value_heads 3"),
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps is 'small', must be of type float"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 2}, "layer_types has 'chunked_attention'"),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types has 1 blocks, but num_hidden_layers is 2"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True, but only False"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, but only None"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters has rope_type beside"),
        ("phi3", {"embd_pdrop": 0.3}, "embd_pdrop is 0.3, but only the rate of resid_pdrop"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True, but only False"),
        ("gpt2", {"embd_pdrop": 0.3}, "embd_pdrop is 0.3, but only 0.1"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before is False, but only True"),
        ("opt", {"word_embed_proj_dim": 8}, "word_embed_proj_dim is 8, but only 16"),
    ],
)
def test_what_a_config_asks_for_and_is_not_there_is_named(tmp_path, model_type, changes, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **FIELDS, **changes}))
    with pytest.raises(PretrainedError, match=message):
        read_config(tmp_path)


def test_a_family_without_a_language_head_says_so(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **FIELDS}))
    with pytest.raises(ValueError, match="bert has no language head"):
        load(tmp_path, language_head=True)
