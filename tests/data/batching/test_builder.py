"""Batches decoded back into the split that they were made from."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import fields
from itertools import islice
from typing import Any

import numpy as np
import polars as pl
import pytest

from llm4rec_jax.data.batching.batch import NOWHERE, Batch, in_groups, token_group
from llm4rec_jax.data.batching.builder import BatchBuilder, BatchOptions, training_batches
from llm4rec_jax.data.batching.masking import ClozeMasking
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.interactions import Dataset, Interactions
from llm4rec_jax.data.splits.protocols import few_shot, global_time, leave_one_out
from llm4rec_jax.data.splits.split import Sequences, Split

USERS, ITEMS = 23, 150
MODES = ("sampled", "in_batch", "mixed", "catalogue", "none")


def batches_of(split: Split, **options: Any) -> tuple[BatchBuilder, Any]:
    """`training_batches` with its options and those of a batch side by side."""
    of_batch = {field.name: options.pop(field.name) for field in fields(BatchOptions) if field.name in options}
    return training_batches(split, BatchOptions(**of_batch), **options)


def dataset(size: int = 500, seed: int = 0) -> Dataset:
    """Users from none to very many interactions, items more than once; each interaction has a rating of its own."""
    rng = np.random.default_rng(seed)
    return Dataset(
        "random",
        Interactions(
            (USERS * rng.random(size) ** 2).astype(np.int32),
            rng.integers(ITEMS, size=size, dtype=np.int32),
            rng.permutation(size).astype(np.float32),
            rng.integers(60, size=size),
        ),
        pl.DataFrame({"item_id": [f"i{i}" for i in range(ITEMS)]}),
        pl.DataFrame({"user_id": [f"u{u}" for u in range(USERS)]}),
    )


def token_table(seed: int = 0) -> Tokens:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 40, ITEMS, dtype=np.int32)
    ids = np.where(np.arange(lengths.max()) < lengths[:, None], rng.integers(1, 99, (ITEMS, lengths.max())), 0)
    return Tokens(ids.astype(np.int32), lengths)


def epoch(split: Split, **options: Any) -> list[Batch]:
    """Batches of one example each, as many as there are examples."""
    builder, batches = batches_of(split, batch_size=1, **options)
    return list(islice(batches, len(builder.examples.user)))


def decoded(batch: Batch) -> list[tuple[int, list[int], list[int]]]:
    """Each example's user, history and targets as rows of the tables."""
    items = np.asarray(batch.items)
    return [
        (int(user), items[history][mask].tolist(), items[target][target_mask].tolist())
        for user, history, mask, target, target_mask in zip(
            batch.users, batch.history, batch.history_mask, batch.target, batch.target_mask, strict=True
        )
    ]


def target_rows(split: Split, batches: Iterable[Batch]) -> Counter[int]:
    """Counts how often each interaction is a target, told by its rating."""
    assert split.dataset.interactions.rating is not None
    row_of = {rating: row for row, rating in enumerate(split.dataset.interactions.rating.tolist())}
    counts: Counter[int] = Counter()
    for batch in batches:
        assert batch.rating is not None
        counts.update(row_of[r] for r in np.asarray(batch.rating)[np.asarray(batch.target_mask)].tolist())
    return counts


def teachable(split: Split) -> list[int]:
    """Training targets with an earlier training interaction of their user."""
    users = split.dataset.interactions.user[split.train]
    later = np.r_[False, users[1:] == users[:-1]]
    return sorted(split.train[later & split.targets].tolist())


