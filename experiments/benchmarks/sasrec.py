"""An epoch of SASRec over ids on MovieLens-100k: ours against torch, the same weights, windows, loss and optimizer."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import baselines_movielens
from experiments.benchmarks import timing, training
from llm4rec_jax.data.batching.builder import BatchBuilder
from llm4rec_jax.models.users.base import UserInputs
from llm4rec_jax.peft.core import forward
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.trees import flatten

LENGTH = 50


def run() -> Iterator[dict[str, Any]]:
    """The baseline `sasrec` of configs/baselines_movielens.py with histories of 50: without dropout, and with it."""
    for dropout in (False, True):
        yield measure(Assembly(configuration()), dropout)


def configuration() -> ConfigDict:
    config: Any = baselines_movielens.get_config("sasrec")
    config.train.history = config.model.user_options.transformer.positions = LENGTH
    return config


def measure(assembly: Assembly, dropout: bool, repeats: int = 20) -> dict[str, Any]:
    """Seconds of an epoch, the making of its batches included, and of a step over a batch that is there already."""
    import torch

    from experiments.benchmarks import torch_sasrec

    config: Any = assembly.config
    options, batch_size = config.model.user_options.transformer, config.train.batch_size
    parts = training.parts(assembly, assembly.params(), dropout=dropout)
    builder, stream = parts.task.input(config.seed)
    if parts.trainable["delta"] or jax.tree.leaves(parts.frozen):
        raise ValueError("the configuration freezes something or reads text: give one over ids")
    windows = read(builder)
    peers = {
        name: torch_sasrec.Training(
            torch_sasrec.Sizes(
                assembly.dataset.num_items,
                config.model.width,
                options.layers,
                options.heads,
                options.positions,
                options.dropout,
            ),
            flatten(parts.trainable["params"]),
            windows,
            batch_size=batch_size,
            rate=config.train.learning_rate,
            steps=config.train.steps,
            clip=config.train.clip,
            fused=name == "torch",
        )
        for name in ("torch", "torch_foreach")
    }
    numbers = np.arange(batch_size)
    batch = builder(numbers, np.random.default_rng(0))
    peer = peers["torch"]
    parity = compare(parts, batch, peer.probe(numbers))
    step, ready = training.Stepper(parts), jax.device_put(batch)
    batches = iter(stream)
    steps = len(builder.examples.user) // batch_size

    def epoch() -> None:
        for _ in range(steps):
            step(next(batches))
        step.wait()

    def one() -> None:
        step(ready)
        step.wait()

    for each in peers.values():
        each.train(dropout)
    epochs = timing.interleaved({"ours": epoch, **{name: each.epoch for name, each in peers.items()}}, repeats, warm=1)
    chosen = torch.from_numpy(numbers)
    alone = timing.interleaved({"ours": one, **{n: lambda p=p: p.step(chosen) for n, p in peers.items()}}, repeats)
    return {
        "dropout": options.dropout if dropout else 0.0,
        "history": builder.history,
        "width": config.model.width,
        "batch_size": batch_size,
        "steps": steps,
        "positions": int(windows[1].sum()),
        "items": assembly.dataset.num_items,
        **parity,
        **timing.summary(epochs),
        **{f"step_{name}": value for name, value in timing.summary(alone).items()},
        "programs": step.programs,
    }


def read(builder: BatchBuilder) -> tuple[np.ndarray, np.ndarray]:
    """All windows as rows of the item table [E, H + 1], and which positions have a target, [E, H]."""
    start, stop = builder.examples.start[:, None], builder.examples.stop[:, None]
    at = start + np.arange(builder.history + 1)
    return builder.sequences.items[np.minimum(at, stop)], at[:, :-1] < stop


def compare(parts: training.Parts, batch: Any, peer: dict[str, Any]) -> dict[str, float]:
    """Largest differences of user embeddings, loss and gradients on one batch without dropout."""
    task, frozen, trainable = parts.task, parts.frozen, parts.trainable
    model, method, params = task.model, task.method, trainable["params"]
    item_embeddings = forward(model.items, method, params, {}, {"ids": batch.items})
    inputs = UserInputs(item_embeddings[batch.history], batch.history_mask)
    user_embeddings = forward(model.matcher, method, params, {}, inputs, apply="user_embeddings")
    loss, grads = jax.jit(jax.value_and_grad(task.loss))(trainable, frozen, batch, None)
    ours = np.asarray(user_embeddings)[np.asarray(batch.target_mask)]
    return {
        "parity_profiles": training.largest_difference({"": ours}, {"": peer["user_embeddings"]}),
        "parity_loss": abs(float(loss) - peer["loss"]) / peer["loss"],
        "parity_gradients": training.largest_difference(flatten(grads["params"]), peer["grads"]),
    }
