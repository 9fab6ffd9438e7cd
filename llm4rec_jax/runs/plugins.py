"""A study's own methods, losses, sources: modules that register them, named in the configuration of each run."""

import importlib
import importlib.util
import os
from typing import Any


def load(config: Any) -> None:
    """Imports the modules of `config.imports`, whose names are joined by spaces.

    A run's folder keeps the names, so that every command on it finds what was registered.

    Raises:
      ValueError: there is no such module.
    """
    # Runs of before have no such key.
    for name in (config.get("imports") or "").split():
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # of the package that it is in
            found = None
        if found is None:
            raise ValueError(
                f"config.imports: there is no module {name!r}. Give it as Python imports it (configs.mine for "
                f"configs/mine.py), and start the command in the folder that it is found from; this is {os.getcwd()}"
            )
        importlib.import_module(name)
