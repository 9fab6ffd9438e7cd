"""Rows go through a function in batches of one shape, and come back in order."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.inference import batch_sizes, batched
from llm4rec_jax.inference.batched import map_in_fixed_batches
from llm4rec_jax.sharding import make_mesh


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("n", [1, 3, 4, 33, 100])
def test_rows_go_in_whole_batches_and_come_back_in_order(devices, n, monkeypatch):
    monkeypatch.setattr(batched, "BLOCK", 8)
    monkeypatch.setattr(batched, "rows_per_batch", lambda mesh, tokens=12: 4)
    shapes = []

    def function(scale: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        shapes.append((x.shape, y.shape))
        return scale * x + y[:, 0]

    rng = np.random.default_rng(n)
    x, y = rng.normal(size=n).astype(np.float32), rng.normal(size=(n, 2)).astype(np.float32)
    mesh = make_mesh(devices=jax.devices()[:devices])
    out = map_in_fixed_batches(function, mesh)(jnp.float32(2), x, y)
    assert isinstance(out, np.ndarray)
    np.testing.assert_allclose(out, 2 * x + y[:, 0], rtol=1e-6)
    assert set(shapes) == {((4,), (4, 2))}


def test_a_cpu_computes_two_parts_of_a_block_side_by_side(monkeypatch):
    monkeypatch.setattr(batched, "rows_per_batch", lambda mesh, tokens=12: 4)
    started = []
    alone = make_mesh(devices=jax.devices()[:1])

    def function(scale: jax.Array, x: jax.Array) -> jax.Array:
        # Seen by the host when the program runs: in which thread that is, is its own.
        return jax.pure_callback(lambda x: (started.append(len(x)), x)[1], x, scale * x)

    x = np.arange(30, dtype=np.float32)
    twice = map_in_fixed_batches(function, alone)
    load = [0, 0]
    parts = twice._start(jnp.float32(2), [x], load)
    assert [(part.batches, part.padded, part.rows) for part in parts] == [(4, 4, 16), (4, 4, 14)]
    np.testing.assert_array_equal(np.concatenate([part.on_host() for part in parts]), 2 * x)
    assert started == [4] * 8
    # Rows that fit in one batch are one part, which goes to the stream with the smaller load.
    assert load == [16, 14]
    assert len(twice._start(jnp.float32(2), [x[:3]], load)) == 1
    assert load == [16, 17]
    twice._start(jnp.float32(2), [x], load)
    assert load == [32, 31]
    monkeypatch.setattr(batched, "num_streams", lambda mesh: 1)
    (whole,) = map_in_fixed_batches(function, alone)._start(jnp.float32(2), [x], [0])
    np.testing.assert_array_equal(whole.on_host(), 2 * x)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_next_of_several_calls_starts_early(devices, monkeypatch):
    monkeypatch.setattr(batched, "BLOCK", 8)
    monkeypatch.setattr(batched, "rows_per_batch", lambda mesh, tokens=12: 4)
    rng = np.random.default_rng(0)
    # Other widths, in one block and in several; the last has no rows.
    calls = [
        (rng.normal(size=(n, width)).astype(np.float32),) for n, width in ((3, 2), (200, 5), (1, 2), (64, 3), (0, 3))
    ]
    taken = []

    def given() -> Iterator[tuple[np.ndarray]]:
        for i, call in enumerate(calls):
            taken.append(i)
            yield call

    squared = map_in_fixed_batches(lambda scale, x: scale * x * x, make_mesh(devices=jax.devices()[:devices]))
    done = 0
    for i, out in enumerate(squared.each(jnp.float32(3), given())):
        assert isinstance(out, np.ndarray)
        np.testing.assert_allclose(out, 3 * calls[i][0] ** 2, rtol=1e-6)
        assert max(taken) == min(i + 1, len(calls) - 1)
        done += 1
    assert done == len(calls)


def test_batches_are_equally_full(monkeypatch):
    monkeypatch.setattr(batch_sizes, "rows_per_batch", lambda mesh, tokens: 512)
    monkeypatch.setattr(batch_sizes, "num_streams", lambda mesh: 1)
    alone, all_devices = make_mesh(devices=jax.devices()[:1]), make_mesh(devices=jax.devices()[:8])
    # 1857 rows in four batches, of which the last has three to fill up; and over eight devices, one batch each.
    assert [batch_sizes.even_rows(alone, n, 64) for n in (1, 512, 513, 1857)] == [1, 512, 257, 465]
    assert batch_sizes.even_rows(all_devices, 1857, 64) == 233
