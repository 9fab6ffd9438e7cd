"""Rows go through a function in whole tiles, and come back in order, whatever is computed with them."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.inference import batched as tiles
from llm4rec_jax.inference.batched import Tiled
from llm4rec_jax.sharding import make_mesh


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("n", [1, 3, 4, 33, 100])
def test_tiles_see_whole_tiles_and_rows_come_back_in_order(devices, n, monkeypatch):
    monkeypatch.setattr(tiles, "BLOCK", 8)
    monkeypatch.setattr(tiles, "rows_of_a_tile", lambda mesh, tokens=12: 4)
    shapes = []

    def function(scale: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        shapes.append((x.shape, y.shape))
        return scale * x + y[:, 0]

    rng = np.random.default_rng(n)
    x, y = rng.normal(size=n).astype(np.float32), rng.normal(size=(n, 2)).astype(np.float32)
    mesh = make_mesh(devices=jax.devices()[:devices])
    out = Tiled(function, mesh)(jnp.float32(2), x, y)
    assert isinstance(out, np.ndarray)
    np.testing.assert_allclose(out, 2 * x + y[:, 0], rtol=1e-6)
    assert set(shapes) == {((4,), (4, 2))}


def test_a_cpu_works_on_two_parts_of_a_block_at_a_time(monkeypatch):
    monkeypatch.setattr(tiles, "rows_of_a_tile", lambda mesh, tokens=12: 4)
    begun = []
    alone = make_mesh(devices=jax.devices()[:1])

    def function(scale: jax.Array, x: jax.Array) -> jax.Array:
        # Seen by the host when the program runs: in which thread that is, is its own.
        return jax.pure_callback(lambda x: (begun.append(len(x)), x)[1], x, scale * x)

    x = np.arange(30, dtype=np.float32)
    twice = Tiled(function, alone)
    given = [0, 0]
    parts = twice._begin(jnp.float32(2), [x], given)
    assert [(part.each, part.room, part.rows) for part in parts] == [(4, 4, 16), (4, 4, 14)]
    np.testing.assert_array_equal(np.concatenate([part.on_host() for part in parts]), 2 * x)
    assert begun == [4] * 8
    # What fits in one tile is one part, and goes where less has been given.
    assert given == [16, 14]
    assert len(twice._begin(jnp.float32(2), [x[:3]], given)) == 1
    assert given == [16, 17]
    twice._begin(jnp.float32(2), [x], given)
    assert given == [32, 31]
    monkeypatch.setattr(tiles, "lanes", lambda mesh: 1)
    (whole,) = Tiled(function, alone)._begin(jnp.float32(2), [x], [0])
    np.testing.assert_array_equal(whole.on_host(), 2 * x)


@pytest.mark.parametrize("devices", [1, 8])
def test_of_several_calls_one_is_begun_ahead(devices, monkeypatch):
    monkeypatch.setattr(tiles, "BLOCK", 8)
    monkeypatch.setattr(tiles, "rows_of_a_tile", lambda mesh, tokens=12: 4)
    rng = np.random.default_rng(0)
    # Of other widths, in one block and in several, and none of the last.
    calls = [
        (rng.normal(size=(n, width)).astype(np.float32),) for n, width in ((3, 2), (200, 5), (1, 2), (64, 3), (0, 3))
    ]
    taken = []

    def given() -> Iterator[tuple[np.ndarray]]:
        for i, call in enumerate(calls):
            taken.append(i)
            yield call

    squared = Tiled(lambda scale, x: scale * x * x, make_mesh(devices=jax.devices()[:devices]))
    done = 0
    for i, out in enumerate(squared.each(jnp.float32(3), given())):
        assert isinstance(out, np.ndarray)
        np.testing.assert_allclose(out, 3 * calls[i][0] ** 2, rtol=1e-6)
        assert max(taken) == min(i + 1, len(calls) - 1)
        done += 1
    assert done == len(calls)
