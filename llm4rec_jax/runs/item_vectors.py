"""Item vectors of a finished run, for another run on the same items."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from llm4rec_jax import sharding
from llm4rec_jax.data import sources
from llm4rec_jax.data.splits.split import Split
from llm4rec_jax.runs import folder
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.training.checkpoint import best_state


class ItemVectors(NamedTuple):
    """Vectors of items by a trained model.

    Attributes:
      vectors: [I, W].
      digest: Hash of the trained parameters.
      trained: Training interactions of the model, a frame of user_id and item_id.
    """

    vectors: np.ndarray
    digest: str
    trained: pl.DataFrame


def item_vectors_of(workdir: Path, item_ids: Sequence[str]) -> ItemVectors:
    """Returns the vectors of items by the best state of a run that ranks, as it compares them with users.

    Args:
      workdir: Folder of the run.
      item_ids: Ids of the items [I], in the order of the vectors.

    Raises:
      RunFolderError: There is no run, or its data has changed.
      CheckpointError: There is no checkpoint, or it is damaged.
      ValueError: The run has no vectors of items, or none of one of these items.
    """
    config: Any = folder.config_of(workdir)
    if (
        config.data.source in sources.LABELED_SOURCES
        or config.task not in (None, "ranking")
        or config.baseline.name is not None
        or config.generation.ids is not None
    ):
        raise ValueError(
            f"config.prompt.vectors_from: {workdir} is no trained run that ranks by vectors of items: give one, such "
            "as a run with inputs=id"
        )
    # It was trained on some devices, and is looked at on any.
    config.mesh.model = 1
    assembly = Assembly(config)
    folder.check_data(assembly, workdir)
    row_of = {item: row for row, item in enumerate(assembly.dataset.items["item_id"].to_list())}
    if missing := [item for item in item_ids if item not in row_of]:
        raise ValueError(
            f"config.prompt.vectors_from: {workdir} lacks {len(missing)} of the {len(item_ids)} items, such as "
            f"{missing[0]!r}: give a run on the same catalogue, with every item of it"
        )
    state = best_state(workdir)
    scorer = assembly.scorer.of({**assembly.params(), **state["params"]}, state["delta"])
    rows = np.array([row_of[item] for item in item_ids])
    return ItemVectors(
        np.asarray(scorer.item_embeddings(), np.float32)[rows], sharding.digest(state), _trained(assembly.split)
    )


def _trained(split: Split) -> pl.DataFrame:
    """Returns the training interactions of a split, as a frame of user_id and item_id."""
    read, data = split.training()[0], split.dataset
    users = np.repeat(np.arange(data.num_users), np.diff(read.offsets))
    return pl.DataFrame({"user_id": data.users["user_id"].gather(users), "item_id": data.items["item_id"][read.items]})
