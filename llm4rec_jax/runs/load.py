"""A trained run, opened again: to recommend, to encode, to score, or to evaluate."""

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from llm4rec_jax import sharding
from llm4rec_jax.inference.generative import Ranker
from llm4rec_jax.inference.recommend import find_items, recommend, score_items
from llm4rec_jax.inference.scorer import Scorer
from llm4rec_jax.inference.text_encoder import BatchTextEncoder
from llm4rec_jax.models.text_encoder import TextEncoder
from llm4rec_jax.runs import folder
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.runs.rating_assembly import RatingAssembly
from llm4rec_jax.runs.run import assemble
from llm4rec_jax.training.checkpoint import Checkpoints, best_state
from llm4rec_jax.training.task import Params, partition_params


class RecommendedItem(NamedTuple):
    """An item that is recommended: its id, its title and its score."""

    item_id: str
    title: str
    score: float


def load(workdir: Path | str) -> "LoadedRun":
    """Opens a finished run, for use in a notebook or a service.

    Nothing is read yet but the configuration: the data and the model are made when they are first needed.

    Args:
      workdir: Folder of a run that ranks, as `experiments.train` leaves it.

    Raises:
      RunFolderError: There is no run in the folder, or it is damaged.
    """
    return LoadedRun(Path(workdir))


class LoadedRun:
    """A finished run that recommends, encodes and scores. `load` makes one.

    Attributes:
      workdir: Folder of the run.
      config: Its configuration.
    """

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.config: Any = folder.config_of(workdir)

    def recommend(
        self,
        history: Sequence[str] | None = None,
        user: str | None = None,
        k: int = 10,
        exclude: Sequence[str] = (),
    ) -> list[RecommendedItem]:
        """Recommends items to somebody with a history, or to a user of the data.

        Args:
          history: Titles or ids of items, the most recent last.
          user: Id of a user of the data, whose whole history is read. Give either.
          k: Number of items.
          exclude: Titles or ids of further items that are not recommended.

        Raises:
          ValueError: Both or neither of `history` and `user`, or a name that the data does not have.
        """
        row, rows = self._read(history, user)
        excluded = self._rows(exclude)
        items = recommend(self.scorer, rows, k, row, mesh=self.assembly.mesh, exclude=excluded)
        return [RecommendedItem(self._ids[item], self.assembly.titles[item], score) for item, score in items]

    def score(self, items: Sequence[str], history: Sequence[str] | None = None, user: str | None = None) -> np.ndarray:
        """Returns the scores [n] of items for somebody with a history, or for a user of the data.

        Args:
          items: Titles or ids of n items.
          history: Titles or ids of the items that were read, the most recent last.
          user: Id of a user of the data. Give either.
        """
        row, rows = self._read(history, user)
        return score_items(self.scorer, self._rows(items), rows, row, mesh=self.assembly.mesh)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the vectors [n, W] of n texts by the run's language model, as it was tuned. The data is not read.

        They are neither centred nor whitened, which takes the vectors of the whole catalogue.

        Raises:
          ValueError: The run has items that are ids only.
        """
        model, weights = self._text_model
        tokens = self.assembly.tokenise(list(texts), self.config.text.max_tokens)
        return BatchTextEncoder(model, self.assembly.method, self.assembly.mesh).encode(weights, tokens)

    @cached_property
    def assembly(self) -> Assembly:
        """Data, model and method of the run, each made when it is first asked for."""
        config: Any = folder.config_of(self.workdir)
        config.mesh.model = 1
        return _ranks(assemble(config), self.workdir)

    @cached_property
    def scorer(self) -> Scorer | Ranker:
        """Scores of all items for a user; see `inference.scorer`."""
        return restore_scorer(self.workdir)[1]

    @cached_property
    def _ids(self) -> list[str]:
        return self.assembly.dataset.items["item_id"].to_list()

    def _rows(self, names: Sequence[str]) -> list[int]:
        named = find_items(list(names), self._ids, self.assembly.titles)
        for notice in named.notices:
            warnings.warn(notice, stacklevel=3)
        return named.rows

    def _read(self, history: Sequence[str] | None, user: str | None) -> tuple[int, list[int]]:
        """Returns the row of the user, and the rows of the history."""
        if (history is None) == (user is None):
            raise ValueError("give either history=[titles or ids] or user=ID")
        if user is not None:
            row, items = self.assembly.history_of(user)
            return row, items.tolist()
        return self.assembly.dataset.num_users, self._rows(history or ())

    @cached_property
    def _text_model(self) -> tuple[TextEncoder, Any]:
        """The text encoder and its weights: (parameters, delta)."""
        if not self.assembly.reads_text:
            raise ValueError(f"{self.workdir} knows items by their ids only: it has no language model to encode with")
        text = self.assembly.pretrained
        model = TextEncoder(text.encoder, text.pooling)
        folder.check_tokenizer(self.assembly, self.workdir)
        state = best_state(self.workdir)
        params = {**text.params, **state["params"]}
        return model, ({name: params[name] for name in ("encoder", "pooling") if name in params}, state["delta"])


def _ranks(assembly: Assembly | RatingAssembly, workdir: Path) -> Assembly:
    """Returns the assembly of a run that ranks; ValueError for another."""
    if not isinstance(assembly, Assembly):
        raise ValueError(f"{workdir} rates labeled examples and ranks no catalogue")
    return assembly


def restore(workdir: Path) -> tuple[Assembly | RatingAssembly, Params]:
    """Restores the best checkpoint of a run.

    Args:
      workdir: Folder of the run.

    Returns:
      The run's assembly, and its trained and frozen parameters.

    Raises:
      RunFolderError: There is no run, or its data has changed.
      CheckpointError: There is no checkpoint, or it is damaged.
    """
    config: Any = folder.config_of(workdir)
    # It was trained on some devices, and is looked at on any.
    config.mesh.model = 1
    assembly = assemble(config)
    folder.check_data(assembly, workdir)
    params = partition_params(assembly.method, assembly.params(), jax.random.key(0))
    checkpoints = Checkpoints(workdir, sharding.digest(params.frozen))
    # Once there is a result, it is of that state, whatever became of `last` since.
    ended = workdir / "result.json"
    best = (folder.read(ended) if ended.exists() else checkpoints.record("last"))["best_step"]
    trainable = checkpoints.restore("best", sharding.place(params.trainable, assembly.mesh), best).state
    checkpoints.close()
    return assembly, Params(trainable, params.frozen)


def restore_scorer(workdir: Path) -> tuple[Assembly, Scorer | Ranker]:
    """Restores the best checkpoint of a ranking run, ready to score; a baseline is fitted again."""
    config: Any = folder.config_of(workdir)
    if config.baseline.name is not None:
        assembly = Assembly(config)
        folder.check_data(assembly, workdir)
        return assembly, assembly.baseline
    assembly, params = restore(workdir)
    assembly = _ranks(assembly, workdir)
    return assembly, assembly.scorer.of({**params.frozen, **params.trainable["params"]}, params.trainable["delta"])


def evaluate_again(workdir: Path) -> dict[str, dict[str, float]]:
    """Evaluates a run again, and writes its tables of users anew.

    Returns:
      {"validation": {metric: value}, "test": …}.
    """
    config: Any = folder.config_of(workdir)
    folder.check_files(workdir)
    if config.baseline.name is not None:
        assembly = assemble(config)
        folder.check_data(assembly, workdir)
        return assembly.evaluate_baseline(workdir)
    assembly, params = restore(workdir)
    return assembly.evaluate(params.trainable, {"params": params.frozen}, workdir)
