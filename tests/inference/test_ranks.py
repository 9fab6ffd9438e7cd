"""Ranks and lists against the definition, whatever the chunk, the batch and the devices."""

import json
import os
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.data.splits.split import Sequences
from llm4rec_jax.evaluation import metrics
from llm4rec_jax.inference import ranks as ranking
from llm4rec_jax.inference import tiles
from llm4rec_jax.inference.ranks import NonFiniteScores, Ranking, Ranks, rank
from llm4rec_jax.sharding import make_mesh


def dot(params: None, user_embeddings: jax.Array, item_embeddings: jax.Array) -> jax.Array:
    return user_embeddings @ item_embeddings.T


class Case(NamedTuple):
    """Vectors, and by user what is known and what is wanted."""

    users: np.ndarray
    items: np.ndarray
    history: Sequences
    targets: Sequences
    candidates: np.ndarray


def sequences(lists: list[list[int]]) -> Sequences:
    items = np.array([item for row in lists for item in row], np.int32)
    return Sequences(np.cumsum([0, *map(len, lists)], dtype=np.int64), items, None, None)


def case(seed: int, num_users: int = 37, num_items: int = 2500, whole: bool = True, share: float = 0.7) -> Case:
    """Users without targets, with several, and with targets from their history.

    Whole numbers make scores exact, with many ties.
    """
    rng = np.random.default_rng(seed)
    users, items = rng.normal(size=(num_users, 6)), rng.normal(size=(num_items, 6))
    if whole:
        users, items = np.round(users), np.round(items)
    candidates = rng.random(num_items) < share
    ranked = np.flatnonzero(candidates)
    history, targets = [], []
    for _ in range(num_users):
        seen = rng.integers(num_items, size=rng.integers(0, 60)).tolist()
        wanted = rng.choice(ranked, rng.choice([0, 1, 1, 2, 5, 20])).tolist()
        again = [item for item in seen if candidates[item]][: rng.integers(0, 3)] if wanted else []
        history.append(seen)
        targets.append(list(dict.fromkeys(wanted + again)))
    return Case(users.astype(np.float32), items.astype(np.float32), sequences(history), sequences(targets), candidates)


def run(case: Case, devices: int = 1, **options: Any) -> Ranking:
    return rank(
        dot,
        None,
        lambda users: case.users[users],
        case.items,
        history=case.history,
        targets=case.targets,
        candidates=case.candidates,
        mesh=make_mesh(devices=jax.devices()[:devices]),
        **options,
    )


def equal(a: Ranking, b: Ranking) -> None:
    for x, y in zip(a.ranks, b.ranks, strict=True):
        np.testing.assert_array_equal(x, y)
    assert a.repeated == b.repeated
    np.testing.assert_array_equal(a.lists, b.lists)
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-6, atol=1e-6)


def by_definition(case: Case, top: int, everyone: bool = False) -> Ranking:
    """User by user with a whole sort."""
    scores = case.users.astype(np.float64) @ case.items.T.astype(np.float64)
    columns: list[list[int]] = [[], [], []]
    lists, values = np.full((len(scores), top), -1), np.full((len(scores), top), -np.inf)
    repeated = 0
    for user, row in enumerate(scores):
        seen, wanted = case.history.of(user), case.targets.of(user)
        repeated += len(set(seen) & set(wanted))
        masked = ~case.candidates | (np.isin(np.arange(len(row)), seen) & ~np.isin(np.arange(len(row)), wanted))
        if len(wanted):
            found = metrics.ranks(row, wanted, masked)
            columns = [a + b.tolist() for a, b in zip(columns, found[1:], strict=True)]
        else:
            columns[2].append(0)
        if len(wanted) or everyone:
            best = np.argsort(np.where(masked, np.inf, -row), kind="stable")[: min(top, (~masked).sum())]
            lists[user, : len(best)], values[user, : len(best)] = best, row[best]
    return Ranking(Ranks(case.targets.offsets, *map(np.array, columns)), lists, values, repeated)


