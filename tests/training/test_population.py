"""Runs trained in one program are the runs trained one by one."""

from pathlib import Path

import jax
import numpy as np
import pytest

from llm4rec_jax import peft, sharding
from llm4rec_jax.data.features.text import item_texts
from llm4rec_jax.data.features.tokens import tokenise, tokenizer
from llm4rec_jax.data.splits.protocols import few_shot
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.base import TRANSFORMER_RULES
from llm4rec_jax.models.recommender import init, recommender
from llm4rec_jax.training import metric_writer as journal
from llm4rec_jax.training.config import PartRates
from llm4rec_jax.training.log import TrainingLog
from llm4rec_jax.training.preemption import Preempted
from llm4rec_jax.training.task import NonFiniteLoss
from llm4rec_jax.trees import path_name
from tests.helpers import tiny
from tests.helpers.training import Run, train, train_together

STEPS = 50
OPTIONS = {"batch_size": 16, "history": 8, "steps": STEPS, "eval_every": 25, "log_every": 1, "metric": "ndcg@5"}
SETTINGS = ({"seed": 0}, {"seed": 1, "learning_rate": 3e-3, "weight_decay": 0.01})


@pytest.fixture(scope="module")
def split():
    return tiny.split()


@pytest.fixture(scope="module")
def text(split, tmp_path_factory):
    """An encoder with its parameters, and the items' tokens."""
    folder = tiny.encoder_folder(tmp_path_factory.mktemp("encoder"))
    texts = item_texts(split.dataset.items, "the {title}.")
    return pretrained.load(folder), tokenise(texts, tokenizer(folder), 16, tmp_path_factory.mktemp("cache"))


def mesh(devices: int = 1):
    return sharding.make_mesh(devices=jax.devices()[:devices])


def parts(split, text, method: str):
    """(model, method, tokens, function from a seed to parameters)."""
    if method == "ids":
        model = recommender(num_items=split.dataset.num_items, users="transformer", width=16)
        return model, peft.create("frozen"), None, lambda seed: init(model, jax.random.key(seed))
    (encoder, weights), tokens = text
    model = recommender(encoder=encoder, users="gru", width=16)
    chosen = peft.within(peft.create("lora", {"lora": {"target": r"layer_1/.*"}}), "encoder")
    if method != "lora":
        chosen = tiny.method(method)
    return model, chosen, tokens, lambda seed: init(model, jax.random.key(seed), weights)


def curve(workdir: Path, name: str) -> list[float]:
    return [r[name] for r in journal.read(workdir / "metrics.jsonl") if name in r]


@pytest.mark.parametrize(
    ("method", "loss", "devices"),
    [
        pytest.param("ids", "bpr", 2, marks=pytest.mark.long),
        pytest.param("frozen", "in_batch", 1, marks=pytest.mark.long),
        ("lora", "full_softmax", 2),
        pytest.param("adalora", "softmax", 1, marks=pytest.mark.long),
    ],
)
def test_together_is_one_by_one(split, text, tmp_path, method, loss, devices):
    model, chosen, tokens, params = parts(split, text, method)
    options = {**OPTIONS, "loss": loss, "tokens": tokens, "mesh": mesh(devices), "num_negatives": 3}
    runs = [Run(params(s["seed"]), split, tmp_path / f"together-{s['seed']}", **s) for s in SETTINGS]
    together = train_together(model, chosen, runs, **options)
    for run, setting, outcome in zip(runs, SETTINGS, together, strict=True):
        assert not isinstance(outcome, NonFiniteLoss)
        folder = tmp_path / f"alone-{setting['seed']}"
        alone = train(model, chosen, run.params, split, folder, **setting, **options)
        assert len(curve(folder, "loss")) == STEPS
        np.testing.assert_allclose(curve(run.workdir, "loss"), curve(folder, "loss"), rtol=1e-5)
        assert curve(run.workdir, "ndcg@5") == pytest.approx(curve(folder, "ndcg@5"), abs=1e-5)
        assert outcome.best_step == alone.best_step
        theirs = jax.tree.leaves(alone.trainable)
        for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(outcome.trainable), theirs, strict=True):
            name = path_name(path)
            # The bias of the keys changes no attention: its gradient is rounding, of which Adam makes steps.
            if not name.endswith("key/bias"):
                # Elsewhere, too, a gradient can be little but rounding for some steps, in a few places of thousands.
                apart = np.abs(np.asarray(one) - np.asarray(other))
                assert (apart > 1e-5).mean() < 1e-3, name
                assert apart.max() < 1e-4, name
    curves = [curve(run.workdir, "loss") for run in runs]
    assert abs(curves[0][-1] - curves[1][-1]) > 1e-3


