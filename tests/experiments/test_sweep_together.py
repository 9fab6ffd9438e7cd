"""Trials that differ in seeds and rates are trained in one program, and come to what they would be alone."""

import json
from pathlib import Path

import pytest

from configs.baselines_movielens import TRAINED
from experiments.sweeps import trials
from llm4rec_jax.training import metric_writer
from tests.helpers.commands import ROOT, command, last_line

SWEEP = """
from experiments.sweeps.trials import Trial

def sweep():
    short = {"train.steps": 12, "train.eval_every": 6}
    rates = [Trial(f"rate-{r}", "frozen", {**short, "train.learning_rate": r}, f"rate {r}") for r in (1e-3, 3e-3, 1e38)]
    return [*rates, Trial("wide", "frozen", {**short, "model.width": 24}, "wide")]
"""


@pytest.fixture(scope="module")
def study(config: Path) -> Path:
    file = config.with_name("rates.py")
    file.write_text(config.read_text() + SWEEP, encoding="utf-8")
    return file


def test_what_goes_together(study, tmp_path):
    runs = trials.plan(trials.swept(trials.load(str(study))), tmp_path)

    def names(together: int) -> list[list[str]]:
        return [[run.trial.name for run in batch] for batch in trials.batches(runs, together)]

    rates = ["rate-0.001", "rate-0.003", "rate-1e+38"]
    assert names(1) == [[name] for name in [*rates, "wide"]]
    assert names(8) == [rates, ["wide"]]
    assert names(2) == [rates[:2], rates[2:], ["wide"]]
    runs[0].folder.mkdir()
    (runs[0].folder / "result.json").write_text("{}")
    assert names(8) == [rates[:1], rates[1:], ["wide"]]


def test_runs_that_need_each_other_are_never_in_one_program(config, tmp_path):
    """Nor in two of which each waits for the other."""
    file = config.with_name("chained.py")
    file.write_text(
        config.read_text()
        + """
from experiments.sweeps.trials import Trial

def sweep():
    rates = [Trial(f"rate-{r}", "frozen", {"train.learning_rate": r}, "r") for r in (1e-3, 3e-3)]
    later = [Trial(f"from-{t.name}", "frozen", {"seed": 1, "init_from": t.name}, "f") for t in rates]
    last = Trial("last", "frozen", {"seed": 2}, "l", after="from-rate-0.001")
    narrow = [{"model.width": 8, "seed": seed} for seed in (0, 1)]
    wide = [Trial("wide-0", "frozen", narrow[0], "w"), Trial("wide-1", "frozen", narrow[1], "w", after="last")]
    after = Trial("after-wide", "frozen", {"seed": 3}, "l", after="wide-0")
    return [last, *later, *wide, *rates, after]
""",
        encoding="utf-8",
    )
    runs = trials.plan(trials.swept(trials.load(str(file))), tmp_path)
    batches = trials.batches(runs, 8)
    assert [[run.trial.name for run in batch] for batch in batches] == [
        ["last"], ["from-rate-0.001", "from-rate-0.003", "after-wide"], ["wide-0"], ["wide-1"],
        ["rate-0.001", "rate-0.003"],
    ]  # fmt: skip
    done: set[Path] = set()
    while batches:
        ready = [batch for batch in batches if all(run.needs.keys() <= done for run in batch)]
        assert ready
        done |= {run.folder for batch in ready for run in batch}
        batches = [batch for batch in batches if batch not in ready]


def test_runs_that_answer_questions_or_are_fitted_go_alone(tmp_path):
    for file in ("tallrec_movie", "baselines_movielens"):
        runs = trials.plan(trials.swept(trials.load(str(ROOT / "configs" / f"{file}.py"))), tmp_path)
        sizes = {batch[0].trial.group: len(batch) for batch in trials.batches(runs, 8)}
        assert all(size == (3 if group in TRAINED else 1) for group, size in sizes.items()), sizes


def test_a_sweep_of_rates_in_one_program(study, tmp_path):
    workdir = tmp_path / "rates"
    done = command(
        "sweep",
        f"--config={study}",
        f"--workdir={workdir}",
        "--together=3",
        "--only=rate 0.001,rate 0.003,rate 1e+38",
        check=False,
    )
    listed = {trial["name"]: trial for trial in json.loads((workdir / "sweep.json").read_text())["trials"]}
    assert [listed[f"rate-{r}"]["status"] for r in ("0.001", "0.003", "1e+38")] == ["finished", "finished", "failed"]
    assert "Lower the learning rate" in listed["rate-1e+38"]["error"]
    assert done.returncode != 0
    folder = workdir / listed["rate-0.003"]["folder"]
    result = json.loads((folder / "result.json").read_text())
    assert result["together"] == 3
    alone = tmp_path / "alone"
    overrides = ("--config.train.steps=12", "--config.train.eval_every=6", "--config.train.learning_rate=3e-3")
    expected = last_line(command("train", f"--config={study}:frozen", f"--workdir={alone}", *overrides))
    for phase in ("validation", "test"):
        assert result[phase] == pytest.approx(expected[phase], abs=1e-5)
    losses = [[r["loss"] for r in metric_writer.read(f / "metrics.jsonl") if "loss" in r] for f in (folder, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
