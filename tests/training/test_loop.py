"""The training loop on a small problem: every method, loss and user model learns, and nothing is lost on the way."""

import signal
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from llm4rec_jax import peft, sharding
from llm4rec_jax.data.batching.batch import TokenGroup
from llm4rec_jax.data.batching.builder import BatchOptions, training_batches
from llm4rec_jax.data.features.tokens import Tokens, tokenizer
from llm4rec_jax.data.splits.split import Split
from llm4rec_jax.losses.ranking import LOSSES
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.base import TRANSFORMER_RULES
from llm4rec_jax.models.graphs.base import GRAPHS, Edges
from llm4rec_jax.models.recommender import init, recommender
from llm4rec_jax.models.users.base import USERS
from llm4rec_jax.tasks.ranking_objective import Objective
from llm4rec_jax.training import metric_writer as journal
from llm4rec_jax.training.config import PartRates
from llm4rec_jax.training.log import TrainingLog
from llm4rec_jax.training.preemption import Preempted
from llm4rec_jax.training.task import NonFiniteLoss, partition_params
from tests.helpers import tiny
from tests.helpers.interrupting import terminate_at
from tests.helpers.training import train

QUICK = {"batch_size": 16, "history": 8, "learning_rate": 1e-2, "eval_every": 10, "log_every": 5, "metric": "ndcg@5"}


def one_device() -> jax.sharding.Mesh:
    return sharding.make_mesh(devices=jax.devices()[:1])


def train_ids(split: Split, workdir: Path, users: str = "mean", **options) -> Any:
    training, num_users = split.training()[0], split.dataset.num_users
    edges = Edges(np.repeat(np.arange(num_users), np.diff(training.offsets)), training.items)
    model = recommender(num_items=split.dataset.num_items, num_users=num_users, edges=edges, users=users, width=16)
    options = {"steps": 40, "mesh": one_device(), **QUICK, **options}
    return train(model, peft.create("frozen"), init(model, jax.random.key(0)), split, workdir, **options)


def train_text(split: Split, tokens: Tokens, encoder_folder: Path, workdir: Path, method: str | peft.Peft, **arguments):
    encoder, params = pretrained.load(encoder_folder)
    model = recommender(encoder=encoder, users="mean", width=16)
    arguments = {"steps": 20, "tokens": tokens, "mesh": one_device(), **QUICK, **arguments}
    chosen = tiny.method(method) if isinstance(method, str) else method
    params = init(model, jax.random.key(0), params)
    return chosen, params, train(model, chosen, params, split, workdir, **arguments)


def losses(workdir: Path) -> list[float]:
    return [r["loss"] for r in journal.read(workdir / "metrics.jsonl") if r["kind"] == "train"]


def same_bits(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


# Methods that have a part of the loop, the optimizer or the cache for themselves; each takes seconds to compile.
UNLIKE = {"frozen", "full", "lora", "prefix", "side", "adalora", "galore", "k_adapter"}
METHODS = [name if name in UNLIKE else pytest.param(name, marks=pytest.mark.long) for name in sorted(peft.METHODS)]


@pytest.mark.parametrize("method", [*METHODS, "lora+bitfit"])
def test_every_trainable_array_moves_and_every_frozen_one_stays(split, tokens, encoder_folder, tmp_path, method):
    chosen, params, trained = train_text(split, tokens, encoder_folder, tmp_path, method)
    before, frozen = partition_params(chosen, params, jax.random.fold_in(jax.random.key(0), 1))
    same_bits(frozen, trained.frozen["params"])
    same_bits(params["encoder"], trained.frozen["params"]["encoder"])
    assert trained.best_step > 0
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, trained.trainable)
    assert all(jax.tree.leaves(moved)), moved
    assert bool(jax.tree.leaves(trained.trainable["delta"])) == (method != "frozen")
    curve = losses(tmp_path)
    assert curve[-1] < 0.8 * curve[0]


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_learns(split, tmp_path, loss):
    train_ids(
        split, tmp_path, loss=loss, num_negatives=4, alpha=0.5, label_threshold=4 if "pointwise" in loss else None
    )
    curve = losses(tmp_path)
    assert np.mean(curve[-2:]) < 0.9 * np.mean(curve[:2])


@pytest.mark.parametrize("users", sorted({*USERS, *GRAPHS} - {"text"}))
def test_every_user_model_learns_what_comes_next(split, tmp_path, users):
    trained = train_ids(split, tmp_path, users=users, steps=120, eval_every=40)
    # A model that ignores order can tell the colour but hardly the place: the best of ten.
    assert trained.best_value > (0.6 if users in ("transformer", "gru", "bert4rec") else 0.25)


