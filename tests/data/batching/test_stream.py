"""A stream of batches is a function of its seed, goes on from its state, and is shared by processes."""

from itertools import islice

import numpy as np
import polars as pl
import pytest

from llm4rec_jax.data.batching.batch import Batch
from llm4rec_jax.data.batching.masking import ClozeMasking
from llm4rec_jax.data.interactions import DataError, Dataset, Interactions
from llm4rec_jax.data.splits.protocols import leave_one_out
from tests.data.batching.test_builder import MODES, batches_of, dataset, decoded, token_table


def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True) if x is not None and not isinstance(x, tuple))


def test_the_stream_is_a_function_of_the_seed():
    split = leave_one_out(dataset())
    first, again, other = (
        list(islice(batches_of(split, batch_size=8, history=5, seed=seed)[1], 40)) for seed in (3, 3, 4)
    )
    assert all(map(same, first, again))
    assert not any(map(same, first, other))
    # Order and negatives change from epoch to epoch.
    assert not any(same(first[0], batch) for batch in first[1:])


def test_a_stream_goes_on_from_its_state():
    """At any depth of the epochs, and whatever has been read ahead."""
    batches = batches_of(leave_one_out(dataset()), batch_size=8, history=5)[1]
    stream = iter(batches)
    for _ in range(21):
        next(stream)
    state = stream.get_state()
    rest = list(islice(stream, 5))
    resumed = iter(batches)
    resumed.set_state(state)
    assert all(map(same, rest, islice(resumed, 5)))


@pytest.mark.parametrize("masking", [None, ClozeMasking(0.5, 0.2)])
def test_two_processes_share_the_examples_of_one(masking):
    split = leave_one_out(dataset())

    def stream(shard: tuple[int, int]) -> list[Batch]:
        options = {"history": 5, "num_negatives": 20, "shard": shard, "multiple_of": 2, "masking": masking}
        return list(islice(batches_of(split, batch_size=8, **options)[1], 30))

    one, left, right = stream((0, 1)), stream((0, 2)), stream((1, 2))
    for whole, a, b in zip(one, left, right, strict=True):
        assert len(a.users) == len(b.users) == 4
        assert decoded(whole) == decoded(a) + decoded(b)
        drawn = [b.items[b.negatives] for b in (whole, a, b)]
        np.testing.assert_array_equal(drawn[0], np.concatenate(drawn[1:]))


@pytest.mark.parametrize("mode", MODES)
def test_all_batches_of_all_processes_have_one_shape(mode):
    """They are laid end to end into one array."""
    shapes = set()
    for index in (0, 1):
        options = {"history": 5, "negatives": mode, "tokens": token_table(), "shard": (index, 2), "multiple_of": 2}
        for batch in islice(batches_of(leave_one_out(dataset()), batch_size=8, **options)[1], 10):
            shapes.add(
                str([np.shape(part) for part in (*batch[:6], *batch[7:], *sum(batch.tokens, ())) if part is not None])
            )
    assert len(shapes) == 1


@pytest.mark.parametrize(
    ("batch_size", "shard", "multiple_of"),
    [(0, (0, 1), 1), (-8, (0, 1), 8), (12, (0, 1), 8), (6, (1, 4), 4), (8, (0, 2), 1)],
)
def test_a_batch_that_cannot_be_shared_is_refused(batch_size, shard, multiple_of):
    with pytest.raises(ValueError, match=f"batch_size {batch_size} is not a positive multiple of"):
        batches_of(leave_one_out(dataset()), batch_size=batch_size, shard=shard, multiple_of=multiple_of)


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(ValueError, match="workers is -1: give the number of processes"):
        batches_of(leave_one_out(dataset()), batch_size=8, workers=-1)


def test_nothing_to_train_on_is_refused():
    users = np.repeat(np.arange(3, dtype=np.int32), 3)
    data = Interactions(users, np.arange(9, dtype=np.int32), None, np.arange(9))
    tables = pl.DataFrame({"item_id": [str(i) for i in range(9)]}), pl.DataFrame({"user_id": list("abc")})
    split = leave_one_out(Dataset("short", data, *tables))
    with pytest.raises(DataError, match="no user has a training target with an item before it"):
        batches_of(split, batch_size=1)


def test_ratings_that_the_data_lacks_are_refused():
    whole = dataset()
    data = whole.interactions
    unrated = Dataset("unrated", Interactions(data.user, data.item, None, data.timestamp), whole.items, whole.users)
    with pytest.raises(DataError, match="learns ratings, but the data has none"):
        batches_of(leave_one_out(unrated), batch_size=1, negatives="none", ratings=True)
