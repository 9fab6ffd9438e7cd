"""Writes a data set, its leave-one-out split and its tokens as files that training maps instead of reading.

Users are cut into ranges, each of which is sorted by itself, and the ranges' results are joined in order: what is in
memory at a time is one range, and the result depends neither on the cuts nor on the engine.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm4rec_jax.data.features.text import item_texts
from llm4rec_jax.data.features.tokens import encode, settings_hash, tokenizer
from llm4rec_jax.data.interactions import DataError, Dataset
from llm4rec_jax.data.ondisk import mmap
from llm4rec_jax.data.ondisk.reader import FORMAT, ROLES, SEQUENCES, opened_split
from llm4rec_jax.data.splits.protocols import leave_one_out_protocol
from llm4rec_jax.data.splits.split import Order, times
from llm4rec_jax.io import replacing, writing
from llm4rec_jax.progress import track

# Interactions in memory at a time, and items whose texts are.
PART, ITEMS = 4_000_000, 65_536

_MOST_FILES = 100_000


class Texts(NamedTuple):
    """The making of tokens: the template, the folder or name of the tokenizer, and the largest number of tokens."""

    template: str
    tokenizer: str
    max_tokens: int


class Plan(NamedTuple):
    """The work of a preparation, cut into independent pieces.

    Attributes:
      folder: folder with the interactions' columns and the tables; pieces go to its folder "parts".
      bounds: users from bounds[k] to bounds[k + 1] are range k.
      columns: names of the interactions' columns.
      order, texts: see `prepare`.
      num_items: number of items I.
    """

    folder: Path
    bounds: list[int]
    columns: tuple[str, ...]
    order: Order
    texts: Texts | None
    num_items: int

    def open(self) -> dict[str, NDArray[Any]]:
        """Maps the columns."""
        return {
            name: np.load(self.folder / f"interactions.{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in self.columns
        }

    def ranges(self) -> range:
        return range(len(self.bounds) - 1)

    def item_chunks(self) -> list[slice]:
        return list(mmap.chunks(self.num_items, ITEMS)) if self.texts is not None else []


Engine = Callable[[Plan, Dataset], None]


def local(plan: Plan, dataset: Dataset) -> None:
    """Processes one piece after the other in this process."""
    columns = plan.open()
    for k in track(plan.ranges(), "prepare", len(plan.ranges()), "ranges of users"):
        first, last = plan.bounds[k : k + 2]
        rows = np.concatenate(
            [
                at.start + np.flatnonzero((columns["user"][at] >= first) & (columns["user"][at] < last))
                for at in mmap.chunks(len(columns["user"]))
            ]
        )
        write_range(plan, k, {"row": rows, **{name: np.asarray(column[rows]) for name, column in columns.items()}})
    if plan.texts is not None:
        chunks = plan.item_chunks()
        for number, at in enumerate(track(chunks, "prepare", len(chunks), "chunks of texts")):
            write_tokens(plan.folder, plan.texts, number, item_texts(dataset.items, plan.texts.template, at))


def prepare(
    dataset: Dataset,
    folder: Path,
    *,
    order: Order = "time",
    texts: Texts | None = None,
    engine: Engine = local,
    part: int = PART,
) -> None:
    """Writes a folder that the source "prepared" opens.

    Args:
        dataset: the data.
        folder: folder to write; it appears when it is complete.
        order: see `leave_one_out`.
        texts: how items are tokenised; None stores no tokens.
        engine: processes the pieces; the result is the same to the byte.
        part: number of interactions in a range of users; a user's interactions stay together.

    Raises:
        DataError: if the data has no timestamps and the order is by time, or no user has 3 interactions.
        ValueError: if the folder exists, another process prepares it, or a template or tokenizer cannot be used.
        OSError: if the folder cannot be written; the message names it.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists: remove it, or name another folder to prepare")
    times(dataset, order)
    bounds, longest = _ranges(dataset, part)
    if longest < 3:
        raise DataError(f"no user of {dataset.name!r} has 3 interactions, so leave-one-out has nothing to test on")
    tokens = None
    if texts is not None:
        key = settings_hash(tokenizer(texts.tokenizer), texts.max_tokens).hexdigest()
        tokens = {"template": texts.template, "settings": key}
        item_texts(dataset.items, texts.template, slice(1))  # A wrong template is found before the long work
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _scratch_folder(folder) as scratch:
        # A part of a split that came with the data is not what is prepared.
        columns = {name: column for name, column in dataset.interactions.columns().items() if name != "part"}
        for name, column in columns.items():
            np.save(scratch / f"interactions.{name}.npy", column)
        dataset.items.write_ipc(scratch / "items.arrow")
        dataset.users.write_ipc(scratch / "users.arrow")
        plan = Plan(scratch, bounds, tuple(columns), order, texts, dataset.num_items)
        (scratch / "parts").mkdir()
        engine(plan, dataset)
        _join(plan)
        shutil.rmtree(scratch / "parts")
        manifest = {
            "format": FORMAT,
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "statistics": dataset.statistics(),
            "split": None,
            "order": order,
            "protocol": leave_one_out_protocol(dataset.num_items, order),
            "tokens": tokens,
            "files": {path.name: mmap.described(path) for path in sorted(scratch.iterdir())},
        }
        manifest["split"] = opened_split(dataset, scratch, manifest).statistics()
        _write_manifest(scratch / "manifest.json", manifest)
        os.rename(scratch, folder)


