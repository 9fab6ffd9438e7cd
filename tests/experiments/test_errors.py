"""Errors as the person who runs a command gets them: the last line says what was wrong."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from experiments.sweeps import trials
from llm4rec_jax.runs.run import run
from tests.helpers.commands import ROOT, command
from tests.helpers.compiling import environment


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:\n", "error: --config: SyntaxError: "),
        ("def get_config():\n    return missing\n", "error: --config: NameError: name 'missing' is not defined"),
        ("x = {}['key']\n", "error: --config: KeyError: 'key'"),
    ],
)
def test_a_configuration_that_is_no_program(tmp_path, content, message):
    (tmp_path / "broken.py").write_text(content)
    done = command("train", f"--config={tmp_path / 'broken.py'}", f"--workdir={tmp_path / 'run'}", check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(message)


def test_what_nobody_has_foreseen_ends_in_a_message(config, tmp_path):
    """A configuration of an odd type."""
    broken = tmp_path / "study.py"
    broken.write_text("from types import SimpleNamespace\ndef get_config():\n    return SimpleNamespace()\n")
    done = command("train", f"--config={broken}", f"--workdir={tmp_path / 'run'}", check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: AttributeError: ")
    assert "please report" in last


ALLOCATING = """
import sys
import jax, jax.numpy as jnp, numpy as np
from experiments.cli import command

def main():
    print(jax.jit(lambda: jnp.zeros(2**44) + 1)() if {on_device} else np.zeros(2**50))

command.run(main, needs_workdir=False)
"""


@pytest.mark.parametrize("on_device", [True, False])
def test_out_of_memory_says_what_was_asked_for_what_there_is_and_what_helps(on_device):
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATING.format(on_device=on_device)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    asked = r"65,536\.00 GiB" if on_device else r"8\.00 PiB"
    assert re.match(rf"error: out of memory: {asked} asked for at once, and this process has [\d.,]+ GiB", last)
    assert "config.train.batch_size" in last
    assert "Traceback" not in done.stderr


def test_after_an_error_in_training_one_message_is_the_last_line(config, tmp_path):
    """It comes while the last checkpoint is being written, whose threads would tell of it in their own words."""
    no_scale = '--config.peft.options={"lora":{"rank":2,"alpha":0.0}}'
    done = command("train", f"--config={config}:lora", f"--workdir={tmp_path}", no_scale, check=False)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: nothing of the delta has moved in 12 steps")
    assert [line for line in lines if "error" in line.lower() or "Traceback" in line] == lines[-1:]
    saved = [path.name for kind in ("last", "best") for path in (tmp_path / "checkpoints" / kind).iterdir()]
    assert saved
    assert all(name.isdigit() for name in saved)


def test_a_token_beyond_the_embeddings_is_named(config, tmp_path):
    """Tokens were added to the tokenizer, and the embeddings not resized."""
    chosen = trials.load(str(config)).get_config("frozen")
    folder = Path(shutil.copytree(chosen.encoder.path, tmp_path / "encoder"))
    words = AutoTokenizer.from_pretrained(folder)
    words.add_tokens([f"extra{i}" for i in range(100)])
    words.save_pretrained(folder)
    chosen.encoder.path, chosen.text.item = str(folder), "{title} extra99"
    with pytest.raises(ValueError, match=r"its tokenizer gives the token \d+, and the encoder has embeddings of"):
        run(chosen, tmp_path / "run")
