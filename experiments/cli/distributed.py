"""Several processes as one program: how they find each other, and what becomes of the others when one fails."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator

import jax
from absl import flags

_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the processes of a TPU pod, a SLURM job or Open MPI.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process, where it is not detected.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are, with --coordinator.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0, with --coordinator.", lower_bound=0)
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat", 100, "Seconds without a sign of life after which a process is given up.", lower_bound=1
)

# Seconds that the others have to say what is wrong with them before the first process, by which they hear, is gone.
_LAST_WORDS = 2.0

_ASK = """
import sys, jax
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize()
print("place", jax.process_index(), jax.process_count())
"""


def wanted() -> bool:
    """Returns whether this process is one of several; ValueError for flags that do not go together."""
    explicit = {"--coordinator": _COORDINATOR, "--processes": _PROCESSES, "--process": _PROCESS}
    missing = [name for name, flag in explicit.items() if flag.value is None]
    if missing and len(missing) < len(explicit):
        raise ValueError(f"{', '.join(missing)} missing: --coordinator, --processes and --process go together")
    if not missing and not 0 <= (_PROCESS.value or 0) < (_PROCESSES.value or 0):
        raise ValueError(f"--process={_PROCESS.value} of {_PROCESSES.value}: they count from 0")
    if not missing and _DISTRIBUTED.value:
        raise ValueError("--distributed finds out what --coordinator, --processes and --process say: give either")
    return bool(_DISTRIBUTED.value) or not missing


def join() -> None:
    """Joins the other processes, if there are any; ValueError when they cannot be found."""
    if not wanted():
        return
    try:
        jax.distributed.initialize(
            _COORDINATOR.value, _PROCESSES.value, _PROCESS.value, heartbeat_timeout_seconds=_HEARTBEAT.value
        )
    except ValueError as error:
        raise ValueError(_undetected(error)) from error
    # JAX takes SIGTERM for a hint that somebody will act upon. Training does, and is in time to; what comes before it
    # has nothing to save, and ends as it would in a single process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def flags_of_others() -> tuple[str, ...]:
    """The flags by which another command that this process starts joins those that its siblings start."""
    if _DISTRIBUTED.value:
        return ("--distributed", f"--heartbeat={_HEARTBEAT.value}")
    given = {"coordinator": _COORDINATOR, "processes": _PROCESSES, "process": _PROCESS, "heartbeat": _HEARTBEAT}
    return tuple(f"--{name}={flag.value}" for name, flag in given.items())


def index_and_count() -> tuple[int, int]:
    """(index, count) of this process among its siblings, without joining them.

    Where the flags do not say it, a process that joins and ends finds out.
    """
    if not wanted():
        return 0, 1
    if _PROCESS.value is not None and _PROCESSES.value is not None:
        return _PROCESS.value, _PROCESSES.value
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)
    said = [line.split()[1:] for line in asked.stdout.splitlines() if line.startswith("place ")]
    if asked.returncode or not said:
        lines = asked.stderr.strip().splitlines()
        raise ValueError(_undetected(lines[-1] if lines else f"exit code {asked.returncode}"))
    index, count = map(int, said[0])
    return index, count


def _undetected(error: object) -> str:
    return (
        f"the other processes were not found ({error}); a TPU pod, SLURM and Open MPI are detected, elsewhere give "
        "--coordinator=HOST:PORT, --processes and --process"
    )


@contextlib.contextmanager
def exit_all_on_error() -> Iterator[None]:
    """Ends a process that fails at once, without waiting for the others as an orderly exit would.

    They may be waiting for it in the middle of a step, and hear of its end by their missing partner or its missing
    heartbeat.
    """
    try:
        yield
    except BaseException as error:
        code = (error.code or 0) if isinstance(error, SystemExit) else 1
        # A run that has saved and stopped did so in all processes.
        if not code or not jax.distributed.is_initialized():
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        if isinstance(error, jax.errors.JaxRuntimeError):
            print("error: perhaps since another process has failed: see what that one says", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:
            time.sleep(_LAST_WORDS)
        os._exit(code if isinstance(code, int) else 1)
