"""One program a shape, begun early or not, and what is said of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.data.batching.batch import Batch
from llm4rec_jax.training.compiled_steps import CompiledSteps


def batch(rows: int) -> Batch:
    one = np.ones((rows, 3), np.int32)
    return Batch(one[:, 0], one[:, 0], one, one > 0, one, one > 0)


def function(weights, batch, item_micro_batch=0):
    return (jnp.asarray(batch.history, jnp.float32) @ weights).sum()


WEIGHTS = np.ones((3, 5), np.float32)


def steps(function, **options) -> CompiledSteps:
    jitted = jax.jit(function, static_argnames="item_micro_batch")
    return CompiledSteps(jitted, lambda batch: [(16, len(batch.users))], 2**30, **options)


def test_there_is_one_program_a_shape():
    traced = []
    programs = steps(lambda weights, batch, item_micro_batch: (traced.append(1), function(weights, batch))[1])
    assert (len(programs), batch(4) in programs) == (0, False)
    assert float(programs.compile(WEIGHTS, batch(4)).program(WEIGHTS, batch(4))) == 60
    assert float(programs(WEIGHTS, batch(4))) == 60
    assert programs.flops(batch(4)) == 2 * 4 * 3 * 5
    programs.compile(WEIGHTS, batch(8))
    assert (len(programs), batch(8) in programs, batch(2) in programs, len(traced)) == (2, True, False, 2)


def test_one_is_begun_from_shapes_and_waited_for():
    traced = []
    programs = steps(lambda weights, batch, item_micro_batch: (traced.append(1), function(weights, batch))[1])
    programs.begin(jax.ShapeDtypeStruct(WEIGHTS.shape, WEIGHTS.dtype), batch(4))
    assert batch(4) not in programs
    programs.compile(WEIGHTS, batch(4))
    assert batch(4) in programs
    assert float(programs(WEIGHTS, batch(4))) == 60
    assert len(traced) == 1


def test_what_goes_wrong_in_the_thread_is_raised_where_it_is_waited_for():
    programs = steps(function)
    programs.begin(np.ones((4, 5), np.float32), batch(4))
    with pytest.raises(TypeError, match="dot_general"):
        programs.compile(np.ones((4, 5), np.float32), batch(4))


def test_flops_are_shared_by_the_devices_and_unknown_in_a_while_loop():
    programs = steps(function, devices=2)
    programs.compile(WEIGHTS, batch(4))
    assert programs.flops(batch(4)) == 4 * 3 * 5

    def loop(weights, batch, item_micro_batch):
        return jax.lax.while_loop(lambda total: total < 9, lambda total: total + function(weights, batch, 0), 0.0)

    programs = steps(loop)
    programs.compile(WEIGHTS, batch(4))
    assert programs.flops(batch(4)) == 0


def test_each_program_has_the_micro_batches_that_fit():
    def encode(weights, batch, item_micro_batch):
        # 256 KiB for each text that is encoded at a time.
        texts = jnp.arange(item_micro_batch or 16) * weights[0, 0]
        return jnp.outer(texts, jnp.arange(2.0**16) + batch.users[0]).sort(0).sum()

    jitted = jax.jit(encode, static_argnames="item_micro_batch")
    programs = CompiledSteps(jitted, lambda batch: [(16, 4)], 14 * 2**18)
    fitting = programs.compile(WEIGHTS, batch(4))
    assert fitting.item_micro_batch == 8
    assert "8 at a time" in fitting.note
    assert programs.flops(batch(4)) == 0
    assert np.isfinite(programs(WEIGHTS, batch(4)))
