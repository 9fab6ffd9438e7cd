"""Training and ranking of every study as programs for TPUs and GPUs, made on a machine that has neither."""

from pathlib import Path
from typing import Any

import jax
import pytest
from ml_collections import ConfigDict

from configs import (
    baselines_movielens,
    beauty_tuning_pays,
    language_models_movielens,
    movielens_100k,
    peft_movielens,
    s3rec_beauty,
    unisrec_scientific,
)
from experiments.benchmarks import scaling
from llm4rec_jax import sharding
from llm4rec_jax.data.sources import SOURCES
from llm4rec_jax.inference import ranks
from llm4rec_jax.inference.batched import FixedBatches
from llm4rec_jax.peft import METHODS
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.training.step import TrainStep
from llm4rec_jax.training.task import Task
from tests.helpers import rating, tiny

PLATFORMS = ("tpu", "cuda")
STUDIES = {
    baselines_movielens: tuple(baselines_movielens.TRAINED),
    beauty_tuning_pays: beauty_tuning_pays.ARGS,
    language_models_movielens: language_models_movielens.ARGS,
    movielens_100k: movielens_100k.ARGS,
    peft_movielens: ("base", *METHODS),
    s3rec_beauty: (*s3rec_beauty.TRAINED, *s3rec_beauty.TUNED),
    unisrec_scientific: (*s3rec_beauty.TRAINED, *s3rec_beauty.TUNED),
}
# Rows that together have all kinds of programs.
QUICK = {
    baselines_movielens: ("lightgcn", "bert4rec"),
    beauty_tuning_pays: ("pairs", "joint_full"),
    language_models_movielens: ("smollm2_8_lora",),
    movielens_100k: ("id+text",),
    peft_movielens: ("k_adapter",),
    s3rec_beauty: ("frozen",),
    unisrec_scientific: ("houlsby",),
}


@pytest.fixture(scope="module", autouse=True)
def tiny_source():
    SOURCES["tiny"] = lambda path=None: tiny.dataset(users=24)
    yield
    del SOURCES["tiny"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.encoder_folder(tmp_path_factory.mktemp("encoder"), layers=6)


def small(config: Any, encoder: Path) -> Any:
    """A study's configuration on the tiny dataset and encoder."""
    with config.unlocked():
        config.data.source, config.data.published = "tiny", None
        config.data.options, config.data.split_options = ConfigDict(), ConfigDict()
        config.text.item, config.text.title = "the {title}.", "title"
        config.encoder.path = str(encoder)
        config.encoder.layers = config.encoder.layers and min(config.encoder.layers, 6)
        config.encoder.whiten = config.encoder.whiten and 4
        config.model.width = 8
        config.train.batch_size, config.train.history = 8, 8
        for method, options in tiny.METHOD_OPTIONS.items():
            if method in config.peft.method.split("+"):
                config.peft.options[method] = {**config.peft.options.get(method, {}), **options}
    return config


def lower(function: Any, *arguments: Any) -> None:
    traced = function.trace(*arguments)
    for platform in PLATFORMS:
        # A custom call would be a program of one platform only.
        assert "stablehlo" in traced.lower(lowering_platforms=(platform,)).as_text()


class Lowered:
    """A jitted function that is lowered for all platforms where it is called."""

    programs = 0

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        lower(self._function, *arguments)
        Lowered.programs += 1
        return self._function(*arguments)


def lower_step(task: Task, config: Any) -> tuple[Any, Any]:
    """Lowers the training step as the loop makes it; returns the state at the start."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    task.bind(mesh)
    params = task.init(jax.random.key(0))
    step, stream = TrainStep(task, config, params.trainable), task.batches(0)
    batch = task.place(next(stream))
    stream.close()
    frozen = {"params": params.frozen, **task.prepare(params)}
    state = jax.eval_shape(step.start, step.setting, params.trainable)
    lower(jax.jit(step.step, donate_argnums=2), frozen, step.setting, state, batch)
    return params.trainable, frozen


def check(study: Any, arg: str, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = FixedBatches.__init__

    def started(self: Any, *arguments: Any) -> None:
        start(self, *arguments)
        self._run = Lowered(self._run)

    monkeypatch.setattr(FixedBatches, "__init__", started)
    for name in ("_scores_at", "_start", "_chunk", "_together"):
        monkeypatch.setattr(ranks, name, Lowered(getattr(ranks, name)))
    assembly = Assembly(small(study.get_config(arg), encoder))
    # Eight devices would take longer, and lower no other operations.
    assembly.__dict__["mesh"] = sharding.make_mesh(devices=jax.devices()[:1])
    before = Lowered.programs
    state = lower_step(assembly.task, assembly.train_config)
    assert assembly.task.evaluate(*state)["users"] > 0
    assert Lowered.programs >= before + 5


@pytest.mark.parametrize(("study", "arg"), [(study, arg) for study, args in QUICK.items() for arg in args])
def test_a_row_of_every_study_lowers_for_tpus_and_gpus(study, arg, encoder, monkeypatch):
    check(study, arg, encoder, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize(("study", "arg"), [(study, arg) for study, args in STUDIES.items() for arg in args])
def test_every_row_of_every_study_lowers_for_tpus_and_gpus(study, arg, encoder, monkeypatch):
    check(study, arg, encoder, monkeypatch)


def test_the_rating_task_lowers_for_tpus_and_gpus():
    task, config = rating.task_of()
    lower_step(task, config)


@pytest.mark.long
@pytest.mark.parametrize("arg", ["lora", "full"])
def test_a_step_of_minilm_fits_eight_small_tpus(arg):
    """Compiles for eight CPU devices in the layouts of a v5e-8, which has 16 GB a chip, with both axes of the mesh."""
    assembly = Assembly(movielens_100k.get_config(arg))
    found = {layout: scaling.measure(assembly, *layout) for layout in ((1, 1), (8, 1), (8, 2))}
    one = found[1, 1]
    for layout in ((8, 1), (8, 2)):
        assert found[layout]["held_mib"] < min(16e9 / 2**20, one["held_mib"] / 2)
        assert found[layout]["gflop"] < one["gflop"] / 6
        assert sum(found[layout]["collectives"].values()) > 0
    assert found[8, 2]["arguments_mib"] < found[8, 1]["arguments_mib"] < one["arguments_mib"]