def test_optimizers_together_are_those_of_one_by_one(split, text, tmp_path):
    model, chosen, tokens, params = parts(split, text, "lora")
    optimizer = {"optimizer": "muon", "ema": 0.8, "freeze_encoder_steps": 2, "layer_decay": 0.5}
    options = {
        **OPTIONS,
        **optimizer,
        "steps": 8,
        "eval_every": 4,
        "loss": "in_batch",
        "tokens": tokens,
        "mesh": mesh(),
    }
    options["rates"] = PartRates(encoder=1e-3)
    runs = [Run(params(s["seed"]), split, tmp_path / f"together-{s['seed']}", **s) for s in SETTINGS]
    together = train_together(model, chosen, runs, **options)
    for run, setting, outcome in zip(runs, SETTINGS, together, strict=True):
        folder = tmp_path / f"alone-{setting['seed']}"
        train(model, chosen, run.params, split, folder, **setting, **options)
        assert not isinstance(outcome, NonFiniteLoss)
        np.testing.assert_allclose(curve(run.workdir, "loss"), curve(folder, "loss"), rtol=1e-5)
        assert curve(run.workdir, "ndcg@5") == pytest.approx(curve(folder, "ndcg@5"), abs=1e-5)


@pytest.mark.parametrize(("loss", "drawn", "seeds"), [("bpr", 40, (0, 1)), ("full_softmax", 3, (0, 19))])
def test_runs_may_have_splits_of_their_own(split, text, tmp_path, loss, drawn, seeds):
    """All of three targets are in windows of two inputs in the one split, and not all of them in the other."""
    model, chosen, tokens, params = parts(split, text, "lora")
    splits = [few_shot(split, drawn, per="total", seed=seed) for seed in seeds]
    options = {**OPTIONS, "history": 4, "steps": 6, "eval_every": 6, "loss": loss, "tokens": tokens, "mesh": mesh()}
    start = params(0)
    runs = [Run(start, own, tmp_path / f"together-{i}") for i, own in enumerate(splits)]
    train_together(model, chosen, runs, **options)
    for i, own in enumerate(splits):
        train(model, chosen, start, own, tmp_path / f"alone-{i}", **options)
        np.testing.assert_allclose(
            curve(tmp_path / f"together-{i}", "loss"), curve(tmp_path / f"alone-{i}", "loss"), rtol=1e-5
        )


