"""Searches: trials drawn, given up, taken up again after a kill, and listed at the end."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from configs import movielens_100k
from experiments.sweeps import trials
from experiments.sweeps.executors import Executor, Handle
from experiments.sweeps.optuna_search import Search
from experiments.sweeps.processes import Ended, Job
from experiments.sweeps.schedule import Schedule, drive
from llm4rec_jax.checksums import Damaged
from tests.helpers.commands import ROOT, command
from tests.helpers.compiling import environment

CONFIG = """
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

def get_config():
    config = ConfigDict({"init_from": placeholder(str), "x": 0.0, "kind": "a"})
    config.train = ConfigDict({"metric": "ndcg@10", "steps": 40})
    config.lock()
    return config

def search(trial):
    return {"x": trial.suggest_float("x", 0, 1), "kind": trial.suggest_categorical("kind", ["a", "b"])}
"""
VALIDATE = 10  # steps


class Trainer:
    """An executor in this process: at each poll a run makes ten steps, at which it validates as `value` says.

    Args:
      value: from the configuration and the step to the metric; what it raises ends the run with code 1.
    """

    def __init__(self, value: Callable[[dict, int], float]) -> None:
        self.value, self.started, self.cancelled = value, [], []

    def executor(self) -> Executor:
        return Executor(self.submit, lambda: None)

    def submit(self, job: Job) -> Handle:
        folder = Path(job.folders[0])
        config = json.loads((folder / "config.json").read_text())
        (folder / "lock").write_text(json.dumps({"token": job.token}))
        self.started.append(folder.name)
        metrics = folder / "metrics.jsonl"
        step = metrics.read_text().count("\n") * VALIDATE if metrics.exists() else 0

        def poll() -> Ended | None:
            nonlocal step
            if folder.name in self.cancelled:
                return Ended(0)
            step += VALIDATE
            try:
                record = {"kind": "validation", "step": step, "seconds": 0.0, config["train"]["metric"]: 0.0}
                record[config["train"]["metric"]] = self.value(config, step)
            except ValueError as error:
                return Ended(1, str(error))
            with metrics.open("a") as lines:
                lines.write(json.dumps(record) + "\n")
            if step < config["train"]["steps"]:
                return None
            (folder / "result.json").write_text(json.dumps({"validation": record}))
            return Ended(0)

        return Handle(poll, lambda: self.cancelled.append(folder.name))


class Killed(BaseException):
    """Ends a search in its midst."""


def searched(
    tmp_path: Path,
    number: int,
    value: Callable[[dict, int], float] = lambda config, step: config["x"],
    config: str = CONFIG,
    workers: int = 1,
    metric: str = "ndcg@10",
    until: Callable[[Search], bool] = lambda search: False,
    **options: int,
) -> tuple[Search, Trainer]:
    """Makes a search up to a number of trials, or until it is killed."""
    file = tmp_path / "searched.py"
    file.write_text(config, encoding="utf-8")
    workdir = tmp_path / "runs"
    workdir.mkdir(exist_ok=True)
    trainer, entries = Trainer(value), []
    search = Search(trials.load(str(file)), "", workdir, metric, parallel=workers > 1, **options)
    schedule = Schedule(trainer.executor(), workers=workers)

    def beat() -> None:
        search.beat(schedule, entries, number)
        if until(search):
            raise Killed

    with contextlib.closing(search), contextlib.suppress(Killed):
        drive(schedule, beat, interval=0.0)
    return search, trainer


def drawn(search: Search) -> list[tuple[int, dict]]:
    return [(t.number, t.params) for t in search.trials]


def test_the_best_by_validation_is_found_and_written(tmp_path):
    search, _ = searched(tmp_path, 12, lambda config, step: 1 - (config["x"] - 0.3) ** 2, spared=99)
    assert len(search.trials) == search.tried() == 12
    best = search.best
    assert best is not None
    assert abs(best.params["x"] - 0.3) == min(abs(t.params["x"] - 0.3) for t in search.trials)
    written = json.loads((tmp_path / "runs" / "search.json").read_text())
    assert (written["metric"], written["tried"], len(written["trials"])) == ("ndcg@10", 12, 12)
    assert written["best"]["overrides"] == best.params
    assert search.flags(best) == f"--config.x={best.params['x']} --config.kind={best.params['kind']}"
    assert (tmp_path / "runs" / written["best"]["folder"] / "result.json").exists()
    rows = search.table().splitlines()[2:]
    assert rows[0].split(" | ")[0] == f"| {best.number}"
    values = [float(row.split(" | ")[1]) for row in rows]
    assert values == sorted(values, reverse=True)


def test_the_least_is_the_best_where_less_is_better(tmp_path):
    search, _ = searched(tmp_path, 8, lambda config, step: 5 + (config["x"] - 0.3) ** 2, spared=99, metric="log_loss")
    best = search.best
    assert best is not None
    assert best.value == min(t.value for t in search.trials)
    values = [float(row.split(" | ")[1]) for row in search.table().splitlines()[2:]]
    assert values == sorted(values)


def test_a_search_is_a_function_of_its_seed_however_often_it_is_called(tmp_path):
    for name in ("whole", "parts", "other"):
        (tmp_path / name).mkdir()
    whole, _ = searched(tmp_path / "whole", 6)
    searched(tmp_path / "parts", 2)
    searched(tmp_path / "parts", 2)
    parts, trainer = searched(tmp_path / "parts", 6)
    assert drawn(parts) == drawn(whole)
    assert len(trainer.started) == 4
    other, _ = searched(tmp_path / "other", 6, seed=1)
    assert drawn(other) != drawn(whole)
    assert len({t.params["x"] for t in whole.trials}) == 6


def test_what_stands_below_the_median_is_given_up(tmp_path):
    def value(config: dict, step: int) -> float:
        return config["x"] * step / 40

    search, trainer = searched(tmp_path, 12, value, spared=3)
    states = [t.state.name for t in search.trials]
    assert states[:3] == ["COMPLETE"] * 3
    pruned = [t for t in search.trials if t.state.name == "PRUNED"]
    assert pruned
    assert {t.user_attrs["folder"] for t in pruned} == set(trainer.cancelled)
    for t in pruned:
        earlier = [e.params["x"] for e in search.trials[: t.number] if e.state.name == "COMPLETE"]
        assert t.params["x"] < sorted(earlier)[len(earlier) // 2]
        assert max(t.intermediate_values) < 40
        assert not (tmp_path / "runs" / t.user_attrs["folder"] / "result.json").exists()
    # They were looked at.
    assert search.tried() == 12
    assert search.best is not None
    assert search.best.state.name == "COMPLETE"


@pytest.mark.parametrize("workers", [1, 2])
def test_trials_that_were_running_at_a_kill_go_on(tmp_path, workers):
    def midst(search: Search) -> bool:
        return len(search.trials) >= 3 and bool(search.trials[-1].intermediate_values)

    broken, _ = searched(tmp_path, 5, spared=99, until=midst, workers=workers)
    before, left = drawn(broken), [t for t in broken.trials if t.state.name == "RUNNING"]
    assert len(left) == workers
    search, trainer = searched(tmp_path, 5, spared=99, workers=workers)
    assert [t.state.name for t in search.trials] == ["COMPLETE"] * 5
    assert drawn(search)[: len(before)] == before
    assert trainer.started[: len(left)] == [t.user_attrs["folder"] for t in left]
    # It goes on from its checkpoint: no step is made twice.
    assert all(len(t.intermediate_values) == 4 for t in search.trials)


def test_a_kill_may_cut_the_log_short(tmp_path):
    searched(tmp_path, 2)
    with (tmp_path / "runs" / "search.log").open("a") as log:
        log.write('{"op_code": 4, "stu')
    search, _ = searched(tmp_path, 3)
    assert len(search.trials) == 3


@pytest.mark.parametrize("change", ["value", "line", "seal", "order"])
def test_a_changed_log_is_refused(tmp_path, change):
    """An edited value would be believed, and the flags printed for the best trial would not be those that it had."""
    searched(tmp_path, 2)
    file = tmp_path / "runs" / "search.log"
    lines = file.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if '"intermediate_value"' in line)
    if change == "value":
        entry = json.loads(lines[at])
        lines[at] = json.dumps({**entry, "intermediate_value": 9.0})
    elif change == "seal":
        lines[at] = json.dumps({k: v for k, v in json.loads(lines[at]).items() if k != "sha256"})
    elif change == "line":
        del lines[at]
    else:
        lines[at : at + 2] = lines[at + 1], lines[at]
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(Damaged, match=rf"search\.log is damaged, or was changed by hand, in line {at + 1}"):
        searched(tmp_path, 3)


def test_a_log_without_seals_is_read_and_goes_on_sealed(tmp_path):
    searched(tmp_path, 2)
    file = tmp_path / "runs" / "search.log"
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({k: v for k, v in e.items() if k != "sha256"}) + "\n" for e in entries))
    search, _ = searched(tmp_path, 3)
    assert len(search.trials) == 3
    assert "sha256" in file.read_text().splitlines()[-1]


def test_failed_trials_are_tried_again_and_not_counted(tmp_path):
    def failing(config: dict, step: int) -> float:
        if config["x"] > 0.5:
            raise ValueError("out of memory")
        return config["x"]

    search, _ = searched(tmp_path, 6, failing)
    failed = {t.user_attrs["folder"] for t in search.trials if t.state.name == "FAIL"}
    assert 0 < len(failed) < 6
    assert search.tried() == 6 - len(failed)
    record = next((tmp_path / "runs").glob("*/failure.txt"))
    assert "out of memory" in record.read_text()
    mended, trainer = searched(tmp_path, 6)
    assert set(trainer.started) == failed
    assert mended.tried() == 6
    assert len(mended.trials) == 6 + len(failed)
    assert mended.counted() == 6
    assert searched(tmp_path, 6)[1].started == []


def test_what_was_drawn_before_is_not_trained_again(tmp_path):
    config = CONFIG.replace('"x": trial.suggest_float("x", 0, 1), ', "")
    search, trainer = searched(tmp_path, 6, config=config)
    assert len(search.trials) == 6
    assert len(trainer.started) == search.tried() == 2


def test_the_metric_is_that_by_which_runs_select(tmp_path):
    search, _ = searched(tmp_path, 1, metric="mrr")
    (trial,) = search.trials
    assert json.loads((tmp_path / "runs" / trial.user_attrs["folder"] / "config.json").read_text())["train"] == {
        "metric": "mrr", "steps": 40,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"holds a search whose metric is mrr, not ndcg@10; give another --workdir"):
        searched(tmp_path, 2)


def test_two_searches_do_not_share_a_workdir(tmp_path):
    def second(_: Search) -> bool:
        with pytest.raises(ValueError, match=r"is worked in by process \d+ on .*, since"):
            searched(tmp_path, 1)
        return True

    searched(tmp_path, 1, until=second)


@pytest.mark.parametrize(
    ("returned", "message"),
    [("3", "returned 3, and must return overrides"), ("{'y': 1}", 'trial-0 cannot be configured: Key "y"')],
)
def test_wrong_overrides_are_named_before_anything_runs(tmp_path, returned, message):
    with pytest.raises(ValueError, match=message):
        searched(tmp_path, 3, config=CONFIG + f"\nsearch = lambda trial: {returned}\n")
    assert not list((tmp_path / "runs").glob("*/log.txt"))


def test_the_example_searches_what_it_says():
    import optuna

    overrides = movielens_100k.search(optuna.create_study().ask())
    config = movielens_100k.get_config("id")
    config.update_from_flattened_dict(overrides)
    assert set(overrides) == {
        "train.learning_rate",
        "model.width",
        "model.user_options.transformer.layers",
        "model.user_options.transformer.dropout",
    }


SEARCH = """
def search(trial):
    slow = trial.number == 1
    rate = trial.suggest_float("rate", 5e-3, 1e-2, log=True)
    return {"train.learning_rate": 1e-9 if slow else rate, "train.steps": 5000 if slow else 12}
