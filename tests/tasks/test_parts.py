"""Rows in parts: the same values and gradients, in the memory of one part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.sharding import make_mesh
from llm4rec_jax.tasks.parts import map_parts, split_rows

ROWS = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(10, 3)), jnp.float32), "i": jnp.arange(10)}
WEIGHT = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)


def dropped(weight, rows, key):
    x = jnp.tanh(rows["x"] @ weight) + rows["i"][:, None]
    return x if key is None else jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0)


@pytest.mark.parametrize("parts", [1, 2, 3, 10])
def test_values_and_gradients_are_those_of_all_rows(parts):
    def value(weight, x, parts):
        rows = {**ROWS, "x": x}
        one = (lambda rows, key: dropped(weight, rows, key)) if parts else None
        values = map_parts(one, rows, None, parts) if one else dropped(weight, rows, None)
        return jnp.square(values).sum()

    found, wanted = (jax.value_and_grad(value, argnums=(0, 1))(WEIGHT, ROWS["x"], n) for n in (parts, 0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted)


def test_dropout_is_the_same_in_both_passes_and_another_in_each_part():
    key = jax.random.key(3)

    def parts(weight):
        return map_parts(lambda rows, key: dropped(weight, rows, key), ROWS, key, 5)

    def apart(weight):
        each = zip(range(0, 10, 2), jax.random.split(key, 5), strict=True)
        return jnp.concatenate([dropped(weight, {name: a[i : i + 2] for name, a in ROWS.items()}, k) for i, k in each])

    np.testing.assert_allclose(parts(WEIGHT), apart(WEIGHT), rtol=1e-6)
    assert len({tuple(mask) for mask in np.asarray(parts(WEIGHT) == 0).reshape(5, -1)}) > 1
    grads = (jax.grad(lambda w, f=f: jnp.square(f(w)).sum())(WEIGHT) for f in (parts, apart))
    np.testing.assert_allclose(*grads, rtol=1e-5)


def test_memory_is_that_of_one_part():
    def bytes_of(rows: int, parts: int, groups: int = 1) -> int:
        def value(weight, x):
            def deep(x, key):
                for _ in range(6):
                    x = jnp.tanh(x @ weight)
                return x[:, 0]

            each = (map_parts(deep, rows, None, parts) if parts else deep(rows, None) for rows in jnp.split(x, groups))
            return sum(values.sum() for values in each)

        shapes = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 64), (rows, 64)))
        return jax.jit(jax.grad(value)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    whole, few, many = bytes_of(4096, 0), bytes_of(4096, 32), bytes_of(8192, 64)
    assert few < whole / 4
    # Groups of rows come one after another too, whether each is in several parts or not.
    assert bytes_of(4096, 1, groups=16) < whole / 4
    assert many < 1.5 * few + 4096 * 64 * 4


def test_each_part_lies_on_all_devices():
    mesh = make_mesh()
    rows = jax.device_put(np.arange(40), jax.NamedSharding(mesh, jax.P("data")))
    split = jax.jit(lambda rows: split_rows(rows, 3, mesh))(rows)
    assert split.shape == (3, 16)
    assert {shard.data.shape for shard in split.addressable_shards} == {(3, 2)}
    np.testing.assert_array_equal(np.asarray(split).ravel()[:40], np.arange(40))
    again = jax.jit(lambda rows: map_parts(lambda rows, key: rows * 2, rows, None, 3, mesh))(rows)
    np.testing.assert_array_equal(again, 2 * np.arange(40))
