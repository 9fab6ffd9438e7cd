"""Data sets that TensorFlow Datasets has prepared, read without TensorFlow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from llm4rec_jax.data.interactions import DataError, Dataset
from llm4rec_jax.data.sources.assembly import assemble, observed
from llm4rec_jax.data.sources.reading import Table, require
from llm4rec_jax.data.sources.registry import register
from llm4rec_jax.registry import unknown_name

# Examples decoded at a time.
_CHUNK = 8192


@register("tfds")
def load_tfds(
    path: Path | None = None,
    *,
    builder: str | None = None,
    split: str = "train",
    user: str = "user_id",
    item: str = "item_id",
    rating: str | None = None,
    timestamp: str | None = None,
    item_columns: Mapping[str, str] | None = None,
    user_columns: Mapping[str, str] | None = None,
) -> Dataset:
    """Loads a split whose examples are interactions, prepared in the array_record format.

    Users and items are those with interactions, in order of first appearance; text is decoded as UTF-8. TFDS shuffles
    examples when it prepares them, so the input order carries no meaning.

    Args:
        path: the TFDS data folder (its default one if None); without `builder`, the folder of one prepared version,
            e.g. `~/tensorflow_datasets/movielens/100k-ratings/0.1.1`.
        builder: the data set's name in TFDS, e.g. "movielens/100k-ratings".
        split: the split to read.
        user: the user feature.
        item: the item feature.
        rating: the rating feature, if there is one.
        timestamp: the time feature, if there is one.
        item_columns: example feature by item feature name; an item's first example counts.
        user_columns: as for items.

    Raises:
        ValueError: if neither a path nor a builder is given.
        FileNotFoundError: if the path is missing or holds no prepared data.
        DataError: if the split or a feature is unknown, or the data is malformed or in another format.
    """
    # The import is slow and only this source needs it.
    import tensorflow_datasets as tfds

    if path is not None:
        require(path)
    # TFDS declares types that hide the mapping of features and the data source's split.
    prepared: Any
    if builder is not None:
        prepared = tfds.builder(builder, data_dir=path)
    elif path is None:
        raise ValueError("source 'tfds' needs a builder name or the path of prepared data; give builder= or a path")
    elif not (path / "dataset_info.json").is_file():
        raise FileNotFoundError(
            f"{path} holds no prepared data (dataset_info.json); give builder= or a version's folder"
        )
    else:
        prepared = tfds.builder_from_directory(path)
    place = Path(str(prepared.data_dir))
    if not prepared.info.splits:
        raise FileNotFoundError(
            f"{place} holds no prepared data; prepare it with "
            f"tfds.builder({builder!r}, file_format='array_record').download_and_prepare()"
        )
    if split not in prepared.info.splits:
        raise DataError(f"{place}: {unknown_name('split', split, list(prepared.info.splits))}")
    features = list(prepared.info.features)
    wanted = {user, item, rating, timestamp, *(item_columns or {}).values(), *(user_columns or {}).values()} - {None}
    for name in sorted(wanted):
        if name not in features:
            raise DataError(f"{place}: {unknown_name('feature', name, features)}")
    try:
        source = prepared.as_data_source(split)
    except NotImplementedError as error:
        raise DataError(
            f"{place}: cannot be read without TensorFlow ({error}); prepare it with file_format='array_record'"
        ) from error
    table = Table(place, _columns(source, sorted(wanted), place), lambda row: f"example {row + 1} of split {split!r}")
    return assemble(
        prepared.name,
        table,
        observed(table, "user", user, user_columns),
        observed(table, "item", item, item_columns),
        user=user,
        item=item,
        rating=rating,
        timestamp=timestamp,
    )


def _columns(source: Any, names: list[str], place: Path) -> pl.DataFrame:
    """Decodes all examples of a random-access source into columns."""
    chunks = []
    for start in range(0, len(source), _CHUNK):
        examples = source.__getitems__(range(start, min(start + _CHUNK, len(source))))
        columns = {name: [_plain(example[name], name, place) for example in examples] for name in names}
        chunks.append(pl.DataFrame(columns))
    if not chunks:
        raise DataError(f"{place} is empty; give a split with data")
    # A chunk whose lists are all empty has no element type of its own.
    return pl.concat(chunks, how="vertical_relaxed")


def _plain(value: Any, name: str, place: Path) -> Any:
    """Returns a feature value in types that polars infers: text for bytes, lists for arrays."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{place}: feature {name!r} holds {value[:40]!r}, which is not UTF-8 text; "
                "encode it as UTF-8 in the builder"
            ) from error
    if isinstance(value, list):
        return [_plain(element, name, place) for element in value]
    return value.tolist() if hasattr(value, "tolist") else value
