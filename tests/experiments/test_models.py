"""The command `models`: families by their records, and the memory of training, compiled from shapes."""

import json

import jax
import pytest

from experiments.reports import models
from experiments.reports.model_shapes import SHAPES
from experiments.reports.training_memory import training_memory
from llm4rec_jax import peft
from llm4rec_jax.models.encoders.base import families
from tests.helpers import tiny
from tests.helpers.commands import command

# Published sizes in millions, of the tied models with their head, of the others without it.
PUBLISHED = {
    "smollm2-135m": 134.5,
    "smollm2-360m": 361.8,
    "qwen2.5-0.5b": 494.0,
    "qwen2.5-1.5b": 1543.7,
    "qwen2.5-7b": 7615.6 - 152064 * 3584 / 1e6,
    "llama-3.2-1b": 1235.8,
    "llama-3.2-3b": 3212.7,
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_the_published_sizes(name):
    assert models.find_model(name).summary["parameters"] / 1e6 == pytest.approx(PUBLISHED[name], abs=0.1)


def test_every_family_is_listed():
    rows = {row["model_type"]: row for row in models.family_rows()}
    assert set(rows) == set(families())
    assert (rows["llama"]["kind"], rows["llama"]["pooling"], rows["bert"]["kind"]) == ("decoder", "last", "encoder")
    assert rows["bert"]["methods"] == sorted(peft.METHODS)
    assert rows["llama"]["peft_targets"] == ["q_proj", "v_proj"]
    assert rows["qwen2"]["shapes"] == ["qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b"]


def test_parts_of_the_memory():
    model = models.find_model("smollm2-135m", layers=1)
    rows = {row["method"]: row for row in models.memory_rows(model, ["frozen", "lora", "full"], 4, 8)}
    weights = model.summary["parameters"] * 4
    lora = peft.count(jax.eval_shape(lambda: peft.create("lora").init(jax.random.key(0), _params(model)))) * 4
    assert all(row["frozen"] == weights for row in rows.values())
    assert rows["frozen"]["trained"] < 100
    # Arrays and AdamW's two moments, and counters.
    assert rows["lora"]["trained"] == pytest.approx(3 * lora, abs=100)
    assert rows["full"]["trained"] == pytest.approx(3 * weights, abs=100)
    assert rows["frozen"]["temporary"] < rows["lora"]["temporary"] < rows["full"]["temporary"]
    # The gradient of every array is there before the update.
    assert rows["full"]["temporary"] > weights
    assert all(row["total"] == row["frozen"] + row["trained"] + row["temporary"] for row in rows.values())
    assert "| full | 0.13 |" in models.memory_table(list(rows.values()))


def _params(model):
    return model.text.encoder.init(jax.random.key(0), *(2 * [jax.numpy.ones((1, 2), int)]))["params"]


def test_activations_grow_with_the_batch_and_remat_keeps_fewer():
    def temporary(texts: int, **options) -> int:
        model = models.find_model("smollm2-135m", layers=4, **options)
        return training_memory(model.text, peft.create("lora"), texts, 64, models.SIZED_ON_CPU)["temporary"]

    once, twice = temporary(4), temporary(8)
    assert 1.7 * once < twice < 2.3 * once
    assert temporary(8, remat=True) < 0.6 * twice


def test_a_folder_is_described(tmp_path):
    folder = tiny.encoder_folder(tmp_path / "bert")
    summary = models.find_model(str(folder)).summary
    assert {name: summary[name] for name in ("family", "layers", "width", "stored", "pooling", "pooling_by")} == {
        "family": "bert",
        "layers": 2,
        "width": 16,
        "stored": "F32",
        "pooling": "mean",
        "pooling_by": "family",
    }
    assert summary["tokenizer"] == "WordPiece, 25 tokens"


def test_the_command(tmp_path):
    folder = tiny.encoder_folder(tmp_path / "bert")
    done = command("models", folder, "--json", "--methods=lora", "--texts=4", "--tokens=8")
    (described,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert described["name"] == str(folder)
    assert described["memory"][0]["method"] == "lora"
    assert described["memory"][0]["total"] > 4 * described["parameters"]