@pytest.mark.parametrize("everyone", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_ranks_and_lists_are_those_of_the_definition(seed, everyone):
    drawn = case(seed)
    expected = by_definition(drawn, 30, everyone)
    # The case has what it promises.
    counts = np.diff(drawn.targets.offsets)
    assert counts.min() == 0
    assert counts.max() > 5
    assert (expected.ranks.ties > 0).mean() > 0.5
    assert expected.repeated
    equal(run(drawn, top=30, everyone=everyone), expected)


@pytest.mark.parametrize("whole", [True, False])
def test_nothing_depends_on_chunk_batch_or_devices(whole, monkeypatch):
    # Small tiles, so that a small case has several.
    for module in (ranking, tiles):
        monkeypatch.setattr(module, "USER_TILE", 128)
        monkeypatch.setattr(module, "ITEM_TILE", 1024)
    drawn = case(5, num_users=300, num_items=5500, whole=whole)
    expected = run(drawn, chunk=10**6, batch_size=1000, top=20)
    if whole:
        equal(expected, by_definition(drawn, 20))
    for chunk, batch_size, devices in (
        (1, 1, 1),
        (1024, 256, 1),
        (2048, 256, 1),
        (5000, 256, 1),
        (10**6, 256, 1),
        (2048, 200, 8),
        (10**6, 1, 8),
    ):
        equal(run(drawn, devices, chunk=chunk, batch_size=batch_size, top=20), expected)
    for devices in (1, 8):
        # Without lists ranks are counted another way, over all items at once.
        for one, other in zip(run(drawn, devices).ranks, expected.ranks, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("whole", [True, False])
def test_a_catalogue_in_another_order_gives_the_same_ranks(whole):
    drawn = case(6, whole=whole)
    place = np.random.default_rng(0).permutation(len(drawn.items))
    moved = np.argsort(place)
    permuted = drawn._replace(
        items=drawn.items[moved],
        candidates=drawn.candidates[moved],
        history=drawn.history._replace(items=place[drawn.history.items]),
        targets=drawn.targets._replace(items=place[drawn.targets.items]),
    )
    equal(run(permuted, chunk=1024), run(drawn, chunk=1024))


def test_items_of_one_vector_tie_wherever_they_stand():
    """Vectors that are not whole: a sum taken in another order would break the ties."""
    drawn = case(13, whole=False)
    kind = np.random.default_rng(0).integers(len(drawn.items) // 5, size=len(drawn.items))
    drawn = drawn._replace(items=drawn.items[kind], history=sequences([[]] * len(drawn.users)))
    others = np.bincount(kind[drawn.candidates])[kind[drawn.targets.items]] - 1
    ties = run(drawn, chunk=1024).ranks.ties
    assert (ties >= others).all()
    # Different vectors may come to the same score by chance, though rarely.
    assert (ties == others).mean() > 0.99


def test_constant_scores_rank_every_target_last():
    drawn = case(7)
    found = run(drawn._replace(users=np.zeros_like(drawn.users))).ranks
    last = np.repeat(found.candidates, np.diff(found.offsets))
    np.testing.assert_array_equal(found.rank, last)
    np.testing.assert_array_equal(found.ties, last - 1)


def test_a_list_holds_all_there_is_when_that_is_little():
    drawn = case(8, num_items=40, share=0.5)
    equal(run(drawn, top=39), by_definition(drawn, 39))


def test_without_any_target_there_are_lists_all_the_same():
    drawn = case(9)._replace(targets=sequences([[]] * 37))
    found = run(drawn, top=5, everyone=True)
    equal(found, by_definition(drawn, 5, everyone=True))
    assert not len(found.ranks.rank)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused_with_the_user(value):
    drawn = case(10, num_users=300)
    user = int(np.flatnonzero(np.diff(drawn.targets.offsets))[-1])
    users = drawn.users.copy()
    users[user] = 1
    users[user, 0] = value
    items = np.abs(drawn.items) + 1
    broken = drawn._replace(users=users, items=items)
    for devices in (1, 8):
        with pytest.raises(NonFiniteScores, match=f"^scores of 1 users .* is user row {user}:"):
            run(broken, devices)


def test_a_last_chunk_that_is_not_finite_is_found():
    drawn = case(11)
    items = drawn.items.copy()
    items[np.flatnonzero(drawn.candidates)[-1]] = np.nan
    with pytest.raises(NonFiniteScores):
        run(drawn._replace(items=items), chunk=1024)
    # Nobody is offered an item that is no candidate, so its score is nobody's concern.
    items = drawn.items.copy()
    items[~drawn.candidates] = np.nan
    equal(run(drawn._replace(items=items), chunk=1024), run(drawn, chunk=1024))


def test_a_target_outside_the_candidates_is_refused():
    drawn = case(12)
    outside = drawn.targets.items[3]
    candidates = drawn.candidates.copy()
    candidates[outside] = False
    count = (drawn.targets.items == outside).sum()
    with pytest.raises(
        ValueError, match=f"{count} targets are not among the candidates, the first being item {outside}"
    ):
        run(drawn._replace(candidates=candidates))


def compiled(devices: int, items: int, width: int, top: int) -> jax.stages.Compiled:
    """The program that counts over a chunk, for a catalogue that need not be there."""
    cut = ranking.grid(make_mesh(devices=jax.devices()[:devices]), items, 8192 if top else items)
    parts, users = cut.mesh.shape["item"], ranking.USER_TILE

    def some(shape: tuple[int, ...], kind: Any, *axes: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, kind, sharding=cut.sharding(*axes))

    both = ("item", "user")
    found = ranking._Found(
        some((parts, users, 1), jnp.int32, *both),
        some((parts, users, 1), jnp.int32, *both),
        some((parts, users), jnp.int32, *both),
        some((parts, users, top), jnp.float32, *both),
        some((parts, users, top), jnp.int32, *both),
    )
    shards, tiles = cut.mesh.shape["user"], cut.width // ranking.ITEM_TILE
    places = some((shards, parts, users // shards // ranking.USER_TILE, tiles, 16), jnp.int32, "user", "item")
    return ranking._chunk.lower(
        dot, cut, None, found,
        some((users, width), jnp.float32, "user"),
        some((parts, cut.part, width), jnp.float32, "item"), some((parts, cut.part), bool, "item"),
        some((users, 1), jnp.float32, "user"), some((users, 1), jnp.int32, "user"), places, places, 0,
    ).compile()  # fmt: skip


@pytest.mark.parametrize("top", [0, 20])
def test_a_device_holds_its_part_of_the_catalogue_only(top):
    """100 million items of width 64 are 25.6 GB, more than most devices have."""
    sizes = {}
    for devices in (1, 2, 4, 8):
        memory = compiled(devices, 100_000_000, 64, top).memory_analysis()
        assert memory is not None
        sizes[devices] = memory.argument_size_in_bytes
        print(f"{devices} devices: {sizes[devices]:,} bytes of arguments, {memory.temp_size_in_bytes:,} beside them")
        assert memory.temp_size_in_bytes < 2**27
    assert sizes[1] > 25e9
    for devices, size in sizes.items():
        assert size == pytest.approx(sizes[1] / devices, rel=1e-3)


def test_few_items_leave_devices_for_users():
    """A device without items would have nothing to do."""
    shapes = {items: dict(ranking.grid(make_mesh(), items, 8192).mesh.shape) for items in (1, 4000, 10000, 10**6)}
    assert shapes == {
        1: {"user": 8, "item": 1},
        4000: {"user": 4, "item": 2},
        10000: {"user": 2, "item": 4},
        10**6: {"user": 1, "item": 8},
    }


LARGE = """
import hashlib, json, resource, sys, time
import numpy as np
from llm4rec_jax.data.splits.split import Sequences
from llm4rec_jax.inference.ranks import rank
from llm4rec_jax.sharding import make_mesh
from tests.evaluation.test_ranks import dot

users, items, width = map(int, sys.argv[1:])
rng = np.random.default_rng(0)
user embeddings = rng.standard_normal((users, width), np.float32)
item embeddings = rng.standard_normal((items, width), np.float32)
wanted = rng.integers(items, size=users, dtype=np.int32)
targets = Sequences(np.arange(users + 1), wanted, None, None)
history = Sequences(np.arange(users + 1) * 20, rng.integers(items, size=20 * users, dtype=np.int32), None, None)
mesh = make_mesh()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before, start = peak(), time.perf_counter()
found = rank(dot, None, lambda u: user embeddings[u], item embeddings, history=history, targets=targets,
             candidates=np.ones(items, bool), mesh=mesh).ranks
seconds = time.perf_counter() - start
some = np.arange(0, users, users // 20)
scores = user embeddings[some].astype(np.float64) @ np.asarray(item embeddings, np.float64).T
for user, row in zip(some, scores):
    row[np.setdiff1d(history.of(user), wanted[user])] = -np.inf
above = (scores > np.take_along_axis(scores, wanted[some, None], 1)).sum(1) + 1
off = int(np.abs(above - found.rank[some]).max())
digest = hashlib.sha256(found.rank.tobytes() + found.ties.tobytes()).hexdigest()
print(json.dumps({"seconds": seconds, "gib": peak() - before, "off": off, "digest": digest}))
"""


@pytest.mark.long
def test_a_million_items_fit_into_memory():
    digests = set()
    for devices in (1, 8):
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        arguments = [sys.executable, "-c", LARGE, *map(str, (10_000, 1_000_000, 64))]
        done = subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True)
        figures = json.loads(done.stdout)
        digests.add(figures.pop("digest"))
        print(f"10,000 users, 1,000,000 items, D 64, {devices} devices: {figures}")
        assert figures["gib"] < 4
        # Rounding in float32 may swap neighbours among a million.
        assert figures["off"] <= 2
    assert len(digests) == 1