@contextlib.contextmanager
def _scratch_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder`, which nobody else uses, and removes it after an error.

    It is locked by the system, so that a killed process leaves nothing that stops the next one.

    Raises:
        ValueError: if another process prepares the same folder.
        NotWritten: if the disk is full or cannot be written; the message names the folder.
    """
    scratch = folder.with_name(f"{folder.name}.tmp")
    with writing(folder):
        scratch.mkdir(exist_ok=True)
        handle = os.open(scratch, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The process that had the lock may have finished since: then this is the inode of its result.
        if folder.exists():
            raise ValueError(f"{folder} exists: remove it, or name another folder to prepare")
        with writing(folder):
            _clear(scratch)
            yield scratch
    except BlockingIOError:
        raise ValueError(
            f"{folder} is being prepared by another process: wait for it, or name another folder"
        ) from None
    except BaseException:
        # Unless it has got the name of the folder, or is another process's by now.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), scratch.stat()):
                shutil.rmtree(scratch)
        raise
    finally:
        os.close(handle)


def _clear(folder: Path) -> None:
    """Removes what a killed process left in a folder."""
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def write_range(plan: Plan, k: int, columns: Mapping[str, NDArray[Any]]) -> None:
    """Writes the parts of the split of a range of users, from its interactions: the column "row" and the plan's."""
    first, last = plan.bounds[k : k + 2]
    time = columns["row"] if plan.order == "input" else columns["timestamp"]
    at = np.lexsort((columns["row"], time, columns["user"]))
    user = columns["user"][at] - first
    lengths = np.bincount(user, minlength=last - first)
    from_end = np.cumsum(lengths)[user] - np.arange(len(user))
    held_out = lengths[user] >= 3
    masks = {
        "train": ~held_out | (from_end > 2),
        "validation": held_out & (from_end == 2),
        "test": held_out & (from_end == 1),
    }
    masks["history"] = ~masks["test"]
    folder = _made(plan.folder / "parts" / f"range{k:06d}")
    for role, mask in masks.items():
        _save(folder, f"{role}.lengths", np.bincount(user[mask], minlength=last - first).astype(np.int64))
        for name in ("row", *SEQUENCES):
            if name in columns:
                _save(folder, f"{role}.{name}", columns[name][at[mask]])


def write_tokens(folder: Path, options: Texts, number: int, texts: list[str]) -> None:
    """Writes the tokens of a chunk of the items' texts."""
    tokens = encode(texts, _tokenizer(options.tokenizer), options.max_tokens)
    folder = _made(folder / "parts" / f"tokens{number:06d}")
    _save(folder, "tokens.ids", tokens.ids)
    _save(folder, "tokens.lengths", tokens.lengths)


_tokenizer = cache(tokenizer)


def _ranges(dataset: Dataset, part: int) -> tuple[list[int], int]:
    """Returns bounds of ranges of users with about `part` interactions each, and the most interactions of a user."""
    counts = np.zeros(dataset.num_users, np.int64)
    for at in mmap.chunks(len(dataset.interactions)):
        counts += np.bincount(dataset.interactions.user[at], minlength=dataset.num_users)
    range_of = (np.cumsum(counts) - counts) // part
    if range_of[-1] >= _MOST_FILES:
        raise ValueError(f"ranges of {part} interactions make more than {_MOST_FILES} of them; raise `part`")
    bounds = np.flatnonzero(np.diff(range_of)) + 1
    return [0, *bounds.tolist(), dataset.num_users], int(counts.max())


def _join(plan: Plan) -> None:
    parts = plan.folder / "parts"
    ranges = [parts / f"range{k:06d}" for k in plan.ranges()]
    for role in ROLES:
        lengths = np.concatenate([np.load(folder / f"{role}.lengths.npy", allow_pickle=False) for folder in ranges])
        np.save(plan.folder / f"{role}.offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
        for name in ("row", *(name for name in SEQUENCES if name in plan.columns)):
            mmap.join([folder / f"{role}.{name}.npy" for folder in ranges], plan.folder / f"{role}.{name}.npy")
    if plan.texts is not None:
        chunks = [parts / f"tokens{number:06d}" for number in range(len(plan.item_chunks()))]
        padding: Any = _tokenizer(plan.texts.tokenizer).pad_token_id or 0
        for name in ("tokens.ids", "tokens.lengths"):
            mmap.join([folder / f"{name}.npy" for folder in chunks], plan.folder / f"{name}.npy", padding)


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)  # A worker of a pipeline may be made to try again
    return folder


def _save(folder: Path, name: str, array: NDArray[Any]) -> None:
    with replacing(folder / f"{name}.npy", durable=False) as scratch:
        np.save(scratch, array)


def _write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps({"manifest": manifest, "sha256": digest}, indent=1, sort_keys=True) + "\n")
