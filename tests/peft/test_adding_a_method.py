"""The method of docs/adding_a_method.md, in a file of its own, passes the whole matrix."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "adding_a_method.md"


def block(name: str) -> str:
    """The block of code under a mark of that name."""
    found = re.findall(rf"<!-- {name} -->\n```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def plugins(tmp_path_factory) -> Path:
    """A folder with the method, and a pytest plugin that registers it and gives it its row."""
    folder = tmp_path_factory.mktemp("method")
    (folder / "my_method.py").write_text(block("the method"), encoding="utf-8")
    (folder / "with_my_method.py").write_text(
        "import my_method\nfrom tests.peft.test_methods import *\nfrom tests.peft.test_methods import ROWS, Row\n"
        + block("the row"),
        encoding="utf-8",
    )
    return folder


def run(plugins: Path, *arguments: str) -> subprocess.CompletedProcess:
    paths = [str(plugins), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_it_is_short():
    assert len(block("the method").strip().splitlines()) <= 40


def test_the_whole_matrix_passes(plugins):
    done = run(
        plugins,
        "pytest",
        "-p",
        "with_my_method",
        "-p",
        "no:xdist",
        "-q",
        "tests/peft/test_methods.py",
        "-k",
        "ssf or row",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is None or int(passed[1]) >= 12
    assert done.stdout.count("F") == 0 or "FAILED" not in done.stdout


def test_a_wrong_count_fails(plugins, tmp_path):
    """The matrix can fail."""
    wrong = (plugins / "with_my_method.py").read_text(encoding="utf-8").replace("4 * D", "3 * D")
    (tmp_path / "with_wrong_count.py").write_text(wrong, encoding="utf-8")
    (tmp_path / "my_method.py").write_text(block("the method"), encoding="utf-8")
    done = run(
        tmp_path,
        "pytest",
        "-p",
        "with_wrong_count",
        "-p",
        "no:xdist",
        "-q",
        "tests/peft/test_methods.py",
        "-k",
        "ssf and count",
    )
    assert done.returncode == 1
    assert "test_count[ssf]" in done.stdout


def test_a_configuration_reaches_it_by_name(plugins):
    code = "import my_method, jax; from llm4rec_jax import peft; print(peft.create('ssf+bitfit').name)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=plugins, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "ssf+bitfit"
