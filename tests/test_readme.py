"""What the README shows runs."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_python_example_prints_scores():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- tested -->\n```python\n(.*?)```", text, re.DOTALL)
    assert len(code.strip().splitlines()) <= 15
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scores = [float(number) for number in re.findall(r"-?\d+\.\d*", done.stdout)]
    assert len(scores) == 50


def test_every_command_that_is_shown_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"python -m experiments\.(\w+)", text)):
        assert (ROOT / "experiments" / f"{name}.py").is_file()
    for target in set(re.findall(r"make (\w+)", text)):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
