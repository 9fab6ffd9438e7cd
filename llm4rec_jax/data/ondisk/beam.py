"""Preparation as an Apache Beam pipeline, with the result of `writer.local` to the byte.

The workers must see the folder that is prepared under the same path, as on one machine or a shared file system. Comes
with the extra "beam".
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import apache_beam as beam  # pyright: ignore[reportMissingImports]  (in an environment of its own)
import numpy as np
import polars as pl
from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray

from llm4rec_jax.data.features.text import item_texts
from llm4rec_jax.data.interactions import Dataset
from llm4rec_jax.data.ondisk import mmap
from llm4rec_jax.data.ondisk.writer import Engine, Plan, Texts, write_range, write_tokens

Columns = dict[str, NDArray]


def pipeline(options: Sequence[str] = ()) -> Engine:
    """Returns an engine for `prepare`: a pipeline with these options, such as "--runner=DirectRunner"."""

    def engine(plan: Plan, dataset: Dataset) -> None:
        with beam.Pipeline(options=PipelineOptions(list(options))) as p:
            _ = (
                p
                | "Chunks" >> beam.Create(list(mmap.chunks(len(dataset.interactions))))
                | "Spread chunks" >> beam.Reshuffle()
                | "By range" >> beam.FlatMap(_by_range, plan)
                | beam.GroupByKey()
                | "Sort and split" >> beam.Map(_write_range, plan)
            )
            if plan.texts is None:
                return
            _ = (
                p
                | "Item chunks" >> beam.Create(list(enumerate(plan.item_chunks())))
                | "Spread item chunks" >> beam.Reshuffle()
                | "Tokenise" >> beam.Map(_write_tokens, plan.folder, plan.texts)
            )

    return engine


def _by_range(at: slice, plan: Plan) -> Iterator[tuple[int, Columns]]:
    """Yields the interactions of a chunk by range of users, with their row numbers."""
    columns = {"row": np.arange(at.start, at.stop), **{name: column[at] for name, column in plan.open().items()}}
    range_of = np.searchsorted(plan.bounds, columns["user"], side="right") - 1
    for k in np.unique(range_of):
        yield int(k), {name: np.asarray(column[range_of == k]) for name, column in columns.items()}


def _write_range(grouped: tuple[int, Iterable[Columns]], plan: Plan) -> None:
    k, pieces = grouped[0], list(grouped[1])
    write_range(plan, k, {name: np.concatenate([chunk[name] for chunk in pieces]) for name in pieces[0]})


def _write_tokens(chunk: tuple[int, slice], folder: Path, texts: Texts) -> None:
    number, at = chunk
    items = pl.read_ipc(folder / "items.arrow")
    write_tokens(folder, texts, number, item_texts(items, texts.template, at))
