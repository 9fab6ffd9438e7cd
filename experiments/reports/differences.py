"""Two models side by side: where their configurations differ, and the users and items on which one of them wins."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.reports.finished_runs import FinishedRun
from experiments.reports.statistics import by_user
from llm4rec_jax.evaluation.metrics import less_is_better
from llm4rec_jax.runs import folder
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.runs.run import assemble

# Items of a history that are shown, the latest first.
_LATEST = 5


class Rows(NamedTuple):
    """A table of text: header and cells. Titles and ids in it are data, to be escaped by whoever shows them."""

    header: list[str]
    rows: list[list[str]]


class Audience:
    """The tested users of a run: the titles that a model reads of them, and those that were held out.

    Args:
      run: A run that ranks.

    Raises:
      RunFolderError: The data has changed since the run was trained.
      ValueError: The run rates labeled examples.
    """

    def __init__(self, run: FinishedRun) -> None:
        assembly = assemble(folder.config_of(run.folder))
        if not isinstance(assembly, Assembly):
            raise ValueError(f"{run.folder} rates labeled examples: it has no held-out items to show")
        folder.check_data(assembly, run.folder)
        self.titles = assembly.titles
        self._rows = {user: row for row, user in enumerate(assembly.dataset.users["user_id"].to_list())}
        self._histories = assembly.split.history("test")
        self._targets = assembly.split.targets_of("test")

    def history(self, user: str) -> list[int]:
        """Returns the items that precede a user's targets, the oldest first."""
        return self._histories.of(self._rows[user]).tolist()

    def targets(self, user: str) -> list[int]:
        """Returns the held-out items of a user."""
        return self._targets.of(self._rows[user]).tolist()


class Duel(NamedTuple):
    """A metric of two models for the same users, averaged over seeds.

    Attributes:
      metric: Its name.
      names: Labels of the two models.
      users: Ids [E].
      values: The metric by model and user, [2, E].
    """

    metric: str
    names: tuple[str, str]
    users: list[str]
    values: np.ndarray

    @property
    def gains(self) -> np.ndarray:
        """The advantage of the second model by user [E], positive where it is better."""
        difference = self.values[1] - self.values[0]
        return -difference if less_is_better(self.metric) else difference


def duel(models: Mapping[str, Sequence[FinishedRun]], metric: str) -> Duel | None:
    """Returns the metric of two models by user; None for a metric that has no values by user.

    Args:
      models: Label to runs that differ in their seed; the two have the same users.
      metric: Name of a test metric.
    """
    (first, second), runs = tuple(models), list(models.values())
    values = [by_user(own, metric) for own in runs]
    if values[0] is None or values[1] is None:
        return None
    users = [str(user) for user in runs[0][0].tested["user_id"]]
    return Duel(metric, (first, second), users, np.stack([values[0].mean(0), values[1].mean(0)]))


def configuration_rows(a: FinishedRun, b: FinishedRun) -> Rows:
    """Returns the keys whose values differ between two runs' configurations."""
    keys = sorted({*a.config, *b.config})
    differing = [key for key in keys if a.config.get(key) != b.config.get(key)]
    rows = [[key, *(_written(run.config.get(key)) for run in (a, b))] for key in differing]
    return Rows(["key", a.folder.name, b.folder.name], rows)


def _written(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def user_rows(d: Duel, audience: Audience | None, count: int) -> Rows:
    """Returns the users on whom the two models differ most, those that the second serves better first.

    Args:
      d: The two models.
      audience: Titles; None leaves them out.
      count: Number of users for each model.
    """
    order = np.argsort(-d.gains, kind="stable")
    chosen = [i for i in order[:count] if d.gains[i] > 0] + [i for i in order[::-1][:count] if d.gains[i] < 0]
    rows = []
    for i in chosen:
        row = [d.users[i], *(f"{value:.4f}" for value in d.values[:, i])]
        if audience is not None:
            latest = [audience.titles[item] for item in audience.history(d.users[i])[::-1][:_LATEST]]
            row += ["; ".join(latest), "; ".join(audience.titles[item] for item in audience.targets(d.users[i]))]
        rows.append(row)
    titles = [] if audience is None else ["history, latest first", "held out"]
    return Rows(["user", *d.names, *titles], rows)


def item_rows(d: Duel, audience: Audience, count: int) -> Rows:
    """Returns the held-out items on which the two models differ most, by the sum of the gains of their users.

    Args:
      d: The two models.
      audience: Titles.
      count: Number of items for each model.
    """
    members: dict[int, list[int]] = {}
    for i, user in enumerate(d.users):
        for item in audience.targets(user):
            members.setdefault(item, []).append(i)
    gains = {item: float(d.gains[rows].sum()) for item, rows in members.items()}
    order = sorted(gains, key=lambda item: -gains[item])
    chosen = [item for item in order[:count] if gains[item] > 0]
    chosen += [item for item in order[::-1][:count] if gains[item] < 0]
    rows = [
        [audience.titles[item], str(len(members[item])), *(f"{v:.4f}" for v in d.values[:, members[item]].mean(1))]
        for item in chosen
    ]
    return Rows(["held-out item", "users", *d.names], rows)
