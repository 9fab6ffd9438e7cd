"""A run is a folder: what it was asked to do, on what, with what, and what came of it."""

import contextlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import polars as pl
from ml_collections import ConfigDict

from llm4rec_jax import checksums
from llm4rec_jax.runs import plugins
from llm4rec_jax.runs.locks import Lock
from llm4rec_jax.runs.schema import resolve

PACKAGES = (
    "llm4rec-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "transformers",
    "numpy",
    "polars",
)


class Described(Protocol):
    """An assembly, as far as a run's folder is concerned."""

    def identity(self) -> dict[str, Any]: ...

    def description(self) -> dict[str, Any]: ...


class RunFolderError(ValueError):
    """A folder that does not hold the run one asks for."""


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON with a checksum, by rename, so that a file is whole or not there.

    Only the first of several processes writes.
    """
    if jax.process_index() == 0:
        checksums.write_json(path, value)


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Writes Parquet as `write` does JSON."""
    if jax.process_index() == 0:
        checksums.write_parquet(path, table)


def read(path: Path) -> Any:
    """Reads JSON; RunFolderError when the file is missing or damaged."""
    try:
        return checksums.read_json(path)
    except FileNotFoundError:
        raise RunFolderError(f"{path} does not exist: is {path.parent} the folder of a run? Train one first") from None
    except checksums.Damaged as error:
        raise RunFolderError(str(error)) from error


def locked(*workdirs: Path) -> contextlib.ExitStack:
    """Holds run folders as long as one is in it; of several processes, the first does.

    Raises:
      FolderInUse: another process works in one; the message names it.
    """
    with contextlib.ExitStack() as held:
        if jax.process_index() == 0:
            for workdir in workdirs:
                held.enter_context(Lock(workdir))
        return held.pop_all()


def open_for(config: ConfigDict, workdir: Path) -> None:
    """Makes the folder of a run, or finds that of the same run.

    `config.mesh` says over what devices a run is laid out, not what it is: one laid out otherwise goes on.

    Raises:
      RunFolderError: the folder belongs to a run with another configuration; the message says where they differ.
      ValueError: `config.imports` names a module that does not exist, or that lies in the folder.
    """
    plugins.load(plugins.names(config), workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / "config.json"
    asked = json.loads(config.to_json())
    if not file.exists():
        write(file, asked)
        return
    held = json.loads(config_of(workdir).to_json())
    differing = sorted(_differing({**asked, "mesh": None}, {**held, "mesh": None}))
    if not differing or not _has_trained(workdir):
        # Nothing is lost of a run that has never trained.
        if asked != held:
            write(file, asked)
    else:
        raise RunFolderError(
            f"{workdir} holds a run with another configuration; they differ in {', '.join(differing)}. Give another "
            "--workdir, or remove that one"
        )


def config_of(workdir: Path) -> ConfigDict:
    """Returns the configuration of a run, with every key of today's schema.

    Raises:
      RunFolderError: The file is missing or damaged.
      ValueError: It names code to import that nobody else has named; see `plugins`.
    """
    config = resolve(ConfigDict(read(workdir / "config.json")))
    plugins.check_loaded(config, workdir)
    return config


def describe(assembly: Described, workdir: Path) -> None:
    """Writes environment.json and dataset.json; RunFolderError when the run was trained on other data."""
    if _has_trained(workdir):
        check_data(assembly, workdir)
    write(workdir / "environment.json", environment())
    write(workdir / "dataset.json", assembly.description())


def check_data(assembly: Described, workdir: Path) -> None:
    """RunFolderError when the data at hand is not what the run was trained on."""
    held = read(workdir / "dataset.json")
    for name, value in assembly.identity().items():
        if held.get(name) != value:
            raise RunFolderError(
                f"data changed since {workdir} was trained: its {name} was {held.get(name)!r}, now it is "
                f"{value!r}. Bring the old data back, or train in another --workdir"
            )


def environment() -> dict[str, Any]:
    """Versions, devices, and the commit when the code is in a git checkout."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": [str(device) for device in jax.devices()],
        "processes": jax.process_count(),
        # JAX_ENABLE_X64 changes results.
        "x64": bool(jax.config.values["jax_enable_x64"]),
        "commit": git.stdout.strip() if git.returncode == 0 else None,
    }


def _has_trained(workdir: Path) -> bool:
    """Returns whether the folder holds something to lose: a checkpoint, or the result of a run without checkpoints."""
    return (workdir / "result.json").exists() or any((workdir / "checkpoints" / "last").glob("[0-9]*"))


def _differing(a: Any, b: Any, path: str = "config") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for key in a.keys() | b.keys() for d in _differing(a.get(key), b.get(key), f"{path}.{key}")]
    return [] if a == b else [f"{path} ({a!r} asked for, {b!r} there)"]
