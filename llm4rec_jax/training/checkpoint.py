"""Checkpoints of what is trained, the optimizer, the step and the input's position; of the frozen base, a digest."""

import atexit
import functools
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from llm4rec_jax import checksums, io
from llm4rec_jax.training import run_id
from llm4rec_jax.trees import flatten


class CheckpointError(ValueError):
    """A checkpoint that is missing or does not belong to this run. The message says what differs, and the remedy."""


class Restored(NamedTuple):
    """The training state and the JSON record saved with it."""

    state: Any
    record: dict[str, Any]


def _arrays(tree: Any) -> dict[str, str]:
    """Type and shape of every array, by name."""
    return {path: f"{a.dtype} {a.shape}" for path, a in flatten(tree).items()}


def _manager(folder: Path, **options: Any) -> ocp.CheckpointManager:
    # Without its handlers a manager that has not saved yet cannot say what a checkpoint holds.
    handlers = {"state": ocp.StandardCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
    # Nothing of a checkpoint is read before its checksums are compared: a manager reads metadata when it is made.
    chosen = ocp.CheckpointManagerOptions(lightweight_initialize=True, **options)
    return ocp.CheckpointManager(_without_patterns(folder.absolute()), options=chosen, item_handlers=handlers)


@functools.cache
def _without_patterns(folder: Path) -> Path:
    """Returns a path of a folder that is no glob pattern: a link to it, where its own path has brackets or the like.

    Orbax finds a checkpoint's files by glob patterns, and takes "[b]" in the name of a folder for one. TensorStore
    refuses a backslash.
    """
    if not set("[]*?\\") & set(str(folder)):
        return folder
    links = Path(tempfile.mkdtemp(prefix="llm4rec-jax-"))
    atexit.register(shutil.rmtree, links, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (links / "checkpoints").symlink_to(folder, target_is_directory=True)
    return links / "checkpoints"


class Checkpoints:
    """The checkpoints of one run: `last` to go on from, `best` by validation to evaluate.

    A checkpoint appears whole or not at all (Orbax writes beside and renames), so a run killed at any instant leaves
    the one before. Then it gets a manifest of its files' checksums. They are compared before the checkpoint is read: a
    damaged `last` is passed over for the one before, with a warning, and a damaged `best` is an error. The record in a
    checkpoint has the run's id and the step: that of another run, or of another step, is an error too.

    Files are written while training goes on, one checkpoint after the other, so that no `last` is there without the
    `best` that it names.

    Args:
      workdir: the run's folder.
      base: digest of the frozen parameters; a checkpoint made over another base is refused.
      keep: number of `last` checkpoints that are kept.
    """

    def __init__(self, workdir: Path, base: str, keep: int = 2) -> None:
        self._base, self._workdir = base, workdir
        self.folder = workdir / "checkpoints"
        self._sound: set[tuple[str, int]] = set()
        with io.writing(self.folder):
            self._managers = {
                name: _manager(self.folder / name, max_to_keep=n) for name, n in (("last", keep), ("best", 2))
            }
        self._place = self.folder.stat().st_ino
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._written: Future[None] | None = None
        self._failed = False

    def save(self, name: str, step: int, state: Any, record: Mapping[str, Any]) -> None:
        """Saves as `last` or `best`. A run that goes on from an earlier `last` comes by later steps again.

        Returns when the state has been copied; `finish` returns when it is written.

        Raises:
          NotWritten: the disk is full, read-only or gone, of this checkpoint or the one before; what was saved before
            that is whole.
        """
        self.finish()
        manager, where = self._managers[name], self.folder / name / str(step)
        # Orbax would make it anew, in a folder that is no run's any more.
        self._still_there(where)
        record = {**record, "base": self._base, "step": step, run_id.KEY: run_id.run_id(self._workdir)}
        try:
            for later in [other for other in manager.all_steps() if other >= step]:
                manager.delete(later)
            manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)),
                force=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            self._failed = True
            raise io.not_written(where, error) from error
        self._written = self._writer.submit(self._complete, name, step)

    def _complete(self, name: str, step: int) -> None:
        where = self.folder / name / str(step)
        try:
            self._managers[name].wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            self._failed = True
            self._still_there(where)
            raise io.not_written(where, error) from error
        if jax.process_index() == 0:
            checksums.write_manifest(where)
        self._sound.add((name, step))

    def _still_there(self, where: Path) -> None:
        if not self.folder.is_dir() or self.folder.stat().st_ino != self._place:
            raise io.not_written(where, FileNotFoundError(f"{self.folder} has vanished, or is another now"))

    def finish(self) -> None:
        """Waits until the last checkpoint is written; NotWritten if it could not be."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def latest(self, name: str) -> int | None:
        """The step of the newest checkpoint, of `last` the newest that is whole, None when there is none.

        Raises:
          CheckpointError: there are some of `last`, and all of them are damaged.
        """
        self.finish()
        steps = self._managers[name].all_steps()
        if not steps or name == "best" or (name, max(steps)) in self._sound:
            return max(steps, default=None)
        # The first of several processes reads all files, and all of them go the same way.
        step = _agreed(lambda: _newest_sound(self.folder / name, steps))
        self._sound.add((name, step))
        return step

    def restore(self, name: str, like: Any, step: int | None = None) -> Restored:
        """The newest checkpoint, or that of a step, with the structure, shapes and placement of `like`.

        Raises:
          CheckpointError: there is none, it is damaged, was made over another base, or holds other arrays than `like`.
        """
        manager = self._managers[name]
        step = self._checked(name, step)
        record = self.record(name, step)
        where = self.folder / name / str(step)
        if record["base"] != self._base:
            raise CheckpointError(
                f"{where} was trained over a frozen base with digest {record['base'][:12]}…, but the base at hand has "
                f"{self._base[:12]}…: give the encoder that the run was trained with, or another workdir"
            )
        held, wanted = _arrays(manager.item_metadata(step).state), _arrays(like)
        if differing := [name for name in sorted(held | wanted) if held.get(name) != wanted.get(name)]:
            listed = (f"{n}: {held.get(n, 'nothing')} there, {wanted.get(n, 'nothing')} here" for n in differing[:20])
            raise CheckpointError(
                f"{where} does not hold what this model trains, {len(differing)} arrays differ; give the configuration "
                "that it was made by, or another workdir:\n" + "\n".join(listed)
            )
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like)
        state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))["state"]
        return Restored(state, record)

    def record(self, name: str, step: int | None = None) -> dict[str, Any]:
        """Returns the record that was saved with the newest checkpoint, or with that of a step.

        Raises:
          CheckpointError: there is none, it is damaged, or of another run or step.
        """
        step = self._checked(name, step)
        return _own_record(self._managers[name], self.folder / name / str(step), self._workdir)

    def _checked(self, name: str, step: int | None) -> int:
        """The step, or that of the newest, once what is there has been compared with its checksums."""
        self.finish()
        step = self.latest(name) if step is None else step
        if step is None:
            raise CheckpointError(f"{self.folder / name} holds no checkpoint: train first")
        if (name, step) not in self._sound:
            _agreed(lambda: _check(self.folder / name / str(step)))
            self._sound.add((name, step))
        return step

    def close(self) -> None:
        """Ends the managers' threads, once all is written; NotWritten as `finish`."""
        try:
            self.finish()
        finally:
            self._writer.shutdown()
            for manager in self._managers.values():
                try:
                    manager.close()
                except (OSError, ValueError, RuntimeError) as error:
                    # Orbax repeats the failure of a write, which has been raised before.
                    if not self._failed:
                        raise io.not_written(self.folder, error) from error


