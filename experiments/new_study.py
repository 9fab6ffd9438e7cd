"""Writes a commented study for your own data, to be edited and trained.

    python -m experiments.new_study clicks

writes clicks.py in the working directory: a configuration of three models over interactions.csv and items.csv, and a
sweep of them with three seeds.
"""

import json
from pathlib import Path

from experiments.cli import command, studies
from llm4rec_jax.io import write_text

TEMPLATE = studies.FOLDER / "template.py"


def write(name: str) -> Path:
    """Writes the template to NAME.py and returns its path.

    Raises:
      ValueError: The name cannot be a Python module's, or the file exists.
    """
    path = Path(name).with_suffix(".py")
    if not path.stem.isidentifier() or Path(name).suffix not in ("", ".py"):
        raise ValueError(f"{name!r} cannot name a study: take letters, digits and underscores, such as my_clicks")
    if path.exists():
        raise ValueError(f"{path} exists: give another name, or remove it")
    write_text(path, TEMPLATE.read_text(encoding="utf-8").replace("NAME", path.stem))
    return path


def main(names: list[str]) -> None:
    if len(names) > 1:
        raise ValueError(f"one name is needed, not {len(names)}: {' '.join(names)}")
    path = write(names[0])
    if command.wants_json():
        print(json.dumps({"file": str(path)}))
    else:
        print(f"{path}: name your files and columns in it, then: llm4rec train --config={path}:id --workdir=runs/id")


if __name__ == "__main__":
    command.run_on(main, "NAME of a study")
