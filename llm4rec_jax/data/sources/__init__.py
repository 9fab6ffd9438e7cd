"""Sources: `load(name, path, **options)` reads interactions into a `Dataset`, `load_labeled` labelled examples.

Every module of this package is imported, so that a new source is one function in one file here. A loader takes the path
first, then its options as keywords, or as one frozen dataclass with defaults called `options`.
"""

import dataclasses
import html
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from llm4rec_jax.data.interactions import DataError, Dataset
from llm4rec_jax.data.labeled import LABELED_SOURCES, LabeledData
from llm4rec_jax.data.sources.knowledge_graph import with_facts
from llm4rec_jax.data.sources.registry import SOURCES, Loader, register
from llm4rec_jax.registry import Registry, import_all, unknown_name

import_all(__name__, __path__)

from llm4rec_jax.data.sources.movielens import natural_title  # noqa: E402  (after the modules registered themselves)

__all__ = ["LABELED_SOURCES", "SOURCES", "Loader", "load", "load_labeled", "natural_title", "register"]


def load(
    name: str,
    path: str | Path | None = None,
    *,
    no_text: str | None = None,
    unescape_html: bool = False,
    facts: Mapping[str, Any] | None = None,
    **options: Any,
) -> Dataset:
    """Loads the data of a named source.

    Args:
        name: a name in `SOURCES`.
        path: the file or folder to read; may be left out for sources that know a place of their own.
        no_text: text of items that have none: in the column "title", else "text", else the first feature that is
            text.
        unescape_html: whether HTML entities in the items' texts become characters, as "&amp;" becomes "&".
        facts: options of `knowledge_graph.with_facts`, which adds a column "facts" of text from a knowledge graph.
        **options: options of the source, see its loader.

    Raises:
        ValueError: if the name or an option is unknown, or the source needs a path and got none.
        FileNotFoundError: if a file is missing.
        DataError: if the data is malformed.

    Example:
        >>> load("movielens_100k").num_items
        1682
    """
    dataset = _call(SOURCES, name, path, options)
    texts = [column for column, dtype in dataset.items.schema.items() if dtype == pl.String][1:]
    if unescape_html:
        unescaped = [dataset.items[column].map_elements(html.unescape, pl.String) for column in texts]
        dataset = dataclasses.replace(dataset, items=dataset.items.with_columns(unescaped))
    if facts is not None:
        dataset = dataclasses.replace(dataset, items=with_facts(dataset.items, **facts))
    if no_text is not None:
        if not texts:
            raise DataError(f"{dataset.name!r} has no text column for no_text={no_text!r}; name one in item_columns")
        column = next((column for column in ("title", "text") if column in texts), texts[0])
        blank = pl.col(column).fill_null("").str.strip_chars() == ""
        filled = pl.when(blank).then(pl.lit(no_text)).otherwise(column).alias(column)
        dataset = dataclasses.replace(dataset, items=dataset.items.with_columns(filled))
    return dataset


def load_labeled(name: str, path: str | Path | None = None, **options: Any) -> LabeledData:
    """Loads the examples of a source in `LABELED_SOURCES`; arguments and errors as for `load`."""
    return _call(LABELED_SOURCES, name, path, options)


def _call(registry: Registry[Any], name: str, path: str | Path | None, options: dict[str, Any]) -> Any:
    loader: Callable[..., Any] = registry.lookup(name)
    first, *accepted = inspect.signature(loader).parameters.values()
    names: list[str] = []
    arguments: dict[str, Any] = options
    for parameter in accepted:
        if dataclasses.is_dataclass(parameter.default):
            names += [field.name for field in dataclasses.fields(parameter.default)]
        else:
            names.append(parameter.name)
    for option in options:
        if option not in names:
            raise ValueError(unknown_name(f"option of {registry.kind} {name!r}", option, names))
    if accepted and dataclasses.is_dataclass(default := accepted[0].default) and not isinstance(default, type):
        arguments = {accepted[0].name: dataclasses.replace(default, **options)}
    if path is None:
        if first.default is inspect.Parameter.empty:
            raise ValueError(f"{registry.kind} {name!r} needs a path; give the file or folder to read")
        return loader(**arguments)
    return loader(Path(path), **arguments)
