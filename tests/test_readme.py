"""What the README shows runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_python_example_prints_scores():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- tested -->\n```python\n(.*?)```", text, re.DOTALL)
    assert len(code.strip().splitlines()) <= 15
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scores = [float(number) for number in re.findall(r"-?\d+\.\d*", done.stdout)]
    assert len(scores) == 50


def test_the_example_of_exchanging_adapters_runs(tmp_path):
    text = (ROOT / "docs" / "peft.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- tested -->\n```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 4, 384)"
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_and_file_that_is_shown_exists(document):
    text = document.read_text(encoding="utf-8")
    for name in set(re.findall(r"python -m experiments\.([\w.]+\w)", text)):
        assert (ROOT / "experiments" / f"{name.replace('.', '/')}.py").is_file()
    for link in set(re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)):
        assert (document.parent / link).exists(), link
    for target in set(re.findall(r"(?:^    |`)make ([\w-]+)", text, re.MULTILINE)):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