"""


@pytest.mark.long
def test_a_search_from_the_command_line_that_is_killed_goes_on(config, tmp_path):
    file = config.with_name("searched.py")
    file.write_text(config.read_text() + SEARCH, encoding="utf-8")
    arguments = [f"--config={file}:id", f"--workdir={tmp_path}", "--trials=2", "--spared=1"]
    killed = subprocess.Popen(
        [sys.executable, "-m", "experiments.search", *arguments], cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL
    )
    limit = time.monotonic() + 300
    while not (tmp_path / "by_name" / "trial-0" / "lock").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = command("search", *arguments)
    found = json.loads((tmp_path / "search.json").read_text())
    assert [(t["number"], t["state"]) for t in found["trials"]] == [(0, "finished"), (1, "pruned")]
    assert (found["tried"], found["best"]["number"]) == (2, 0)
    result = json.loads((tmp_path / found["best"]["folder"] / "result.json").read_text())
    assert found["best"]["value"] == result["validation"]["ndcg@5"]
    assert f"--config.train.learning_rate={found['best']['parameters']['rate']}" in done.stdout
    assert "2 configurations tried; only validation was looked at." in done.stdout
    saved = (tmp_path / "by_name" / "trial-1" / "log.txt").read_text()
    assert "SIGTERM: saved at step" in saved
