"""Sources: `load(name, path, **options)` reads interactions into a `Dataset`, `load_labeled` reads questions."""

import inspect
from pathlib import Path
from typing import Any

from llm4rec_jax.data.interactions import Dataset
from llm4rec_jax.data.labeled import LABELED_SOURCES, LabeledData

# The modules of the loaders are imported for their registration.
from llm4rec_jax.data.sources import atomic, movielens, s3rec, sequences, table, tallrec, tfds_source, unisrec  # noqa: F401
from llm4rec_jax.data.sources import ondisk as prepared_source  # noqa: F401
from llm4rec_jax.data.sources.movielens import natural_title
from llm4rec_jax.data.sources.registry import SOURCES, Loader, register
from llm4rec_jax.registry import Registry, unknown_name

__all__ = ["LABELED_SOURCES", "SOURCES", "Loader", "load", "load_labeled", "natural_title", "register"]


def load(name: str, path: str | Path | None = None, **options: Any) -> Dataset:
    """Loads the data of a named source.

    Args:
        name: a name in `SOURCES`.
        path: the file or folder to read; may be left out for sources that know a place of their own.
        **options: options of the source, see its loader.

    Raises:
        ValueError: if the name or an option is unknown, or the source needs a path and got none.
        FileNotFoundError: if a file is missing.
        DataError: if the data is malformed.
    """
    return _call(SOURCES, name, path, options)


def load_labeled(name: str, path: str | Path | None = None, **options: Any) -> LabeledData:
    """Loads the examples of a source in `LABELED_SOURCES`; arguments and errors as for `load`."""
    return _call(LABELED_SOURCES, name, path, options)


def _call(registry: Registry[Any], name: str, path: str | Path | None, options: dict[str, Any]) -> Any:
    loader = registry.lookup(name)
    first, *accepted = inspect.signature(loader).parameters.values()
    names = [parameter.name for parameter in accepted]
    for option in options:
        if option not in names:
            raise ValueError(unknown_name(f"option of {registry.kind} {name!r}", option, names))
    if path is None:
        if first.default is inspect.Parameter.empty:
            raise ValueError(f"{registry.kind} {name!r} needs a path; give the file or folder to read")
        return loader(**options)
    return loader(Path(path), **options)
