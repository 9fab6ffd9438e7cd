"""Errors as the person who runs a command gets them: the last line says what was wrong."""

import pytest

from tests.helpers.commands import command


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
