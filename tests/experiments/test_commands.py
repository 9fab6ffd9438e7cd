"""The commands as a person runs them: in processes of their own, on files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest

from experiments.sweeps import trials
from llm4rec_jax import peft
from llm4rec_jax.models.encoders import huggingface
from llm4rec_jax.peft.hf import save_load
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs.load import restore
from llm4rec_jax.runs.run import run
from tests.helpers.commands import ROOT, command, last_line
from tests.helpers.compiling import environment


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    workdir = tmp_path_factory.mktemp("runs") / "lora"
    return workdir, command("train", f"--config={config}:lora", f"--workdir={workdir}")


def test_train_prints_its_result_and_fills_its_folder(trained):
    workdir, done = trained
    result = last_line(done)
    assert result == run_folder.read(workdir / "result.json")
    assert {"validation", "test", "best_step", "parameters", "seconds"} <= set(result)
    # Two layers, query and value, rank 8: 2 · 2 · 8 · (16 + 16).
    assert result["parameters"]["delta"] == 1024
    assert "fingerprint" in done.stdout
    for name in ("config.json", "environment.json", "dataset.json", "metrics.jsonl", "tensorboard", "checkpoints"):
        assert (workdir / name).exists(), name
    data = json.loads((workdir / "dataset.json").read_text())
    assert data["statistics"]["users"] == 48
    assert len(data["fingerprint"]) == 64
    for phase in ("validation", "test"):
        per_user = pl.read_parquet(workdir / f"per_user_{phase}.parquet")
        assert per_user["ndcg@10"].mean() == pytest.approx(result[phase]["ndcg@10"])
        assert per_user.height == 48


def test_export_writes_an_adapter_and_a_model(config, trained, tmp_path):
    """Both are the run's own encoder, and the adapter brings head and user model with it."""
    workdir, _ = trained
    assembly, restored = restore(workdir)
    params, delta = {**restored.frozen, **restored.trainable["params"]}, restored.trainable["delta"]
    done = command("export", f"--workdir={workdir}", f"--out={tmp_path / 'adapter'}")
    assert last_line(done) == {"out": str(tmp_path / "adapter"), "method": "lora", "parameters": 1024}
    loaded = save_load.load(tmp_path / "adapter", params["encoder"])
    jax.tree.map(np.testing.assert_array_equal, loaded.delta, jax.tree.map(np.asarray, delta["encoder"]))
    jax.tree.map(np.testing.assert_array_equal, loaded.others["users"], jax.tree.map(np.asarray, params["users"]))
    command("export", f"--workdir={workdir}", f"--out={tmp_path / 'model'}", "--merge")
    encoder, merged = huggingface.load(tmp_path / "model")
    ids, mask = assembly.tokens.ids[:5], assembly.tokens.ids[:5] > 0
    want = peft.forward(encoder, loaded.method, params["encoder"], loaded.delta, ids, mask)
    np.testing.assert_allclose(encoder.apply({"params": merged}, ids, mask)[mask], want[mask], atol=1e-5)
    ids_only = command("train", f"--config={config}:id", f"--workdir={tmp_path / 'id'}", "--config.train.steps=6")
    assert ids_only.returncode == 0
    refused = command("export", f"--workdir={tmp_path / 'id'}", f"--out={tmp_path / 'x'}", check=False)
    assert refused.returncode == 2
    assert "adapts no encoder: nothing to export" in refused.stderr


def test_evaluate_gives_the_same_numbers(trained):
    workdir, done = trained
    again = last_line(command("evaluate", f"--workdir={workdir}", "--check"))
    assert again == {phase: last_line(done)[phase] for phase in ("validation", "test")}


def test_the_same_command_prints_the_result_again_and_another_is_refused(config, trained):
    workdir, done = trained
    assert last_line(command("train", f"--config={config}:lora", f"--workdir={workdir}")) == last_line(done)
    other = command("train", f"--config={config}:lora", f"--workdir={workdir}", "--config.seed=1", check=False)
    assert other.returncode == 2
    assert "config.seed (1 asked for, 0 there)" in other.stderr


