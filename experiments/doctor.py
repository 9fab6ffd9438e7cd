"""Says whether this machine is ready: versions, devices, memory, caches, data and weights, and a self-test.

    python -m experiments.doctor

The self-test trains two steps on made-up data and compares a ranking with numpy's, in some ten seconds.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.cli import command
from experiments.cli.console import visible
from llm4rec_jax import progress
from llm4rec_jax.data import assets, cache, download
from llm4rec_jax.runs import folder
from llm4rec_jax.runs.load import load
from llm4rec_jax.runs.run import run
from llm4rec_jax.runs.schema import default_config
from llm4rec_jax.training.memory import host_bytes

_USERS, _ITEMS, _LENGTH, _K = 16, 24, 6, 5
ASSETS: Mapping[str, Callable[[], Path]] = {"movielens_100k": assets.movielens_100k, **assets.LANGUAGE_MODELS}


def devices() -> dict[str, int | None]:
    """Returns the memory of each device in bytes; None where it has none of its own, as a CPU."""
    return {str(device): (device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()}


def caches() -> dict[str, int]:
    """Returns the bytes in each folder of this package's cache."""
    home = cache.cache_home() / "llm4rec_jax"
    kinds = sorted(home.iterdir()) if home.is_dir() else []
    return {str(kind): sum(file.stat().st_size for file in kind.rglob("*") if file.is_file()) for kind in kinds}


def data_and_weights() -> dict[str, str]:
    """Returns the place of each asset and of each published data set; for one that is not there, how to get it."""
    found = {}
    for name, locate in ASSETS.items():
        try:
            found[name] = str(locate())
        except FileNotFoundError as error:
            found[name] = f"missing: {error}"
    for name, published in download.PUBLISHED.items():
        place = download.cache_folder() / name
        there = all((place / file.name).exists() for file in published.files)
        found[name] = str(place) if there else f"not downloaded: python -m llm4rec_jax.data.download {name}"
    return found


def self_test() -> float:
    """Trains two steps over made-up ids on all devices, and compares recommendations with numpy's order of the scores.

    Returns:
      Seconds that it took.

    Raises:
      ArithmeticError: The recommended items are not those with the highest scores outside the history.
    """
    started = time.perf_counter()
    # The lines of training say nothing here.
    progress.set_quiet(True)
    with tempfile.TemporaryDirectory() as scratch:
        histories = {f"u{u}": [f"i{(u * 5 + step * 7) % _ITEMS}" for step in range(_LENGTH)] for u in range(_USERS)}
        rows = [f"{user},{item},{step}" for user, items in histories.items() for step, item in enumerate(items)]
        file = Path(scratch) / "interactions.csv"
        file.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n", encoding="utf-8")
        config: Any = default_config()
        config.inputs, config.model.users, config.model.width = "id", "mean", 16
        config.data.source, config.data.path = "table", str(file)
        with config.unlocked():
            config.data.options = ConfigDict({"timestamp": "timestamp"})
        config.train.update({"steps": 2, "batch_size": _USERS, "warmup": 0})
        config.train.update({"eval_every": 2, "log_every": 1, "checkpoint_every": 2})
        run(config, Path(scratch) / "run")
        model = load(Path(scratch) / "run")
        items = model.assembly.dataset.items["item_id"].to_list()
        for user in ("u0", f"u{_USERS - 1}"):
            scores = model.score(items, user=user)
            unread = [items[row] for row in np.argsort(-scores, kind="stable") if items[row] not in histories[user]]
            recommended = [item.item_id for item in model.recommend(user=user, k=_K)]
            if recommended != unread[:_K]:
                raise ArithmeticError(
                    f"the self-test recommends {recommended} to {user}, where numpy's order of the scores is "
                    f"{unread[:_K]}: this installation computes wrong rankings; try other versions of jax and jaxlib"
                )
    return time.perf_counter() - started


def main() -> None:
    found = {
        "environment": folder.environment(),
        "devices": devices(),
        "host_memory": host_bytes(),
        "caches": caches(),
        "data_and_weights": data_and_weights(),
    }
    if command.wants_json():
        print(json.dumps({**found, "self_test_seconds": self_test()}))
        return
    about = found["environment"]
    print(f"Python {about['python']} on {about['platform']}")
    print(", ".join(f"{name} {version}" for name, version in about["packages"].items()))
    print(f"memory for arrays on the host: {_amount(found['host_memory'])}")
    for device, size in found["devices"].items():
        print(f"device {device}: {'memory of the host' if size is None else _amount(size)}")
    for place, size in found["caches"].items():
        print(visible(f"cache {place}: {_amount(size)}"))
    for name, place in found["data_and_weights"].items():
        print(visible(f"{name}: {place}"))
    print("self-test: two training steps and a ranking …", flush=True)
    print(f"self-test: passed in {self_test():.1f} s")


def _amount(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


if __name__ == "__main__":
    command.run(main, needs_workdir=False)
