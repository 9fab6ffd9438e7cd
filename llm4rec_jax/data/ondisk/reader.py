"""Opening of prepared folders: arrays stay in their files, and nothing is computed over the interactions."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4rec_jax.data.features.tokens import Tokens, settings_hash
from llm4rec_jax.data.interactions import DataError, Dataset, Interactions
from llm4rec_jax.data.ondisk import mmap
from llm4rec_jax.data.splits.split import Phase, Sequences, Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT = 1
ROLES = ("train", "history", "validation", "test")
"""Sequences that are stored: training, test histories, and the targets of each phase."""
SEQUENCES = ("item", "rating", "timestamp")


class PreparedDataset(Dataset):
    """A `Dataset` whose columns are mapped files, checked when they were written and by their digests since.

    Copies with other columns, as filters make them, are checked like any data set and lose the stored statistics.
    """

    # Not annotated, so no fields: dataclasses.replace leaves them behind.
    folder = None
    manifest = None

    def statistics(self) -> dict[str, int | float]:
        return super().statistics() if self.manifest is None else self.manifest["statistics"]


class PreparedSplit(Split):
    """The leave-one-out split of a `PreparedDataset`, whose sequences are mapped files."""

    stored = None
    history_rows = None
    figures = None

    def training(self) -> tuple[Sequences, NDArray[np.bool_]]:
        return super().training() if self.stored is None else (self.stored["train"], self.targets)

    def history(self, phase: Phase) -> Sequences:
        if self.stored is None:
            return super().history(phase)
        return self.stored["train" if phase == "validation" else "history"]

    def targets_of(self, phase: Phase) -> Sequences:
        return super().targets_of(phase) if self.stored is None else self.stored[phase]

    def statistics(self) -> dict[str, int | float]:
        return super().statistics() if self.figures is None else self.figures

    def _history_rows(self, phase: Phase) -> NDArray[np.int64]:
        if self.history_rows is None or phase == "validation":
            return super()._history_rows(phase)
        return self.history_rows


def open_dataset(folder: Path, verify: bool = True) -> PreparedDataset:
    """Opens a prepared folder.

    Args:
        folder: a folder written by `prepare`.
        verify: whether to read every file once and compare its SHA-256, which takes about a second a GB; else only
            sizes and headers are compared.

    Raises:
        FileNotFoundError: if the folder, or a file in it, is missing.
        DataError: if a file is damaged, or of another format.
    """
    manifest = _manifest(folder / "manifest.json")
    files = manifest["files"]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: mmap.check(folder / name, files[name], verify), files))
    columns = {
        name: mmap.opened(folder / file, files[file])
        for name in ("user", "item", "rating", "timestamp")
        if (file := f"interactions.{name}.npy") in files
    }
    dataset = object.__new__(PreparedDataset)
    dataset.__dict__.update(
        name=manifest["name"],
        interactions=Interactions(**columns),
        items=_table(folder / "items.arrow"),
        users=_table(folder / "users.arrow"),
        fingerprint=manifest["fingerprint"],
        folder=folder,
        manifest=manifest,
    )
    return dataset


def stored_split(dataset: Dataset, name: str, options: Any) -> Split | None:
    """Returns the split prepared with a data set if it is the one of this name and these options, else None."""
    if not isinstance(dataset, PreparedDataset) or dataset.manifest is None or dataset.folder is None:
        return None
    if name != "leave_one_out" or {"order": "time", **options} != {"order": dataset.manifest["order"]}:
        return None
    return opened_split(dataset, dataset.folder, dataset.manifest)


def opened_split(dataset: Dataset, folder: Path, manifest: dict[str, Any]) -> PreparedSplit:
    """Opens the split in a folder, as its manifest describes it."""
    files = manifest["files"]

    def array(name: str) -> Any:
        return mmap.opened(folder / f"{name}.npy", files[f"{name}.npy"]) if f"{name}.npy" in files else None

    every = np.ones(dataset.num_items, bool)
    train = array("train.row")
    split = object.__new__(PreparedSplit)
    split.__dict__.update(
        dataset=dataset,
        train=train,
        validation=array("validation.row"),
        test=array("test.row"),
        targets=np.ones(len(train), bool),
        known=every,
        validation_candidates=every,
        test_candidates=every,
        protocol=manifest["protocol"],
        order=manifest["order"],
        validation_in_history=True,
        stored={
            role: Sequences(array(f"{role}.offsets"), *(array(f"{role}.{name}") for name in SEQUENCES))
            for role in ROLES
        },
        history_rows=array("history.row"),
        figures=manifest["split"],
    )
    return split


def stored_tokens(
    dataset: Dataset, template: str, tokenizer: Callable[[], "PreTrainedTokenizerFast"], max_tokens: int
) -> Tokens | None:
    """Returns the tokens prepared with a data set if template, tokenizer and length are the same, else None.

    `tokenizer` is called only if tokens are stored.
    """
    if not isinstance(dataset, PreparedDataset) or dataset.manifest is None or dataset.folder is None:
        return None
    wanted = {"template": template, "settings": settings_hash(tokenizer(), max_tokens).hexdigest()}
    if dataset.manifest["tokens"] != wanted:
        return None
    files = dataset.manifest["files"]
    names = ("tokens.ids.npy", "tokens.lengths.npy")
    return Tokens(*(mmap.opened(dataset.folder / name, files[name]) for name in names))


def _manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: make the folder with experiments.prepare")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        manifest, digest = stored["manifest"], stored["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); prepare the data again") from error
    if hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest() != digest:
        raise DataError(f"{path} is damaged: its content is not what its digest was made of; prepare the data again")
    if manifest["format"] != FORMAT:
        raise DataError(f"{path} has format {manifest['format']}, not {FORMAT}; prepare the data again")
    return manifest


def _table(path: Path) -> pl.DataFrame:
    try:
        return pl.read_ipc(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); prepare the data again") from error