def test_a_prompt_is_read_as_a_history(split, tokens, encoder_folder, tmp_path):
    encoder, params = pretrained.load(encoder_folder)
    model = recommender(encoder=encoder, users="text", width=16)
    encode = tokenizer(encoder_folder)
    titles = np.array(split.dataset.items["title"].to_list(), dtype=object)

    def prompts(histories, users) -> TokenGroup:
        texts = ["the user bought: " + "; ".join(titles[h[-4:]]) for h in histories]
        padded = encode(texts, padding="max_length", max_length=24, truncation=True, return_tensors="np")
        return TokenGroup(padded["input_ids"].astype(np.int32), padded["attention_mask"].astype(bool))

    trained = train(
        model, peft.within(peft.create("lora"), "encoder"), init(model, jax.random.key(0), params), split, tmp_path,
        tokens=tokens, prompts=prompts, steps=60, mesh=one_device(), **QUICK | {"eval_every": 30},
    )  # fmt: skip
    curve = losses(tmp_path)
    assert curve[-1] < 0.7 * curve[0]
    assert trained.best_value > 0.15


def test_a_run_that_breaks_off_ends_with_the_same_bits(split, tmp_path, monkeypatch):
    options = {"users": "transformer", "steps": 24, "checkpoint_every": 5, "accumulate": 2, "loss": "softmax"}
    whole = train_ids(split, tmp_path / "whole", **options)

    class Stop(Exception):
        pass

    for at in (3, 7, 18):

        def advance(self, step, at=at):
            if step == at:
                raise Stop

        monkeypatch.setattr(TrainingLog, "advance", advance)
        with pytest.raises(Stop):
            train_ids(split, tmp_path / "broken", **options)
    monkeypatch.undo()
    broken = train_ids(split, tmp_path / "broken", **options)
    same_bits(whole.trainable, broken.trainable)
    assert (whole.best_step, whole.best_value, whole.step) == (broken.best_step, broken.best_value, broken.step)

    def without_time(folder: Path) -> list[dict]:
        records = journal.read(folder / "metrics.jsonl")
        return [{k: v for k, v in r.items() if k not in ("seconds", "examples_per_second")} for r in records]

    # Training records average the steps since the last one, which a restart cuts.
    validation = [[r for r in without_time(tmp_path / f) if r["kind"] == "validation"] for f in ("whole", "broken")]
    assert validation[0] == validation[1]
    steps = [r["step"] for r in without_time(tmp_path / "broken")]
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "muon", "ema": 0.9, "accumulate": 2},
        {"optimizer": "schedule_free_adamw", "warmup": 3},
        {"optimizer": "lion", "freeze_encoder_steps": 4, "layer_decay": 0.5, "rates": PartRates(encoder=1e-3)},
    ],
)
def test_optimizers_go_on_with_the_same_bits(split, tokens, encoder_folder, tmp_path, monkeypatch, options):
    def run(folder: Path) -> Any:
        return train_text(
            split, tokens, encoder_folder, folder, "lora", steps=12, checkpoint_every=5, loss="softmax", **options
        )[2]

    whole = run(tmp_path / "whole")
    advance = TrainingLog.advance

    def stop(self, step):
        if step == 7:
            raise Preempted(step)
        advance(self, step)

    monkeypatch.setattr(TrainingLog, "advance", stop)
    with pytest.raises(Preempted):
        run(tmp_path / "broken")
    monkeypatch.undo()
    broken = run(tmp_path / "broken")
    same_bits(whole.trainable, broken.trainable)
    assert (whole.best_step, whole.best_value) == (broken.best_step, broken.best_value)


def test_a_finished_run_is_not_trained_again(split, tmp_path):
    first = train_ids(split, tmp_path, steps=10)
    again = train_ids(split, tmp_path, steps=10)
    same_bits(first.trainable, again.trainable)
    assert again.step == 10


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_goes_on(split, tmp_path, monkeypatch, capfd, number, code):
    before = signal.getsignal(number)
    terminate_at(7, monkeypatch, number)
    with pytest.raises(Preempted) as stopped:
        train_ids(split, tmp_path / "stopped")
    assert stopped.value.code == code
    assert stopped.value.step == 7
    assert signal.getsignal(number) is before
    assert f"{number.name}: saved at step 7; the same command goes on from here" in capfd.readouterr().err
    monkeypatch.undo()
    assert (tmp_path / "stopped" / "checkpoints" / "last" / "7").is_dir()
    same_bits(train_ids(split, tmp_path / "stopped").trainable, train_ids(split, tmp_path / "whole").trainable)


def test_a_loss_that_is_not_finite_names_step_users_and_checkpoint(split, tmp_path):
    with pytest.raises(NonFiniteLoss) as error:
        train_ids(split, tmp_path, learning_rate=1e38, clip=None, loss="mse", checkpoint_every=1)
    message = str(error.value)
    assert "at step 1" in message
    assert "u1" in message
    assert str(tmp_path / "checkpoints" / "last") in message
    kept = int(message.split(str(tmp_path / "checkpoints" / "last") + "/")[1].split(".")[0])
    assert (tmp_path / "checkpoints" / "last" / str(kept)).is_dir()