def _check(folder: Path) -> int:
    """Returns the step of a checkpoint that is whole; CheckpointError when it is not.

    One without a manifest is by an older version, or a `last` that was broken off after Orbax had made it whole.
    """
    required = folder.parent.name == "best" and run_id.run_id(folder.parents[2]) is not None
    try:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is missing")
        if required or (folder / checksums.MANIFEST).exists():
            checksums.check_manifest(folder)
    except (checksums.Damaged, OSError) as error:
        raise CheckpointError(
            f"{error}, so the checkpoint {folder} cannot be used: bring it back from a copy, or train again in another "
            "workdir"
        ) from error
    return int(folder.name)


def _own_record(manager: ocp.CheckpointManager, where: Path, workdir: Path) -> dict[str, Any]:
    """Returns the record of a checkpoint; CheckpointError where it is of another run or of another step.

    Records of older versions have neither.
    """
    step = int(where.name)
    record = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
    if wrong := run_id.foreign(where, record.get(run_id.KEY), workdir):
        raise CheckpointError(wrong)
    if record.get("step", step) != step:
        raise CheckpointError(
            f"{where} holds the state of step {record['step']}: it was renamed. Give it its name back, or bring that "
            f"of step {step} back from a copy"
        )
    return record


def _newest_sound(folder: Path, steps: Sequence[int]) -> int:
    """The last of some steps whose checkpoint is whole; a warning names each that is passed over for it."""
    with_manifest = [step for step in steps if (folder / str(step) / checksums.MANIFEST).exists()]
    faults = []
    for step in sorted(with_manifest or steps, reverse=True):
        try:
            _check(folder / str(step))
        except CheckpointError as error:
            faults.append(str(error.__cause__))
            continue
        for fault in faults:
            warnings.warn(f"{fault}; going on from the checkpoint of step {step}, which is whole", stacklevel=4)
        return step
    raise CheckpointError(
        f"every checkpoint in {folder} is damaged ({'; '.join(faults)}): bring one back from a copy, or remove "
        f"{folder.parent.parent} to start anew"
    )


