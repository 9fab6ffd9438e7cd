"""Writes a data set, its leave-one-out split and its tokens as files that training maps instead of reading.

Users are cut into ranges, each of which is sorted by itself, and the ranges' results are joined in order: what is in
memory at a time is one range, and the result does not depend on where they are cut nor on who works on them.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
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

# Interactions in memory at a time, and items whose texts are.
PART, ITEMS = 4_000_000, 65_536

_MOST_FILES = 100_000


class Texts(NamedTuple):
    """How items become tokens: the template, the folder or name of the tokenizer, and the most tokens."""

    template: str
    tokenizer: str
    max_tokens: int


class Plan(NamedTuple):
    """What is to be done, cut into pieces that can be worked on apart.

    Attributes:
      folder: holds the interactions' columns and the tables; pieces go to its folder "parts".
      bounds: users from bounds[k] to bounds[k + 1] are range k.
      columns: the interactions' columns that exist.
      order, texts: see `prepare`.
      num_items: I.
    """

    folder: Path
    bounds: list[int]
    columns: tuple[str, ...]
    order: Order
    texts: Texts | None
    num_items: int

    def open(self) -> dict[str, NDArray[Any]]:
        """The columns, mapped."""
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
    """Works on one piece after the other, in this process."""
    columns = plan.open()
    for k in plan.ranges():
        first, last = plan.bounds[k : k + 2]
        rows = np.concatenate(
            [
                at.start + np.flatnonzero((columns["user"][at] >= first) & (columns["user"][at] < last))
                for at in mmap.chunks(len(columns["user"]))
            ]
        )
        write_range(plan, k, {"row": rows, **{name: np.asarray(column[rows]) for name, column in columns.items()}})
    if plan.texts is not None:
        for number, at in enumerate(plan.item_chunks()):
            write_tokens(plan, number, item_texts(dataset.items[at], plan.texts.template))


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
        folder: what to write; it appears when it is whole.
        order: see `leave_one_out`.
        texts: tokenise the items, too.
        engine: who works on the pieces; the result is the same to the byte.
        part: interactions in a range of users; a user's are never parted.

    Raises:
        DataError: the data has no timestamps and the order is by time, or no user has 3 interactions.
        ValueError: the folder exists, or a template or tokenizer cannot be used.
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
        item_texts(dataset.items[:1], texts.template)  # A wrong template is found before the long work
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.with_name(f"{folder.name}.tmp{os.getpid()}")
    scratch.mkdir()
    try:
        columns = dataset.interactions.columns()
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
    except BaseException:
        shutil.rmtree(scratch)
        raise


def write_range(plan: Plan, k: int, columns: Mapping[str, NDArray[Any]]) -> None:
    """Writes the parts of the split of a range of users, from its interactions: "row" and the plan's columns."""
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


def write_tokens(plan: Plan, number: int, texts: list[str]) -> None:
    """Writes the tokens of a chunk of the items' texts."""
    assert plan.texts is not None
    found = encode(texts, _tokenizer(plan.texts.tokenizer), plan.texts.max_tokens)
    folder = _made(plan.folder / "parts" / f"tokens{number:06d}")
    _save(folder, "tokens.ids", found.ids)
    _save(folder, "tokens.lengths", found.lengths)


_tokenizer = cache(tokenizer)


def _ranges(dataset: Dataset, part: int) -> tuple[list[int], int]:
    """Bounds of ranges of users with about `part` interactions each, and the most interactions of a user."""
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
    scratch = folder / f"{name}.{os.getpid()}.tmp.npy"
    np.save(scratch, array)
    os.replace(scratch, folder / f"{name}.npy")


def _write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps({"manifest": manifest, "sha256": digest}, indent=1, sort_keys=True) + "\n")