def test_patience_stops_early_and_the_best_is_kept(split, tmp_path):
    trained = train_ids(split, tmp_path, steps=400, learning_rate=0.3, eval_every=5, patience=3)
    assert trained.step < 400
    assert trained.step == trained.best_step + 15
    values = {r["step"]: r["ndcg@5"] for r in journal.read(tmp_path / "metrics.jsonl") if r["kind"] == "validation"}
    assert trained.best_value == max(values.values()) == values[trained.best_step]


@pytest.mark.parametrize(
    ("spec", "loss", "said"),
    [
        ("lora", "full_softmax", "nothing to train in its first 1 blocks"),
        ("lora", "bpr", "nothing to train in its first 1 blocks"),
        ("compacter", "full_softmax", "nothing to train in its first 1 blocks"),
        ("last_k", "full_softmax", "nothing to train in its first 1 blocks"),
        ("side", "bpr", "only read from beside"),
        ("k_adapter", "full_softmax", "only read from beside"),
    ],
)
def test_states_that_training_does_not_change_are_computed_once(
    split, tokens, encoder_folder, tmp_path, loss, spec, said, capsys
):
    upper = {"lora": {"target": "layer_1/.*"}, "compacter": {"target": "layer_1/ffn", "n": 2, "reduction": 4}}
    options = {**tiny.METHOD_OPTIONS, **upper}
    method = peft.within(peft.create(spec, {spec: options[spec]}), "encoder")
    curves = []
    for name, size in (("cached", 2**31), ("whole", 0)):
        *_, trained = train_text(
            split, tokens, encoder_folder, tmp_path / name, method,
            loss=loss, steps=10, learning_rate=1e-3, log_every=1, dropout=False, state_cache_bytes=size,
        )  # fmt: skip
        assert (trained.frozen["states"] is None) == (name == "whole")
        assert (said in capsys.readouterr().err.replace("\n", " ")) == (name == "cached")
        curves.append(losses(tmp_path / name))
        if name == "cached":
            weights = {**trained.frozen["params"], **trained.trainable["params"]}, trained.trainable["delta"]
            states = trained.frozen["states"]
            item_embeddings = trained.scorer.of(*weights).item_embeddings()
            np.testing.assert_array_equal(trained.scorer.of(*weights, states=states).item_embeddings(), item_embeddings)
            assert (trained.scorer.of(*weights, states=states[::-1]).item_embeddings() != item_embeddings).any()
    np.testing.assert_allclose(*curves, rtol=1e-5)


def test_groups_of_texts_change_no_dropout_of_users(split, encoder_folder):
    encoder, params = pretrained.load(encoder_folder, dropout=0.0)
    model = recommender(encoder=encoder, users="transformer", width=16, options={"users": {"dropout": 0.5}})
    rng, items, vocabulary = np.random.default_rng(0), split.dataset.num_items, encoder.config.vocab_size
    lengths = rng.integers(1, 25, items, dtype=np.int32)
    texts = Tokens(np.where(np.arange(24) < lengths[:, None], rng.integers(1, vocabulary, (items, 24)), 0), lengths)
    method = peft.within(peft.create("bitfit"), "encoder")
    trainable, frozen = partition_params(method, init(model, jax.random.key(0), params), jax.random.key(1))
    held = {"params": frozen, "text": None, "states": None}
    objective = jax.jit(Objective(model, method, LOSSES["full_softmax"]).__call__)
    values, groups = [], []
    for cost in (0, 10**6):
        options = BatchOptions(batch_size=8, negatives="catalogue", group_cost=cost)
        batch = next(iter(training_batches(split, options, tokens=texts)[1]))
        groups.append(len(batch.tokens))
        values.append([float(objective(trainable, held, batch, jax.random.key(seed))) for seed in range(3)])
    assert groups[0] > 1 == groups[1]
    assert np.isfinite(values).all()
    np.testing.assert_allclose(*values, rtol=1e-5)
    assert np.ptp(values[0]) > 1e-3


def test_a_chain_of_beside_and_inside_caches_nothing(split, tokens, encoder_folder, tmp_path):
    _, _, trained = train_text(
        split, tokens, encoder_folder, tmp_path, "side+last_k", steps=2, learning_rate=1e-3, dropout=False
    )
    assert trained.frozen["states"] is None


