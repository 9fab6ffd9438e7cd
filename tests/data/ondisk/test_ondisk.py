"""A prepared folder against the same data in memory, damage to it, and batches from worker processes."""

import dataclasses
import errno
import json
import pickle
import shutil
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest

from llm4rec_jax.data import sources
from llm4rec_jax.data.batching.builder import BatchOptions, training_batches
from llm4rec_jax.data.features.text import item_texts
from llm4rec_jax.data.features.tokens import encode, tokenizer
from llm4rec_jax.data.interactions import DataError, Dataset, Interactions
from llm4rec_jax.data.ondisk import mmap
from llm4rec_jax.data.ondisk.reader import open_dataset, stored_split, stored_tokens
from llm4rec_jax.data.ondisk.writer import Texts, local, prepare
from llm4rec_jax.data.splits.protocols import few_shot, leave_one_out
from llm4rec_jax.data.splits.split import Split
from tests.helpers import tiny

TEMPLATE = "the {title}."


def shuffled(size: int = 400, seed: int = 0) -> Dataset:
    """Interactions in no order, with equal times, and users without any; the last user has none."""
    rng = np.random.default_rng(seed)
    tables = tiny.dataset()
    return Dataset(
        "shuffled",
        Interactions(
            (40 * rng.random(size) ** 2).astype(np.int32),
            rng.integers(40, size=size, dtype=np.int32),
            rng.random(size, dtype=np.float32),
            rng.integers(60, size=size),
        ),
        tables.items,
        tables.users,
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.encoder_folder(tmp_path_factory.mktemp("encoder")))


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("data") / "prepared"
    prepare(shuffled(), made, texts=Texts(TEMPLATE, encoder, 16), part=50)
    return made


def opened(folder: Path) -> tuple[Dataset, Split]:
    data = sources.load("prepared", folder)
    split = stored_split(data, "leave_one_out", {})
    assert split is not None
    return data, split


def same(a, b) -> None:
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_opened_is_the_data_that_was_prepared(folder):
    data, (stored, split) = shuffled(), opened(folder)
    assert stored.fingerprint == data.fingerprint
    assert dataclasses.replace(stored).fingerprint == data.fingerprint  # computed, from what is in the files
    assert stored.statistics() == data.statistics()
    wanted = leave_one_out(data)
    for field in dataclasses.fields(Split):
        if field.name != "dataset":
            np.testing.assert_array_equal(getattr(split, field.name), getattr(wanted, field.name))
    assert split.statistics() == wanted.statistics()
    same(split.training(), wanted.training())
    for phase in ("validation", "test"):
        same(split.history(phase), wanted.history(phase))
        same(split.targets_of(phase), wanted.targets_of(phase))
    assert isinstance(split.training()[0].items, np.memmap)


def test_no_size_of_the_parts_changes_a_byte(folder, encoder, tmp_path):
    for part in (1, 10**6):
        prepare(shuffled(), tmp_path / str(part), texts=Texts(TEMPLATE, encoder, 16), part=part)
        assert content(tmp_path / str(part)) == content(folder)


def test_prepared_data_can_be_prepared_again(folder, encoder, tmp_path):
    prepare(sources.load("prepared", folder), tmp_path / "again", texts=Texts(TEMPLATE, encoder, 16))
    assert content(tmp_path / "again") == content(folder)


def test_data_in_order_of_input_without_ratings_or_times(tmp_path):
    data = shuffled()
    data = dataclasses.replace(data, interactions=Interactions(data.interactions.user, data.interactions.item))
    with pytest.raises(DataError, match="no timestamps"):
        prepare(data, tmp_path / "a")
    prepare(data, tmp_path / "a", order="input", part=50)
    stored = sources.load("prepared", tmp_path / "a")
    assert stored_split(stored, "leave_one_out", {}) is None
    split, wanted = stored_split(stored, "leave_one_out", {"order": "input"}), leave_one_out(data, order="input")
    assert split is not None
    assert split.protocol == wanted.protocol
    same(split.history("test"), wanted.history("test"))


def test_tokens_are_those_of_the_texts_and_of_no_others(folder, encoder):
    data, _ = opened(folder)
    loaded = tokenizer(encoder)
    found = stored_tokens(data, TEMPLATE, lambda: loaded, 16)
    assert found is not None
    same(found, encode(item_texts(data.items, TEMPLATE), loaded, 16))
    assert stored_tokens(data, "{title}", lambda: loaded, 16) is None
    assert stored_tokens(data, TEMPLATE, lambda: loaded, 15) is None
    assert stored_tokens(shuffled(), TEMPLATE, lambda: loaded, 16) is None


