"""Modules of a study that register methods, losses or sources of its own.

A configuration names them in `imports`. Code is run only because a person named it: in a configuration file, or on the
command line (`--trust_imports`). The config.json of a run folder is data, and what it names is never imported on its
word alone.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def names(config: Any) -> list[str]:
    """Returns the modules that a configuration's `imports` names.

    Example:
      >>> names({"imports": "mine.losses mine.sources"})
      ['mine.losses', 'mine.sources']
      >>> names({"imports": None})
      []
    """
    # Run folders of older versions have no such key.
    imports: str = config.get("imports") or ""
    return imports.split()


def load(modules: Iterable[str], workdir: Path | None = None) -> None:
    """Imports modules that a person has named.

    Args:
      modules: their names, as Python imports them.
      workdir: folder of a run, which no module may lie in: what somebody else has put there is not run.

    Raises:
      ValueError: a name that is not a module's, a module that does not exist, or one inside `workdir`.
    """
    for name in modules:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(
                f"config.imports: {name!r} is no module's name. Give it as Python imports it: configs.mine for "
                "configs/mine.py"
            )
        if name in sys.modules:
            continue
        # The outermost package first: to find what is inside it, Python runs it.
        if not _exists(name.partition(".")[0], workdir) or not _exists(name, workdir):
            raise ValueError(
                f"config.imports: there is no module {name!r}. Give it as Python imports it (configs.mine for "
                f"configs/mine.py), and start the command in the folder that it is found from; this is {os.getcwd()}"
            )
        importlib.import_module(name)


def check_loaded(config: Any, workdir: Path) -> None:
    """Checks that the modules which a run folder's configuration names have been imported by this process already.

    Raises:
      ValueError: one has not, since nobody but the folder has named it; the message says how to.
    """
    if missing := [name for name in names(config) if name not in sys.modules]:
        raise ValueError(
            f"{workdir / 'config.json'} names code to import, {' '.join(missing)}, and a run folder's word is not "
            f"enough to run it: read it, then give --trust_imports={','.join(names(config))} (in Python: import it "
            "first)"
        )


def _exists(name: str, workdir: Path | None) -> bool:
    """Returns whether a module can be imported; ValueError where it lies in the folder."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # of the package that it is in
        return False
    if spec is None:
        return False
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    for place in places:
        if workdir is not None and Path(place).resolve().is_relative_to(workdir.resolve()):
            raise ValueError(
                f"config.imports: the module {name!r} lies in the run folder {workdir}, and no code is imported from "
                "there: read it, move it elsewhere, and start the command where it is found from"
            )
    return True
