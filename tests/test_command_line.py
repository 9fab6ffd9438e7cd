"""The command `llm4rec` in a clone: its list, its errors, a new study that trains, and completion in a shell."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from experiments import completion, new_study
from llm4rec_jax import command_line
from tests.helpers import tiny
from tests.helpers.compiling import environment

ROOT = Path(__file__).parents[1]


def llm4rec(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llm4rec_jax.command_line", *arguments],
        cwd=folder, env={**environment(), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_programs_are_the_commands_of_the_clone():
    commands = {f.stem for f in (ROOT / "experiments").glob("*.py") if "__main__" in f.read_text(encoding="utf-8")}
    assert {name.replace("-", "_") for name in command_line.programs()} == commands
    assert all(line.endswith(".") for line in command_line.programs().values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "unknown program 'trian'; did you mean 'train'?"),
        (["train", "--config=movielens_100:id", "--workdir=x"], "unknown study 'movielens_100'; did you mean"),
        (["new-study", "my-clicks"], "'my-clicks' cannot name a study"),
        (["completion", "fish"], "unknown shell 'fish'"),
    ],
)
def test_wrong_names_are_errors_of_one_line(tmp_path, arguments, words):
    done = llm4rec(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {words}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_new_study_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new_study.write("clicks")
    with pytest.raises(ValueError, match="exists: give another name"):
        new_study.write("clicks.py")
    data = tiny.dataset()
    i = data.interactions
    columns = {"user_id": data.users["user_id"].gather(i.user), "item_id": data.items["item_id"].gather(i.item)}
    pl.DataFrame({**columns, "timestamp": i.timestamp}).write_csv("interactions.csv")
    titles = data.items["title"]
    data.items.with_columns(titles.str.split(" ").list.last().alias("category")).write_csv("items.csv")
    encoder = tiny.encoder_folder(tmp_path / "encoder")
    short = [
        f"--config.{key}"
        for key in ("train.steps=2", "train.eval_every=2", "train.batch_size=16", "train.history=8", "model.width=8")
    ]
    flags = ["--config=clicks.py:lora", "--workdir=run", f"--config.encoder.path={encoder}", *short]
    done = llm4rec(tmp_path, "train", *flags)
    assert done.returncode == 0, done.stderr
    assert 0 < json.loads(done.stdout.splitlines()[-1])["test"]["mrr"] <= 1


def complete(line: str) -> list[str]:
    """Returns the candidates that bash shows for a line whose words are separated by single spaces."""
    words = line.split(" ")
    state = f"COMP_LINE={line!r} COMP_POINT={len(line)} COMP_WORDS=({line}) COMP_CWORD={len(words) - 1}"
    code = f"{completion.script('bash')}\n{state}\n_llm4rec\n" + 'printf "%s\\n" "${COMPREPLY[@]}"'
    return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("llm4rec new", ["new-study"]),
        ("llm4rec recommend --us", ["--user="]),
        ("llm4rec train --config=movielens_1", ["movielens_100k"]),
        ("llm4rec train --config.train.micro", ["--config.train.micro_batches="]),
        ("llm4rec sweep --proc", ["--process=", "--processes="]),
    ],
)
def test_bash_completes(line, candidates):
    assert complete(line) == candidates


def test_zsh_takes_the_script():
    if shutil.which("zsh") is None:
        pytest.skip("needs zsh")
    subprocess.run(["zsh", "-n"], input=completion.script("zsh"), text=True, check=True)
