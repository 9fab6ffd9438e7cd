"""Memory of a device, and programs that fit it: chosen by what the compiler says that they need, before they run."""

import os
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

# A training process on a CPU takes this beside its programs' arrays: in memory, and of its address space.
_RESIDENT, _ADDRESSES = 2 * 2**30, 3 * 2**30
# A micro-batch of fewer texts leaves a device idle, and saves little.
_FEWEST_TEXTS = 8
_MEMORY_CGROUPS = {"": "memory.max", "memory": "memory.limit_in_bytes"}


class ProgramBytes(NamedTuple):
    """Memory that a program needs on one device.

    Attributes:
      total: All of it.
      arguments: Parameters, optimizer states, constants and the batch.
    """

    total: int
    arguments: int


def program_bytes(program: jax.stages.Compiled) -> ProgramBytes:
    """Returns the compiler's figures; zeros where it has none."""
    sizes = program.memory_analysis()
    if sizes is None:
        return ProgramBytes(0, 0)
    arguments = sizes.argument_size_in_bytes
    results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return ProgramBytes(arguments + results + sizes.temp_size_in_bytes, arguments)


def device_bytes(mesh: Mesh) -> int:
    """Returns the memory that programs may take on each device of a mesh; the same number in every process."""
    device, devices = mesh.local_devices[0], len(mesh.local_devices)
    stats = device.memory_stats() or {}
    own = stats["bytes_limit"] if "bytes_limit" in stats else host_bytes() // devices
    if jax.process_count() == 1:
        return own
    # In MiB, since a device has no integers beyond 2^31.
    return int(multihost_utils.process_allgather(np.array(own // 2**20, np.int32)).min()) * 2**20


def host_bytes(root: Path = Path("/")) -> int:
    """Returns the memory that arrays may take in this process.

    It is the least of the machine's memory, the limits of the process's cgroup and of those above it, and the limit of
    its address space (`ulimit -v`), each less what the process takes for itself.

    Args:
      root: Folder that has the system's `proc` and `sys`.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_cgroup_limits(root)]
    left = min(limits) - _RESIDENT
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    return max(left if addresses == resource.RLIM_INFINITY else min(left, addresses - _ADDRESSES), 0)


def _cgroup_limits(root: Path) -> list[int]:
    """Returns the memory limits of this process's cgroups: of version 2, and of the memory controller of version 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except FileNotFoundError:  # not Linux
        return []
    limits = []
    for controllers, path in (line.split(":", 2)[1:] for line in lines):
        if controllers not in _MEMORY_CGROUPS:
            continue
        folder = root / "sys/fs/cgroup" / controllers
        own = folder / path.lstrip("/")
        # In a container the path may be that of the host, of which the container sees the end as its root.
        for place in {folder, *(p for p in (own, *own.parents) if p.is_relative_to(folder))}:
            file = place / _MEMORY_CGROUPS[controllers]
            if file.exists() and (limit := file.read_text().strip()) != "max":
                limits.append(int(limit))
    return limits


class FittingProgram(NamedTuple):
    """A program that fits.

    Attributes:
      program: The program.
      item_micro_batch: Number of texts that it encodes at a time; 0: all at once.
      note: Line for the user, where texts are not encoded at once because that would not fit.
    """

    program: jax.stages.Compiled
    item_micro_batch: int
    note: str = ""


def fitting_program(
    compile_step: Callable[[int], jax.stages.Compiled],
    texts: Sequence[tuple[int, int]],
    limit: int,
    item_micro_batch: int | None = None,
) -> FittingProgram:
    """Compiles a training step that fits a device's memory, with the largest micro-batches of texts that do.

    Args:
      compile_step: Compiles the step for a number of texts that are encoded at a time; 0: all at once.
      texts: Texts that a step encodes, as (number of texts, padded number of tokens) of each group.
      limit: Bytes of a device.
      item_micro_batch: Number of texts at a time; None chooses.

    Raises:
      ValueError: None fits; the message has the estimate and the option that would help.
    """
    program = compile_step(item_micro_batch or 0)
    at_once = needed = program_bytes(program)
    if needed.total <= limit:
        return FittingProgram(program, item_micro_batch or 0)
    tokens, longest = sum(n * length for n, length in texts), max((length for _, length in texts), default=1)
    size = -(-tokens // longest)
    if item_micro_batch is not None or size <= _FEWEST_TEXTS:
        raise ValueError(_refusal(needed, limit, item_micro_batch if texts else None))
    # Memory is close to linear in the texts of a micro-batch. Nothing is known yet of what the rest of a step takes.
    before, bytes_before = 0, needed.arguments
    while True:
        bytes_of_text = (needed.total - bytes_before) / (size - before)
        left = limit - (needed.total - bytes_of_text * size)
        before, bytes_before = size, needed.total
        size = 2 ** int(np.log2(max(min(0.9 * left / bytes_of_text, size - 1), 1)))
        if size < _FEWEST_TEXTS:
            raise ValueError(_refusal(needed, limit, None))
        program = compile_step(size)
        needed = program_bytes(program)
        if needed.total <= limit:
            note = (
                f"item texts are encoded {size} at a time, and again for their gradients: a step needs "
                f"{_gib(needed.total)} so, {_gib(at_once.total)} with all at once, and {_gib(limit)} are there"
            )
            return FittingProgram(program, size, note)


def _refusal(needed: ProgramBytes, limit: int, item_micro_batch: int | None) -> str:
    if item_micro_batch is not None:
        remedy = "config.train.item_micro_batch=auto"
        if item_micro_batch:
            remedy += f", or less than {item_micro_batch}"
    elif needed.arguments > limit / 2:
        remedy = "a smaller encoder, a method that trains fewer parameters, or config.mesh.fsdp=True on several devices"
    else:
        remedy = (
            "config.train.micro_batches, a smaller config.train.batch_size or config.train.history, or "
            "config.loss.name=in_batch"
        )
    return (
        f"a training step needs {_gib(needed.total)} of memory on each device, {_gib(needed.arguments)} of them for "
        f"parameters, optimizer states and its batch, and {_gib(limit)} are there: give {remedy}"
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
