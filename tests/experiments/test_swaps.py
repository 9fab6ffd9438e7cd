"""Whole files of another run, or of another step, are named wherever they come to lie."""

import contextlib
import json
import random
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import llm4rec_jax
from experiments.reports import finished_runs
from experiments.sweeps import trials
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs.load import evaluate_again, restore
from llm4rec_jax.runs.run import run
from llm4rec_jax.sharding import digest
from llm4rec_jax.training import run_id
from llm4rec_jax.training.checkpoint import CheckpointError, Checkpoints

# Nothing reads these but people.
UNREAD = ("lock", "tensorboard")


def study(config: Path, arg: str = "id", **train: Any) -> Any:
    chosen = trials.load(str(config)).get_config(arg)
    chosen.train.update({"steps": 4, "eval_every": 2, "checkpoint_every": 2, "log_every": 2, **train})
    return chosen


@pytest.fixture(scope="module")
def runs(config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two finished runs that differ in the seed."""
    folders = []
    for seed in (0, 1):
        folders.append(tmp_path_factory.mktemp("runs") / f"run-{seed}")
        chosen = study(config, learning_rate=0.01)
        chosen.seed = seed
        run(chosen, folders[-1])
    return folders[0], folders[1]


@pytest.fixture
def copies(runs: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    for name, held in zip("ab", runs, strict=True):
        shutil.copytree(held, tmp_path / name)
    return tmp_path / "a", tmp_path / "b"


def read_all(workdir: Path) -> None:
    """Reads what commands read of a finished run: tables, evaluate, and one that goes on."""
    result = finished_runs.read(workdir).result
    run_folder.config_of(workdir)
    with contextlib.closing(Checkpoints(workdir, digest({}))) as checkpoints:
        checkpoints.record("best", result["best_step"])
        checkpoints.record("last")


def said_of(workdir: Path) -> str:
    """Returns the warnings and the error of `read_all`; "" without any."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            read_all(workdir)
        except ValueError as error:
            return str(error)
        return " ".join(str(one.message) for one in caught)


def swap(*paths: Path) -> None:
    """Lets two files or folders change places."""
    beside = paths[0].with_name("beside")
    paths[0].rename(beside)
    paths[1].rename(paths[0])
    beside.rename(paths[1])


def best_step(workdir: Path) -> int:
    return json.loads((workdir / "result.json").read_text())["best_step"]


# ------------------------------------------------------------------------------------------------- files of another run
FILES = (
    "run.json",
    "config.json",
    "dataset.json",
    "environment.json",
    "result.json",
    "metrics.jsonl",
    "per_user_validation.parquet",
    "per_user_test.parquet",
    "checkpoints/last/4",
    "checkpoints/last",
)


def test_two_runs_have_two_ids(runs):
    read_all(runs[0])
    assert run_id.run_id(runs[0]) != run_id.run_id(runs[1])
    started = json.loads((runs[0] / "run.json").read_text())
    assert {"config", "data", "tokenizer", "packages", "x64"} <= set(started)


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_of_another_run_is_named(copies, name):
    ours, other = copies
    swap(ours / name, other / name)
    for workdir in copies:
        said = said_of(workdir)
        assert str(workdir) in said
        assert Path(name).name in said or "run.json" in said
        assert "not this run's" in said or "the file is of another run" in said


def test_another_run_s_best_state_is_neither_evaluated_nor_started_from(copies, config):
    ours, other = copies
    shutil.rmtree(ours / "checkpoints" / "best")
    shutil.copytree(other / "checkpoints" / "best", ours / "checkpoints" / "best")
    if best_step(other) != best_step(ours):
        (ours / f"checkpoints/best/{best_step(other)}").rename(ours / f"checkpoints/best/{best_step(ours)}")
    with pytest.raises(CheckpointError, match=rf"best/{best_step(ours)} is of the run .*not this run's"):
        evaluate_again(ours)
    chosen = study(config)
    chosen.init_from = str(ours)
    with pytest.raises(CheckpointError, match="not this run's"):
        run(chosen, ours.with_name("next"))


# ----------------------------------------------------------------------------------------------------- steps of one run
def test_a_renamed_checkpoint_is_named(copies):
    ours, _ = copies
    last = ours / "checkpoints" / "last"
    (last / "2").rename(last / "6")
    assert "last/6 holds the state of step 2: it was renamed" in said_of(ours)
    (last / "6").rename(last / "2")
    swap(last / "2", last / "4")
    assert "last/4 holds the state of step 2" in said_of(ours)


def test_the_best_state_of_another_step_is_named(copies):
    ours, _ = copies
    step, best = best_step(ours), ours / "checkpoints" / "best"
    other = 2 if step == 4 else 4
    if not (best / str(other)).exists():
        shutil.copytree(best / str(step), best / str(other))
    shutil.rmtree(best / str(step))
    with pytest.raises(CheckpointError, match=rf"best/{step} is missing"):
        restore(ours)


# ----------------------------------------------------------------------------------------------- what is lost, or older
def test_a_lost_configuration_is_written_again_and_no_other_one_adopts_the_run(copies, config):
    ours, _ = copies
    held = (ours / "config.json").read_bytes()
    (ours / "config.json").unlink()
    other = study(config, learning_rate=0.02)
    with pytest.raises(run_folder.RunFolderError, match=r"config\.json is missing, .* bring it back from a copy"):
        run(other, ours)
    result = run(study(config, learning_rate=0.01), ours)
    assert result == run_folder.read(ours / "result.json")
    assert (ours / "config.json").read_bytes() == held


def test_files_with_an_id_need_run_json(copies):
    (copies[0] / "run.json").unlink()
    assert "run.json is missing" in said_of(copies[0])


def as_older(workdir: Path) -> None:
    """Makes a run folder as an older version left it: no file has an id, and its configuration names the pooling."""
    whole = {file: run_folder.read(file) for file in workdir.glob("*.json") if file.name != "run.json"}
    tables = {file: run_folder.read_table(file) for file in workdir.glob("*.parquet")}
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (workdir / "run.json").unlink()
    whole[workdir / "config.json"]["encoder"]["pooling"] = "mean"
    for file, value in whole.items():
        run_folder.write(file, value)
    for file, table in tables.items():
        run_folder.write_table(file, table)
    for record in records:
        del record["check"]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    shutil.rmtree(workdir / "checkpoints")


def test_a_run_of_an_older_version_goes_on(config, copies):
    ours, other = copies
    as_older(ours)
    result = finished_runs.read(ours).result
    assert run(study(config, learning_rate=0.01), ours) == result
    assert not (ours / "run.json").exists()
    assert not said_of(other)


# ------------------------------------------------------------------------------------------------------------- settings
def test_a_tokenizer_that_changed_is_refused(config, tmp_path):
    chosen = study(config, "frozen", steps=2)
    chosen.encoder.path = str(shutil.copytree(chosen.encoder.path, tmp_path / "encoder"))
    run(chosen, tmp_path / "run")
    model = llm4rec_jax.load(tmp_path / "run")
    assert model.encode(["red lamp"]).shape == (1, 16)
    tokenizer = tmp_path / "encoder" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    words = content["model"]["vocab"]
    a, b = list(words)[-2:]
    words[a], words[b] = words[b], words[a]
    tokenizer.write_text(json.dumps(content))
    again = llm4rec_jax.load(tmp_path / "run")
    for use in (
        lambda: evaluate_again(tmp_path / "run"),
        lambda: again.recommend(history=[again.assembly.titles[0]]),
        lambda: again.encode(["red lamp"]),
    ):
        with pytest.raises(run_folder.RunFolderError, match=r"the tokenizer changed since .* was trained"):
            use()
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(run_folder.RunFolderError, match=r"the tokenizer changed since"):
        run(chosen, tmp_path / "run")


def test_numbers_of_another_width_are_refused(copies, monkeypatch):
    monkeypatch.setattr(run_folder, "_x64", lambda: True)
    with pytest.raises(run_folder.RunFolderError, match="trained with JAX_ENABLE_X64=0, and now it is 1"):
        evaluate_again(copies[0])


def test_evaluate_replaces_nothing_where_the_numbers_are_others(copies):
    """A result.json that says something else; its seal is whole."""
    ours, _ = copies
    result = run_folder.read(ours / "result.json")
    result["test"]["ndcg@10"] += 0.1
    run_folder.write(ours / "result.json", result)
    tables = {}
    for file in ours.glob("per_user_*.parquet"):
        run_folder.write_table(file, run_folder.read_table(file).head(3))
        tables[file] = file.read_bytes()
    with pytest.raises(run_folder.RunFolderError, match=r"test ndcg@10 = .*No file was replaced"):
        evaluate_again(ours)
    assert {file: file.read_bytes() for file in tables} == tables


# --------------------------------------------------------------------------------------------------------------- fuzz
def content(path: Path) -> Any:
    """Returns what can be compared of a file, or of all files below a folder."""
    if path.is_dir():
        return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}
    return path.read_bytes()


