"""Prints the lowest versions of the dependencies that setup.cfg allows, as constraints for pip.

python tools/lowest_versions.py > lowest.txt
python -m pip install --constraint lowest.txt .
"""

import configparser
import re
from pathlib import Path

SETUP = Path(__file__).resolve().parents[1] / "setup.cfg"


def lowest(requirements: str) -> list[str]:
    """Returns `name==version` for each line of requirements, from its lower or only bound.

    Raises:
      ValueError: A requirement has no lower bound.

    Example:
      >>> lowest("jax >=0.10,<0.11\\nruff ==0.17.6")
      ['jax==0.10', 'ruff==0.17.6']
    """
    constraints = []
    for line in filter(None, map(str.strip, requirements.splitlines())):
        bound = re.fullmatch(r"([\w.-]+)(?:\[.*\])? *[>=]=([\d.]+)(?:,.*)?", line)
        if bound is None:
            raise ValueError(f"{SETUP}: {line!r} has no lower bound: write it as NAME >=LOWEST,<NEXT")
        constraints.append(f"{bound[1]}=={bound[2]}")
    return constraints


if __name__ == "__main__":
    config = configparser.ConfigParser()
    config.read(SETUP, encoding="utf-8")
    print("\n".join(lowest(config["options"]["install_requires"])))
