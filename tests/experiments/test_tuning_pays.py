"""The study of tuning, from its first rows to its table, and runs that start from a tuned encoder."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import beauty_tuning_pays as study
from configs import movielens_tuning_pays, scientific_tuning_pays
from experiments.reports.spec import checked
from llm4rec_jax.data.sources import SOURCES
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.runs.load import restore
from llm4rec_jax.runs.run import run
from llm4rec_jax.training.checkpoint import CheckpointError
from tests.helpers import tiny


@pytest.fixture(scope="module", autouse=True)
def tiny_source():
    SOURCES["tiny"] = lambda path=None: tiny.dataset(users=24)
    yield
    del SOURCES["tiny"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    tiny.encoder_folder(folder / "encoder")
    return folder


def small(arg: str, place: Path) -> Any:
    """A row on the tiny dataset, for a few steps."""
    config: Any = study.get_config(arg)
    with config.unlocked():
        config.data.source, config.data.published, config.data.split_options = "tiny", None, ConfigDict()
        config.data.options = ConfigDict()
        config.text.item, config.text.title = "the {title}.", "title"
        config.encoder.path, config.model.width = str(place / "encoder"), 8
        config.train.history = min(config.train.history, 8)
        # Enough for a tuned encoder to be better than it was at the start.
        config.train.update({"steps": 20, "warmup": 0, "batch_size": 8, "eval_every": 10, "checkpoint_every": 10})
        if config.peft.method != "frozen":
            config.train.rates.encoder = 1e-2
        if config.peft.method == "side":
            config.peft.options.side = {"width": 8}
        if start := study.start_of(arg):
            config.init_from = str(place / start)
    return config


@pytest.fixture(scope="module")
def results(place) -> dict[str, dict[str, Any]]:
    """Every kind of row: the frozen one, one from there, joint tuning with its last stage, and item pairs."""
    rows = ("frozen", "side", "joint_lora", "joint_lora_head", "pairs", "pairs_frozen")
    return {arg: run(small(arg, place), place / arg, lambda line: None) for arg in rows}


@pytest.mark.long
def test_the_study_runs_from_end_to_end(results, place):
    for arg, result in results.items():
        assert result["test"]["users"] == 24, arg
        tuned = arg in ("side", "joint_lora", "pairs")
        assert (result["parameters"]["delta"] > 0) == tuned, arg
        assert result["best_step"] > 0 or arg not in ("joint_lora", "pairs"), arg
    # The item pairs train nothing but the encoder.
    assert results["pairs"]["parameters"]["trainable"] == results["pairs"]["parameters"]["delta"]
    assert json.loads((place / "pairs_frozen" / "config.json").read_text())["peft"]["method"] == "frozen"


@pytest.mark.long
@pytest.mark.parametrize(("arg", "start"), [("joint_lora_head", "joint_lora"), ("pairs_frozen", "pairs")])
def test_a_run_starts_from_a_tuned_encoder_with_its_method_folded_in(results, place, arg, start):
    before, ended = restore(place / start)
    after, state = restore(place / arg)
    assert after.starts_tuned
    assert not before.starts_tuned
    ids = np.array([[2, 5, 6, 3]], np.int32)
    params, delta = {**ended.frozen, **ended.trainable["params"]}, ended.trainable["delta"]
    merged = before.method.merge({"encoder": params["encoder"]}, delta)["encoder"]
    jax.tree.map(np.testing.assert_array_equal, merged, state.frozen["encoder"])
    encoder = after.model.text.encoder
    came, tuned = (encoder.apply({"params": p}, ids, ids > 0) for p in (params["encoder"], merged))
    assert np.abs(np.asarray(came) - np.asarray(tuned)).max() > 1e-6


@pytest.mark.long
def test_an_encoder_that_cannot_be_taken_over_is_refused(results, place):
    config = small("more", place)
    config.init_from = str(place / "side")
    with pytest.raises(CheckpointError, match=r"tuned its encoder by 'side', which cannot be folded"):
        Assembly(config).params()
    config.init_from, config.encoder.layers = str(place / "joint_lora"), 1
    with pytest.raises(CheckpointError, match=r"with config.encoder.layers=None, but here it is 1"):
        Assembly(config).params()


@pytest.mark.long
def test_runs_from_different_encoders_do_not_share_one(results, place):
    first, config = Assembly(small("more", place)), small("more", place)
    config.init_from = str(place / "joint_lora")
    other = first.beside(config)
    assert other.starts_tuned
    assert other.pretrained is not first.pretrained
    same = first.beside(small("more", place))
    assert same.pretrained is first.pretrained


def test_the_sister_studies_have_the_same_rows():
    names = [trial.name for trial in study.sweep()]
    assert len(set(names)) == len(names) == len(study.ARGS) * len(study.SEEDS)
    for sister in (scientific_tuning_pays, movielens_tuning_pays):
        assert [trial.name for trial in sister.sweep()] == names
        assert checked(sister.table()).rows == study.table().rows
        for arg in study.ARGS:
            config = sister.get_config(arg)
            assert config.peft.method == study.get_config(arg).peft.method
            assert config.data.source == sister.get_config("frozen").data.source != "s3rec"
    with pytest.raises(ValueError, match="did you mean 'pairs'"):
        study.get_config("pair")
