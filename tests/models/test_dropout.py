"""Dropout: as many zeros as its rate says, and the mean stays."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.models.dropout import dropout


class Dropping(nn.Module):
    rate: float

    def __call__(self, x: jax.Array) -> jax.Array:
        return dropout(self, x, self.rate)


def dropped(rate: float, x: jax.Array, seed: int | None = 0) -> np.ndarray:
    rngs = {} if seed is None else {"dropout": jax.random.key(seed)}
    return np.asarray(Dropping(rate).apply({}, x, rngs=rngs))


@pytest.mark.parametrize("rate", [1e-6, 0.1, 0.2, 0.9])
def test_zeros_have_their_share_and_the_rest_is_scaled(rate):
    found = dropped(rate, jnp.ones((500, 2000)))
    assert (found == 0).mean() == pytest.approx(rate, abs=2e-3)
    kept = np.unique(found[found != 0])
    np.testing.assert_allclose(kept, [1 / (1 - rate)], rtol=2e-4)


def test_places_are_drawn_anew_by_each_key_and_not_in_a_row():
    first, second = (dropped(0.5, jnp.ones((300, 300)), seed) == 0 for seed in (0, 1))
    for one, other in ((first, second), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1])):
        assert (one == other).mean() == pytest.approx(0.5, abs=0.01)


def test_without_a_key_or_a_rate_nothing_changes():
    x = jnp.arange(6.0)
    np.testing.assert_array_equal(dropped(0.5, x, None), x)
    np.testing.assert_array_equal(dropped(0.0, x), x)
    np.testing.assert_array_equal(dropped(1.0, x), jnp.zeros(6))
