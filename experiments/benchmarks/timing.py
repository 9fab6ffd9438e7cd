"""Times of two sides by turns, so that whatever else the machine does meets both."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def interleaved(sides: Mapping[str, Callable[[], object]], repeats: int = 20, warm: int = 2) -> dict[str, np.ndarray]:
    """Seconds of every call, [repeats] for each side; which side begins alternates.

    Args:
      sides: functions that return when their work is done.
      repeats, warm: calls that count, and calls before them that do not.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for i in range(warm + repeats):
        for name in order if i % 2 == 0 else order[::-1]:
            start = time.perf_counter()
            sides[name]()
            if i >= warm:
                times[name].append(time.perf_counter() - start)
    return {name: np.array(seconds) for name, seconds in times.items()}


def summary(times: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Median and quartiles of each side, and how many times as long as the side "ours" the others take."""
    figures: dict[str, Any] = {}
    for name, seconds in times.items():
        low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
        figures[f"{name}_s"] = float(middle)
        figures[f"{name}_quartiles_s"] = [float(low), float(high)]
    for name in times:
        if name != "ours":
            # Pairs of calls that stood next to each other, so that a slow minute does not count for one side only.
            figures[f"ratio_{name}"] = float(np.median(times[name] / times["ours"]))
    return figures
