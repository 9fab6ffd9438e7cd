"""The code of the README and of the guides runs as it is shown."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm4rec_jax.data import sources
from llm4rec_jax.data.features.text import item_texts
from llm4rec_jax.losses.ranking import LOSSES
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.models.graphs.base import GRAPHS
from llm4rec_jax.models.heads import HEADS
from llm4rec_jax.models.users.base import USERS
from llm4rec_jax.runs.features import OWN_INPUTS
from tests.helpers import tiny
from tests.helpers.compiling import environment

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "docs" / "guides"
COMING_FROM = ROOT / "docs" / "coming_from"


def blocks(page: Path, mark: str) -> list[str]:
    """Returns the blocks of Python of a page that stand under a mark, such as `<!-- tested -->`."""
    return re.findall(rf"<!-- {mark} -->\n```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def run(folder: Path, *arguments: str) -> str:
    """Runs Python in a folder, with modules of the folder and of the repository; returns its output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env={**environment(), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(folder: Path, config: str, workdir: str, *overrides: str) -> dict:
    """Trains two steps of a small model in a folder; returns its result."""
    small = ("train.steps=2", "train.warmup=0", "train.batch_size=4", "model.width=8", *overrides)
    flags = (f"--config.{override}" for override in small)
    out = run(folder, "-m", "experiments.train", f"--config={config}", f"--workdir={workdir}", *flags)
    return json.loads(out.splitlines()[-1])


def test_the_python_example_recommends_scores_and_encodes(tmp_path):
    (code,) = blocks(ROOT / "README.md", "tested")
    assert len([line for line in code.splitlines() if line]) <= 10
    encoder = tiny.encoder_folder(tmp_path / "encoder")
    config = f"{ROOT}/configs/movielens_100k.py:lora"
    train(tmp_path, config, "runs/lora", f"encoder.path={encoder}", "peft.options.lora.target=.*", "loss.name=in_batch")
    *recommended, last = run(tmp_path, "-c", code).splitlines()
    assert len(recommended) == 10
    assert re.fullmatch(r"10 \(2,\) \(2, \d+\)", last)


def test_the_configuration_of_ones_own_data_trains(tmp_path):
    """Its loss, its split, its texts, with the columns that it names."""
    (code,) = blocks(GUIDES / "own_data.md", "own data")
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    clicks = [f"u{user},s{(user + step) % 7},{100 * user + step}" for user in range(8) for step in range(6)]
    (tmp_path / "clicks.csv").write_text("\n".join(["uid,sku,time", *clicks]) + "\n", encoding="utf-8")
    products = [f"s{i},lamp {i},{'' if i == 3 else 'Acme'},{i}.5" for i in range(7)]
    (tmp_path / "products.csv").write_text("\n".join(["sku,name,brand,price", *products]) + "\n", encoding="utf-8")
    encoder = tiny.encoder_folder(tmp_path / "encoder")
    result = train(tmp_path, "mine.py", "run", f"encoder.path={encoder}", "peft.options.lora.target=.*")
    assert result["test"]["users"] == 8
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["loss"]["name"] == "in_batch"
    options = {name: value for name, value in config["data"]["options"].items() if name != "items_path"}
    data = sources.load("table", tmp_path / "clicks.csv", items_path=tmp_path / "products.csv", **options)
    texts = item_texts(data.items, config["text"]["item"])
    assert set(texts) == {f"lamp {i}{'' if i == 3 else ' (Acme)'}. {i}.5 EUR" for i in range(7)}


def test_a_study_of_ones_own_components_trains(tmp_path):
    """User encoder, head, loss, source and split of the guide, each one function or class, in one run."""
    components = blocks(GUIDES / "extending.md", "component")
    assert len(components) == 5
    (tmp_path / "my_components.py").write_text("\n\n".join(components), encoding="utf-8")
    (study,) = blocks(GUIDES / "extending.md", "the study")
    (tmp_path / "my_study.py").write_text(study, encoding="utf-8")
    pairs = [f"{user} {100 + (user + step) % 9}" for user in range(8) for step in range(8)]
    (tmp_path / "pairs.txt").write_text("\n".join(pairs) + "\n", encoding="utf-8")
    assert train(tmp_path, "my_study.py", "run")["test"]["users"] == 8
    assert "last two" in json.loads((tmp_path / "run" / "dataset.json").read_text())["protocol"]


@pytest.mark.parametrize(
    ("key", "names", "beside"),
    [
        ("inputs", OWN_INPUTS, {"id+text", "text+year+genres", "and", "names", "of", "features", "as"}),
        ("loss.name", LOSSES, {"against", "sampled", "items"}),
        ("model.users", {*USERS, *GRAPHS}, set()),
        ("model.head", HEADS, set()),
        ("encoder.pooling", POOLINGS, set()),
    ],
)
def test_the_choices_are_those_that_there_are(key, names, beside):
    (listed,) = re.findall(rf"^\| `{key}` \| (.*) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"[\w+]+", listed)) - beside == set(names)


def test_the_example_of_exchanging_adapters_runs(tmp_path):
    (code,) = blocks(GUIDES / "peft.md", "tested")
    assert run(tmp_path, "-c", code).strip() == "(1, 4, 384)"
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_atomic_files_of_recbole_train(tmp_path):
    (code,) = blocks(COMING_FROM / "recbole.md", "coming from RecBole")
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    data = tmp_path / "data" / "mine"
    data.mkdir(parents=True)
    clicks = [f"u{user}\ti{(user + step) % 7}\t{100 * user + step}" for user in range(8) for step in range(6)]
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (data / "mine.inter").write_text("\n".join([header, *clicks]) + "\n", encoding="utf-8")
    items = ["item_id:token\ttitle:token_seq", *(f"i{i}\tlamp {i}" for i in range(7))]
    (data / "mine.item").write_text("\n".join(items) + "\n", encoding="utf-8")
    assert train(tmp_path, "mine.py", "run")["test"]["users"] == 8


def test_the_code_for_those_who_come_from_peft_and_sentence_transformers_runs(tmp_path):
    tiny.encoder_folder(tmp_path / "encoder")
    (code,) = blocks(COMING_FROM / "peft.md", "coming from peft")
    # Two blocks, two sites in each, A and B of rank 8 and width 16.
    assert run(tmp_path, "-c", code).strip() == str(2 * 2 * 2 * 8 * 16)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    (code,) = blocks(COMING_FROM / "sentence_transformers.md", "coming from sentence-transformers")
    assert run(tmp_path, "-c", code).strip() == "(2, 16)"


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]), ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_command_that_is_shown_exists(page):
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"python -m experiments\.([\w.]+\w)", text)):
        assert (ROOT / "experiments" / f"{name.replace('.', '/')}.py").is_file()
    for target in set(re.findall(r"(?:^    |`)make ([\w-]+)", text, re.MULTILINE)):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
