"""Studies that come with the package, by their names: `--config=movielens_100k:lora` in place of a path."""

import re
from collections.abc import Sequence
from pathlib import Path

import configs
from llm4rec_jax.registry import unknown_name

FOLDER = Path(configs.__file__).parent
_GIVEN = re.compile(r"(--?(?:config|spec)=)?(\w+)(:.*)?", re.DOTALL)
_FLAGS = ("--config", "-config", "--spec", "-spec")


def names() -> list[str]:
    """Returns the names of the studies.

    Example:
      >>> "movielens_100k" in names()
      True
    """
    return sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "__init__")


def resolve(arguments: Sequence[str]) -> list[str]:
    """Returns command line arguments with the file of a study in place of its name; paths stay as they are.

    Raises:
      ValueError: There is no study of a name.

    Example:
      >>> resolve(["--config=mine.py:lora", "--workdir=runs/lora"])
      ['--config=mine.py:lora', '--workdir=runs/lora']
      >>> resolve(["--config=movielens_100k:lora"])[0].endswith("configs/movielens_100k.py:lora")
      True
    """
    resolved = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        given = _GIVEN.fullmatch(argument)
        if given is None or not (given[1] or before in _FLAGS) or Path(given[2]).is_file():
            resolved.append(argument)
            continue
        if given[2] not in names():
            raise ValueError(f"{unknown_name('study', given[2], names())}; or give the path of a study's file")
        resolved.append(f"{given[1] or ''}{FOLDER / given[2]}.py{given[3] or ''}")
    return resolved
