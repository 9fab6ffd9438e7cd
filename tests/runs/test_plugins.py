"""A method in a file of one's own, named in the configuration, is known to every command on the run."""

import numpy as np

from llm4rec_jax.models.encoders import huggingface as pretrained
from tests.helpers.commands import command, last_line
from tests.peft.test_adding_a_method import block


def test_every_command_on_a_run_finds_its_method(config, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(block("the method"), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = tmp_path / "run"
    asked = ["--config.imports=mine", "--config.peft.method=ssf", "--config.peft.options={}"]
    result = last_line(command("train", f"--config={config}:frozen", f"--workdir={run}", *asked))
    # Two arrays in two blocks, over four outputs of 16 and one of 32.
    assert result["parameters"]["delta"] == 2 * 2 * (4 * 16 + 32)
    named = [f"--workdir={run}", "--trust_imports=mine"]
    assert last_line(command("evaluate", *named))["test"] == result["test"]
    assert len(command("recommend", *named, "--user=u1", "--k=2").stdout.splitlines()) == 3
    command("encode", *named, f"--out={tmp_path / 'items.npy'}")
    assert np.load(tmp_path / "items.npy").shape == (40, 16)
    command("export", *named, f"--out={tmp_path / 'merged'}", "--merge")
    pretrained.load(tmp_path / "merged")
    monkeypatch.delenv("PYTHONPATH")
    lost = command("evaluate", *named, check=False)
    assert lost.returncode == 2
    assert "there is no module 'mine'" in lost.stderr