def test_a_run_whose_records_were_removed_at_its_end_has_no_costs(config, trained, tmp_path):
    """Follows the message about a damaged metrics.jsonl."""
    workdir, done = trained
    folder = tmp_path / "again"
    shutil.copytree(workdir, folder)
    for name in ("metrics.jsonl", "result.json"):
        (folder / name).unlink()
    result = last_line(command("train", f"--config={config}:lora", f"--workdir={folder}"))
    assert result["test"] == last_line(done)["test"]
    assert (result["records"], result["seconds"], result["step"]) == (0, 0.0, None)
    assert "ndcg@10" in command("tables", folder).stdout.lower()


def test_the_result_of_a_baseline_is_no_other_ones(config, tmp_path):
    """A baseline has no checkpoints, and its folder is its own all the same."""
    fitted = [f"--config={config}:id", f"--workdir={tmp_path}"]
    result = last_line(command("train", *fitted, "--config.baseline.name=popularity"))
    for other in (["--config.baseline.name=random"], []):
        refused = command("train", *fitted, *other, check=False)
        assert refused.returncode == 2
        assert "config.baseline.name" in refused.stderr
    assert last_line(command("train", *fitted, "--config.baseline.name=popularity")) == result


def test_recommend_for_a_user_and_for_a_stranger(trained):
    workdir, _ = trained
    known = command("recommend", f"--workdir={workdir}", "--user=u3", "--k=4").stdout.splitlines()
    assert len(known) == 5
    history = command("recommend", f"--workdir={workdir}", "--history=red lamp; RED chair", "--k=3").stdout
    lines = [line.split() for line in history.splitlines()[1:]]
    assert lines[0][:2] == ["red", "chair"]
    assert lines[1][:2] == ["red", "lamp"]
    recommended = [tuple(line[-3:-1]) for line in lines]
    assert not {("red", "chair"), ("red", "lamp")} & set(recommended)
    assert [float(line[-1]) for line in lines] == sorted((float(line[-1]) for line in lines), reverse=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--user=u99"], "did you mean 'u9'"),
        (["--history=red lmp"], "near it are 'red lamp'"),
        ([], "either --user"),
    ],
)
def test_recommend_says_what_is_wrong(trained, arguments, words):
    done = command("recommend", f"--workdir={trained[0]}", *arguments, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_encode_writes_vectors_and_ids(trained, tmp_path):
    command("encode", f"--workdir={trained[0]}", f"--out={tmp_path / 'items.npy'}")
    vectors = np.load(tmp_path / "items.npy")
    assert vectors.shape == (40, 16)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert json.loads((tmp_path / "items.ids.json").read_text()) == [f"i{i}" for i in range(40)]


_ENCODE = """
import sys
from types import SimpleNamespace as Namespace
import numpy as np, polars as pl
from absl import flags
from experiments import encode
count, killed = int(sys.argv.pop()), sys.argv.pop() == "killed"
items = pl.DataFrame({"item_id": [f"i{i}" for i in range(count)]})
scorer = Namespace(item_embeddings=lambda: np.zeros((count, 2)))
encode.restore_scorer = lambda workdir: (Namespace(dataset=Namespace(items=items)), scorer)
write_text = encode.write_text
def write_ids(path, text):
    if killed:
        raise SystemExit(9)
    write_text(path, text)
encode.write_text = write_ids
flags.FLAGS(sys.argv)
encode.main()
"""


def test_vectors_never_stand_beside_the_ids_of_others(tmp_path):
    """A kill after the vectors are written, over a pair that is there."""

    def encode_items(count: int, how: str) -> int:
        flags = ["--workdir=x", f"--out={tmp_path / 'items.npy'}"]
        done = subprocess.run(
            [sys.executable, "-c", _ENCODE, *flags, how, str(count)], cwd=ROOT, env=environment(), check=False
        )
        return done.returncode

    assert encode_items(3, "whole") == 0
    assert len(json.loads((tmp_path / "items.ids.json").read_text())) == 3
    assert encode_items(4, "killed") == 9
    assert [path.name for path in tmp_path.iterdir()] == ["items.npy"]


def test_a_table_of_options_is_merged_and_what_changes_is_said(config, tmp_path):
    asked = ["--config.baseline.name=popularity", "--config.data.options={'rating': None}"]
    done = command("train", f"--config={config}:id", f"--workdir={tmp_path}", *asked)
    assert "config.data.options: rating was 'rating', is None; item, " in done.stderr
    options = json.loads((tmp_path / "config.json").read_text())["data"]["options"]
    assert (options["user"], options["rating"]) == ("user", None)


def test_a_run_starts_from_another(config, tmp_path_factory, monkeypatch):
    workdir, tmp_path = tmp_path_factory.mktemp("frozen"), tmp_path_factory.mktemp("bitfit")
    command("train", f"--config={config}:frozen", f"--workdir={workdir}")
    command(
        "train", f"--config={config}:bitfit", f"--workdir={tmp_path}", f"--config.init_from={workdir}",
        "--config.train.steps=1", "--config.train.learning_rate=1e-9",
    )  # fmt: skip
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    fresh = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == fresh["step"] == 0
    assert first["mrr"] > fresh["mrr"]
    # On several devices, with states below the delta computed once.
    monkeypatch.setattr("tests.helpers.commands.environment", lambda: environment(2))
    upper = ["--config.peft.options.lora.target=layer_1/.*", f"--config.init_from={workdir}", "--config.train.steps=2"]
    for users in ([], ["--config.peft.within=users", "--config.peft.options.lora.target=.*/(query|value)"]):
        folder = tmp_path_factory.mktemp("devices")
        result = last_line(command("train", f"--config={config}:lora", f"--workdir={folder}", *upper, *users))
        devices = json.loads((folder / "environment.json").read_text())["devices"]
        assert len(devices) == 2
        assert last_line(command("evaluate", f"--workdir={folder}"))["test"] == result["test"]


@pytest.mark.parametrize(
    "arguments",
    [
        [
            "--config.model.users=text",
            "--config.text.user=the user bought: {history}.",
            "--config.text.max_prompt_tokens=32",
        ],
        pytest.param(
            ["--config.model.users=gru", "--config.encoder.pooling=attention", "--config.loss.name=mse"],
            marks=pytest.mark.long,
        ),
        ["--config.model.head=mlp", "--config.loss.name=bce_pointwise", "--config.loss.label_threshold=4"],
    ],
)
def test_other_parts_train_and_recommend_to_a_stranger(config, tmp_path, arguments):
    short = ["--config.train.steps=2", "--config.train.eval_every=2", f"--workdir={tmp_path}"]
    result = last_line(command("train", f"--config={config}:lora", *short, *arguments))
    assert 0 < result["test"]["mrr"] <= 1
    shown = command("recommend", f"--workdir={tmp_path}", "--history=blue door; blue clock", "--k=2").stdout
    assert len(shown.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--config.train.lerning_rate=1"],
            "unknown key of config.train: 'lerning_rate'; did you mean 'learning_rate'?",
        ),
        (["--config.stepps=1"], "unknown key of config: 'stepps'"),
        (
            ["--config.data.options.usr=uid", "--config.train.steps=2"],
            "unknown key of config.data.options: 'usr'; did you mean 'user'?",
        ),
        (
            ["--config.peft.options.houlsby.reduction=8"],
            """table: --config.peft.options="{'houlsby': {'reduction': 8}}\"""",
        ),
        (["--config.imports=configs.my_own"], "there is no module 'configs.my_own'"),
        (["--config.imports=my_own.methods"], "there is no module 'my_own.methods'"),
        (["--config.imports=../x"], "config.imports: '../x' is no module's name"),
        (["--config.train.scales=(=1"], "config.train.scales: '(' is no regular expression"),
        (["--config.train.steps=many"], "flag --config.train.steps=many"),
        (["--config.model.users=transfomer"], "did you mean 'transformer'"),
        (["--config.loss.name=brp"], "did you mean 'bpr'"),
        (["--config.data.path=/nowhere/x.csv"], "/nowhere/x.csv"),
        (["--config.encoder.path=/nowhere/bert"], "/nowhere/bert"),
        (["--config.data.split=leave_two_out"], "did you mean 'leave_one_out'"),
        (["--config.text.item={titel}"], "title"),
        (["--config.peft.method=lorra"], "did you mean 'lora'"),
        (["--config.peft.options.lora.target=nothing"], "layer_N/attention/query"),
        (["--config.train.metric=ndcg"], "config.train.metric"),
        (["--profile", "--config.baseline.name=popularity"], "a baseline has none"),
    ],
)
def test_train_says_what_is_wrong_before_it_starts(config, tmp_path, arguments, words):
    done = command("train", f"--config={config}:lora", f"--workdir={tmp_path / 'run'}", *arguments, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("run/checkpoints/last/[0-9]*"))


