"""LoRA in the upper blocks of MiniLM-L6 on MovieLens-100k: states below them computed once, against at every step."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import movielens_100k
from experiments.benchmarks import timing, training
from llm4rec_jax.peft.sites import constant_below
from llm4rec_jax.runs.assemble import Assembly

LOWEST = (0, 3, 5)


def run() -> Iterator[dict[str, Any]]:
    """configs/movielens_100k.py:lora with its batches, the lowest trained block being each of `LOWEST`."""
    for lowest in LOWEST:
        yield measure(Assembly(configuration(lowest)))


def configuration(lowest: int, blocks: int = 6) -> ConfigDict:
    """LoRA on every linear layer of the blocks from `lowest` on."""
    config: Any = movielens_100k.get_config("lora")
    config.peft.options.lora.target = f"layer_[{lowest}-{blocks - 1}]/.*"
    return config


def measure(assembly: Assembly, repeats: int = 20) -> dict[str, Any]:
    """Seconds of a step on either side, from the same start over the same batches, without dropout.

    There is nothing to compute once below block 0: that step is timed alone.
    """
    params, config = assembly.params(), assembly.config
    whole = training.parts(assembly, params, dropout=False)
    cut, _ = constant_below(whole.trainable["delta"], assembly.model.text_encoder.encoder.config.num_hidden_layers)
    sides = {"uncached" if cut else "ours": Side(assembly, whole)}
    made: dict[str, Any] = {"states_s": None, "states_mib": None}
    if cut:
        start = time.perf_counter()
        weights = {**whole.frozen["params"], **whole.trainable["params"]}
        states = assembly.scorer.states(weights, whole.trainable["delta"], cut)
        made = {"states_s": time.perf_counter() - start, "states_mib": states.nbytes / 2**20}
        cached = whole._replace(frozen={**whole.frozen, "states": jax.device_put(states)})
        sides = {"ours": Side(assembly, cached), **sides}
    figures = timing.summary(timing.interleaved(sides, repeats))
    losses = [np.array(side.losses) for side in sides.values()]
    return {
        "lowest": cut,
        "batch_size": config.train.batch_size,
        "history": config.train.history,
        "items": assembly.dataset.num_items,
        **figures,
        **made,
        "steps": len(losses[0]),
        "largest_relative_difference_of_losses": float(np.abs(losses[0] / losses[-1] - 1).max()),
        "last_loss": float(losses[-1][-1]),
        "programs": {name: side.programs for name, side in sides.items()},
    }


class Side:
    """Steps over the batches of a run, each with its making; their losses."""

    def __init__(self, assembly: Assembly, parts: training.Parts) -> None:
        self._step = training.Stepper(parts)
        _, batches = parts.task.input(assembly.config.seed)
        self._batches = iter(batches)
        self.losses: list[float] = []

    def __call__(self) -> None:
        loss = self._step(next(self._batches))
        self._step.wait()
        self.losses.append(float(loss))

    @property
    def programs(self) -> int:
        """Number of programs that the step has been compiled to."""
        return self._step.programs
