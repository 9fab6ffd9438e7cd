"""Runs whose texts are encoded in micro-batches, because it is asked for or because nothing else fits."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from llm4rec_jax import peft
from llm4rec_jax.data.features.text import item_texts
from llm4rec_jax.data.features.tokens import tokenise, tokenizer
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.recommender import init, recommender
from llm4rec_jax.sharding import make_mesh
from llm4rec_jax.training import memory
from llm4rec_jax.training import metric_writer as journal
from tests.helpers import tiny
from tests.helpers.training import Run, train, train_together

OPTIONS = {
    "batch_size": 16, "history": 8, "steps": 3, "eval_every": 3, "log_every": 1, "metric": "ndcg@5", "dropout": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """Positional arguments of `train` but for the folder, and the items' tokens."""
    split, folder = tiny.split(), tiny.encoder_folder(tmp_path_factory.mktemp("encoder"))
    texts = item_texts(split.dataset.items, "the {title}.")
    tokens = tokenise(texts, tokenizer(folder), 16, tmp_path_factory.mktemp("cache"))
    encoder, weights = pretrained.load(folder, layers=1)
    model = recommender(encoder=encoder, users="mean", width=16, project="linear")
    method = peft.within(peft.create("lora"), "encoder")
    return model, method, init(model, jax.random.key(0), weights), split, tokens


def run(parts: tuple[Any, ...], workdir: Path, devices: int = 1, **options: Any) -> list[dict[str, Any]]:
    *arguments, tokens = parts
    mesh = make_mesh(devices=jax.devices()[:devices])
    train(*arguments, workdir, tokens=tokens, mesh=mesh, loss="full_softmax", **OPTIONS, **options)
    return journal.read(workdir / "metrics.jsonl")


def figures(records: list[dict[str, Any]], name: str) -> list[float]:
    return [record[name] for record in records if name in record]


@pytest.fixture(scope="module")
def whole(parts: tuple[Any, ...], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(parts, tmp_path_factory.mktemp("whole"), item_micro_batch=0)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_run_is_the_same(parts, whole, tmp_path, devices):
    records = run(parts, tmp_path, devices, item_micro_batch="8")
    for name in ("loss", "grad_norm", "ndcg@5"):
        np.testing.assert_allclose(figures(records, name), figures(whole, name), rtol=1e-5)
    (program,) = (record for record in records if record["kind"] == "program")
    assert program["item_micro_batch"] == 8
    # Texts are encoded twice.
    assert program["flops"] > figures(whole, "flops")[0] / devices
    if devices == 1:
        assert program["bytes"] < figures(whole, "bytes")[0]


def test_auto_takes_what_fits_and_says_so(parts, whole, tmp_path, monkeypatch, capfd):
    (needed,) = figures(whole, "bytes")
    assert "item_micro_batch" not in {name for record in run(parts, tmp_path / "all") for name in record}
    monkeypatch.setattr(memory, "device_bytes", lambda mesh: needed - 1)
    records = run(parts, tmp_path / "parts")
    np.testing.assert_allclose(figures(records, "loss"), figures(whole, "loss"), rtol=1e-5)
    assert figures(records, "item_micro_batch")[0] in (8, 16, 32)
    assert "and again for their gradients" in " ".join(capfd.readouterr().err.split())


def test_what_cannot_fit_is_refused_before_the_first_step(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "device_bytes", lambda mesh: 2**16)
    with pytest.raises(ValueError, match=r"a training step needs .* GiB of memory on each device, .*: give config\."):
        run(parts, tmp_path)
    assert not figures(journal.read(tmp_path / "metrics.jsonl"), "loss")


def test_runs_in_one_program(parts, whole, tmp_path):
    model, method, params, split, tokens = parts
    runs = [Run(params, split, tmp_path / str(seed), seed=seed) for seed in range(2)]
    mesh = make_mesh(devices=jax.devices()[:1])
    options = {**OPTIONS, "loss": "full_softmax", "item_micro_batch": 8, "tokens": tokens}
    train_together(model, method, runs, mesh=mesh, **options)
    records = journal.read(tmp_path / "0" / "metrics.jsonl")
    np.testing.assert_allclose(figures(records, "loss"), figures(whole, "loss"), rtol=1e-5)


@pytest.mark.parametrize("value", ["all", "-1", "1.5"])
def test_a_wrong_value_is_named(parts, tmp_path, value):
    with pytest.raises(ValueError, match=r"config\.train\.item_micro_batch is .*must be auto"):
        run(parts, tmp_path, item_micro_batch=value)
