"""Executors of a sweep's trials: as processes of this machine, as tasks of Ray, as jobs of Slurm.

This module, too, is imported where jobs run, and does without jax.
"""

import logging
import math
import signal
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.sweeps.processes import Ended, Job, Process, execute, started, stop_file, wait
from llm4rec_jax.registry import Registry


class Handle(NamedTuple):
    """A job that was submitted.

    Attributes:
      poll: returns how it ended; None while it waits or runs.
      cancel: asks it to save and stop, and returns at once.
    """

    poll: Callable[[], Ended | None]
    cancel: Callable[[], None]


class Executor(NamedTuple):
    """Attributes:
    submit: starts a job, or puts it into a queue.
    close: gives back what the executor holds, when no job is left.
    """

    submit: Callable[[Job], Handle]
    close: Callable[[], None]


class Options(NamedTuple):
    """Options of all executors; each uses those that concern it.

    Attributes:
      workdir: holds the run folders.
      cpus, gpus: a job takes.
      slurm: submitit's parameters.
      slurm_local: submitit starts processes of this machine, which shows whether a sweep would work.
      ray_address: HOST:PORT or "auto" for a cluster that runs; None starts Ray on this machine.
      timeout: seconds that a job may take; None for any.
    """

    workdir: Path
    cpus: float = 1.0
    gpus: float = 0.0
    slurm: Mapping[str, Any] = {}
    slurm_local: bool = False
    ray_address: str | None = None
    timeout: float | None = None


EXECUTORS: Registry[Callable[[Options], Executor]] = Registry("executor")


@EXECUTORS.register("local")
def local(options: Options) -> Executor:
    """Processes of this machine. They share its accelerators: with several, take Ray, which deals them out."""

    def submit(job: Job) -> Handle:
        process = Process(job)
        return Handle(process.poll, process.stop)

    return Executor(submit, lambda: None)


@EXECUTORS.register("ray")
def on_ray(options: Options) -> Executor:
    """Tasks of Ray, each with its CPUs and GPUs.

    Raises:
      ValueError: Ray is not installed; no machine of it has what a job takes.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise _missing("ray", error) from error
    with warnings.catch_warnings():
        # Ray starts its own processes by fork and exec, of which jax, where it is imported, warns.
        warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
        if options.ray_address is None:
            # Nothing of size is passed through Ray's store.
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                object_store_memory=100 * 2**20,
            )
        else:
            ray.init(address=options.ray_address, log_to_driver=False, logging_level=logging.WARNING)
    machines = [{name: node["Resources"].get(name, 0) for name in ("CPU", "GPU")} for node in ray.nodes()]
    if not any(m["CPU"] >= options.cpus and m["GPU"] >= options.gpus for m in machines):
        ray.shutdown()
        offered = "; ".join(f"{m['CPU']:g} CPUs and {m['GPU']:g} GPUs" for m in machines)
        raise ValueError(
            f"a trial takes {options.cpus:g} CPUs and {options.gpus:g} GPUs, and no machine of Ray has them: {offered}"
        )
    task = ray.remote(execute).options(num_cpus=options.cpus, num_gpus=options.gpus, max_retries=0)

    def submit(job: Job) -> Handle:
        reference = task.remote(job)

        def poll() -> Ended | None:
            done, _ = ray.wait([reference], timeout=0)
            if not done:
                return None
            try:
                return ray.get(reference)
            except ray.exceptions.TaskCancelledError:
                stop_file(job).unlink(missing_ok=True)
                return Ended(-signal.SIGTERM, note="cancelled")
            except ray.exceptions.RayError as error:
                return Ended(1, str(error), note="Ray lost the task")

        def cancel() -> None:
            stop_file(job).touch()
            if not started(job):
                ray.cancel(reference)

        return Handle(poll, cancel)

    return Executor(submit, ray.shutdown)


class _Task:
    """A job as submitit runs it; it is sent back to the queue when Slurm's time is up or the node is taken away."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self) -> Ended:
        process = Process(self.job)
        # Slurm sends it where a job is cancelled; submitit would ignore it.
        signal.signal(signal.SIGTERM, lambda *_: process.stop())
        self._process = process
        try:
            return wait(process, 0.5)
        finally:
            process.stop()
            wait(process, 0.1)

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        self._process.stop()
        wait(self._process, 0.1)
        return DelayedSubmission(_Task(self.job))


@EXECUTORS.register("slurm")
def slurm(options: Options) -> Executor:
    """Jobs of Slurm, through submitit, whose own files are in WORKDIR/slurm. A job that Slurm ends for its time or for
    another's sake goes back to the queue and goes on from its checkpoint.

    Raises:
      ValueError: submitit is not installed; there is no Slurm here; a parameter is not submitit's.
    """
    try:
        import submitit
        from submitit.core.utils import FailedJobError, UncompletedJobError
    except ImportError as error:
        raise _missing("submitit", error) from error
    # By default submitit asks for minutes.
    minutes = 24 * 60 if options.timeout is None else math.ceil(options.timeout / 60) + 5
    given = {"timeout_min": minutes, "cpus_per_task": math.ceil(options.cpus), "gpus_per_node": math.ceil(options.gpus)}
    try:
        executor = submitit.AutoExecutor(options.workdir / "slurm", cluster="local" if options.slurm_local else "slurm")
        executor.update_parameters(**{**given, **options.slurm})
    except (NameError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"Slurm, through submitit: {error}") from error

    def submit(job: Job) -> Handle:
        executor.update_parameters(name=Path(job.folders[0]).name)
        submitted = executor.submit(_Task(job))

        def poll() -> Ended | None:
            if not submitted.done():
                return None
            try:
                return submitted.result()
            except (UncompletedJobError, FailedJobError) as error:
                if stop_file(job).exists() or submitted.state.startswith("CANCELLED"):
                    stop_file(job).unlink(missing_ok=True)
                    return Ended(-signal.SIGTERM, note="cancelled")
                return Ended(1, str(error), note=f"Slurm job {submitted.job_id} ended as {submitted.state}")

        def cancel() -> None:
            stop_file(job).touch()
            if not started(job):
                submitted.cancel(check=False)

        return Handle(poll, cancel)

    return Executor(submit, lambda: None)


def _missing(package: str, error: ImportError) -> ValueError:
    return ValueError(f"{package} cannot be imported ({error}): pip install 'llm4rec-jax[sweep]'")
