"""What the README shows runs."""

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
from llm4rec_jax.runs.assemble import INPUTS
from tests.helpers import tiny
from tests.helpers.compiling import environment

ROOT = Path(__file__).parents[1]


def test_the_python_example_prints_scores():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- tested -->\n```python\n(.*?)```", text, re.DOTALL)
    assert len(code.strip().splitlines()) <= 15
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scores = [float(number) for number in re.findall(r"-?\d+\.\d*", done.stdout)]
    assert len(scores) == 50


def test_the_configuration_of_ones_own_data_trains(tmp_path):
    """Its loss, its split, its texts, with the columns that it names."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- own data -->\n```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    clicks = [f"u{user},s{(user + step) % 7},{100 * user + step}" for user in range(8) for step in range(6)]
    (tmp_path / "clicks.csv").write_text("\n".join(["uid,sku,time", *clicks]) + "\n", encoding="utf-8")
    products = [f"s{i},lamp {i},{'' if i == 3 else 'Acme'},{i}.5" for i in range(7)]
    (tmp_path / "products.csv").write_text("\n".join(["sku,name,brand,price", *products]) + "\n", encoding="utf-8")
    encoder = tiny.encoder_folder(tmp_path / "encoder")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", "--config=mine.py", "--workdir=run",
         f"--config.encoder.path={encoder}", "--config.train.steps=2", "--config.train.warmup=0",
         "--config.train.batch_size=4", "--config.model.width=8",
         "--config.peft.options.lora.target=.*"],
        cwd=tmp_path, env={**environment(), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["test"]["users"] == 8
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["loss"]["name"] == "in_batch"
    options = {name: value for name, value in config["data"]["options"].items() if name != "items_path"}
    data = sources.load("table", tmp_path / "clicks.csv", items_path=tmp_path / "products.csv", **options)
    texts = item_texts(data.items, config["text"]["item"])
    assert set(texts) == {f"lamp {i}{'' if i == 3 else ' (Acme)'}. {i}.5 EUR" for i in range(7)}


@pytest.mark.parametrize(
    ("key", "names", "beside"),
    [
        ("inputs", INPUTS, set()),
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
    text = (ROOT / "docs" / "peft.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- tested -->\n```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 4, 384)"
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_and_file_that_is_shown_exists(document):
    text = document.read_text(encoding="utf-8")
    for name in set(re.findall(r"python -m experiments\.([\w.]+\w)", text)):
        assert (ROOT / "experiments" / f"{name.replace('.', '/')}.py").is_file()
    for link in set(re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)):
        assert (document.parent / link).exists(), link
    for target in set(re.findall(r"(?:^    |`)make ([\w-]+)", text, re.MULTILINE)):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