def replace(target: Path, source: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def swaps(copies: tuple[Path, Path], tmp_path: Path, count: int, seed: int) -> Counter[str]:
    """Puts files and folders in the place of others, one set at a time; each is to be named."""
    ours, other = copies
    rng, tally = random.Random(seed), Counter[str]()
    whole = tmp_path / "whole"
    shutil.copytree(ours, whole)
    # The same names in both, so that either can stand for the other.
    names = [
        str(path.relative_to(ours)) for path in sorted(ours.rglob("*"))
        if path.relative_to(ours).parts[0] not in UNREAD and (other / path.relative_to(ours)).exists()
    ]  # fmt: skip
    steps = [ours / "checkpoints" / kind for kind in ("last", "best")]
    while sum(tally.values()) < count:
        pairs: list[tuple[Path, Path]]
        if rng.random() < 0.5:
            kind = "another run's"
            chosen = rng.sample(names, 1 if rng.random() < 0.7 else rng.randint(2, len(names) // 2))
            pairs = [(ours / name, other / name) for name in sorted(chosen)]
        else:
            kind = "another step's"
            place = rng.choice(steps)
            held = sorted((path for path in place.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
            if len(held) < 2:
                continue
            to, source = rng.sample(held, 2)
            if rng.random() < 0.5:
                inner = [path.relative_to(to) for path in sorted(to.rglob("*"))]
                name = rng.choice([name for name in inner if (source / name).exists()])
                to, source = to / name, source / name
            pairs = [(to, source)]
        before = [content(target) for target, _ in pairs]
        if all(content(source) == old for (_, source), old in zip(pairs, before, strict=True)):
            continue
        for target, source in pairs:
            replace(target, source)
        changed = [target for (target, _), old in zip(pairs, before, strict=True) if content(target) != old]
        read = [target for target in changed if read_by_a_run(target, ours)]
        said = said_of(ours)
        if read:
            assert said, f"trial {sum(tally.values())}: nothing was said of {changed}"
            known = {"run.json", *(part for target in read for part in target.relative_to(ours).parts)}
            assert any(name in said for name in known), f"{said} names none of {read}"
            tally[kind] += 1
        shutil.rmtree(ours)
        shutil.copytree(whole, ours)
    return tally


def read_by_a_run(target: Path, workdir: Path) -> bool:
    """Returns whether a command reads a file: of checkpoints, the newest `last` and the one `best`."""
    parts = target.relative_to(workdir).parts
    if parts[0] != "checkpoints" or len(parts) < 3:
        return True
    newest = max(int(path.name) for path in (workdir / "checkpoints" / "last").iterdir() if path.name.isdigit())
    return parts[2] == str(newest if parts[1] == "last" else best_step(workdir))


def test_swaps_are_named(copies, tmp_path):
    print(swaps(copies, tmp_path, 20, seed=0))


@pytest.mark.long
def test_five_hundred_swaps_are_named(copies, tmp_path):
    print(swaps(copies, tmp_path, 500, seed=1))


# -------------------------------------------------------------------------------------------------------------- names
PIECES = (
    *"aZ0-_. []*?{}()'\";#%~=:|&\\\n\t",
    *("[b]", "**", "$HOME", "ü", "u\u0308", "日本", "א", "\u202e", "👩\u200d👧", "<b>"),
)


def odd_names(count: int, seed: int) -> list[str]:
    """Names of folders made of pieces that mean something to shells, patterns, markup or file systems."""
    rng, names = random.Random(seed), set[str]()
    while len(names) < count:
        name = "".join(rng.choices(PIECES, k=rng.choice((1, 2, 3, 5, 8, 30, 80))))
        if name not in (".", "..") and len(name.encode()) <= 250:
            names.add(name)
    return [*sorted(names), "x" * 250, "[" * 250]


def named(copies: tuple[Path, Path], count: int, seed: int, evaluate_every: int) -> None:
    """Moves a finished run to folders of odd names, where all of it is read, and some is evaluated."""
    place, _ = copies
    for number, name in enumerate(odd_names(count, seed)):
        place = place.rename(place.with_name(name))
        read_all(place)
        if number % evaluate_every == 0:
            assert evaluate_again(place)["test"] == run_folder.read(place / "result.json")["test"]
        assert not [path for path in place.iterdir() if path.name.endswith(".tmp")]


def test_a_run_is_read_in_folders_of_odd_names(copies):
    named(copies, 12, seed=0, evaluate_every=12)


@pytest.mark.long
def test_a_run_is_read_in_five_hundred_folders_of_odd_names(copies):
    named(copies, 500, seed=1, evaluate_every=25)


@pytest.mark.long
@pytest.mark.parametrize("name", ["a[1]b", "line\nbreak", "st*r?", "übung 日本", "x" * 250])
def test_a_run_is_trained_in_a_folder_of_an_odd_name(config, tmp_path, name):
    result = run(study(config, learning_rate=0.01), tmp_path / name)
    assert result == run_folder.read(tmp_path / name / "result.json")
    read_all(tmp_path / name)