def test_an_unknown_model_names_the_nearest(tmp_path):
    done = command("train", "--config=configs/movielens_100k.py:lorra", f"--workdir={tmp_path}", check=False)
    assert done.returncode != 0
    assert "did you mean 'lora'" in done.stderr


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("peft.method", "lorra", "config.peft: unknown .*did you mean 'lora'"),
        ("model.users", "transfomer", "config.model.users: unknown .*did you mean 'transformer'"),
        ("model.head", "dott", "config.model.head: unknown .*did you mean 'dot'"),
        ("train.metric", "ndgc@10", "config.train.metric.*did you mean 'ndcg@10'"),
        ("train.batch_size", 3, "config.train.batch_size is 3: 8 devices .*give a multiple of 8"),
    ],
)
def test_what_needs_no_data_is_checked_before_data_is_read(config, tmp_path, monkeypatch, key, value, words):
    def read(*_: object, **__: object) -> None:
        raise AssertionError("the data was read")

    monkeypatch.setattr("llm4rec_jax.data.sources.load", read)
    chosen = trials.load(str(config)).get_config("lora")
    chosen.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=words):
        run(chosen, tmp_path / "run")


@pytest.mark.parametrize("name", ["train", "evaluate", "recommend", "encode", "quickstart"])
def test_help_shows_an_example(name):
    done = command(name, "--help")
    assert f"python -m experiments.{name} --" in done.stdout
    for flag in ("workdir", "debug", "trust_imports"):
        assert f"--{'[no]' * (flag == 'debug')}{flag}:" in done.stdout


