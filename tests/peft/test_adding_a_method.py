"""The method of docs/guides/adding_a_method.md, in a file of its own, passes the whole matrix."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "guides" / "adding_a_method.md"


def block(name: str) -> str:
    """The block of code under a mark of that name."""
    found = re.findall(rf"<!-- {name} -->\n```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1
    return found[0]


def write(folder: Path, row: str) -> Path:
    """The method, and a pytest plugin that registers it and gives it its row."""
    (folder / "my_method.py").write_text(block("the method"), encoding="utf-8")
    (folder / "with_my_method.py").write_text(
        "import my_method\nfrom tests.helpers.small import D, F, N\n"
        f"from tests.peft.test_methods import ROWS, Row\n{row}",
        encoding="utf-8",
    )
    return folder


def matrix(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs the matrix with the plugin of a folder."""
    paths = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "with_my_method", "-p", "no:xdist", "tests/peft/test_methods.py",
         *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_it_is_short():
    assert len(block("the method").strip().splitlines()) <= 40


def test_the_whole_matrix_passes(tmp_path):
    done = matrix(write(tmp_path, block("the row")), "-k", "ssf or row")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    tests = len(
        re.findall(r"^def test_", (ROOT / "tests" / "peft" / "test_methods.py").read_text("utf-8"), re.MULTILINE)
    )
    assert re.search(rf"\b{tests} passed", done.stdout), done.stdout[-500:]


def test_a_wrong_count_fails(tmp_path):
    """The matrix can fail."""
    done = matrix(write(tmp_path, block("the row").replace("4 * D", "3 * D")), "-k", "ssf and count")
    assert done.returncode == 1
    assert "FAILED tests/peft/test_methods.py::test_count[ssf]" in done.stdout


def test_a_configuration_reaches_it_by_name(tmp_path):
    """The study of the document, with the method where this test has it."""
    (write(tmp_path, "") / "my_study.py").write_text(block("the study").replace("configs.ssf", "my_method"))
    code = "import my_study; from llm4rec_jax.runs.assemble import Assembly\n"
    code += "print(Assembly(my_study.get_config()).method.name)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "ssf"
