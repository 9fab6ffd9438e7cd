"""A padding plan from a sample: nearly all batches fit in few groups; those that need more get a bucket."""

import numpy as np
import pytest

from llm4rec_jax.data.batching.buckets import bucket, token_bucket
from llm4rec_jax.data.batching.padding import SAMPLE, BatchSizes, PaddingPlan, fit, plan_padding


def sizes(rng: np.random.Generator, items: int) -> BatchSizes:
    lengths = np.minimum(4 + rng.poisson(7, rng.poisson(items)), 60)
    return BatchSizes(lengths, int(rng.poisson(500)), int(rng.integers(20, 90)))


@pytest.mark.parametrize("items", [20, 300])
@pytest.mark.parametrize("multiple_of", [1, 3, 8])
@pytest.mark.parametrize("cost", [0, 100, 10**6])
def test_nearly_all_fit(items, multiple_of, cost):
    rng = np.random.default_rng(items)
    plan = plan_padding([sizes(rng, items) for _ in range(SAMPLE)], cost, multiple_of)
    assert all(rows % multiple_of == rows % 8 == 0 for rows in plan.rows)
    if cost == 10**6:
        assert len(plan.rows) == 1
    shapes = []
    for _ in range(300):
        lengths, real, _ = sizes(rng, items)
        groups = plan.groups(lengths)
        np.testing.assert_array_equal(np.sort(np.concatenate([g.members for g in groups])), np.arange(len(lengths)))
        for below, group in zip((0, *plan.lengths), groups, strict=False):
            assert len(group.members) <= group.rows
            assert ((lengths[group.members] > below) & (lengths[group.members] <= group.length)).all()
        assert real <= fit(real, plan.target_positions)
        shapes.append((tuple((g.length, g.rows) for g in groups), fit(real, plan.target_positions)))
    usual = (tuple(zip(plan.lengths, plan.rows, strict=True)), plan.target_positions)
    # One batch in ten may have a longer text than those of the sample.
    assert np.mean([shape == usual for shape in shapes]) > 0.8
    assert np.mean([shape[0][: len(plan.rows)] == usual[0] for shape in shapes]) > 0.97


def test_what_does_not_fit_gets_a_bucket():
    plan = PaddingPlan(lengths=(8, 16), rows=(16, 8), target_positions=24, user_items=5, multiple_of=2)
    assert [fit(n, 24) for n in (0, 24, 25, 49)] == [24, 24, 32, bucket(49)]
    lengths = np.array([3] * 17 + [9] * 8 + [40, 20])
    first, second, beyond = plan.groups(lengths)
    assert (first.length, first.rows, len(first.members)) == (8, bucket(17, 2), 17)
    assert (second.length, second.rows, len(second.members)) == (16, 8, 8)
    assert (beyond.length, beyond.rows, beyond.members.tolist()) == (token_bucket(40), 16, [25, 26])


def test_a_rare_long_text_makes_no_room_for_itself():
    ordinary = [BatchSizes(np.full(100, 10), 8, 1)] * (SAMPLE - 2)
    rare = [BatchSizes(np.array([*np.full(99, 10), 500]), 8, 1)] * 2
    assert plan_padding([*ordinary, *rare], 0, 1).lengths == (12,)
    assert plan_padding([*ordinary, *rare * 4], 0, 1).lengths == (12, 500)


def test_items_without_texts_are_one_group():
    plan = plan_padding([BatchSizes(np.zeros(n, np.int32), 8, 1) for n in (90, 100, 110)], 100, 1)
    assert plan.lengths == (0,)
    (group,) = plan.groups(np.zeros(95, np.int32))
    assert group.rows == plan.rows[0] > 110
