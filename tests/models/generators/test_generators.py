"""Generators: TIGER against transformers' T5, and the decoder against itself, one prefix at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from llm4rec_jax.models.generators import GENERATORS
from llm4rec_jax.models.generators.base import vocabulary_size
from llm4rec_jax.trees import flatten, unflatten

RNG = np.random.default_rng(3)
SIZES = (5, 4, 3)
SMALL = {"width": 12, "layers": 2, "heads": 3, "head_width": 6, "ffn": 20}
MASK = np.array([[True] * 4, [True, True, False, False]])
HISTORY = RNG.integers(0, SIZES, (2, 4, 3)).astype(np.int32)
TARGETS = RNG.integers(0, SIZES, (2, 1, 3)).astype(np.int32)


def made(name):
    model = GENERATORS.build(name, SIZES, 40, **SMALL)
    params = model.init(jax.random.key(0), HISTORY[:, :1], MASK[:, :1], TARGETS, method="code_logits")["params"]
    # All arrays, norms too, with values that matter.
    params = {path: jnp.asarray(RNG.normal(0, 0.3, a.shape), a.dtype) for path, a in flatten(params).items()}
    return model, unflatten(params)


def theirs() -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=vocabulary_size(SIZES), d_model=12, d_kv=6, d_ff=20, num_layers=2, num_heads=3, dropout_rate=0.0,
        tie_word_embeddings=False, decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def name_of(name: str) -> str:
    """Name of our array by that of a T5's."""
    if name in ("shared.weight", "lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        return "embeddings/word/embedding"
    side, rest = name.split(".", 1)
    if rest == "final_layer_norm.weight":
        return {"encoder": "final_norm", "decoder": "decoder_norm"}[side] + "/scale"
    _, _, block, _, layer, *parts, _ = name.split(".")
    if parts[-1] == "relative_attention_bias":
        return {"encoder": "position_bias", "decoder": "decoder_bias"}[side] + "/embedding"
    names = ("attention", "ffn") if side == "encoder" else ("attention", "cross", "ffn")
    part = f"{'layer' if side == 'encoder' else 'decoder'}_{block}/{names[int(layer)]}"
    if parts[-1] == "layer_norm":
        return f"{part}_norm/scale"
    renamed = {"q": "query", "k": "key", "v": "value", "o": "output", "wi": "up", "wo": "down"}
    return f"{part}/{renamed[parts[-1]]}/kernel"


def test_tiger_is_transformers_t5_forward_and_backward():
    model, params = made("tiger")
    other, flat = theirs(), flatten(params)
    with torch.no_grad():
        for name, array in other.named_parameters():
            ours = np.array(flat[name_of(name)])
            array.copy_(torch.tensor(ours.T if name_of(name).endswith("kernel") else ours))
    first = np.cumsum([1, *SIZES])[:-1]
    tokens = np.concatenate([np.zeros((2, 1), int), (HISTORY + first).reshape(2, -1)], axis=1)
    real = np.concatenate([np.ones((2, 1), bool), np.repeat(MASK, 3, axis=1)], axis=1)
    written = np.concatenate([np.zeros((2, 1), int), (TARGETS + first)[:, 0, :2]], axis=1)
    arguments = (torch.tensor(a) for a in (tokens, real.astype(int), written))
    logits = other(**dict(zip(("input_ids", "attention_mask", "decoder_input_ids"), arguments, strict=True))).logits
    parts = [logits[:, level, first[level] : first[level] + size] for level, size in enumerate(SIZES)]
    ours = model.apply({"params": params}, HISTORY, MASK, TARGETS, method="code_logits")
    for own, part in zip(ours, parts, strict=True):
        np.testing.assert_allclose(own[:, 0], part.detach().numpy(), rtol=2e-4, atol=2e-5)

    loss = sum(
        torch.nn.functional.cross_entropy(part, torch.tensor(TARGETS[:, 0, level]).long())
        for level, part in enumerate(parts)
    )
    loss.backward()

    def our_loss(params):
        logits = model.apply({"params": params}, HISTORY, MASK, TARGETS, method="code_logits")
        losses = optax.softmax_cross_entropy_with_integer_labels
        return sum(losses(own, TARGETS[..., level]).mean() for level, own in enumerate(logits))

    grads = {path: np.zeros(a.shape) for path, a in flat.items()}
    for name, array in other.named_parameters():
        grad = array.grad.numpy()
        grads[name_of(name)] += grad.T if name_of(name).endswith("kernel") else grad
    for path, grad in flatten(jax.jit(jax.grad(our_loss))(params)).items():
        np.testing.assert_allclose(grad, grads[path], rtol=1e-3, atol=1e-4, err_msg=path)


def search_logits(model):
    """The logits after prefixes, from histories, in one program a shape."""

    def run(params, history, mask, prefixes):
        memory = model.apply({"params": params}, history, mask, method="read")
        return model.apply({"params": params}, memory, prefixes, method="next_logits")

    return jax.jit(run)


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_beams_side_by_side_have_the_logits_of_each_alone(name):
    """Padding, other users and other beams change nothing; the codes before do."""
    model, params = made(name)
    next_logits = search_logits(model)
    for level in range(3):
        prefixes = RNG.integers(0, SIZES[:level], (2, 5, level)).astype(np.int32)
        together = np.asarray(next_logits(params, HISTORY, MASK, prefixes))
        assert together.shape == (2, 5, SIZES[level])
        # The history of the second user is two items and two of padding.
        for beam in range(5):
            alone = next_logits(params, HISTORY[1:, :2], MASK[1:, :2], prefixes[1:, beam : beam + 1])
            np.testing.assert_allclose(together[1, beam], alone[0, 0], rtol=1e-4, atol=1e-5)
        if level:
            assert np.ptp(together[0], axis=0).max() > 1e-3


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_training_and_search_have_the_same_logits(name):
    model, params = made(name)
    next_logits, mask, targets = search_logits(model), MASK, TARGETS
    if model.every_position:
        mask, targets = np.ones((2, 4), bool), np.concatenate([HISTORY[:, 1:], TARGETS], axis=1)
    train = jax.jit(lambda params: model.apply({"params": params}, HISTORY, mask, targets, method="code_logits"))
    trained = train(params)
    for place in range(targets.shape[1]):
        # Item `place` and those before it are read, and the one after it is the target.
        read = mask & (np.arange(4) <= place) if model.every_position else mask
        for level in range(3):
            own = next_logits(params, HISTORY, read, targets[:, place : place + 1, :level])
            np.testing.assert_allclose(trained[level][:, place], own[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_dropout_is_on_with_a_key_only(name):
    model, params = made(name)

    def first_logits(rngs):
        arguments = HISTORY[:, :1], MASK[:, :1], TARGETS
        return np.asarray(model.apply({"params": params}, *arguments, method="code_logits", rngs=rngs)[0])

    assert not np.allclose(first_logits({"dropout": jax.random.key(0)}), first_logits(None))
