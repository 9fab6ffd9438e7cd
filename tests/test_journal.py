"""The records of a run that is interrupted and goes on."""

import json
import time
from pathlib import Path

import pytest

from llm4rec_jax.journal import Journal, read


def test_records_are_lines_and_events(tmp_path):
    with Journal(tmp_path, 0, 10, 4, time.perf_counter()) as journal:
        journal.train(2, 2, {"loss": 0.5, "grad_norm": 2.0})
        journal.record("validation", 2, {"ndcg@10": 0.25})
    first, second = read(tmp_path / "metrics.jsonl")
    assert {name: first[name] for name in ("kind", "step", "loss", "grad_norm")} == {
        "kind": "train",
        "step": 2,
        "loss": 0.5,
        "grad_norm": 2.0,
    }
    assert first["examples_per_second"] > 0
    assert {name: second[name] for name in ("kind", "step", "ndcg@10")} == {
        "kind": "validation",
        "step": 2,
        "ndcg@10": 0.25,
    }
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"train/loss" in events
    assert b"validation/ndcg_10" in events


def test_a_record_is_on_disk_at_once(tmp_path):
    with Journal(tmp_path, 0, 10, 4, time.perf_counter()) as journal:
        journal.record("train", 1, {"loss": 1.0})
        assert [record["step"] for record in read(tmp_path / "metrics.jsonl")] == [1]


def test_a_run_that_goes_on_drops_what_it_will_do_again(tmp_path):
    with Journal(tmp_path, 0, 10, 4, time.perf_counter()) as journal:
        for step in range(1, 6):
            journal.record("train", step, {"loss": float(step)})
    with Journal(tmp_path, 3, 10, 4, time.perf_counter()) as journal:
        assert [record["step"] for record in read(tmp_path / "metrics.jsonl")] == [1, 2, 3]
        journal.record("train", 4, {"loss": 40.0})
    assert [record["loss"] for record in read(tmp_path / "metrics.jsonl")] == [1, 2, 3, 40]
    assert not (tmp_path / "metrics.tmp").exists()


@pytest.mark.parametrize("torn", ['{"kind": "train", "step": 2, "lo', "{", '{"kind": "train", "step": 2}'])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    file: Path = tmp_path / "metrics.jsonl"
    whole = json.dumps({"kind": "train", "step": 1, "seconds": 2.0}) + "\n"
    file.write_text(whole + torn)
    assert [record["step"] for record in read(file)] == [1]
    with Journal(tmp_path, 5, 10, 4, time.perf_counter()) as journal:
        assert file.read_text() == whole
        journal.record("train", 6, {})
    assert [record["step"] for record in read(file)] == [1, 6]


def test_a_broken_line_in_the_middle_is_no_torn_one(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(json.JSONDecodeError):
        read(file)


def test_no_file_has_no_records(tmp_path):
    assert read(tmp_path / "metrics.jsonl") == []


def test_only_the_first_process_writes(tmp_path, capsys):
    with Journal(tmp_path, 0, 10, 4, time.perf_counter(), write=False) as journal:
        journal.say("hello")
        journal.advance(1)
        journal.train(1, 1, {"loss": 1.0})
        journal.record("validation", 1, {"mrr": 1.0})
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""


def test_what_is_said_goes_to_standard_error_as_it_is(tmp_path, capsys):
    with Journal(tmp_path, 0, 10, 4, time.perf_counter()) as journal:
        journal.say("[bold] 0.5 of [/path]")
    assert "[bold] 0.5 of [/path]" in capsys.readouterr().err


def test_what_is_done_aside_is_left_out_of_the_rate(tmp_path, monkeypatch):
    """And only that: the steps before it count."""
    now = iter([0.0, 1.0, 3.0, 103.0, 104.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    with Journal(tmp_path, 0, 10, batch_size=4, started=time.perf_counter()) as journal:
        with journal.aside():
            pass
        monkeypatch.setattr(journal, "record", lambda kind, step, figures: rates.append(figures["examples_per_second"]))
        rates: list[float] = []
        journal.train(5, 5, {"loss": 1.0})
    assert rates == [pytest.approx(4 * 5 / (104.0 - 1.0 - 100.0))]
