"""A small BERT for tests of methods, its batch, and what is done to deltas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erf

from llm4rec_jax.models.encoders.bert import Bert, BertConfig
from llm4rec_jax.trees import flatten

V, P, T, D, F, N, HEADS = 24, 12, 2, 16, 32, 2, 4
CONFIG = {
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": N,
    "num_attention_heads": HEADS,
    "intermediate_size": F,
    "max_position_embeddings": P,
    "type_vocab_size": T,
}
MASK = np.arange(5) < np.array([5, 3, 1, 4])[:, None]
IDS = np.random.default_rng(0).integers(1, V, MASK.shape) * MASK
WEIGHTS = np.random.default_rng(1).normal(size=(*MASK.shape, D)).astype(np.float32) * MASK[..., None]


def numpy_bert(
    params: dict[str, Any], prefixes: dict[str, Any], prompt: np.ndarray | None = None, first: int = 0
) -> np.ndarray:
    """BERT in numpy with `prefixes` {site: {"key": [n, D], "value": [n, D]}} in front of keys and values.

    Or with a prompt [n, D] in front of the embeddings, whose states are dropped at the end. Positions begin at `first`.
    """

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    e = params["embeddings"]
    tables = [np.asarray(e[name]["embedding"], np.float64) for name in ("word", "position", "token_type")]
    prompt = np.zeros((0, D)) if prompt is None else prompt
    nothing = {"key": np.zeros((0, D)), "value": np.zeros((0, D))}
    out = np.zeros((*IDS.shape, D))
    for row, (ids, mask) in enumerate(zip(IDS, MASK, strict=True)):
        words = np.concatenate([prompt, tables[0][ids]])
        mask = np.concatenate([np.ones(len(prompt), bool), mask])
        x = norm(words + tables[1][first : first + len(words)] + tables[2][0], e["norm"])
        for i in range(N):
            p = params[f"layer_{i}"]
            a, prefix = p["attention"], prefixes.get(f"layer_{i}/attention", nothing)
            q, k, v = (dense(x, a[name]) for name in ("query", "key", "value"))
            k, v = np.concatenate([prefix["key"], k[mask]]), np.concatenate([prefix["value"], v[mask]])
            mixed = []
            for h in np.split(np.arange(D), HEADS):
                w = np.exp(q[:, h] @ k[:, h].T / (D / HEADS) ** 0.5)
                mixed.append(w / w.sum(-1, keepdims=True) @ v[:, h])
            x = norm(x + dense(np.concatenate(mixed, -1), a["output"]), p["attention_norm"])
            up = dense(x, p["ffn"]["up"])
            x = norm(x + dense(up * (1 + erf(up / 2**0.5)) / 2, p["ffn"]["down"]), p["ffn_norm"])
        out[row] = x[len(prompt) :]
    return out


def prompted(params: dict[str, Any], delta: dict[str, Any]) -> np.ndarray:
    return numpy_bert(params, {}, np.asarray(delta["embeddings/word"]["prompt"]))


def prefixed(params: dict[str, Any], delta: dict[str, Any]) -> np.ndarray:
    (length,) = {len(own["key"]) for own in delta.values()}
    return numpy_bert(params, delta, first=length)


def encoder(**options: Any) -> Bert:
    return Bert(BertConfig(**CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **options))


def moved(delta, seed: int, by: float = 0.2):
    """The delta with noise on every array, as training might leave it."""
    leaves, structure = jax.tree.flatten(delta)
    rng = np.random.default_rng(seed)
    noisy = [a + jnp.asarray(rng.normal(0.0, by, a.shape), a.dtype) for a in leaves]
    return jax.tree.unflatten(structure, noisy)


def named(tree) -> dict[str, np.ndarray]:
    return {path: np.asarray(a) for path, a in flatten(tree).items()}
