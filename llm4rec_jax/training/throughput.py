"""Speed of training: rates, the share of padding, and the use made of a device's peak."""

import functools
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.data.batching.batch import Batch

# Dense bfloat16 FLOP/s of one chip by the vendors' data sheets, by a regex on the device's kind. The first that
# matches counts.
PEAKS = {
    r"TPU v4": 275e12,
    r"TPU v5 ?(lite|e)": 197e12,
    r"TPU v5p?": 459e12,
    r"TPU v6 ?(lite|e)": 918e12,
    r"NVIDIA A100": 312e12,
    r"NVIDIA H100 PCIe": 756e12,
    r"NVIDIA H[12]00": 989e12,
}


class BatchStats(NamedTuple):
    """Contents of one batch, on this process.

    Attributes:
      tokens: Tokens of the texts that are encoded, each item's once.
      token_places: Elements of the arrays that the encoder is given, padding included.
      items: Distinct items.
      mentions: Places of histories, targets and negatives that refer to an item.
      flops: FLOPs of the step on one device, by `count_flops`; 0 where they are not known.
    """

    tokens: int
    token_places: int
    items: int
    mentions: int
    flops: float = 0.0


def batch_stats(batch: Batch) -> BatchStats:
    """Counts the contents of a batch of numpy arrays."""
    items, history, mask = (np.asarray(a) for a in (batch.items, batch.history_mask, batch.target_mask))
    _, first = np.unique(items, return_index=True)
    tokens = places = start = 0
    for _, real in batch.tokens:
        # The rows of this group that are the first of their item: the others are padding.
        rows = first[(first >= start) & (first < start + len(real))] - start
        tokens += int(np.asarray(real)[rows].sum())
        places += real.size
        start += len(real)
    if batch.prompt is not None:
        tokens += int(np.asarray(batch.prompt.mask).sum())
        places += batch.prompt.mask.size
    drawn = 0 if batch.negatives is None else int(mask.sum()) * batch.negatives.shape[-1]
    return BatchStats(tokens, places, len(first), int(history.sum() + mask.sum()) + drawn)


def rates(steps: Sequence[BatchStats], seconds: float, peak: float) -> dict[str, float]:
    """Returns the rates of some steps that took `seconds` together.

    Args:
      steps: Contents of their batches.
      seconds: Wall-clock time of all of them.
      peak: FLOP/s of one device.

    Returns:
      tokens_per_second: Real tokens of all processes, where texts are encoded.
      padding_share: Share of the encoder's input that was padding.
      unique_share: Distinct items over places that refer to one; above 1 where losses compare with the whole catalogue.
      mfu: Model FLOPs utilisation of a device, where FLOPs are known; FLOPs that `remat` repeats count too.

    Example:
      >>> rates([BatchStats(tokens=6, token_places=8, items=3, mentions=12)], seconds=2.0, peak=1e9)
      {'unique_share': 0.25, 'tokens_per_second': 3.0, 'padding_share': 0.25}
    """
    tokens, places, items, mentions, flops = (sum(column) for column in zip(*steps, strict=True))
    shares = {"unique_share": items / max(mentions, 1)}
    if flops:
        shares["mfu"] = flops / seconds / peak
    if places:
        shares["tokens_per_second"] = tokens * jax.process_count() / seconds
        shares["padding_share"] = 1 - tokens / places
    return shares


def line(found: Mapping[str, float]) -> str:
    """Words the result of `rates`, with examples_per_second, programs and peak_bytes."""
    parts = [f"{found['examples_per_second']:,.0f} examples/s"]
    if "tokens_per_second" in found:
        parts.append(f"{found['tokens_per_second']:,.0f} tokens/s ({found['padding_share']:.0%} padding)")
    if found["unique_share"] <= 1:
        parts.append(f"{found['unique_share']:.0%} unique")
    if "mfu" in found:
        parts.append(f"MFU {found['mfu']:.0%}")
    parts += [
        f"{found['programs']:.0f} programs",
        f"{found['peak_bytes'] / 2**30:.2f} GiB",
    ]
    return ", ".join(parts)


def peak(device: Any, dtype: Any) -> float:
    """Returns the FLOP/s of a device in matrix products of a type, from the table or measured."""
    half = jnp.dtype(dtype).itemsize == 2
    for kind, rate in PEAKS.items():
        if re.match(kind, device.device_kind):
            # A TPU's float32 products are of bfloat16 by default; a GPU's of TensorFloat-32, at half the rate.
            return rate if half or device.platform == "tpu" else rate / 2
    return product_rate(jnp.dtype(dtype).name)


@functools.cache
def product_rate(dtype: str = "float32", size: int = 1024, repeats: int = 5) -> float:
    """Returns the FLOP/s of a square matrix product on the default device, the best of some calls."""
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(lambda a, b: a @ b)
    product(a, a).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def peak_bytes() -> int:
    """Returns the most memory in use at once: of the first device, or of this process where devices do not tell."""
    stats = jax.local_devices()[0].memory_stats() or {}
    # Linux counts in KiB, macOS in bytes.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return stats.get("peak_bytes_in_use", own)


class Profile:
    """Context manager that traces some steps of a run, for TensorBoard and Perfetto.

    Args:
      folder: Folder of the trace; None traces nothing.
      log: Prints a line.
      wait: Returns when the steps that have been given out are done.
      first: Number of steps before the trace begins: programs are compiled by then.
      steps: Number of steps to trace.
    """

    def __init__(
        self, folder: Path | None, log: Callable[[str], None], wait: Callable[[], None], first: int = 5, steps: int = 5
    ) -> None:
        self._folder, self._log, self._wait, self._first, self._steps = folder, log, wait, first, steps
        self._before = self._traced = 0
        self._tracing = False

    def __enter__(self) -> Self:
        return self

    def before_step(self) -> None:
        """Begins or ends the trace where it is time to."""
        if self._folder is None:
            return
        if self._tracing and self._traced == self._steps:
            self._wait()
            self._stop()
            self._log(f"{self._traced} steps are traced in {self._folder}, for TensorBoard or ui.perfetto.dev")
        if self._before == self._first and not self._traced:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._tracing = True
        self._before += not self._tracing
        self._traced += self._tracing

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is None:
            return
        if not self._traced:
            self._log(
                f"warning: no step is traced: tracing begins after {self._first} steps, when programs are compiled"
            )
        if self._tracing:
            self._stop()
            self._log(f"only {self._traced} steps are traced in {self._folder}: no more were made")

    def _stop(self) -> None:
        self._tracing = False
        jax.profiler.stop_trace()
