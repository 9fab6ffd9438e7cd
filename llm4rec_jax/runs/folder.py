"""A run is a folder: what it was asked to do, on what, with what, and what came of it."""

import contextlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import polars as pl
from ml_collections import ConfigDict

from llm4rec_jax import checksums, sharding
from llm4rec_jax.runs import plugins
from llm4rec_jax.runs.locks import Lock
from llm4rec_jax.runs.schema import resolve
from llm4rec_jax.training import run_id

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

    @property
    def tokenizer_fingerprint(self) -> str | None: ...

    def identity(self) -> dict[str, Any]: ...

    def description(self) -> dict[str, Any]: ...


class RunFolderError(ValueError):
    """A folder that does not hold the run one asks for."""


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON with a checksum and the run's id, by rename, so that a file is whole or not there.

    Only the first of several processes writes.
    """
    if jax.process_index() == 0:
        own = run_id.run_id(path.parent)
        checksums.write_json(path, dict(value) if own is None else {**value, run_id.KEY: own})


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Writes Parquet as `write` does JSON."""
    if jax.process_index() == 0:
        checksums.write_parquet(path, table, run_id.run_id(path.parent) or "")


def read(path: Path) -> Any:
    """Reads JSON; RunFolderError when the file is missing, damaged or another run's."""
    with _named(path):
        value = checksums.read_json(path)
    _check_own(path, value.pop(run_id.KEY, None) if isinstance(value, dict) else None)
    return value


def read_table(path: Path) -> pl.DataFrame:
    """Reads Parquet as `read` does JSON."""
    with _named(path):
        table = checksums.read_parquet(path)
    _check_own(path, checksums.read_parquet_about(path) or None)
    return table


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise RunFolderError(f"{path} does not exist: is {path.parent} the folder of a run? Train one first") from None
    except checksums.Damaged as error:
        raise RunFolderError(str(error)) from error


def _check_own(path: Path, found: str | None) -> None:
    """Checks that a file is of the run in its folder; before a run has trained, its files are written anew."""
    if _has_trained(path.parent) and (wrong := run_id.foreign(path, found, path.parent)):
        raise RunFolderError(wrong)


def check_files(workdir: Path) -> None:
    """Checks the files of a run that no table is made from: they are whole and the run's own, or not there.

    Raises:
      RunFolderError: One is damaged, or of another run; the message names it.
    """
    for name in ("config.json", "dataset.json", "environment.json", run_id.FILE):
        if (workdir / name).exists():
            read(workdir / name)
    for file in sorted(workdir.glob("per_*_validation.parquet")):
        read_table(file)


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
    if not _has_trained(workdir):
        # Nothing is lost of a run that has never trained.
        write(file, asked)
        return
    if not file.exists():
        if _started_with(workdir).get("config") != _hash_of(asked):
            raise RunFolderError(
                f"{file} is missing, so that nobody can tell whether the run in {workdir} has this configuration: "
                "bring it back from a copy, or give another --workdir"
            )
        write(file, asked)
    held = json.loads(config_of(workdir).to_json())
    if not _started_with(workdir) and (asked["encoder"]["pooling"], held["encoder"]["pooling"]) == (None, "mean"):
        # An older version pooled by the mean wherever nothing was asked for.
        asked["encoder"]["pooling"] = "mean"
    if differing := sorted(_differing({**asked, "mesh": None}, {**held, "mesh": None})):
        raise RunFolderError(
            f"{workdir} holds a run with another configuration; they differ in {', '.join(differing)}. Give another "
            "--workdir, or remove that one"
        )
    if asked["mesh"] != held["mesh"]:
        write(file, {**read(file), "mesh": asked["mesh"]})


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
    """Writes environment.json and dataset.json, and run.json and the id in config.json where the run starts.

    Raises:
      RunFolderError: The run was trained on other data, with another tokenizer, or with numbers of another width.
    """
    if _has_trained(workdir):
        check_data(assembly, workdir)
    elif jax.process_index() == 0:
        config = read(workdir / "config.json")
        now = environment()
        start = {
            "config": _hash_of(config),
            "data": assembly.identity(),
            "tokenizer": assembly.tokenizer_fingerprint,
            **{name: now[name] for name in ("packages", "commit", "x64")},
        }
        run_id.write(workdir, start)
        write(workdir / "config.json", config)
    write(workdir / "environment.json", environment())
    write(workdir / "dataset.json", assembly.description())
    # The other processes read the id.
    sharding.broadcast_from_first(True)


def check_data(assembly: Described, workdir: Path) -> None:
    """RunFolderError when the data at hand, or the tokenizer, is not what the run was trained on."""
    held = read(workdir / "dataset.json")
    for name, value in assembly.identity().items():
        if held.get(name) != value:
            raise RunFolderError(
                f"data changed since {workdir} was trained: its {name} was {held.get(name)!r}, now it is "
                f"{value!r}. Bring the old data back, or train in another --workdir"
            )
    check_tokenizer(assembly, workdir)


def check_tokenizer(assembly: Described, workdir: Path) -> None:
    """RunFolderError when texts are read, or numbers computed, otherwise than where the run was trained."""
    start = _started_with(workdir)
    if (known := start.get("tokenizer")) != (now := assembly.tokenizer_fingerprint) and start:
        raise RunFolderError(
            f"the tokenizer changed since {workdir} was trained: its fingerprint was {known}, now it is {now}. Bring "
            "the old files of the encoder's folder back, or train in another --workdir"
        )
    if start and start["x64"] != _x64():
        raise RunFolderError(
            f"{workdir} was trained with JAX_ENABLE_X64={int(start['x64'])}, and now it is {int(_x64())}, which "
            "changes results: set it as it was, or train in another --workdir"
        )


def _started_with(workdir: Path) -> dict[str, Any]:
    """Returns what a run was started with; nothing for a run of an older version."""
    file = workdir / run_id.FILE
    return read(file) if file.exists() else {}


def _hash_of(config: Mapping[str, Any]) -> str:
    """Returns the hash of a configuration, without the layout and the place of the run that it starts from."""
    start = config.get("init_from")
    return run_id.hash_of({**config, "mesh": None, "init_from": start and Path(start).name})


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
        "x64": _x64(),
        "commit": git.stdout.strip() if git.returncode == 0 else None,
    }


def _x64() -> bool:
    return bool(jax.config.values["jax_enable_x64"])


def _has_trained(workdir: Path) -> bool:
    """Returns whether the folder holds something to lose: a checkpoint, or the result of a run without checkpoints."""
    return (workdir / "result.json").exists() or any((workdir / "checkpoints" / "last").glob("[0-9]*"))


def _differing(a: Any, b: Any, path: str = "config") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for key in a.keys() | b.keys() for d in _differing(a.get(key), b.get(key), f"{path}.{key}")]
    return [] if a == b else [f"{path} ({a!r} asked for, {b!r} there)"]
