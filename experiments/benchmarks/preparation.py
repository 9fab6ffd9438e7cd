"""Preparing and reading made-up data of a size that is given: seconds, memory, and whether memory stays flat.

    python -m experiments.benchmarks.preparation --out=FOLDER --interactions=20000000 --items=1000000 --users=1000000

Each phase is a process of its own, so that its peak memory is its own. Prints a JSON object a phase.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
from absl import app, flags

from llm4rec_jax.data import sources
from llm4rec_jax.data.batching.builder import BatchOptions, training_batches
from llm4rec_jax.data.features.tokens import tokenizer
from llm4rec_jax.data.ondisk.reader import stored_split, stored_tokens
from llm4rec_jax.data.ondisk.writer import PART, Texts, prepare

_OUT = flags.DEFINE_string("out", None, "Where to write.", required=True)
_INTERACTIONS = flags.DEFINE_integer("interactions", 20_000_000, "How many.")
_ITEMS = flags.DEFINE_integer("items", 1_000_000, "How many.")
_USERS = flags.DEFINE_integer("users", 1_000_000, "How many.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "The folder of a tokenizer; without one, items are ids only.")
_PHASE = flags.DEFINE_enum("phase", None, ["generate", "prepare", "read"], "One of them; all, one by one, without.")
_WORKERS = flags.DEFINE_integer("workers", 0, "Processes that make batches.")

_WORDS = ("red", "green", "blue", "white", "old", "new", "large", "lamp", "chair", "table", "door", "clock", "vase")
_TEMPLATE, _MAX_TOKENS = "{title}", 32
_BATCH, _HISTORY = 1024, 50


def generate(folder: Path) -> dict[str, Any]:
    """Writes interactions.parquet and items.parquet: popularity falls as a power, rows are in order of time."""
    rng = np.random.default_rng(0)
    words = np.array(_WORDS)[rng.integers(len(_WORDS), size=(_ITEMS.value, 6))]
    titles = [f"{' '.join(row)} {i}" for i, row in enumerate(words.tolist())]
    ids = pl.int_range(_ITEMS.value, eager=True).cast(pl.String)
    pl.DataFrame({"item_id": "i" + ids, "title": titles}).write_parquet(folder / "items.parquet")
    size = _INTERACTIONS.value
    item = (_ITEMS.value * rng.random(size) ** 3).astype(np.int32)
    user = rng.integers(_USERS.value, size=size, dtype=np.int32)
    frame = pl.DataFrame({"user_id": user, "item_id": item, "timestamp": np.sort(rng.integers(10**9, size=size))})
    frame.lazy().with_columns(
        pl.format("u{}", "user_id").alias("user_id"), pl.format("i{}", "item_id").alias("item_id")
    ).sink_parquet(folder / "interactions.parquet")
    return {}


def prepared(folder: Path) -> dict[str, Any]:
    """Reads the tables and prepares them."""
    started = time.perf_counter()
    dataset = sources.load(
        "table", folder / "interactions.parquet", timestamp="timestamp", items_path=folder / "items.parquet"
    )
    loaded, peak = time.perf_counter() - started, _peak()
    texts = None if _TOKENIZER.value is None else Texts(_TEMPLATE, _TOKENIZER.value, _MAX_TOKENS)
    prepare(dataset, folder / "prepared", texts=texts, part=PART)
    size = sum(path.stat().st_size for path in (folder / "prepared").iterdir())
    return {"source_seconds": loaded, "source_peak_rss_bytes": peak, "bytes": size}


def read(folder: Path) -> dict[str, Any]:
    """Opens the folder and reads an epoch of batches."""
    started = time.perf_counter()
    dataset = sources.load("prepared", folder / "prepared")
    opened = time.perf_counter() - started
    split = stored_split(dataset, "leave_one_out", {})
    tokens = None
    if _TOKENIZER.value is not None:
        loaded = tokenizer(_TOKENIZER.value)
        tokens = stored_tokens(dataset, _TEMPLATE, lambda: loaded, _MAX_TOKENS)
    if split is None:
        raise RuntimeError(f"{folder / 'prepared'} holds no leave_one_out split: prepare it again")
    builder, batches = training_batches(
        split, BatchOptions(batch_size=_BATCH, history=_HISTORY), tokens=tokens, workers=_WORKERS.value
    )
    stream = iter(batches)
    next(stream)
    first = time.perf_counter() - started
    steps = len(builder.examples.user) // _BATCH
    own, shared = [], []
    process = psutil.Process()
    for step in range(1, steps):
        next(stream)
        if step % max(steps // 50, 1) == 0:
            held = process.memory_info()
            # Pages of mapped files are the page cache's, which gives them up when memory is wanted.
            own.append(held.rss - held.shared)
            shared.append(held.shared)
    if _WORKERS.value:
        stream.close()
    half = own[len(own) // 2 :]
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0]) * len(own)
    return {
        "opened_seconds": opened,
        "first_batch_seconds": first,
        "batches": steps,
        "epoch_seconds": time.perf_counter() - started - first,
        "own_bytes_first": own[0],
        "own_bytes_last": own[-1],
        "own_bytes_slope_an_epoch": slope,
        "mapped_bytes_last": shared[-1],
    }


def main(_: list[str]) -> None:
    folder = Path(_OUT.value or "")
    folder.mkdir(parents=True, exist_ok=True)
    if _PHASE.value is None:
        for phase in ("generate", "prepare", "read"):
            command = [sys.executable, "-m", "experiments.benchmarks.preparation", *sys.argv[1:]]
            subprocess.run([*command, f"--phase={phase}"], check=True)
        return
    started = time.perf_counter()
    figures = {"generate": generate, "prepare": prepared, "read": read}[_PHASE.value](folder)
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures |= {"seconds": time.perf_counter() - started, "cpu_seconds": used.ru_utime + used.ru_stime}
    print(json.dumps({"phase": _PHASE.value, **figures, "peak_rss_bytes": _peak()}), flush=True)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    app.run(main)