@pytest.mark.parametrize("every_position", [True, False])
@pytest.mark.parametrize("history", [1, 4, 100])
@pytest.mark.parametrize("few", [{}, {"k": 3, "per": "user"}, {"k": 10, "per": "total"}])
def test_each_training_target_comes_exactly_once_an_epoch(few, history, every_position):
    split = leave_one_out(dataset())
    split = few_shot(split, **few) if few else split
    options = {"history": history, "every_position": every_position, "negatives": "none", "ratings": True}
    counts = target_rows(split, epoch(split, **options))
    assert sorted(counts) == teachable(split)
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("every_position", [True, False])
@pytest.mark.parametrize("history", [1, 4, 100])
def test_a_position_has_read_what_came_before_its_target_and_nothing_else(history, every_position):
    """The items of history are made to tell their interaction: each interaction has an item of its own."""
    size = 200
    whole = dataset(size)
    data = whole.interactions
    unique = Dataset(
        "unique",
        Interactions(data.user, np.arange(size, dtype=np.int32), data.rating, data.timestamp),
        pl.DataFrame({"item_id": [str(i) for i in range(size)]}),
        whole.users,
    )
    split = leave_one_out(unique)
    sequences = split.training()[0]
    ends = 0
    for batch in epoch(split, history=history, every_position=every_position, negatives="none"):
        ((user, read, targets),) = decoded(batch)
        sequence = sequences.of(user).tolist()
        at = [sequence.index(target) for target in targets]
        if every_position:
            for t, place in enumerate(at):
                assert read[: t + 1] == sequence[max(0, at[0] - 1) : place]
        else:
            assert read == sequence[max(0, at[0] - history) : at[0]]
        ends += at[-1] == len(sequence) - 1
    assert ends == (np.diff(sequences.offsets) > 1).sum()