def test_a_reduced_split_has_none_of_what_is_stored(folder):
    _, split = opened(folder)
    same(few_shot(split, 2).training(), few_shot(leave_one_out(shuffled()), 2).training())


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_damage_to_any_file_is_named(folder, damage, tmp_path):
    whole = content(folder)
    rng = np.random.default_rng(0)
    for name, held in whole.items():
        place = tmp_path / "damaged"
        place.mkdir(exist_ok=True)
        for other, text in whole.items():
            (place / other).write_bytes(text)
        if damage == "missing":
            (place / name).unlink()
        elif damage == "cut":
            (place / name).write_bytes(held[: rng.integers(len(held))])
        else:
            at = int(rng.integers(len(held)))
            (place / name).write_bytes(held[:at] + bytes([held[at] ^ (1 << rng.integers(8))]) + held[at + 1 :])
        with pytest.raises((DataError, FileNotFoundError), match=name):
            sources.load("prepared", place)


def test_sizes_and_headers_are_checked_without_reading(folder, tmp_path):
    for name, held in content(folder).items():
        (tmp_path / name).write_bytes(held)
    path = tmp_path / "train.item.npy"
    path.write_bytes(path.read_bytes().replace(b"<i4", b"<f4"))
    split = stored_split(sources.load("prepared", tmp_path, verify=False), "few", {})
    assert split is None
    with pytest.raises(DataError, match=r"train\.item\.npy is damaged: it holds float32"):
        stored_split(sources.load("prepared", tmp_path, verify=False), "leave_one_out", {})


def test_a_failure_leaves_nothing_and_a_folder_is_never_written_over(folder, tmp_path):
    def failing(plan, dataset):
        local(plan, dataset)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        prepare(shuffled(), tmp_path / "new", engine=failing)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="exists"):
        prepare(shuffled(), folder)
    data = shuffled()
    once = data.interactions.take(np.unique(data.interactions.user, return_index=True)[1])
    with pytest.raises(DataError, match="no user of 'few' has 3"):
        prepare(Dataset("few", once, data.items, data.users), tmp_path / "new")


def test_a_format_of_another_time_is_refused(folder, monkeypatch):
    monkeypatch.setattr("llm4rec_jax.data.ondisk.reader.FORMAT", 2)
    with pytest.raises(DataError, match="has format 1, not 2"):
        sources.load("prepared", folder)


def test_mapped_columns_are_pickled_by_name(folder):
    _, split = opened(folder)
    column = split.training()[0].items
    assert len(mmap.dumps(column)) < column.nbytes < len(pickle.dumps(column))
    same(mmap.loads(mmap.dumps([column, column[3:9]])), [column, column[3:9]])


def make(split: Split, workers: int):
    return iter(training_batches(split, BatchOptions(batch_size=4, history=5), seed=3, workers=workers)[1])


def test_batches_are_the_same_from_memory_from_files_and_from_workers(folder):
    _, split = opened(folder)
    wanted = list(islice(make(leave_one_out(shuffled()), 0), 12))
    same(list(islice(make(split, 0), 12)), wanted)
    stream = make(split, 2)
    try:
        same([next(stream) for _ in range(5)], wanted[:5])
        state = json.loads(json.dumps(stream.get_state()))
        same([next(stream) for _ in range(3)], wanted[5:8])
        stream.set_state(state)
        same([next(stream) for _ in range(7)], wanted[5:12])
    finally:
        stream.close()
    later = make(split, 2)
    try:
        later.set_state(state)
        same(next(later), wanted[5])
    finally:
        later.close()


class TestInterrupted:
    """A killed preparation stops no later one, and two at once are told apart before any work."""

    def test_a_killed_one_leaves_nothing_in_the_way(self, tmp_path):
        scratch = tmp_path / "out.tmp"
        (scratch / "parts" / "range000000").mkdir(parents=True)
        (scratch / "interactions.user.npy").write_bytes(b"half")
        for _ in range(2):
            prepare(shuffled(), tmp_path / "out")
            assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
            open_dataset(tmp_path / "out")
            shutil.rmtree(tmp_path / "out")

    def test_a_second_one_at_the_same_time_is_refused(self, tmp_path):
        def engine(plan, dataset):
            with pytest.raises(ValueError, match="is being prepared by another process"):
                prepare(dataset, tmp_path / "out")
            local(plan, dataset)

        prepare(shuffled(), tmp_path / "out", engine=engine)
        open_dataset(tmp_path / "out")

    def test_a_full_disk_names_the_folder_and_leaves_no_scratch(self, tmp_path):
        def engine(plan, dataset):
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(OSError, match=r"cannot write .*out \(No space left on device\): make room"):
            prepare(shuffled(), tmp_path / "out", engine=engine)
        assert list(tmp_path.iterdir()) == []