def test_what_breaks_off_goes_on_together(split, text, tmp_path, monkeypatch):
    model, chosen, _, params = parts(split, text, "ids")
    options = {**OPTIONS, "steps": 12, "eval_every": 6, "checkpoint_every": 4, "mesh": mesh()}

    def runs(name):
        return [Run(params(s["seed"]), split, tmp_path / f"{name}-{s['seed']}", **s) for s in SETTINGS[:2]]

    whole = train_together(model, chosen, runs("whole"), **options)
    advance = TrainingLog.advance

    def stop(self, step):
        if step == 7:
            raise Preempted(step)
        advance(self, step)

    monkeypatch.setattr(TrainingLog, "advance", stop)
    with pytest.raises(Preempted):
        train_together(model, chosen, runs("broken"), **options)
    monkeypatch.undo()
    broken = train_together(model, chosen, runs("broken"), **options)
    for ours, theirs in zip(broken, whole, strict=True):
        assert not isinstance(ours, NonFiniteLoss)
        assert not isinstance(theirs, NonFiniteLoss)
        jax.tree.map(np.testing.assert_array_equal, ours.trainable, theirs.trainable)
    assert curve(tmp_path / "broken-1", "loss") == curve(tmp_path / "whole-1", "loss")

    train(model, chosen, params(0), split, tmp_path / "new-0", **{**options, "steps": 4})
    with pytest.raises(ValueError, match=r"only from the same step: .*new-0 at 4, .*new-1 at None"):
        train_together(model, chosen, runs("new"), **options)


def test_one_that_diverges_does_not_end_the_others(split, text, tmp_path):
    model, chosen, _, params = parts(split, text, "ids")
    runs = [Run(params(0), split, tmp_path / "good"), Run(params(1), split, tmp_path / "bad", learning_rate=1e38)]
    good, bad = train_together(model, chosen, runs, **{**OPTIONS, "steps": 10, "mesh": mesh()}, clip=None)
    assert not isinstance(good, NonFiniteLoss)
    assert good.step == 10
    assert isinstance(bad, NonFiniteLoss)
    assert "Lower the learning rate" in str(bad)


def test_one_that_cannot_be_validated_does_not_end_the_others(split, text, tmp_path):
    """The results of a step are finite, and the scores after it are not."""
    model, chosen, _, params = parts(split, text, "ids")
    lost = jax.tree.map(lambda a: np.full_like(a, np.nan), params(1))
    runs = [Run(params(0), split, tmp_path / "good"), Run(lost, split, tmp_path / "bad")]
    good, bad = train_together(model, chosen, runs, **{**OPTIONS, "steps": 5, "mesh": mesh()})
    assert not isinstance(good, NonFiniteLoss)
    assert good.step == 5
    assert isinstance(bad, NonFiniteLoss)
    assert "validation at step 0: " in str(bad)
    with pytest.raises(NonFiniteLoss, match="validation at step 0: "):
        train(model, chosen, lost, split, tmp_path / "alone", **{**OPTIONS, "steps": 5, "mesh": mesh()})


def test_each_stops_early_by_itself(split, text, tmp_path):
    model, chosen, _, params = parts(split, text, "ids")
    # A learning rate of zero never improves on the start.
    runs = [Run(params(0), split, tmp_path / "still", learning_rate=0.0), Run(params(1), split, tmp_path / "moving")]
    still, moving = train_together(
        model, chosen, runs, **{**OPTIONS, "steps": 30, "eval_every": 5, "mesh": mesh()}, patience=2
    )
    assert not isinstance(still, NonFiniteLoss)
    assert not isinstance(moving, NonFiniteLoss)
    assert (still.best_step, still.step) == (0, 10)
    assert moving.step > 10
    assert len(curve(tmp_path / "still", "ndcg@5")) == 3


def test_what_cannot_be_trained_together(split, text, tmp_path):
    model, chosen, tokens, params = parts(split, text, "lora")
    start = params(0)
    other = {**start, "encoder": jax.tree.map(lambda a: a + 1, start["encoder"])}
    runs = [Run(start, split, tmp_path / "a"), Run(other, split, tmp_path / "b")]
    with pytest.raises(ValueError, match="do not share what is frozen"):
        train_together(model, chosen, runs, **OPTIONS, tokens=tokens, mesh=mesh())
    with pytest.raises(ValueError, match="with whole parameters"):
        train_together(model, chosen, runs, **OPTIONS, tokens=tokens, mesh=mesh(2), rules=TRANSFORMER_RULES)
    with pytest.raises(TypeError, match="learning_rat"):
        train(model, chosen, start, split, tmp_path / "c", learning_rat=1.0)