@pytest.mark.parametrize("with_tokens", [False, True])
@pytest.mark.parametrize("every_position", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("multiple_of", [1, 8])
def test_what_a_batch_holds(mode, every_position, with_tokens, multiple_of):
    split = global_time(dataset())
    tokens = token_table() if with_tokens else None
    builder, batches = batches_of(
        split,
        batch_size=8,
        history=5,
        every_position=every_position,
        negatives=mode,
        num_negatives=3,
        alpha=0.75,
        ratings=mode == "none",
        tokens=tokens,
        multiple_of=multiple_of,
    )
    sequences, _ = split.training()
    popularity = np.bincount(sequences.items, minlength=ITEMS)
    examples = {example: [] for example in zip(*(column.tolist() for column in builder.examples), strict=True)}
    for batch in islice(batches, 6):
        items = np.asarray(batch.items)
        used = [batch.history, batch.target] + ([batch.negatives] if mode == "sampled" else [])
        used += [np.flatnonzero(batch.candidates)] if mode == "mixed" else []
        places = np.unique(np.concatenate([np.ravel(part) for part in used]))
        if mode == "catalogue":
            assert batch.candidates is not None
            places = np.flatnonzero(batch.candidates)
            np.testing.assert_array_equal(np.sort(items[places]), np.flatnonzero(split.known))
        # Each item has one place; what is left are repeats, for padding.
        assert len(np.unique(items[places])) == len(places) == len(np.unique(items))
        assert len(items) % multiple_of == 0
        assert np.shape(batch.history) == np.shape(batch.history_mask) == (8, 5)
        assert np.shape(batch.target) == np.shape(batch.target_mask) == (8, 5 if every_position else 1)

        for user, read, targets in decoded(batch):
            of = [e for e in examples if e[0] == user and sequences.items[e[1] : e[2]].tolist() == read]
            wanted = [sequences.items[(e[1] + 1 if every_position else e[2]) : e[2] + 1].tolist() for e in of]
            assert targets in wanted

        assert (batch.negatives is not None) == (mode == "sampled")
        if batch.negatives is not None:
            assert np.shape(batch.negatives) == (*np.shape(batch.target), 3)
            for user, negatives in zip(batch.users, items[batch.negatives], strict=True):
                assert not np.isin(negatives, sequences.of(user)).any()
                assert split.known[negatives].all()
            weights = np.where(split.known, np.maximum(popularity, 0.5) ** 0.75, 0)
            share = (weights / weights.sum())[items[batch.negatives]]
            np.testing.assert_allclose(np.asarray(batch.log_q)[batch.negatives], np.log(share), rtol=1e-5)
        if mode in ("in_batch", "mixed"):
            check_in_batch(batch, sequences, popularity, 3 if mode == "mixed" else 0, int(split.known.sum()))
        else:
            assert (batch.log_q is None) == (mode != "sampled")
            assert batch.user_items is None
            assert (batch.candidates is not None) == (mode == "catalogue")
        check_tokens(batch, tokens)


def check_in_batch(batch: Batch, sequences: Sequences, popularity: np.ndarray, drawn: int, known: int) -> None:
    """A candidate is a target, by popularity, or one of the uniform draws from the known items."""
    assert batch.candidates is not None
    assert batch.user_items is not None
    items, target = np.asarray(batch.items), np.asarray(batch.target)
    targets, count = np.unique(target[np.asarray(batch.target_mask)]), int(np.sum(batch.target_mask))
    candidates = np.flatnonzero(batch.candidates)
    assert np.isin(targets, candidates).all()
    assert len(np.setdiff1d(candidates, targets)) <= drawn
    share = count * np.maximum(popularity[items[candidates]], 1) / popularity.sum() + drawn / known
    np.testing.assert_allclose(np.asarray(batch.log_q)[candidates], np.log(share / (count + drawn)), rtol=1e-5)
    for user, own in zip(batch.users, np.asarray(batch.user_items), strict=True):
        assert own[own >= 0].tolist() == sorted(sequences.of(user))
        assert (np.diff(own) >= 0).all()


def check_tokens(batch: Batch, tokens: Tokens | None) -> None:
    if tokens is None:
        assert batch.tokens == ()
        return
    items, at = np.asarray(batch.items), 0
    for ids, mask in batch.tokens:
        rows = items[at : at + len(ids)]
        at += len(ids)
        for row, text, kept in zip(rows, np.asarray(ids), np.asarray(mask), strict=True):
            # Padding in a group that no text of the batch is in repeats a text, cut.
            length = min(tokens.lengths[row], len(text))
            np.testing.assert_array_equal(text[:length], tokens.ids[row, :length])
            assert not text[length:].any()
            assert kept[:length].all()
            assert not kept[length:].any()
    assert at == len(items)
    # Each item that something points to is in the first group that holds it.
    widths = [np.shape(ids)[1] for ids, _ in batch.tokens]
    assert widths == sorted(set(widths))
    assert len(widths) > 1
    group = np.repeat(np.arange(len(widths)), [len(ids) for ids, _ in batch.tokens])
    used = [np.ravel(part) for part in (batch.history, batch.target, batch.negatives) if part is not None]
    places = np.unique(np.concatenate(used))
    np.testing.assert_array_equal(group[places], np.searchsorted(widths, tokens.lengths[items[places]]))


@pytest.mark.parametrize("mode", ["sampled", "in_batch", "none"])
@pytest.mark.parametrize("with_tokens", [False, True])
def test_nearly_all_batches_have_one_shape(mode, with_tokens):
    options: Any = {"negatives": mode, "ratings": mode == "none", "compact_targets": True, "group_cost": 100}
    tokens = token_table() if with_tokens else None
    _, stream = batches_of(leave_one_out(dataset(3000)), batch_size=16, history=9, tokens=tokens, **options)
    shapes = Counter(shapes_of(batch) for batch in islice(stream, 300))
    assert shapes.most_common(1)[0][1] > 285, shapes


def shapes_of(batch: Batch) -> tuple[tuple[int, ...], ...]:
    arrays = [batch._replace(tokens=()), *(array for group in batch.tokens for array in group)]
    return tuple(np.shape(array) for array in [*arrays[0], *arrays[1:]] if array is not None and len(array))


@pytest.mark.parametrize("mode", ["sampled", "in_batch"])
def test_more_room_in_a_batch_changes_nothing_else(mode):
    tokens = token_table()
    options: Any = {"batch_size": 4, "history": 5, "negatives": mode, "num_negatives": 2, "compact_targets": True}
    for batch in islice(batches_of(leave_one_out(dataset()), tokens=tokens, **options)[1], 5):
        shapes = [np.shape(ids) for ids, _ in batch.tokens]
        assert in_groups(batch, shapes) is batch
        wide = in_groups(batch, [*((rows + 3 * g, length + g % 2) for g, (rows, length) in enumerate(shapes)), (2, 50)])
        assert [np.shape(ids) for ids, _ in wide.tokens][-1] == (2, 50)
        assert decoded(wide) == decoded(batch)
        pointed_at = set(np.concatenate([wide.history.ravel(), wide.target.ravel()]).tolist())
        at = 0
        for ids, mask in wide.tokens:
            for text, kept in zip(np.asarray(ids), np.asarray(mask), strict=True):
                row = wide.items[at]
                # A text without a token would have no mean.
                assert kept.any()
                assert at not in pointed_at or kept.sum() == tokens.lengths[row]
                np.testing.assert_array_equal(text[: kept.sum()], tokens.ids[row, : kept.sum()])
                at += 1
        assert at == len(wide.items)
        if mode == "sampled":
            np.testing.assert_array_equal(wide.items[wide.negatives], batch.items[batch.negatives])
        else:
            np.testing.assert_array_equal(np.sort(wide.items[wide.candidates]), np.sort(batch.items[batch.candidates]))
            np.testing.assert_array_equal(wide.log_q[wide.target], batch.log_q[batch.target])


def test_a_group_of_a_catalogue_saves_what_it_costs():
    def groups(cost: int) -> Any:
        options: Any = {"batch_size": 8, "history": 5, "negatives": "catalogue", "group_cost": cost}
        return next(iter(batches_of(leave_one_out(dataset()), tokens=token_table(), **options)[1]))

    many, one = groups(0), groups(10**6)
    assert len(many.tokens) > 1 == len(one.tokens)
    np.testing.assert_array_equal(one.items[one.target], many.items[many.target])
    check_tokens(many, token_table())


def test_prompts_are_written_from_the_history_alone():
    seen = []

    def prompts(read: list[np.ndarray], users: np.ndarray):
        seen.append([(int(user), items.tolist()) for user, items in zip(users, read, strict=True)])
        return token_group(token_table(), np.zeros(len(users), int), 8)

    options = {"batch_size": 8, "history": 4, "every_position": False, "negatives": "none"}
    batch, by_items = (
        next(iter(batches_of(leave_one_out(dataset()), **options, **more)[1])) for more in ({"prompts": prompts}, {})
    )
    assert batch.prompt is not None
    assert [(user, read) for user, read, _ in decoded(by_items)] in seen
    # No item of a history need be encoded.
    assert batch.history.shape == batch.history_mask.shape == (8, 0)
    assert set(batch.items.tolist()) == {target for _, _, (target,) in decoded(by_items)}
    np.testing.assert_array_equal(batch.items[batch.target], by_items.items[by_items.target])


def test_users_first_items_are_targets_where_no_history_is_read():
    split = leave_one_out(dataset())
    options = {"history": 1, "every_position": False, "predict_first": True}
    found = Counter((user, target) for b in epoch(split, **options) for user, _, (target,) in decoded(b))
    training, _ = split.training()
    user = np.repeat(np.arange(USERS), np.diff(training.offsets))
    assert found == Counter(zip(user.tolist(), training.items.tolist(), strict=True))


def test_masking_hides_what_they_ask_for():
    split = leave_one_out(dataset())
    share, mask_last_prob = 0.3, 0.25
    builder, batches = batches_of(
        split,
        batch_size=8,
        history=6,
        masking=ClozeMasking(share, mask_last_prob),
        negatives="catalogue",
        compact_targets=True,
    )
    hidden = positions = lone_last = windows_seen = 0
    sequences = builder.sequences
    for batch in islice(batches, 150):
        assert batch.history.shape == batch.target.shape == (8, 7)
        np.testing.assert_array_equal(batch.history, batch.target)
        np.testing.assert_array_equal(batch.masked_positions, batch.target_mask)
        assert not (batch.masked_positions & ~batch.history_mask).any()
        assert batch.masked_positions.any(1).all()
        assert batch.target_positions is not None
        np.testing.assert_array_equal(
            batch.target_positions[batch.target_positions != NOWHERE], np.flatnonzero(batch.masked_positions)
        )
        for user, _, items in decoded(batch._replace(target_mask=batch.history_mask)):
            # A whole window: consecutive items of the user, the last target among them.
            own = sequences.of(user).tolist()
            assert any(own[i : i + len(items)] == items for i in range(len(own)))
        last = np.arange(7) == batch.history_mask.sum(1, keepdims=True) - 1
        long = batch.history_mask.sum(1) == 7
        lone_last += (batch.masked_positions == last)[long].all(1).sum()
        hidden += batch.masked_positions[long].sum()
        positions, windows_seen = positions + 7 * long.sum(), windows_seen + long.sum()
    # Only the last: by design, by chance, or where chance hid nothing.
    none, by_chance = (1 - share) ** 7, share * (1 - share) ** 6
    alone = mask_last_prob + (1 - mask_last_prob) * (none + by_chance)
    assert lone_last / windows_seen == pytest.approx(alone, abs=4 * (alone * (1 - alone) / windows_seen) ** 0.5)
    expected = mask_last_prob / 7 + (1 - mask_last_prob) * (share + none / 7)
    assert hidden / positions == pytest.approx(expected, abs=0.03)