def test_importing_the_package_is_quick_and_leaves_torch_alone():
    code = (
        "import sys, time; t = time.perf_counter(); import llm4rec_jax; s = time.perf_counter() - t;"
        "from llm4rec_jax import train, evaluate, peft; from llm4rec_jax.data import sources;"
        "print([m for m in ('torch', 'tensorflow') if m in sys.modules], s)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules, seconds = done.stdout.rsplit(" ", 1)
    assert modules == "[]"
    assert float(seconds) < 3


@pytest.mark.parametrize("arg", [pytest.param("id", marks=pytest.mark.long), "lora"])
def test_a_run_on_prepared_data_is_the_run_on_its_source(config, arg, tmp_path):
    prepared = tmp_path / "prepared"
    told = last_line(command("prepare", f"--config={config}:{arg}", f"--out={prepared}"))
    assert told["bytes"] == sum(path.stat().st_size for path in prepared.iterdir())
    results = []
    for name, options in (
        ("memory", ()),
        (
            "prepared",
            (
                "--config.data.source=prepared",
                f"--config.data.path={prepared}",
                "--config.data.options={}",
                "--config.train.input_workers=1",
            ),
        ),
    ):
        done = command("train", f"--config={config}:{arg}", f"--workdir={tmp_path / name}", *options)
        result, data = last_line(done), json.loads((tmp_path / name / "dataset.json").read_text())
        results.append(({phase: result[phase] for phase in ("validation", "test")}, data["fingerprint"], data["split"]))
    assert results[0] == results[1]
