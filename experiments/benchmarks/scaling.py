"""XLA's own analysis of the training step on many devices, and the largest encoder that a device holds.

Nothing is trained: programs are compiled from shapes. Devices are CPU's, eight in a process of their own; others lay
out and fuse otherwise, so bytes beside parameters and moments are a guide there.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from configs import movielens_100k
from experiments.benchmarks import training
from llm4rec_jax import sharding
from llm4rec_jax.data.batching.batch import Batch, TokenGroup
from llm4rec_jax.models.encoders.bert import Bert, BertConfig
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.models.encoders.sentence_folder import PretrainedText
from llm4rec_jax.peft.sites import constant_below, count
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.training.memory import program_bytes

# (devices, how many of them share a copy of the encoder): the data axis, the model axis, both.
LAYOUTS = ((1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 4), (8, 8), (4, 2), (8, 2), (8, 4))
METHODS = ("full", "lora", "side")
DEVICE_BYTES = 16 * 10**9
COLLECTIVES: tuple[str, ...] = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Code that never runs need not be fast; buffers are the same.
_QUICK: Any = {"xla_backend_optimization_level": 0}


def run() -> Iterator[dict[str, Any]]:
    """Each layout of configs/movielens_100k.py:lora, then each method, in a process that has eight devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    child = subprocess.Popen(
        [sys.executable, "-m", "experiments.benchmarks.scaling"],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    yield from map(json.loads, child.stdout)
    if code := child.wait():
        raise RuntimeError(f"the process with eight devices ended with {code}: its error stands above")


def measure(assembly: Assembly, devices: int, model: int) -> dict[str, Any]:
    """FLOPs, bytes and collectives of a step on each of the devices, `model` of which share a copy of the encoder."""
    mesh = sharding.make_mesh(model, jax.devices()[:devices])
    parts = training.parts(assembly, jax.eval_shape(assembly.params), mesh=mesh)
    builder, _ = parts.task.input(assembly.config.seed)
    batch = builder(np.arange(assembly.config.train.batch_size), np.random.default_rng(0))
    text = assembly.model.text
    rules = text.encoder.family.sharding_rules if model > 1 and text is not None else ()
    compiled = compile_step(assembly, batch, mesh, rules)
    return {"devices": devices, "data": devices // model, "model": model, **analysis(compiled)}


def compile_step(
    assembly: Assembly, batch: Batch, mesh: jax.sharding.Mesh, rules: sharding.Rules = ()
) -> jax.stages.Compiled:
    """The step that `train` would make of a configuration, states below the lowest trained block known."""
    params = jax.eval_shape(assembly.params)
    encoder = assembly.model.text_encoder.encoder
    parts = training.parts(assembly, params, mesh=mesh)
    cut, every = constant_below(parts.trainable["delta"], encoder.config.num_hidden_layers)
    # A side network's are those of all blocks, which few catalogues can hold: here they are computed in the step.
    if cut and not every:
        tokens = assembly.tokens
        assert tokens is not None
        shape = (len(tokens.ids), int(tokens.lengths.max()), encoder.config.hidden_size)
        parts.frozen["states"] = jax.ShapeDtypeStruct(shape, encoder.config.dtype)

    def at(tree: Any, rules: sharding.Rules = (), strict: bool = True) -> Any:
        places = sharding.shardings(tree, mesh, rules, strict)
        return jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree, places)

    both = at({"frozen": parts.frozen["params"], "trainable": parts.trainable}, rules)
    frozen = {**at(parts.frozen), "params": both["frozen"]}
    state = at(jax.eval_shape(parts.step.start, parts.step.setting, parts.trainable), rules, strict=False)
    state["trainable"] = both["trainable"]
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    read = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=split), batch)
    layout = jax.tree.map(lambda a: a.sharding, state)
    step = jax.jit(parts.step.step, donate_argnums=2, out_shardings=(layout, whole))
    return step.lower(frozen, at(parts.step.setting), state, read).compile(compiler_options=_QUICK)


