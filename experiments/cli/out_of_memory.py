"""Errors of a device or a host without memory, in words."""

import re

import jax

from llm4rec_jax.training.memory import host_bytes

_REMEDY = (
    "leave config.train.item_micro_batch=auto; "
    "lower config.train.batch_size, or keep it and raise config.train.micro_batches; give config.encoder.remat=True or "
    "config.encoder.dtype=bfloat16; shorten config.text.max_tokens; or cut arrays over devices by config.mesh.fsdp=True"
)


def explained(error: BaseException) -> str | None:
    """Returns the amount that was asked for, the amount there is, and the options that help; None for other errors.

    Args:
      error: Any error. XLA's have the status RESOURCE_EXHAUSTED; Python's and numpy's are MemoryErrors.
    """
    said = str(error)
    on_host = isinstance(error, MemoryError)
    if not on_host and not (isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in said):
        return None
    number = re.search(r"([\d.]+) ?([KMGTPE]i?B|bytes|B)\b", said)
    amount = "memory" if number is None else _readable(number[1], number[2])
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if on_host or limit is None:
        where, limit = "this process", host_bytes()
    else:
        where = f"the device {device.device_kind}"
    return f"out of memory: {amount} asked for at once, and {where} has {_gib(limit)} in all: {_REMEDY}"


def _readable(number: str, unit: str) -> str:
    return _gib(float(number)) if unit in ("bytes", "B") else f"{number} {unit}"


def _gib(number: float) -> str:
    return f"{number / 2**30:,.2f} GiB"
