"""The records of a run that is interrupted and goes on."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm4rec_jax.checksums import Damaged
from llm4rec_jax.training.log import TrainingLog
from llm4rec_jax.training.metric_writer import WandbWriter, read
from llm4rec_jax.training.throughput import BatchStats

WORK = BatchStats(tokens=6, token_places=8, items=3, mentions=12, flops=1e6)


def test_records_are_lines_and_events(tmp_path):
    with TrainingLog(tmp_path, 0, 10, 4, time.perf_counter()) as journal:
        journal.write_training(2, {"loss": 0.5, "grad_norm": 2.0}, [WORK, WORK], 1e9, 1)
        journal.write("validation", 2, {"ndcg@10": 0.25})
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


def test_torch_is_neither_imported_nor_hidden(tmp_path):
    code = f"""
import sys
from pathlib import Path
from llm4rec_jax.training.log import TrainingLog
with TrainingLog(Path({str(tmp_path)!r}), -1, 10, 4, 0.0) as journal:
    journal.write("train", 0, {{"loss": 1.0}})
assert "tensorboardX" in sys.modules and "torch" not in sys.modules
import torch
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_record_is_on_disk_at_once(tmp_path):
    with TrainingLog(tmp_path, 0, 10, 4, time.perf_counter()) as journal:
        journal.write("train", 1, {"loss": 1.0})
        assert [record["step"] for record in read(tmp_path / "metrics.jsonl")] == [1]


def test_a_run_that_goes_on_drops_what_it_will_do_again(tmp_path):
    with TrainingLog(tmp_path, 0, 10, 4, time.perf_counter()) as journal:
        for step in range(1, 6):
            journal.write("train", step, {"loss": float(step)})
    with TrainingLog(tmp_path, 3, 10, 4, time.perf_counter()) as journal:
        assert [record["step"] for record in read(tmp_path / "metrics.jsonl")] == [1, 2, 3]
        journal.write("train", 4, {"loss": 40.0})
    assert [record["loss"] for record in read(tmp_path / "metrics.jsonl")] == [1, 2, 3, 40]
    assert not (tmp_path / "metrics.tmp").exists()


@pytest.mark.parametrize("torn", ['{"kind": "train", "step": 2, "lo', "{", '{"kind": "train", "step": 2}'])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    file: Path = tmp_path / "metrics.jsonl"
    whole = {"kind": "train", "step": 1, "seconds": 2.0}
    file.write_text(json.dumps(whole) + "\n" + torn)
    assert read(file) == [whole]
    with TrainingLog(tmp_path, 5, 10, 4, time.perf_counter()) as journal:
        assert read(file) == [whole]
        assert file.read_text().count("\n") == 1
        journal.write("train", 6, {})
    assert [record["step"] for record in read(file)] == [1, 6]


def test_a_broken_line_in_the_middle_is_no_torn_one(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(Damaged, match=r"metrics.jsonl, line 1 is damaged .* bring it back from a copy"):
        read(file)


def written(workdir: Path, count: int) -> list[str]:
    with TrainingLog(workdir, -1, 10, 4, time.perf_counter()) as journal:
        for step in range(1, count + 1):
            journal.write("train", step, {"loss": float(step)})
    return (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [lines[0], lines[2]], 2),
        (lambda lines: [lines[1], lines[0], lines[2]], 1),
        (lambda lines: [lines[0].replace('"loss": 1.0', '"loss": 7.0'), *lines[1:]], 1),
        (lambda lines: [lines[0].replace("check", "chock"), *lines[1:]], 2),
        (lambda lines: [*lines[:2], lines[2].replace("check", "chock")], 3),
    ],
)
def test_what_was_changed_after_it_was_written_is_named(tmp_path, change, line):
    lines = written(tmp_path, 3)
    (tmp_path / "metrics.jsonl").write_text("".join(change(lines)))
    with pytest.raises(Damaged, match=f"metrics.jsonl, line {line} is damaged"):
        read(tmp_path / "metrics.jsonl")


def test_records_that_a_checkpoint_knew_of_must_be_there(tmp_path):
    lines = written(tmp_path, 3)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:2]))
    assert len(read(tmp_path / "metrics.jsonl")) == 2
    with pytest.raises(Damaged, match=r"2 of the 3 records up to step 3 are left; .* or remove it"):
        TrainingLog(tmp_path, 3, 10, 4, time.perf_counter(), records=3)
    (tmp_path / "metrics.jsonl").unlink()
    with TrainingLog(tmp_path, 3, 10, 4, time.perf_counter(), records=3) as journal:
        assert journal.records == 0


def test_no_file_has_no_records(tmp_path):
    assert read(tmp_path / "metrics.jsonl") == []


def test_only_the_first_process_writes(tmp_path, capsys):
    with TrainingLog(tmp_path, 0, 10, 4, time.perf_counter(), write=False) as journal:
        journal.log("hello")
        journal.advance(1)
        journal.write_training(1, {"loss": 1.0}, [WORK], 1e9, 1)
        journal.write("validation", 1, {"mrr": 1.0})
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""


def test_what_is_said_goes_to_standard_error_as_it_is(tmp_path, capsys):
    with TrainingLog(tmp_path, 0, 10, 4, time.perf_counter()) as journal:
        journal.log("[bold] 0.5 of [/path]")
    assert "[bold] 0.5 of [/path]" in capsys.readouterr().err


def test_what_is_done_aside_is_left_out_of_the_rate(tmp_path, monkeypatch):
    """And only that: the steps before it count."""
    now = iter([0.0, 1.0, 3.0, 103.0, 104.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    with TrainingLog(tmp_path, 0, 10, batch_size=4, started=time.perf_counter()) as journal:
        with journal.exclude_from_timing():
            pass
        monkeypatch.setattr(journal, "write", lambda kind, step, figures: rates.append(figures["examples_per_second"]))
        rates: list[float] = []
        journal.write_training(5, {"loss": 1.0}, 5 * [WORK], 1e9, 1)
    assert rates == [pytest.approx(4 * 5 / (104.0 - 1.0 - 100.0))]


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (1, 2):
        writer = WandbWriter("tests", tmp_path, {"seed": 0})
        writer.write({"kind": "train", "step": step, "seconds": 0.5, "loss": 1.0})
        writer.close()
    result = {"validation": {"ndcg@10": 0.25}, "test": {"ndcg@10": 0.125, "auc": 0.5}, "seconds": 1.0}
    writer = WandbWriter("tests", tmp_path, {"seed": 0})
    writer.write_result(result)
    writer.close()
    runs = [file.stem for file in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")]
    assert len(runs) == 3
    assert len(set(runs)) == 1
    (table,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/metrics*.table.json")
    held = json.loads(table.read_text())
    assert held["columns"] == ["metric", "validation", "test"]
    assert held["data"] == [["ndcg@10", 0.25, 0.125], ["auc", None, 0.5]]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"config.log.wandb needs the package wandb: pip install"):
        WandbWriter("tests", tmp_path, {})
