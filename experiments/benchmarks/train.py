"""Training on MovieLens-100k, LoRA and full: ours against torch that reads every position, or each item once."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import movielens_100k
from experiments.benchmarks import machine, timing, training
from experiments.benchmarks.sasrec import read
from llm4rec_jax.data import assets
from llm4rec_jax.peft.sites import constant_below
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.trees import flatten

METHODS = ("lora", "full")


def run() -> Iterator[dict[str, Any]]:
    """configs/movielens_100k.py with its batches of 256 windows of 100, each against the whole catalogue."""
    for method in METHODS:
        yield measure(Assembly(configuration(method, machine.dtype())), assets.minilm())


def configuration(method: str, dtype: str = "float32") -> ConfigDict:
    """Measures one method, without dropout."""
    config: Any = movielens_100k.get_config(method)
    config.train.dropout = False
    config.encoder.dtype = dtype
    return config


def measure(assembly: Assembly, folder: Any, repeats: int = 10, usual_repeats: int = 3) -> dict[str, Any]:
    """Seconds of a step, the making of its batch included, and examples a second.

    The peers are `torch_text.Training`: "usual" encodes every position of every history, 8 windows at a time, "strong"
    each item once, padded to the longest, and "sorted" each item once, in groups of a length, as ours does.
    """
    from experiments.benchmarks import torch_text

    config: Any = assembly.config
    assert assembly.tokens is not None
    params = assembly.params()
    parts = training.parts(assembly, params, dropout=False)
    cut, _ = constant_below(parts.trainable["delta"], assembly.model.text_encoder.encoder.config.num_hidden_layers)
    if cut:
        weights = {**parts.frozen["params"], **parts.trainable["params"]}
        parts.frozen["states"] = jax.device_put(assembly.scorer.states(weights, parts.trainable["delta"], cut))
    builder, stream = parts.task.input(config.seed)
    known = np.flatnonzero(assembly.split.known)
    peers = {
        name: torch_text.Training(
            folder,
            config.peft.method,
            of_encoder(parts.trainable["delta"]),
            flatten(parts.trainable["params"]),
            torch_text.Data(assembly.tokens.ids, assembly.tokens.lengths, known, *read(builder)),
            rate=config.train.learning_rate,
            clip=config.train.clip,
            heads=config.model.user_options.transformer.heads,
            dtype=config.encoder.dtype,
            reading=name,
        )
        for name in ("usual", "strong", "sorted")
    }
    few = np.arange(8)
    parity = {
        name: compare(parts, builder(few, np.random.default_rng(0)), peer.probe(few)) for name, peer in peers.items()
    }
    step = training.Stepper(parts)
    batches, size = iter(stream), config.train.batch_size
    rng = np.random.default_rng(0)

    def ours() -> None:
        step(next(batches))
        step.wait()

    def of(peer: torch_text.Training) -> Any:
        return lambda: peer.step(rng.integers(len(builder.examples.user), size=size))

    close = timing.interleaved({"ours": ours, **{n: of(peers[n]) for n in ("strong", "sorted")}}, repeats)
    far = timing.interleaved({"ours": ours, "usual": of(peers["usual"])}, usual_repeats, warm=1)
    beside = timing.summary(far)
    # The time of ours is of other calls there.
    figures = {**timing.summary(close), "ours_beside_usual_s": beside["ours_s"]}
    figures |= {key: value for key, value in beside.items() if not key.startswith("ours")}
    tokens = int(assembly.tokens.lengths[known].sum())
    return {
        "method": config.peft.method,
        "dtype": config.encoder.dtype,
        "batch_size": size,
        "history": builder.history,
        "items": len(known),
        "tokens": tokens,
        **figures,
        **{f"examples_per_s_{name}": size / figures[f"{name}_s"] for name in ("ours", *peers)},
        "tokens_per_s": tokens / figures["ours_s"],
        **{key: max(each[key] for each in parity.values()) for key in parity["usual"]},
        "states_cached_below": cut,
        "programs": step.programs,
        "product_gflop_per_s": machine.product_rate(config.encoder.dtype) / 1e9,
    }


def compare(parts: training.Parts, batch: Any, peer: dict[str, Any]) -> dict[str, float]:
    """Largest relative differences of loss and gradients on one batch."""
    loss, grads = jax.jit(jax.value_and_grad(parts.task.loss))(parts.trainable, parts.frozen, batch, None)
    return {
        "parity_loss": abs(float(loss) - peer["loss"]) / peer["loss"],
        "parity_gradients": training.largest_difference(
            {**flatten(of_encoder(grads["delta"])), **flatten(grads["params"])}, peer["grads"]
        ),
    }


def of_encoder(delta: Any) -> dict[str, Any]:
    """The delta by the encoder's own names."""
    return delta["encoder"] if "encoder" in delta else {site.removeprefix("encoder/"): a for site, a in delta.items()}
