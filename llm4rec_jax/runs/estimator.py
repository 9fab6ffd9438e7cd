"""An estimator over data frames: a run without a configuration file."""

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
from ml_collections import ConfigDict
from narwhals.typing import IntoDataFrame

from llm4rec_jax.data.splits.split import in_order, sequences
from llm4rec_jax.inference.recommend import recommend_to_users
from llm4rec_jax.io import replacing
from llm4rec_jax.registry import unknown_name
from llm4rec_jax.runs import folder
from llm4rec_jax.runs.load import LoadedRun, load
from llm4rec_jax.runs.run import run
from llm4rec_jax.runs.schema import default_config, resolve

_INTERACTIONS, _ITEMS = "data/interactions.parquet", "data/items.parquet"


class LLM4Rec:
    """A recommender that is fitted to data frames of Polars, pandas or Arrow.

    It trains the run that `experiments.train` would, with the same settings and the same numbers: the last interaction
    of each user tests, the one before validates, and the best validation state is kept.

    Args:
      encoder: Language model that reads the items' texts: a folder, a hub name, "minilm" or "smollm2". None knows items
        by their ids alone.
      peft: Method that tunes the language model, such as "lora", a chain such as "lora+bitfit", or "frozen".
      users: User model, such as "transformer", "gru" or "mean".
      text: Template of an item's text, over the columns of the items.
      settings: Further keys of the configuration with their values: `{"train.steps": 400, "loss.name": "in_batch"}`.
        They take precedence over the other arguments.

    Attributes:
      metrics: Metrics of the fitted recommender, {"validation": {metric: value}, "test": …}.
      run: Its run, which recommends for a history, scores items and encodes texts; see `load`.

    Raises:
      ValueError: A setting is unknown, or its value is wrong.

    Example:
      >>> model = LLM4Rec(encoder=None, users="gru", settings={"train.steps": 10})
      >>> model.config.inputs, model.config.peft.method
      ('id', 'frozen')
    """

    metrics: dict[str, dict[str, float]]
    run: LoadedRun

    def __init__(
        self,
        encoder: str | Path | None = "minilm",
        peft: str = "lora",
        users: str = "transformer",
        *,
        text: str = "{title}",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        chosen = {"model.users": users, "text.item": text, "data.source": "table"}
        if encoder is None:
            chosen |= {"inputs": "id"}
        else:
            chosen |= {"encoder.path": str(encoder), "peft.method": peft}
        self.config: Any = _configure(default_config(), {**chosen, **(settings or {})})
        # The library of the frames, of a type that narwhals has no public name for.
        self._like: Any = nw.Implementation.POLARS

    def fit(
        self,
        interactions: IntoDataFrame,
        items: IntoDataFrame | None = None,
        *,
        user: str = "user_id",
        item: str = "item_id",
        timestamp: str | None = "timestamp",
        rating: str | None = None,
        workdir: str | Path | None = None,
    ) -> "LLM4Rec":
        """Trains and evaluates.

        Args:
          interactions: One interaction a row.
          items: One item a row, with its id and the columns of the text; not needed where items are ids alone.
          user, item: Columns of the ids.
          timestamp: Column of the times; None takes the rows in their order.
          rating: Column of the ratings, if there is one.
          workdir: Folder of the run, where training that was broken off goes on. None trains in a temporary folder,
            which `save` copies.

        Returns:
          This object.

        Raises:
          ValueError: A column is missing, or the items are.
          DataError: The data cannot be used.
          RunFolderError: The folder holds a run on other data, or with other settings.
        """
        frame = nw.from_native(interactions, eager_only=True)
        self._like = frame.implementation
        columns = {"user": user, "item": item, "timestamp": timestamp, "rating": rating}
        columns = {name: column for name, column in columns.items() if column is not None}
        for name, column in columns.items():
            if column not in frame.columns:
                raise ValueError(f"{name}: {unknown_name('column of interactions', column, frame.columns)}")
        if items is None and self.config.inputs != "id":
            raise ValueError("items are read as text, and there is no frame of items: give one, or encoder=None")
        if workdir is None:
            workdir = tempfile.mkdtemp(prefix="llm4rec_jax-")
            weakref.finalize(self, shutil.rmtree, workdir, ignore_errors=True)
        place = Path(workdir).resolve()
        _keep(frame.select(list(columns.values())).to_polars(), place / _INTERACTIONS)
        data: dict[str, Any] = {f"data.options.{name}": column for name, column in columns.items()}
        data["data.path"] = str(place / _INTERACTIONS)
        if items is not None:
            _keep(nw.from_native(items, eager_only=True).to_polars(), place / _ITEMS)
            data["data.options.items_path"] = str(place / _ITEMS)
        if timestamp is None:
            data["data.split_options.order"] = "input"
        self.config = _configure(self.config, data)
        self._open(place, run(self.config, place))
        return self

    def recommend(self, users: Iterable[Any], k: int = 10) -> Any:
        """Recommends items that the users have no interaction with, the best first.

        Args:
          users: Ids of users of the data: a list, an array or a column.
          k: Number of items for each.

        Returns:
          A frame of the library of `fit`'s frames (of Polars, after `load`), with a row for each recommended item: the
          columns of the ids as they are called in the interactions, "rank" from 1, and "score".

        Raises:
          ValueError: A user is not in the data.
        """
        assembly, scorer = self._fitted.assembly, self._fitted.scorer
        dataset = assembly.dataset
        order = "input" if dataset.interactions.timestamp is None else "time"
        histories = sequences(dataset, in_order(dataset, np.arange(len(dataset.interactions)), order))
        row_of = {user: row for row, user in enumerate(dataset.users["user_id"].to_list())}
        asked = [str(user) for user in users]
        if unknown := [user for user in asked if user not in row_of]:
            raise ValueError(unknown_name("user", unknown[0], row_of))
        rows = np.array([row_of[user] for user in asked], np.int64)
        found, scores = recommend_to_users(scorer, histories, rows, k, mesh=assembly.mesh)
        at, rank = np.nonzero(found >= 0)
        options = self.config.data.options
        types = pl.read_parquet_schema(self._fitted.workdir / _INTERACTIONS)
        columns = {
            options.user: pl.Series(asked, dtype=pl.String)[at].cast(types[options.user]),
            options.item: dataset.items["item_id"][found[at, rank]].cast(types[options.item]),
            "rank": pl.Series(rank + 1),
            "score": pl.Series(scores[at, rank]),
        }
        frame = pl.DataFrame(columns)
        if self._like.is_polars():
            return frame
        return nw.from_dict(frame.to_dict(as_series=False), backend=self._like).to_native()

    def save(self, workdir: str | Path) -> Path:
        """Copies the run, with its data, to a new folder, and returns that.

        Every command takes the folder, as `--workdir`, and `load` does.
        """
        target = Path(workdir)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ValueError(f"{target} exists: give a folder that does not, or an empty one")
        with replacing(target) as scratch:
            shutil.copytree(self._fitted.workdir, scratch, dirs_exist_ok=True, ignore=shutil.ignore_patterns("lock"))
        _locate_data(target)
        return target

    @classmethod
    def load(cls, workdir: str | Path) -> "LLM4Rec":
        """Opens the folder of a recommender that was fitted or saved there, also after the folder was moved.

        Raises:
          RunFolderError: The folder holds no such recommender.
        """
        place = Path(workdir).resolve()
        if not (place / _INTERACTIONS).exists():
            raise folder.RunFolderError(
                f"{place} holds no recommender that LLM4Rec has fitted: {_INTERACTIONS} is missing. "
                "llm4rec_jax.load opens runs of experiments.train"
            )
        _locate_data(place)
        model = cls(encoder=None)
        model.config = folder.config_of(place)
        model._open(place, folder.read(place / "result.json"))
        return model

    def _open(self, workdir: Path, result: Mapping[str, Any]) -> None:
        self.metrics = {phase: result[phase] for phase in ("validation", "test")}
        self.run = load(workdir)

    @property
    def _fitted(self) -> LoadedRun:
        if not hasattr(self, "run"):
            raise ValueError("this recommender is not fitted: call fit(interactions, items), or LLM4Rec.load(folder)")
        return self.run


def _configure(config: ConfigDict, settings: Mapping[str, Any]) -> ConfigDict:
    """Returns a configuration with values for dotted keys, checked."""
    values = config.to_dict()
    for key, value in settings.items():
        *tables, name = key.split(".")
        table = values
        for part in tables:
            table = table.setdefault(part, {})
        table[name] = dict(value) if isinstance(value, Mapping) else value
    return resolve(ConfigDict(values))


def _keep(frame: pl.DataFrame, path: Path) -> None:
    """Writes a frame, unless the same one is there.

    Raises:
      RunFolderError: Another one is there.
    """
    if path.exists():
        if not pl.read_parquet(path).equals(frame):
            raise folder.RunFolderError(f"{path} holds other data: give another workdir, or remove that one")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch:
        frame.write_parquet(scratch)


def _locate_data(workdir: Path) -> None:
    """Lets the configuration of a run say where its data is now."""
    workdir = workdir.resolve()
    config = folder.read(workdir / "config.json")
    data, options = config["data"], config["data"]["options"]
    if data["path"] == str(workdir / _INTERACTIONS):
        return
    data["path"] = str(workdir / _INTERACTIONS)
    if "items_path" in options:
        options["items_path"] = str(workdir / _ITEMS)
    folder.write(workdir / "config.json", config)
