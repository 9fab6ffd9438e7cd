"""Runs whose frozen weights are stored in few bits: trained, broken off, gone on with, evaluated, exported, refused."""

import runpy
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.reports import models
from experiments.reports.training_memory import training_memory
from llm4rec_jax import peft
from llm4rec_jax.models.encoders import huggingface
from llm4rec_jax.models.layers.quantized import is_quantized
from llm4rec_jax.peft.hf import save_load
from llm4rec_jax.runs import folder
from llm4rec_jax.runs.load import evaluate_again, restore
from llm4rec_jax.runs.run import run
from llm4rec_jax.runs.schema import resolve
from llm4rec_jax.training.checkpoint import CheckpointError
from llm4rec_jax.training.preemption import Preempted
from tests.helpers.interrupting import terminate_at


def configuration(config: Path, method: str = "lora", quantize: str | None = "nf4", **train: Any) -> Any:
    made: Any = runpy.run_path(str(config))["get_config"]("lora")
    made.encoder.quantize = quantize
    with made.unlocked():
        if method != "lora":
            made.peft.method, made.peft.options = method, {}
        made.train.update(train)
    return made


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, run(configuration(config), workdir)


def test_a_run_goes_on_and_is_evaluated_again(config, trained, tmp_path, monkeypatch):
    workdir, result = trained
    with monkeypatch.context() as patch:
        terminate_at(7, patch)
        with pytest.raises(Preempted):
            run(configuration(config), tmp_path / "broken")
    again = run(configuration(config), tmp_path / "broken")
    assert again["test"] == result["test"]
    assert evaluate_again(workdir)["test"] == pytest.approx(result["test"], rel=1e-5)
    _, params = restore(workdir)
    kernels = [leaf for leaf in jax.tree.leaves(params.frozen, is_leaf=is_quantized) if is_quantized(leaf)]
    assert len(kernels) == 12


def test_another_format_is_another_base(config, trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "copy")
    file = tmp_path / "copy" / "config.json"
    held = configuration(config, quantize="int8")
    (tmp_path / "copy" / "result.json").unlink()
    folder.write(file, resolve(held).to_dict())
    with pytest.raises(CheckpointError, match="frozen base with digest"):
        run(held, tmp_path / "copy")


def test_full_tuning_is_refused_before_weights_are_read(config, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "Checkpoint", None)
    with pytest.raises(ValueError, match=r"weights of layer_0/.* cannot be trained: leave out config.encoder.quantize"):
        run(configuration(config, "full"), tmp_path / "run")


def test_merged_weights_are_the_dequantised_ones(config, trained, tmp_path):
    assembly, params = restore(trained[0])
    encoder, delta = assembly.pretrained.encoder, params.trainable["delta"]["encoder"]
    save_load.merge(tmp_path / "model", encoder, params.frozen["encoder"], assembly.bare_method, delta, max_tokens=16)
    plain, merged = huggingface.load(tmp_path / "model")
    ids = np.array([[2, 8, 9, 3]])
    ours = peft.forward(encoder, assembly.bare_method, params.frozen["encoder"], delta, ids, ids > 0)
    np.testing.assert_allclose(plain.apply({"params": merged}, ids, ids > 0), ours, atol=1e-5)


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_no_pass_holds_the_floats_of_all_matrices(form):
    """With barriers, as on GPUs and TPUs: beside the weights LoRA's memory, and at most a few of 42 matrices."""
    model = models.find_model("smollm2-135m", layers=6)
    plain, ours = (
        training_memory(model.text, peft.create("lora"), 4, 8, models.SIZED_ON_CPU, quantize)
        for quantize in (None, form)
    )
    width, ffn = 576, 1536
    matrices = 6 * (2 * width * width + 2 * width * 192 + 3 * width * ffn)
    bytes_a_weight = {"int8": 1 + 4 / 576, "nf4": 0.5 + 1 / 64 + 4 / 64 / 256}[form]
    saved = plain["frozen"] - ours["frozen"]
    assert saved == pytest.approx((4 - bytes_a_weight) * matrices, rel=0.01)
    assert ours["temporary"] < plain["temporary"] + 6 * width * ffn * 4


@pytest.mark.long
@pytest.mark.parametrize(("form", "most"), [("int8", 0.6), ("nf4", 0.4)])
def test_base_of_a_model_of_1_5_billion_parameters(form, most):
    model = models.find_model("qwen2.5-1.5b", compute_dtype="bfloat16")
    lora = peft.create("lora")
    ours = training_memory(model.text, lora, 16, 128, models.SIZED_ON_CPU, form)
    assert ours["frozen"] <= most * 2 * model.summary["parameters"]