@pytest.mark.parametrize("part", ["users", "both"])
def test_a_method_adapts_the_user_model(split, tokens, encoder_folder, tmp_path, part):
    """The adapted part keeps its own parameters; the encoder's states are constants where only users are adapted."""
    encoder, params = pretrained.load(encoder_folder)
    model = recommender(
        encoder=encoder, users="transformer", width=16, options={"users": {"positions": 8, "dropout": 0.0}}
    )
    params = init(model, jax.random.key(0), params)
    method = tiny.method("lora", "users")
    if part == "both":
        method = peft.chain(tiny.method("lora"), method)
    trained = train(
        model, method, params, split, tmp_path, steps=12, tokens=tokens, dropout=False,
        mesh=one_device(), **QUICK,
    )  # fmt: skip
    assert (trained.frozen["text"] is None) == (part == "both")
    assert set(trained.trainable["params"]) == {"project"}
    same_bits(trained.frozen["params"]["users"], params["users"])
    assert len(jax.tree.leaves(trained.trainable["delta"])) == 2 * (4 if part == "users" else 8)
    start = method.init(jax.random.fold_in(jax.random.key(0), 1), params)
    assert not any(
        np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (start, trained.trainable["delta"])), strict=True)
    )
    curve = losses(tmp_path)
    assert curve[-1] < curve[0]


@pytest.mark.parametrize("method", ["frozen", "lora"])
@pytest.mark.parametrize("loss", ["full_softmax", "in_batch", "bpr"])
def test_eight_devices_train_as_one(split, tokens, encoder_folder, tmp_path, method, loss):
    curves, ends = [], []
    for name, mesh in (("one", one_device()), ("eight", sharding.make_mesh())):
        _, _, trained = train_text(
            split, tokens, encoder_folder, tmp_path / name, method,
            mesh=mesh, loss=loss, steps=10, dropout=False, log_every=1, learning_rate=1e-3,
        )  # fmt: skip
        curves.append(losses(tmp_path / name))
        ends.append(trained.trainable)
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), *ends)


@pytest.mark.parametrize("devices", [1, 8])
def test_every_program_of_a_step_is_compiled_once(split, tokens, encoder_folder, tmp_path, caplog, request, devices):
    # Not by `jax.log_compiles`, which is of one thread: the first program is compiled in another.
    jax.config.update("jax_log_compiles", True)
    request.addfinalizer(lambda: jax.config.update("jax_log_compiles", False))
    with caplog.at_level("WARNING", logger="jax"):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        train_text(split, tokens, encoder_folder, tmp_path, "lora", mesh=mesh, loss="in_batch", steps=8)
    compiled = sum("Finished XLA compilation of jit(step)" in record.getMessage() for record in caplog.records)
    programs = [r for r in journal.read(tmp_path / "metrics.jsonl") if r["kind"] == "program"]
    assert compiled == len(programs) == programs[-1]["number"] > 0


def test_a_model_axis_trains_as_one_device(split, tokens, encoder_folder, tmp_path):
    curves = []
    for name, mesh, placed in (("one", one_device(), ()), ("eight", sharding.make_mesh(model=4), TRANSFORMER_RULES)):
        train_text(
            split, tokens, encoder_folder, tmp_path / name, "lora", mesh=mesh, rules=placed, steps=6, dropout=False,
            log_every=1,
        )  # fmt: skip
        curves.append(losses(tmp_path / name))
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-4)


def test_the_best_state_is_that_of_the_least_where_less_is_better(split, tmp_path):
    trained = train_ids(split, tmp_path, steps=40, metric="mean_rank", ks=(5,))
    ranks = {r["step"]: r["mean_rank"] for r in journal.read(tmp_path / "metrics.jsonl") if "mean_rank" in r}
    assert trained.best_value == min(ranks.values()) < ranks[0]
    assert ranks[trained.best_step] == trained.best_value


@pytest.mark.parametrize("loss", ["full_softmax", "in_batch", "bpr"])
def test_texts_may_be_as_long_as_the_encoder_has_positions(split, tmp_path, loss):
    """Thirteen tokens are padded to no more than thirteen: the encoder has no position for a fourteenth."""
    folder = tiny.encoder_folder(tmp_path / "encoder", positions=13)
    lengths = np.arange(split.dataset.num_items, dtype=np.int32) % 13 + 1
    ids = np.where(np.arange(13) < lengths[:, None], 3, 0).astype(np.int32)
    _, _, trained = train_text(split, Tokens(ids, lengths), folder, tmp_path / "run", "lora", steps=2, loss=loss)
    assert trained.step == 2


def test_a_batch_in_parts_trains_as_a_whole_one(split, tmp_path):
    for parts in (1, 4):
        train_ids(
            split, tmp_path / str(parts), users="transformer", loss="in_batch", dropout=False, micro_batches=parts
        )
    np.testing.assert_allclose(losses(tmp_path / "1"), losses(tmp_path / "4"), rtol=1e-5)
