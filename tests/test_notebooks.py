"""Notebooks are committed tidy, and their code compiles. `make notebooks` runs them."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import notebooks

ROOT = Path(__file__).parents[1]
NAMES = ("quickstart", "compare_peft_methods", "your_own_data", "add_a_method", "language_models", "tpu")


def cells(name: str, kind: str) -> list[str]:
    """Returns the texts of a notebook's cells of a kind, code or markdown."""
    content = json.loads((notebooks.FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [notebooks.source(cell) for cell in content["cells"] if cell["cell_type"] == kind]


def test_the_notebooks_are_those_that_are_listed():
    assert {path.stem for path in notebooks.notebooks()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_committed_tidy(name):
    """Without outputs, with its badge and the common first cell: `python tools/notebooks.py tidy` does it."""
    text = (notebooks.FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert notebooks.tidied(text, name) == text
    assert notebooks.badge(name) in cells(name, "markdown")[0]
    assert cells(name, "code")[0] == notebooks.FIRST_CELL


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_compiles(name):
    for cell in cells(name, "code"):
        first, _, rest = cell.partition("\n")
        if first.startswith("%%bash"):
            # With -e, a command that fails ends the cell with an error.
            assert first == "%%bash -e"
            subprocess.run(["bash", "-n"], input=rest, text=True, check=True)
        elif first.startswith("%%"):
            assert re.fullmatch(r"%%writefile \w+\.py", first)
            ast.parse(rest)
        else:
            ast.parse(cell)


@pytest.mark.parametrize("name", NAMES)
def test_time_and_memory_are_stated_and_a_plot_is_drawn(name):
    assert re.search(r"need\w* about \d+ minutes? and \d+ GB", cells(name, "markdown")[0])
    assert "plt.show()" in "\n".join(cells(name, "code"))


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_links_of_a_notebook_exist(name):
    code = "\n".join(cells(name, "code"))
    programs = set(re.findall(r'llm4rec(?: |", ")([a-z][a-z-]+)', code))
    assert programs or name == "your_own_data"
    assert all((ROOT / "experiments" / f"{program.replace('-', '_')}.py").exists() for program in programs)
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", "\n".join(cells(name, "markdown"))):
        assert (notebooks.FOLDER / link).exists(), link


def test_outputs_and_another_first_cell_do_not_stay():
    output = {"output_type": "stream", "name": "stdout", "text": ["3"]}
    code = {"cell_type": "code", "source": "1 + 2", "execution_count": 3, "outputs": [output], "metadata": {"a": 1}}
    text = json.dumps({"cells": [{"cell_type": "markdown", "source": "# Sum\n\nAdds."}, code, code]})
    tidy = json.loads(notebooks.tidied(text, "sum"))["cells"]
    assert "".join(tidy[0]["source"]) == f"# Sum\n\n{notebooks.badge('sum')}\n\nAdds."
    assert "".join(tidy[1]["source"]) == notebooks.FIRST_CELL
    assert tidy[2]["outputs"] == []
    assert tidy[2]["metadata"] == {}
    assert tidy[2]["source"] == ["1 + 2"]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([{"cell_type": "code", "source": "1"}], "must begin with a cell of text under a heading"),
        ([{"cell_type": "markdown", "source": "# A"}], "no cell of code"),
    ],
)
def test_a_notebook_without_heading_or_code_is_refused(cells, message):
    with pytest.raises(ValueError, match=f"notebooks/a.ipynb.*{message}"):
        notebooks.tidied(json.dumps({"cells": cells}), "a")


def test_the_first_cell_names_the_devices():
    done = subprocess.run([sys.executable, "-c", notebooks.FIRST_CELL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cpu" in done.stdout
