"""The flags that say where and how trials are run."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import jax
from absl import flags

from experiments.cli import distributed, gpu
from experiments.sweeps import executors
from experiments.sweeps.executors import Executor, Handle
from experiments.sweeps.processes import Job
from experiments.sweeps.schedule import Entry
from experiments.sweeps.trials import Study

_EXECUTOR = flags.DEFINE_string("executor", "local", f"Where trials are run: {', '.join(executors.EXECUTORS)}.")
WORKERS = flags.DEFINE_integer("workers", 1, "Trials at a time.", lower_bound=1)
TIMEOUT = flags.DEFINE_float("timeout", None, "Seconds after which a trial is stopped, as failed.", lower_bound=0.0)
_CPUS = flags.DEFINE_float("cpus", None, "CPUs of a trial, rather than the configuration's.", lower_bound=0.0)
_GPUS = flags.DEFINE_float("gpus", None, "GPUs of a trial, rather than the configuration's.", lower_bound=0.0)
_RAY = flags.DEFINE_string("ray_address", None, "HOST:PORT or auto: a Ray cluster; RAY_ADDRESS says the same.")
_LOCAL = flags.DEFINE_bool("slurm_local", False, "Jobs for Slurm as processes of this machine, to try a sweep.")


def executor(study: Study, workdir: Path) -> Executor:
    """The executor that the flags name; ValueError for one that does not exist or cannot be had."""
    make = executors.EXECUTORS.lookup(_EXECUTOR.value)
    gpu.prepare(WORKERS.value)
    return make(
        executors.Options(
            workdir,
            study.resources["cpus"] if _CPUS.value is None else _CPUS.value,
            study.resources["gpus"] if _GPUS.value is None else _GPUS.value,
            study.slurm,
            _LOCAL.value,
            _RAY.value or os.environ.get("RAY_ADDRESS"),
            TIMEOUT.value,
        )
    )


def check_several(together: int) -> None:
    """ValueError for flags that a sweep of several processes cannot follow."""
    if WORKERS.value > 1 or together > 1 or _EXECUTOR.value != "local":
        raise ValueError(
            "a sweep of several processes runs one trial after another in them: leave --workers, --together and "
            "--executor out"
        )


def joined(executor: Executor, index: int) -> Executor:
    """The executor of one of several processes whose jobs join those of the others.

    The first works in the run folders, the others in a folder of their own in each, which has the output of theirs.
    """

    def submit(job: Job) -> Handle:
        folders = [Path(folder) / f"process{index}" if index else Path(folder) for folder in job.folders]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        command = (*job.command, *distributed.flags_of_others())
        return executor.submit(job._replace(command=command, folders=tuple(map(str, folders))))

    return executor._replace(submit=submit)


def leave_devices_alone() -> None:
    """Keeps this process, which only watches others, from taking the memory of the accelerators that they need."""
    jax.config.update("jax_platforms", "cpu")


def stopped(received: int, again: str) -> NoReturn:
    """Ends a command that SIGINT or SIGTERM stopped, with the code of a shell, and says how to go on."""
    print(f"{signal.Signals(received).name}: every trial has saved and stopped; {again}", file=sys.stderr)
    sys.exit(128 + received)


def judge(entries: Sequence[Entry]) -> None:
    """Ends a command whose trials have not all come to an end: ValueError for failed ones, exit code 1 for others."""
    failed = [entry for entry in entries if entry.status == "failed"]
    if failed:
        # A trial that was not started, since another had failed, has none.
        records = [entry.run.folder / "failure.txt" for entry in failed]
        places = "\n".join(
            f"  {e.run.trial.name}: {e.error}" + (f"\n    {record}" if record.exists() else "")
            for e, record in zip(failed, records, strict=True)
        )
        what = f"{len(failed)} trial{'s' if len(failed) > 1 else ''} failed"
        raise ValueError(f"{what}; the same command tries again what failed:\n{places}")
    left = [entry.run.trial.name for entry in entries if entry.status in ("interrupted", "waiting")]
    if left:
        print(f"interrupted, or waiting for one that was: {', '.join(left)}; the same command goes on", file=sys.stderr)
        sys.exit(1)