def analysis(compiled: jax.stages.Compiled) -> dict[str, Any]:
    """Describes one device: FLOPs, bytes held (arguments; all at once) and moved, collectives and their bytes."""
    costs, needed = compiled.cost_analysis() or {}, program_bytes(compiled)
    numbers, moved = collectives(compiled.as_text() or "")
    return {
        "gflop": costs["flops"] / 1e9,
        "arguments_mib": needed.arguments / 2**20,
        "held_mib": needed.total / 2**20,
        "accessed_mib": costs["bytes accessed"] / 2**20,
        "collectives": numbers,
        "collectives_mib": moved / 2**20,
    }


def collectives(program: str) -> tuple[dict[str, int], int]:
    """Counts each kind in a program's text, with the bytes of their results together."""
    numbers, moved = dict.fromkeys(COLLECTIVES, 0), 0
    found = re.finditer(rf"= (.+?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", program)
    for shapes, kind in (m.groups() for m in found):
        numbers[kind] += 1
        for bits, axes in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", shapes):
            moved += int(bits) // 8 * int(np.prod([int(n) for n in axes.split(",") if n]))
    return numbers, moved


class OfSize(Assembly):
    """A recommender over texts whose encoder has BERT-large's proportions, and a number of heads of 64."""

    def __init__(self, config: ConfigDict, heads: int) -> None:
        super().__init__(config)
        self._heads = heads

    @cached_property
    def pretrained(self) -> PretrainedText:
        n = self._heads
        encoder = Bert(
            BertConfig(
                hidden_size=64 * n,
                num_hidden_layers=3 * n // 2,
                num_attention_heads=n,
                intermediate_size=256 * n,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
        return PretrainedText(encoder, POOLINGS.build("mean"), {}, self._folder, [])


def largest(method: str, most: int = DEVICE_BYTES, texts: int = 64, tokens: int = 64) -> dict[str, Any]:
    """The most heads of `OfSize` whose step, over `texts` of `length` tokens, needs no more than `most` bytes.

    Raises:
      ValueError: not even two heads fit.
    """
    held: dict[int, dict[str, Any]] = {}

    def fits(heads: int) -> bool:
        assembly = OfSize(of_method(method), heads)
        compiled = compile_step(assembly, shapes(texts, tokens), sharding.make_mesh(devices=jax.devices()[:1]))
        encoder = jax.eval_shape(assembly.params)["encoder"]
        held[heads] = {**analysis(compiled), "encoder_parameters": count(encoder)}
        return held[heads]["held_mib"] * 2**20 <= most

    low, high = 2, 4
    if not fits(low):
        raise ValueError(f"an encoder of two heads needs {held[low]['held_mib']:.0f} MiB with {method}: give it more")
    while fits(high):
        low, high = high, 2 * high
    while high - low > 2:  # an odd number would have half a layer
        middle = (low + high) // 4 * 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return {
        "method": method,
        "texts": texts,
        "tokens": tokens,
        "device_mib": most / 2**20,
        "layers": 3 * low // 2,
        "width": 64 * low,
        **{name: held[low][name] for name in ("encoder_parameters", "arguments_mib", "held_mib", "gflop")},
        "next_held_mib": held[high]["held_mib"],
    }


def of_method(method: str) -> ConfigDict:
    """configs/movielens_100k.py:full with another method, its options the defaults, and items of the batch only."""
    config: Any = movielens_100k.get_config("full")
    config.peft.method, config.loss.name = method, "in_batch"
    return config


def shapes(texts: int, tokens: int, users: int = 16, history: int = 20) -> Batch:
    """A batch of shapes: an in-batch loss over the last of its texts."""

    def some(kind: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, kind)

    by_position = some(jnp.int32, users, history), some(bool, users, history)
    text = TokenGroup(some(jnp.int32, texts, tokens), some(bool, texts, tokens))
    return Batch(
        some(jnp.int32, users), some(jnp.int32, texts), *by_position, *by_position, (text,),
        candidates=some(bool, texts), log_q=some(jnp.float32, texts), user_items=some(jnp.int32, users, history),
        target_positions=some(jnp.int32, users * history),
    )  # fmt: skip


def main() -> None:
    """A JSON object a line."""
    assembly = Assembly(movielens_100k.get_config("lora"))

    def measured() -> Iterator[Mapping[str, Any]]:
        for devices, model in LAYOUTS:
            yield measure(assembly, devices, model)
        yield from map(largest, METHODS)

    for figures in measured():
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
