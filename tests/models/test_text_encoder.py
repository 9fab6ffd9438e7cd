"""A text encoder alone, and as part of a recommender."""

import jax
import numpy as np
import pytest

from llm4rec_jax.models import text_encoder
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.models.recommender import init, recommender
from llm4rec_jax.models.text_encoder import TextEncoder
from tests.helpers import small

ENCODER = small.encoder()


@pytest.fixture(scope="module")
def params():
    return text_encoder.init(TextEncoder(ENCODER, POOLINGS.build("attention")), jax.random.key(0))


def test_it_has_the_parameters_of_a_recommender(params):
    model = recommender(encoder=ENCODER, pooling="attention", users="mean", width=8)
    whole = init(model, jax.random.key(0))
    assert set(params) == {"encoder", "pooling"}
    for name, part in params.items():
        jax.tree.map(np.testing.assert_array_equal, part, whole[name])
    # Either tree can be applied: names that are not its own are not read.
    ours = TextEncoder(ENCODER, POOLINGS.build("attention")).apply({"params": whole}, small.IDS, small.MASK)
    np.testing.assert_array_equal(ours, model.text_encoder.apply({"params": params}, small.IDS, small.MASK))
    assert ours.shape == (len(small.IDS), model.text_encoder.width)


def test_given_encoder_parameters_are_kept(params):
    model = TextEncoder(ENCODER, POOLINGS.build("attention"))
    again = text_encoder.init(model, jax.random.key(0), params["encoder"])
    assert again["encoder"] is params["encoder"]
    jax.tree.map(np.testing.assert_array_equal, again["pooling"], params["pooling"])


@pytest.mark.parametrize("layer", [0, 1, small.N, None])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_encoding_goes_on_from_any_layer(params, pooling, layer):
    model, variables = TextEncoder(ENCODER, POOLINGS.build(pooling)), {"params": params}
    whole = model.apply(variables, small.IDS, small.MASK)
    assert whole.dtype == np.float32
    states = model.apply(variables, layer, small.IDS, small.MASK, method="hidden_states")
    blocks = () if layer is not None else (small.N + 1,)
    assert states.shape == (*small.IDS.shape, *blocks, small.D)
    later = model.apply(variables, layer, states, small.MASK, method="encode_from")
    np.testing.assert_array_equal(later, whole)
