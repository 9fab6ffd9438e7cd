"""The decoder over item embeddings: its states and gradients are those of transformers for `inputs_embeds`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from llm4rec_jax import peft
from llm4rec_jax.models.decoders.config import DecoderConfig
from llm4rec_jax.models.decoders.decoder import Decoder
from llm4rec_jax.models.recommender import init, recommender
from llm4rec_jax.models.users.base import UserInputs
from llm4rec_jax.models.users.llm import LanguageModel
from llm4rec_jax.peft.core import forward
from llm4rec_jax.trees import flatten
from tests.models.decoders.parity import RIGHT, make_pair

D = 16
SIZES = {"vocab_size": 31, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES, num_key_value_heads=1, max_position_embeddings=16),
    "gpt2": transformers.GPT2Config(vocab_size=31, n_embd=D, n_layer=2, n_head=2, n_positions=16),
    "gemma2": transformers.Gemma2Config(**SIZES, num_key_value_heads=1, head_dim=8, max_position_embeddings=16),
}
VECTORS = np.random.default_rng(0).normal(size=(*RIGHT.shape, D)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=VECTORS.shape).astype(np.float32) * RIGHT[..., None]


def decoder(width: int = D, **switches) -> Decoder:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
    return Decoder(DecoderConfig(vocab_size=7, hidden_size=width, head_dim=width // 2, **sizes, **switches))


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_states_and_gradients_are_those_of_transformers(family, tmp_path):
    pair = make_pair(CONFIGS[family], tmp_path)
    vectors = torch.tensor(VECTORS, requires_grad=True)
    positions = torch.tensor(np.maximum(RIGHT.cumsum(1) - 1, 0))
    out = pair.torch(
        inputs_embeds=vectors, attention_mask=torch.tensor(RIGHT.astype(int)), position_ids=positions,
        output_hidden_states=True,
    )  # fmt: skip
    wanted = out.hidden_states[-1]
    (wanted * torch.tensor(WEIGHTS)).sum().backward()
    embeddings = {name: table for name, table in pair.params["embeddings"].items() if name != "word"}
    params = {**pair.params, "embeddings": embeddings}
    users = LanguageModel(pair.decoder)

    def states(vectors: jax.Array) -> jax.Array:
        return users.apply({"params": params}, UserInputs(vectors, jnp.asarray(RIGHT)))

    np.testing.assert_allclose(states(VECTORS)[RIGHT], wanted.detach().numpy()[RIGHT], atol=1e-5)
    gradients = jax.grad(lambda vectors: (states(vectors) * WEIGHTS).sum())(VECTORS)
    assert vectors.grad is not None
    np.testing.assert_allclose(gradients, vectors.grad.numpy(), atol=5e-5)


def test_embedded_words_are_read_as_words_are():
    model, ids = decoder(embedding_scale=4.0), np.random.default_rng(2).integers(0, 7, RIGHT.shape)
    variables = model.init(jax.random.key(0), ids, RIGHT)
    vectors = 4.0 * variables["params"]["embeddings"]["word"]["embedding"][ids]
    embedded = model.apply(variables, vectors, RIGHT, method="of_vectors")
    np.testing.assert_allclose(embedded, model.apply(variables, ids, RIGHT), atol=1e-6)


def test_methods_reach_the_decoder_of_a_recommender():
    model = recommender(num_items=9, users="llm", width=D, options={"users": {"decoder": decoder()}})
    drawn = init(model, jax.random.key(0))
    assert {"layer_0", "layer_1", "final_norm"} == set(drawn["users"])
    pretrained = jax.tree.map(lambda array: array + 1, drawn["users"])
    params = init(model, jax.random.key(0), user_params=pretrained)
    jax.tree.map(np.testing.assert_array_equal, params["users"], pretrained)
    np.testing.assert_array_equal(params["ids"]["embedding"], drawn["ids"]["embedding"])

    method = peft.within(peft.create("lora", {"lora": {"rank": 2, "target": "layer_-1/.*"}}), "users")
    delta = method.init(jax.random.key(1), drawn)
    sites = {path.rpartition("/")[0] for path in flatten(delta)}
    assert {site.split("/")[1] for site in sites} == {"layer_1"}
    assert len(sites) == 7
    inputs = UserInputs(jnp.asarray(VECTORS), jnp.asarray(RIGHT))

    def embeddings(delta):
        return forward(model.matcher, method, drawn, delta, inputs, apply="user_embeddings")

    untouched = model.matcher.apply({"params": drawn}, inputs, method="user_embeddings")
    np.testing.assert_array_equal(embeddings(delta), untouched)
    gradients = jax.grad(lambda delta: (embeddings(delta) * WEIGHTS).sum())(delta)
    assert sum(bool(np.any(array)) for array in jax.tree.leaves(gradients)) == len(sites)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (LanguageModel(decoder(8)), "item embeddings are 16 wide, .* hidden states of 8: give config.model.width=8"),
        (LanguageModel(decoder(causal=False)), "whose tokens see later ones: give a decoder"),
        (LanguageModel(decoder(max_position_embeddings=4)), "a history of 13 items, .* has 4 positions"),
        (LanguageModel(positions=4), "a history of 13 items, but the user model has 4 positions"),
        (LanguageModel(heads=3), "the width 16 is not a multiple of 3 heads of an even width"),
    ],
)
def test_what_does_not_fit_is_told(module, said):
    with pytest.raises(ValueError, match=said):
        module.init(jax.random.key(0), UserInputs(VECTORS, RIGHT))
