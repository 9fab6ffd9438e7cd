"""One training step of the encoder on one batch: ours against torch with peft, the same weights and tokens."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments.benchmarks import machine, timing
from llm4rec_jax import peft
from llm4rec_jax.data import assets
from llm4rec_jax.models.encoders import huggingface
from llm4rec_jax.models.encoders.base import Encoder, EncoderConfig
from llm4rec_jax.models.encoders.pooling import Mean
from llm4rec_jax.peft.sites import count
from llm4rec_jax.training.optimizer import optimizer
from llm4rec_jax.trees import flatten

_SHAPES = flags.DEFINE_list("shapes", [], "For the benchmark `step`: TEXTSxTOKENS in place of 64x16,32x64,16x128.")
_METHODS = flags.DEFINE_multi_enum("methods", ["full", "lora"], ["full", "lora"], "For the benchmark `step`.")
_ATTENTION = flags.DEFINE_enum("attention", "xla", ["xla", "cudnn"], "For the benchmark `step`: our attention.")
_COMPILED = flags.DEFINE_bool("compiled", False, "For the benchmark `step`: torch.compile is a peer too.")

SHAPES = ((64, 16), (32, 64), (16, 128))
RATE = 1e-5
TEMPERATURE = 20.0


def run() -> Iterator[dict[str, Any]]:
    """Every method at every shape."""
    shapes = [tuple(map(int, shape.split("x"))) for shape in _SHAPES.value] or SHAPES
    for method in _METHODS.value:
        for texts, length in shapes:
            yield measure(
                method,
                texts,
                length,
                folder=machine.encoder(),
                dtype=machine.dtype(),
                attention=_ATTENTION.value,
                compiled=_COMPILED.value,
            )


def measure(
    name: str,
    texts: int,
    length: int,
    repeats: int = 20,
    *,
    folder: Path | None = None,
    dtype: str = "float32",
    attention: str = "xla",
    compiled: bool = False,
) -> dict[str, Any]:
    """A step of an in-batch softmax between the first half of the texts and the second, AdamW, no dropout.

    In bfloat16 "torch" has its parameters in float32, as ours, by automatic mixed precision, and "torch_half" all of
    them in bfloat16, the moments of its optimizer too.
    """
    from experiments.benchmarks import torch_encoder

    folder = folder or assets.minilm()
    encoder, params = huggingface.load(folder, dropout=0.0, compute_dtype=dtype, attention=attention)
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, encoder.config.vocab_size, (texts, length)).astype(np.int32)
    mask = np.ones_like(ids)
    method = peft.create(name)
    delta = method.init(jax.random.key(0), params)
    if name == "lora":
        # At B = 0 half of the gradients are zero.
        delta = {
            site: {**ab, "b": 0.02 * jax.random.normal(jax.random.key(i), ab["b"].shape)}
            for i, (site, ab) in enumerate(delta.items())
        }
    step = Step(encoder, params, method, delta)
    kinds = {"torch": (dtype, False)}
    if dtype != "float32":
        kinds["torch_half"] = ("half", False)
    if compiled:
        kinds["torch_compiled"] = (dtype if dtype == "float32" else "half", True)
    peers = {kind: torch_encoder.Step(folder, name, delta, RATE, TEMPERATURE, *how) for kind, how in kinds.items()}
    parity = compare(step.probe(ids, mask), peers["torch"].probe(ids, mask))
    rate = machine.product_rate(dtype)
    sides = {"ours": step, **peers}
    times = timing.interleaved({side: partial(run_step, ids, mask) for side, run_step in sides.items()}, repeats)
    work = flops(encoder.config, count(encoder_weights(params)), texts * length, length, frozen=name != "full")
    figures = timing.summary(times)
    return {
        "method": name,
        "encoder": folder.name,
        "dtype": dtype,
        "attention": attention,
        "texts": texts,
        "tokens": length,
        **figures,
        **parity,
        "gflop": work / 1e9,
        "product_gflop_per_s": rate / 1e9,
        "share_of_product": work / figures["ours_s"] / rate,
        **{f"share_of_product_{kind}": work / figures[f"{kind}_s"] / rate for kind in peers},
    }


class Step:
    """Ours, as `train` makes one: a jitted update whose state is given away."""

    def __init__(self, encoder: Encoder, params: Any, method: peft.Peft, delta: Any) -> None:
        pooling = Mean()

        def loss(delta: Any, frozen: Any, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
            vectors = pooling.apply({}, peft.forward(encoder, method, frozen, delta, ids, mask), mask)
            assert isinstance(vectors, jax.Array)
            half = len(ids) // 2
            scores = vectors[:half] @ vectors[half:].T / TEMPERATURE
            return optax.softmax_cross_entropy_with_integer_labels(scores, jnp.arange(half)).mean(), vectors

        tx = optimizer(method, {"delta": delta, "params": {}}, learning_rate=RATE, steps=10**6, clip=None)

        def update(frozen: Any, state: Any, ids: jax.Array, mask: jax.Array) -> Any:
            (value, _), grads = jax.value_and_grad(loss, has_aux=True)(state["delta"], frozen, ids, mask)
            whole = {"delta": state["delta"], "params": {}}
            updates, opt_state = tx.update({"delta": grads, "params": {}}, state["opt_state"], whole)
            moved: Any = optax.apply_updates(whole, updates)
            return {"delta": moved["delta"], "opt_state": opt_state}, value

        self._frozen = params
        own = jax.tree.map(jnp.copy, delta)
        self._state = {"delta": own, "opt_state": tx.init({"delta": own, "params": {}})}
        self._update = jax.jit(update, donate_argnums=1)
        self._probe = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> None:
        self._state, value = self._update(self._frozen, self._state, ids, mask)
        jax.block_until_ready((self._state, value))

    def probe(self, ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        """Vectors, loss and gradients of what is trained, before any step."""
        (value, vectors), grads = self._probe(self._state["delta"], self._frozen, ids, mask)
        return {"vectors": np.asarray(vectors), "loss": float(value), "grads": flatten(grads)}


def compare(ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, float]:
    """Largest differences relative to the largest value of each array."""

    def apart(a: Any, b: Any) -> float:
        a, b = np.asarray(a), np.asarray(b)
        return float(np.abs(a - b).max() / np.abs(b).max())

    missing = set(ours["grads"]) ^ set(peer["grads"])
    if missing:
        raise RuntimeError(f"gradients on one side only: {', '.join(sorted(missing))}")
    grads = {name: np.asarray(value) for name, value in peer["grads"].items()}
    largest = max(np.abs(value).max() for value in grads.values())
    return {
        "parity_vectors": apart(ours["vectors"], peer["vectors"]),
        "parity_loss": abs(ours["loss"] - peer["loss"]) / abs(peer["loss"]),
        "parity_gradients": max(
            float(np.abs(np.asarray(ours["grads"][name]) - value).max() / largest) for name, value in grads.items()
        ),
    }


def encoder_weights(params: Any) -> Any:
    """The parameters that multiply every token: all but the embeddings."""
    return {name: part for name, part in params.items() if name != "embeddings"}


def flops(config: EncoderConfig, weights: int, tokens: int, length: int, frozen: bool) -> float:
    """Returns the FLOPs of one training step: 6N + 12 · layers · L · D a token, 4N + … with a frozen base."""
    return tokens * ((4 if frozen else 6) * weights + 12 * config.num_hidden_layers * length * config.hidden_size)
