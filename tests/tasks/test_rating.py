"""Questions are learnt: taste from text vectors, by a frozen encoder or a tuned one; a run goes on."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from llm4rec_jax import sharding
from llm4rec_jax.data.features.tokens import tokenise, tokenizer
from llm4rec_jax.evaluation import rating_metrics as pointwise
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.models.rating import RATING_HEADS
from llm4rec_jax.models.text_encoder import TextEncoder, init
from llm4rec_jax.tasks import rating_scoring
from llm4rec_jax.tasks.rating import RatingTask, _distinct_ratings
from llm4rec_jax.tasks.rating_scoring import Reader
from llm4rec_jax.training import loop
from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.metric_writer import read
from llm4rec_jax.training.population import train_together
from llm4rec_jax.training.preemption import Preempted
from llm4rec_jax.training.task import NonFiniteLoss, TrainResult, partition_params
from tests.helpers import tiny
from tests.helpers.interrupting import terminate_at
from tests.helpers.rating import DATA, PROMPTS, TITLES, frozen_reader, task_of


def train(workdir: Path, mesh: Any = None, profile: Path | None = None, **options: Any) -> TrainResult:
    mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
    return loop.train(*task_of(**options), workdir, mesh=mesh, profile=profile)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    workdir = tmp_path_factory.mktemp("trained")
    return workdir, train(workdir)


def auc(run: TrainResult) -> float:
    score = rating_scoring.scorer(RATING_HEADS.build("hierarchical"), frozen_reader())
    scores = score(run.trainable, run.frozen["params"], DATA.test, PROMPTS["test"])
    return pointwise.evaluate(scores, DATA, DATA.test).summary["auc"]


def test_a_taste_is_learnt_that_the_share_does_not_have(trained):
    workdir, run = trained
    assert auc(run) > 0.9
    start = next(r for r in read(workdir / "metrics.jsonl") if r["kind"] == "validation")
    assert (start["step"], start["auc"]) == (0, 0.5)
    assert float(run.trainable["params"]["answers"]["closeness"]) > 1


def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(trained, tmp_path):
    train(tmp_path, steps=20)
    on = train(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, on.trainable, trained[1].trainable)
    assert (on.best_step, on.step) == (trained[1].best_step, 40)


def test_a_strong_pull_keeps_the_start(tmp_path):
    run = train(tmp_path, l2_to_init=1e6, steps=10)
    moved = jax.tree.leaves(run.trainable["params"]["answers"]["quality"])
    assert max(float(np.abs(array).max()) for array in moved) < 0.02


def test_patience_ends_a_run(tmp_path):
    assert train(tmp_path, learning_rate=1e-9, patience=2, eval_every=2).step == 4


def test_answers_are_counted_once():
    rows = DATA.train
    pairs = {(u, i) for row in zip(rows.user, rows.history, rows.target, strict=True) for u, i in _pairs(*row)}
    assert _distinct_ratings(rows) == len(pairs)


def _pairs(user: int, history: np.ndarray, target: int):
    return [(int(user), int(item)) for item in [*history, target]]


@pytest.mark.parametrize("name", ["hierarchical", "text"])
def test_an_encoder_that_has_not_been_moved_reads_as_a_frozen_one(tmp_path, name):
    folder = tiny.encoder_folder(tmp_path / "encoder")
    encoder, weights = pretrained.load(folder)
    model = TextEncoder(encoder, POOLINGS.build("mean"))
    head, asks = RATING_HEADS.build(name), name == "text"
    parts = DATA.parts()
    texts = [TITLES[t] for part in PROMPTS for t in parts[part].target] if asks else TITLES
    numbers = dict(zip(PROMPTS, np.split(np.arange(168), [48, 108]), strict=True))
    tokens = tokenise(texts, tokenizer(folder), 16, cache_dir=tmp_path)
    params = init(model, jax.random.key(0), weights)
    method = tiny.method("lora")
    tuned = Reader(model, method, tokens, asks, None, np.zeros(16, np.float32))
    params["answers"] = jax.tree.map(lambda a: a + 0.3, rating_scoring.start(head, 16, jax.random.key(1)))
    trainable, frozen = partition_params(method, params, jax.random.key(2))
    encode = jax.jit(lambda params, ids: model.apply({"params": params}, ids, ids > 0))
    still = tuned._replace(vectors=np.asarray(encode(params, tokens.ids)))
    scores = [
        rating_scoring.scorer(head, reader)(trainable, frozen, DATA.test, numbers["test"]) for reader in (tuned, still)
    ]
    np.testing.assert_allclose(*scores, atol=1e-4)


def test_texts_in_micro_batches_have_the_gradients_of_all_at_once(tmp_path):
    folder = tiny.encoder_folder(tmp_path / "encoder")
    encoder, weights = pretrained.load(folder, layers=1)
    model, head, method = TextEncoder(encoder, POOLINGS.build("mean")), RATING_HEADS.build("text"), tiny.method("lora")
    tokens = tokenise(TITLES, tokenizer(folder), 16, cache_dir=tmp_path)
    params = init(model, jax.random.key(0), weights)
    params["answers"] = jax.tree.map(lambda a: a + 0.3, rating_scoring.start(head, 16, jax.random.key(1)))
    reader = Reader(model, method, tokens, True, None, np.zeros(16, np.float32))
    prompts = {part: numbers % len(TITLES) for part, numbers in PROMPTS.items()}
    task = RatingTask(head, reader, params, DATA, prompts, TrainConfig(batch_size=16))
    task.bind(sharding.make_mesh(devices=jax.devices()[:1]))
    trainable, frozen = task.init(jax.random.key(2))
    batch = task.place(next(task.batches(0)))
    (texts,) = task.text_shapes(batch)
    assert texts[0] > 5
    grads = [jax.grad(task.loss)(trainable, {"params": frozen, "text": None}, batch, None, n) for n in (0, 5)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *grads)


def test_sigterm_saves_and_the_run_goes_on(tmp_path, monkeypatch):
    terminate_at(7, monkeypatch)
    with pytest.raises(Preempted) as stopped:
        train(tmp_path / "stopped")
    assert stopped.value.step == 7
    monkeypatch.undo()
    assert (tmp_path / "stopped" / "checkpoints" / "last" / "7").is_dir()
    ended, whole = train(tmp_path / "stopped"), train(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, ended.trainable, whole.trainable)
    assert ended.best_step == whole.best_step


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"metric": "acu"}, ValueError, "did you mean 'auc'"),
        ({"eval_every": 0}, ValueError, "must be at least 1"),
        ({"learning_rate": 1e38, "clip": None}, NonFiniteLoss, "at step 1, in a batch of the users u"),
    ],
)
def test_misuse(tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        train(tmp_path, **options)


def test_eight_devices_train_as_one(tmp_path):
    runs = [train(tmp_path / str(n), mesh=sharding.make_mesh(devices=jax.devices()[:n])) for n in (1, 8)]
    ends = [jax.tree.map(np.asarray, run.trainable) for run in runs]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *ends)
    assert runs[0].best_step == runs[1].best_step


def test_runs_together_are_runs_one_by_one(tmp_path):
    made = [task_of(seed=seed, learning_rate=rate) for seed, rate in ((0, 0.1), (1, 0.05))]
    folders = [tmp_path / name for name in ("a", "b")]
    one = sharding.make_mesh(devices=jax.devices()[:1])
    together = train_together(*zip(*made, strict=True), folders, mesh=one)
    for (_, config), outcome in zip(made, together, strict=True):
        assert isinstance(outcome, TrainResult)
        alone = train(tmp_path / f"alone-{config.seed}", seed=config.seed, learning_rate=config.learning_rate)
        ends = [jax.tree.map(np.asarray, run.trainable) for run in (outcome, alone)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *ends)


def test_a_trace_is_written(tmp_path):
    train(tmp_path, profile=tmp_path / "profile", steps=12)
    assert list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))
