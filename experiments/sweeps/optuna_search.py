"""A search over configurations: an Optuna study whose trials are run folders.

The study is a file in the workdir. The draws for a trial are a function of the seed, the trial's number and the
results known then; a search that is broken off goes on where it was when it is made again.
"""

import json
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from experiments.sweeps import trials
from experiments.sweeps.schedule import Entry, Schedule
from experiments.sweeps.sealed_log import SealedLog
from experiments.sweeps.trials import Study, Trial
from llm4rec_jax.checksums import Damaged
from llm4rec_jax.evaluation.metrics import less_is_better
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs.locks import Lock
from llm4rec_jax.training import metric_writer

_FOLDER, _OVERRIDES = "folder", "overrides"
_STATES = {TrialState.COMPLETE: "finished", TrialState.FAIL: "failed", TrialState.RUNNING: "interrupted"}


class _Going(NamedTuple):
    trial: optuna.Trial
    entry: Entry


class Search:
    """Draws configurations by TPE, runs them, and gives up those whose validation stands below the median.

    Only validation is looked at. Until it is closed no other search can be made in its workdir.

    Args:
      study: its `search(trial)` gives the overrides of a trial.
      arg: of the configuration that they override.
      workdir: holds the run folders, and the search in search.log.
      metric: a validation metric, the larger the better; runs select their best step by it too.
      seed: of what is drawn.
      spared: trials that must have finished before one is given up.
      parallel: trials run at a time; what is drawn keeps away from those that still run.

    Raises:
      FolderInUse: another process is at work here.
      ValueError: the search that is here has another configuration or metric.
    """

    def __init__(
        self,
        study: Study,
        arg: str,
        workdir: Path,
        metric: str,
        *,
        seed: int = 0,
        spared: int = 5,
        parallel: bool = False,
    ) -> None:
        self._study, self._arg, self._workdir, self.metric = study, arg, workdir, metric
        self._seed, self._parallel = seed, parallel
        self._lock = Lock(workdir)
        try:
            self._log = SealedLog(workdir / "search.log")
        except BaseException:
            self._lock.close()
            raise
        try:
            self._optuna = self._opened({"configuration": f"{Path(study.file).name}:{arg}", "metric": metric}, spared)
        except BaseException:
            self.close()
            raise
        self._going: list[_Going] = []
        # Drawn, but not ended, when the search was broken off.
        self._left = [t for t in self.trials if t.state == TrialState.RUNNING]
        self._failed = [t for t in self.trials if t.state == TrialState.FAIL and not self._repeated(t)]

    def _opened(self, attributes: Mapping[str, str], spared: int) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=JournalStorage(self._log),
            study_name="search",
            direction="minimize" if less_is_better(self.metric) else "maximize",
            load_if_exists=True,
            pruner=MedianPruner(n_startup_trials=spared),
        )
        for name, value in attributes.items():
            held = study.user_attrs.get(name, value)
            if held != value:
                raise ValueError(
                    f"{self._workdir} holds a search whose {name} is {held}, not {value}; give another --workdir"
                )
            study.set_user_attr(name, value)
        return study

    @property
    def trials(self) -> list[FrozenTrial]:
        """Drawn trials, in order."""
        return [t for t in self._optuna.get_trials(deepcopy=False) if t.state != TrialState.WAITING]

    @property
    def best(self) -> FrozenTrial | None:
        """The finished trial with the best value; None before one has finished."""
        finished = [t for t in self.trials if t.state == TrialState.COMPLETE]
        return max(finished, key=self._score, default=None)

    def counted(self) -> int:
        """Trials that need not be drawn any more: all but those that failed and are, or are to be, tried again."""
        again = {t.number for t in self._failed}
        return sum(
            t.number not in again and not (t.state == TrialState.FAIL and self._repeated(t)) for t in self.trials
        )

    def beat(self, schedule: Schedule, entries: list[Entry], number: int) -> None:
        """Looks at the trials that run, takes in those that have ended, and starts others, up to `number` in all.

        A trial that failed before this search was made is not counted; what was drawn for it is tried again.

        Raises:
          ValueError: `search(trial)` returns no mapping, or one that cannot override the configuration.
        """
        for going in list(self._going):
            if going.entry.status == "running":
                self._report(going)
                if going.trial.should_prune():
                    schedule.cancel(going.entry, "pruned")
            elif going.entry.status != "waiting":
                self._going.remove(going)
                self._tell(going)
        while schedule.free and (self._left or self.counted() < number):
            going = self._start(schedule)
            entries.append(going.entry)
            if going.entry.status == "finished":
                self._tell(going)
            else:
                self._going.append(going)

    def write(self) -> None:
        """Writes WORKDIR/search.json: every trial with value, parameters, state and folder, the best, and `tried`."""
        best = self.best
        value = {
            "configuration": f"{self._study.file}:{self._arg}".rstrip(":"),
            "metric": self.metric,
            "tried": self.tried(),
            "best": None if best is None else self._described(best),
            "trials": [self._described(t) for t in self.trials],
        }
        run_folder.write(self._workdir / "search.json", value)

    def tried(self) -> int:
        """Returns the number of different configurations that have been validated."""
        looked_at = [t for t in self.trials if t.state == TrialState.COMPLETE or t.intermediate_values]
        return len({t.user_attrs[_FOLDER] for t in looked_at})

    def table(self) -> str:
        """The trials as a Markdown table, the best first."""
        names = list(dict.fromkeys(name for t in self.trials for name in t.params))
        header = ["trial", f"validation {self.metric}", *names, "state", "step", "folder"]
        ranked = sorted(self.trials, key=lambda t: (t.state != TrialState.COMPLETE, -self._score(t)))
        rows = []
        for t in ranked:
            at = max(t.intermediate_values, default=0)
            score = self._score(t)
            value = "" if score == float("-inf") else f"{abs(score):.4f}"
            shown = [f"{t.params[n]:.4g}" if isinstance(t.params.get(n), float) else t.params.get(n, "") for n in names]
            rows.append([t.number, value, *shown, _state(t), at, t.user_attrs.get(_FOLDER, "")])
        lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
        return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)

    def flags(self, trial: FrozenTrial) -> str:
        """A trial's overrides as arguments of a shell."""
        return " ".join(shlex.quote(f"--config.{k}={v}") for k, v in trial.user_attrs[_OVERRIDES].items())

    def close(self) -> None:
        """Lets another search be made in the workdir."""
        self._log.close()
        self._lock.close()

    def _described(self, trial: FrozenTrial) -> dict[str, Any]:
        return {
            "number": trial.number,
            "state": _state(trial),
            "value": trial.value if trial.state == TrialState.COMPLETE else None,
            "parameters": trial.params,
            "overrides": trial.user_attrs.get(_OVERRIDES),
            "validations": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
            "folder": trial.user_attrs.get(_FOLDER),
        }

    def _score(self, trial: FrozenTrial) -> float:
        """A finished trial's value, the best validation of others; negative where less is better."""
        ended = trial.state == TrialState.COMPLETE and trial.value is not None
        values = [trial.value] if ended else trial.intermediate_values.values()
        sign = -1 if less_is_better(self.metric) else 1
        return max((sign * value for value in values if value is not None), default=float("-inf"))

    def _repeated(self, trial: FrozenTrial) -> bool:
        folder = trial.user_attrs.get(_FOLDER)
        return any(t.number > trial.number and t.user_attrs.get(_FOLDER) == folder for t in self.trials)

    def _start(self, schedule: Schedule) -> _Going:
        number = self._left[0].number if self._left else len(self.trials)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # Seeded anew for each: one seed would draw the first trials again where a search goes on.
            seed = (1_000_003 * self._seed + number) % 2**32
            self._optuna.sampler = TPESampler(seed=seed, constant_liar=self._parallel)
        if self._left:
            # Its parameters are in the storage, and what was not drawn yet is now.
            trial = optuna.Trial(self._optuna, self._left.pop(0)._trial_id)
        else:
            if self._failed:
                self._optuna.enqueue_trial(self._failed.pop(0).params)
            trial = self._optuna.ask()
        assert self._study.search is not None
        overrides = self._study.search(trial)
        if not isinstance(overrides, Mapping):
            raise ValueError(f"{self._study.file}: search(trial) returned {overrides!r}, and must return overrides")
        overrides = dict(overrides)
        run = trials.place(
            self._study,
            Trial(f"trial-{trial.number}", self._arg, {**overrides, "train.metric": self.metric}, "search"),
            self._workdir,
            {},
        )
        trial.set_user_attr(_OVERRIDES, json.loads(json.dumps(overrides)))
        trial.set_user_attr(_FOLDER, run.folder.name)
        (entry,) = schedule.add([run])
        return _Going(trial, entry)

    def _report(self, going: _Going) -> None:
        """Passes new validations on, but that of step 0, before training. Damaged records are passed over: the trial
        itself fails by that."""
        known = self._optuna.get_trials(deepcopy=False)[going.trial.number].intermediate_values
        try:
            records = metric_writer.read(going.entry.run.folder / "metrics.jsonl")
        except Damaged:
            return
        for record in records:
            if record["kind"] == "validation" and record["step"] > 0 and record["step"] not in known:
                going.trial.report(record[self.metric], record["step"])

    def _tell(self, going: _Going) -> None:
        self._report(going)
        status = going.entry.status
        if status == "finished":
            result = run_folder.read(going.entry.run.folder / "result.json")
            self._optuna.tell(going.trial, result["validation"][self.metric])
        elif status == "pruned":
            self._optuna.tell(going.trial, state=TrialState.PRUNED)
        elif status == "failed":
            self._optuna.tell(going.trial, state=TrialState.FAIL)
        self.write()


def _state(trial: FrozenTrial) -> str:
    return _STATES.get(trial.state, trial.state.name.lower())
