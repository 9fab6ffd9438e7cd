"""Trials that a configuration file lists: their configurations and folders, and their errors."""

from pathlib import Path

import pytest

from configs import peft_movielens
from experiments.sweeps import trials
from experiments.sweeps.trials import Trial
from llm4rec_jax.peft import METHODS
from llm4rec_jax.runs.assemble import Assembly

CONFIG = """
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder
from experiments.sweeps.trials import Trial

def get_config(arg="a"):
    if arg not in ("a", "b"):
        raise ValueError(f"unknown arg {arg!r}")
    config = ConfigDict({"seed": 0, "arg": arg, "init_from": placeholder(str), "train": {"rate": 1.0, "steps": 3}})
    config.lock()
    return config

"""


def study(tmp_path: Path, listed: str, more: str = "") -> trials.Study:
    file = tmp_path / "study.py"
    file.write_text(f"{CONFIG}{more}\n\ndef sweep():\n    return [{listed}]\n", encoding="utf-8")
    return trials.load(str(file))


def folders(tmp_path: Path, listed: str) -> list[str]:
    return [run.folder.name for run in trials.plan(study(tmp_path, listed), tmp_path)]


def test_a_folder_depends_on_the_resolved_configuration_only(tmp_path):
    (one,) = folders(tmp_path, "Trial('x', 'a', {}, 'g')")
    # A name, a group, what is said again, an integer for a float.
    assert folders(tmp_path, "Trial('y', '', {'seed': 0, 'train.rate': 1}, 'h')") == [one]
    others = folders(tmp_path, "*[Trial(str(s), 'a', {'seed': s}, 'g') for s in (1, 2)], Trial('b', 'b', {}, 'g')")
    assert len({one, *others}) == 4


def test_an_option_that_is_added_and_not_set_leaves_the_runs_that_are_there(tmp_path):
    listed = "Trial('x', 'a', {}, 'g')"
    (before,) = trials.plan(study(tmp_path, listed), tmp_path)
    trials.open_folder(before)
    file = tmp_path / "study.py"
    file.write_text(file.read_text().replace('"arg": arg', '"arg": arg, "new": placeholder(int), "more": {"o": {}}'))
    (after,) = trials.plan(trials.load(str(file)), tmp_path)
    assert after.folder == before.folder
    trials.open_folder(after)
    assert "more" in (after.folder / "config.json").read_text()


def test_a_start_is_that_of_the_named_trial_and_is_waited_for(tmp_path):
    listed = "Trial('l', 'a', {'init_from': 'b', 'seed': 1}, 'l'), Trial('b', 'b', {'seed': SEED}, 'b')"
    first, base = trials.plan(study(tmp_path, listed, "SEED = 0"), tmp_path / "here")
    assert first.needs == {base.folder: "b"}
    assert f"--config.init_from={base.folder}" in first.command
    elsewhere = trials.plan(study(tmp_path, listed, "SEED = 0"), tmp_path / "there")[0]
    assert elsewhere.folder.name == first.folder.name
    assert elsewhere.folder.parent != first.folder.parent
    # Another base is another start.
    assert trials.plan(study(tmp_path, listed, "SEED = 1"), tmp_path)[0].folder.name != first.folder.name
    # A folder that is no trial's is left as it is.
    (run,) = trials.plan(study(tmp_path, "Trial('l', 'a', {'init_from': '/some/run'}, 'l')"), tmp_path)
    assert (run.needs, run.config.init_from) == ({}, "/some/run")


def test_groups_bring_what_they_start_from(tmp_path):
    listed = (
        "Trial('a', 'a', {}, 'a'), Trial('b', 'b', {}, 'b', 'a'), Trial('c', 'a', {'init_from': 'b'}, 'c'),"
        "Trial('d', 'b', {'seed': 1}, 'd')"
    )
    runs = trials.plan(study(tmp_path, listed), tmp_path)
    assert [run.trial.name for run in trials.select(runs, ["c"])] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="--only: no trials of e; there are: a, b, c, d"):
        trials.select(runs, ["d", "e"])


@pytest.mark.parametrize(
    ("listed", "more", "message"),
    [
        ("*[Trial('a', '', {}, 'g')] * 2", "", "two trials a"),
        ("Trial('a/b', '', {}, 'g')", "", "a trial 'a/b'; a name is a file's"),
        (r"Trial('a\x00b', '', {}, 'g')", "", r"a trial 'a\\x00b'; a name is a file's"),
        ("Trial('../../x', '', {}, 'g')", "", r"a trial '\.\./\.\./x'; a name is a file's"),
        ("Trial('x' * 101, '', {}, 'g')", "", "at most 100 characters"),
        ("Trial('a', '', {}, 'g', 'b')", "", "come after b, which"),
        ("Trial('a', '', {}, 'g')", "BASELINE = 'f'", "BASELINE is 'f', and sweep"),
        ("Trial('a', '', {}, 'g')", "RESOURCES = {'gpu': 1}", "unknown resource 'gpu'; did you mean 'gpus'"),
        ("Trial('a', '', {}, 'g')", "RESOURCES = {'gpus': -1}", r"RESOURCES\['gpus'\] is -1"),
        ("", "", r"has no function sweep\(\)"),
        ("Trial('a', '', {'train.step': 3}, 'g')", "", '(?s)the trial a cannot be configured: Key "step".*"steps"'),
        ("Trial('a', '', {'train.steps': 'x'}, 'g')", "", "the trial a cannot be configured"),
        ("Trial('a', 'z', {}, 'g')", "", "the trial a cannot be configured: unknown arg 'z'"),
        ("Trial('a', '', {}, 'g'), Trial('b', 'a', {}, 'h')", "", "the trials a and b have the same configuration"),
        ("Trial('a', '', {}, 'g', 'b'), Trial('b', 'b', {'init_from': 'a'}, 'g')", "", "for each other: a → b → a"),
    ],
)
def test_a_wrong_sweep_is_named(tmp_path, listed, more, message):
    with pytest.raises(ValueError, match=message):
        trials.plan(trials.swept(study(tmp_path, listed, more)), tmp_path)


@pytest.mark.parametrize(("text", "message"), [(None, "does not exist"), ("x = 1", r"has no function get_config")])
def test_a_wrong_file_is_named(tmp_path, text, message):
    file = tmp_path / "wrong.py"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        trials.load(str(file))


def test_the_study_has_every_method_three_times():
    listed = peft_movielens.sweep()
    assert {t.group for t in listed} == {*METHODS, "base"}
    assert all(sum(t.group == group for t in listed) == 3 for group in METHODS)
    assert isinstance(listed[0], Trial)
    planned = trials.plan(trials.load("configs/peft_movielens.py"), Path("runs"))
    assert len({run.folder for run in planned}) == len(listed)


@pytest.mark.parametrize("arg", ["base", *sorted(METHODS), "lora+bitfit"])
def test_every_arm_of_the_study_can_be_assembled(arg):
    chosen = peft_movielens.get_config(arg)
    assembly = Assembly(chosen)
    assert assembly.method.name == ("frozen" if arg == "base" else arg)
    with pytest.raises(ValueError, match="did you mean 'lora'"):
        peft_movielens.get_config("lroa")