def _agreed(find: Callable[[], int]) -> int:
    """Returns in all processes what the first one finds; its error is raised in all of them."""
    error, found = None, -1
    if jax.process_index() == 0:
        try:
            found = find()
        except CheckpointError as raised:
            error = raised
    if jax.process_count() > 1:
        found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
    if found < 0:
        raise error or CheckpointError("the first process found a checkpoint damaged, and says which")
    return found


def latest_step(workdir: Path) -> int | None:
    """The step of a run's newest checkpoint to go on from, None when there is none; CheckpointError as `latest`."""
    folder = workdir / "checkpoints" / "last"
    if not folder.is_dir():
        return None
    with _manager(folder, create=False) as manager:
        steps = manager.all_steps()
    return _agreed(lambda: _newest_sound(folder, steps)) if steps else None


def best_state(workdir: Path) -> Any:
    """Returns the best state of a run as arrays of one device: {"delta": …, "params": …}.

    Raises:
      CheckpointError: There is no checkpoint, or it is damaged.
    """
    folder, ended = workdir / "checkpoints" / "best", workdir / "result.json"
    if not folder.is_dir():
        raise CheckpointError(f"{workdir} holds no trained run: {folder} does not exist")
    with _manager(folder, create=False) as manager:
        step = checksums.read_json(ended)["best_step"] if ended.exists() else manager.latest_step()
        if step is None:
            raise CheckpointError(f"{folder} holds no checkpoint: has that run been trained?")
        _agreed(lambda: _check(folder / str(step)))
        _own_record(manager, folder / str(step), workdir)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        metadata = manager.item_metadata(step).state
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), metadata)
        return manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))).state


def load_matching_params(params: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """The parameters, with those outside the encoder taken from the best checkpoint of another run, on the host.

    Parts that the other run lacks keep their values.

    Raises:
      CheckpointError: no checkpoint there, a damaged one, or a part that both have in different shapes.
    """
    state = best_state(workdir)
    if jax.tree.leaves(state["delta"]):
        raise CheckpointError(
            f"{workdir} tuned its encoder, and its other parts fit that: start from a run whose encoder was frozen"
        )
    # On the host: arrays of one device do not go together with those of several.
    theirs = jax.tree.map(np.asarray, state["params"])
    shared = [name for name in params if name in theirs]
    if not shared:
        raise CheckpointError(f"{workdir} trained {', '.join(theirs)}, none of which this model has")
    for name in shared:
        ours, other = (jax.tree.map(np.shape, tree) for tree in (params[name], theirs[name]))
        if ours != other:
            raise CheckpointError(f"{workdir}: {name} has the shapes {other}, but this model needs {ours}")
    return {**params, **{name: theirs[name] for name in shared}}
