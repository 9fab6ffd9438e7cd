"""Measures speed beside a peer, in one run on one machine: benchmarks, not tests.

    python -m experiments.bench step
    python -m experiments.bench step trials --json > figures.jsonl

Prints a line a measurement, with --json one JSON object a line: both times, their ratio, shapes and versions. Nothing
else should run meanwhile. Peers come with the extra "bench" (`make setup-dev`). Figures are in
docs/results/performance.md.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from experiments.benchmarks import (
    attention,
    cache,
    encode,
    machine,
    quantize,
    rank,
    sasrec,
    scaling,
    startup,
    step,
    train,
    trials,
)
from experiments.cli import command
from llm4rec_jax.registry import Registry

Bench = Callable[[], Iterator[Mapping[str, Any]]]

BENCHES: Registry[Bench] = Registry("benchmark")
BENCHES["attention"] = attention.run
BENCHES["cache"] = cache.run
BENCHES["encode"] = encode.run
BENCHES["quantize"] = quantize.run
BENCHES["rank"] = rank.run
BENCHES["sasrec"] = sasrec.run
BENCHES["scaling"] = scaling.run
BENCHES["startup"] = startup.run
BENCHES["step"] = step.run
BENCHES["train"] = train.run
BENCHES["trials"] = trials.run


def main(names: list[str]) -> None:
    chosen = [(name, BENCHES.lookup(name)) for name in names]
    about = machine.describe()
    for name, bench in chosen:
        for measured in bench():
            if command.wants_json():
                print(json.dumps({"bench": name, **measured, **about}), flush=True)
            else:
                print(f"{name}: " + ", ".join(f"{key} {_short(value)}" for key, value in measured.items()), flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    command.run_on(main, f"benchmark: {', '.join(BENCHES)}")
