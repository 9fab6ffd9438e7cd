"""Words of the loop: its log, and errors about options, bases and deltas."""

import json
import warnings

import jax
import pytest

from llm4rec_jax import peft, sharding
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.recommender import init, recommender
from llm4rec_jax.training import metric_writer as journal
from llm4rec_jax.training import throughput
from llm4rec_jax.training.checkpoint import CheckpointError
from tests.helpers.training import train
from tests.training.test_loop import QUICK, one_device, train_ids, train_text


def test_another_base_and_another_model_are_refused(split, tokens, encoder_folder, tmp_path):
    train_text(split, tokens, encoder_folder, tmp_path, "lora", steps=2)
    encoder, params = pretrained.load(encoder_folder)
    model = recommender(encoder=encoder, users="mean", width=16)
    changed = jax.tree.map(lambda a: a + 1, params)
    options = {"tokens": tokens, "steps": 4, "mesh": one_device(), **QUICK}
    lora, bitfit = (peft.within(peft.create(name), "encoder") for name in ("lora", "bitfit"))
    with pytest.raises(CheckpointError, match="digest"):
        train(model, lora, init(model, jax.random.key(0), changed), split, tmp_path, **options)
    with pytest.raises(CheckpointError, match="does not hold what this model trains"):
        train(model, bitfit, init(model, jax.random.key(0), params), split, tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "ful_softmax"}, "full_softmax"),
        ({"schedule": "cosin"}, "cosine"),
        ({"metric": "ndcg@7"}, "ndcg@10"),
        ({"batch_size": 0}, "config.train.batch_size is 0, must be at least 1"),
        ({"micro_batches": 3}, "batch_size is 16: .* in 3 micro-batches; give a multiple of 3"),
        ({"micro_batches": 0}, "micro_batches is 0"),
        ({"metric": "users"}, "unknown validation metric 'users'"),
        ({"eval_every": 0}, "eval_every"),
        ({"scales": {"delta/.*": 2.0}}, "matches nothing"),
        ({"warmup": 100}, "warm-up"),
        ({"loss": "bce_pointwise"}, "label_threshold"),
        ({"loss": "bpr", "label_threshold": 4.0}, "bce_pointwise"),
        ({"loss": "bpr", "num_negatives": 0}, "num_negatives"),
    ],
)
def test_a_wrong_option_is_named(split, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        train_ids(split, tmp_path, **options)


def test_records_are_json_and_tensorboard_has_events(split, tmp_path):
    train_ids(split, tmp_path, steps=10)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {r["kind"] for r in records} == {"program", "train", "validation"}
    program = next(r for r in records if r["kind"] == "program")
    assert program["flops"] > 2 * 3 * split.dataset.num_items * 16
    assert program["bytes"] > 0
    assert all({"step", "seconds"} <= set(r) for r in records)
    assert all(r["examples_per_second"] > 0 for r in records if r["kind"] == "train")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        events = list((tmp_path / "tensorboard").glob("events.*"))
    assert events
    assert events[0].stat().st_size > 100


def test_a_log_says_how_fast_a_step_is_and_of_what_use(split, tokens, encoder_folder, tmp_path):
    train_text(split, tokens, encoder_folder, tmp_path, "lora", loss="in_batch", profile=tmp_path / "profile")
    trained = [r for r in journal.read(tmp_path / "metrics.jsonl") if r["kind"] == "train"]
    for record in trained:
        assert {"examples_per_second", "tokens_per_second", "mfu", "programs", "peak_bytes"} <= record.keys()
        assert record["mfu"] > 0
        # A title of two words, an article and a full stop, between two special tokens, in a bucket of eight.
        assert 2 / 8 <= record["padding_share"] < 1
        # Forty items, and every user has up to seven inputs and as many targets.
        assert 0 < record["unique_share"] < 0.5
    assert list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))


def test_utilisation_is_what_a_hand_count_gives(split, tokens, encoder_folder, tmp_path, monkeypatch):
    """Counts 6N FLOPs a token and score, attention's products and projection, on a device of 1 GFLOP/s."""
    monkeypatch.setattr(throughput, "peak", lambda *_: 1e9)
    train_ids(split, tmp_path / "ids", steps=10)
    train_text(split, tokens, encoder_folder, tmp_path / "text", "full", steps=10)
    users, targets, items, width = QUICK["batch_size"], 6, split.dataset.num_items, 16
    scores = 6 * users * targets * items * width
    d, inner, length, blocks = 16, 32, 8, 2
    block = 6 * length * (4 * d**2 + 2 * d * inner) + 6 * 2 * length**2 * d
    projection = 6 * (d * 256 + 256 * width)
    for kind, flops in (("ids", scores), ("text", scores + items * (blocks * block + projection))):
        for record in journal.read(tmp_path / kind / "metrics.jsonl"):
            if record["kind"] == "train":
                seconds = users / record["examples_per_second"]
                assert record["mfu"] == pytest.approx(flops / seconds / 1e9, rel=0.05), kind


def test_a_trace_that_is_short_or_none_is_said(split, tmp_path, capfd):
    train_ids(split, tmp_path / "none", steps=5, profile=tmp_path / "no trace")
    assert "no step is traced: tracing begins after 5 steps" in " ".join(capfd.readouterr().err.split())
    train_ids(split, tmp_path / "short", steps=7, profile=tmp_path / "trace")
    assert "only 2 steps are traced" in " ".join(capfd.readouterr().err.split())
    assert list((tmp_path / "trace").rglob("perfetto_trace.json.gz"))


@pytest.mark.parametrize("options", [{"users": "gru"}, {"micro_batches": 2}])
def test_what_a_loop_repeats_is_counted(split, tmp_path, options):
    train_ids(split, tmp_path, steps=10, **options)
    records = journal.read(tmp_path / "metrics.jsonl")
    assert all(r["mfu"] > 0 for r in records if r["kind"] == "train")
    assert all(r["flops"] > 0 for r in records if r["kind"] == "program")


def test_a_base_that_changed_is_an_error(split, tmp_path, monkeypatch):
    digests = iter(("one", "another"))
    monkeypatch.setattr(sharding, "digest", lambda params: next(digests))
    with pytest.raises(RuntimeError, match="a frozen parameter has changed"):
        train_ids(split, tmp_path, steps=1)


def test_a_delta_that_has_not_moved_is_an_error(split, tokens, encoder_folder, tmp_path):
    with pytest.raises(ValueError, match=r"nothing of the delta has moved in 2 steps: the method 'lora'"):
        train_text(split, tokens, encoder_folder, tmp_path, "lora", steps=2, scales={"delta/.*": 0.0})
