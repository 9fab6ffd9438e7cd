"""RQ-VAE: an autoencoder whose latent vector is a sum of one code vector a level (Lee et al. 2022, arXiv 2203.01941).

TIGER makes its ids by it (Rajput et al. 2023, arXiv 2305.05065, section 3.1), LC-Rec adds Sinkhorn's balance.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from llm4rec_jax.options import check, option
from llm4rec_jax.semantic_ids.balance import sinkhorn
from llm4rec_jax.semantic_ids.kmeans import residual_clusters


@dataclasses.dataclass(frozen=True)
class RqVaeOptions:
    """Options of the network and its training."""

    hidden: tuple[int, ...] | list[int] = option((512, 256, 128))
    """Widths of the encoder's hidden layers; the decoder has them in the other order."""
    width: int = option(32, low=1)
    """Width of the latent vectors and of the codes."""
    epochs: int = option(200, low=1)
    """Number of passes over the items."""
    batch_size: int = option(1024, low=1)
    """Number of items in a batch; all where there are fewer."""
    learning_rate: float = option(1e-3, above=0.0)
    """Learning rate of AdamW."""
    beta: float = option(0.25, low=0.0)
    """Weight of the pull of latent vectors to their codes."""
    restart: bool = option(True)
    """Whether a code that no item of an epoch took moves to what is left of an item drawn at random."""
    sinkhorn: float = option(0.0, low=0.0)
    """Weight of the entropy of `balance.sinkhorn`, by which training balances the codes; 0 takes the nearest code."""

    def __post_init__(self) -> None:
        check(self, "rq_vae")


class RqVae(nn.Module):
    """Encoder and decoder, and the codes between them.

    Attributes:
      outputs: Width of the vectors W.
      levels, codes: Number of levels L, and of codes a level K.
      options: Options of the network.
    """

    outputs: int
    levels: int
    codes: int
    options: RqVaeOptions

    def setup(self) -> None:
        o = self.options
        self.encoder = [nn.Dense(width) for width in (*o.hidden, o.width)]
        self.decoder = [nn.Dense(width) for width in (*reversed(o.hidden), self.outputs)]
        self.codebooks = self.param("codebooks", nn.initializers.normal(0.02), (self.levels, self.codes, o.width))

    def encode(self, vectors: jax.Array) -> jax.Array:
        """Latent vectors: [n, W] to [n, D]."""
        return _network(self.encoder, vectors)

    def decode(self, latent: jax.Array) -> jax.Array:
        """Vectors from latent ones: [n, D] to [n, W]."""
        return _network(self.decoder, latent)

    def __call__(self, vectors: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the training loss, the codes [n, L], and the residuals that each level was given [n, L, D]."""
        latent = self.encode(vectors)
        codes, residuals, chosen = quantize(latent, self.codebooks, self.options.sinkhorn)
        held = jax.lax.stop_gradient
        pull = jnp.square(held(residuals) - chosen) + self.options.beta * jnp.square(residuals - held(chosen))
        # The gradient of the decoder passes straight through to the encoder.
        decoded = self.decode(latent + held(chosen.sum(axis=1) - latent))
        return jnp.square(decoded - vectors).sum(-1).mean() + pull.sum((1, 2)).mean(), codes, residuals


def quantize(latent: jax.Array, codebooks: jax.Array, epsilon: float = 0.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Takes the best code of each level for what the levels before have left.

    Args:
      latent: [n, D].
      codebooks: [L, K, D].
      epsilon: Weight of the entropy of `sinkhorn`, by which codes are balanced; 0 takes the nearest.

    Returns:
      Codes [n, L], residuals before each level [n, L, D], and the vectors of the codes [n, L, D].
    """
    codes, residuals, chosen = [], [], []
    for table in codebooks:
        costs = jnp.square(jax.lax.stop_gradient(latent)[:, None] - table).sum(-1)
        best = sinkhorn(costs, epsilon).argmax(1) if epsilon else costs.argmin(1)
        codes.append(best)
        residuals.append(latent)
        chosen.append(table[best])
        # A level learns from its own residual only.
        latent = latent - jax.lax.stop_gradient(table[best])
    return jnp.stack(codes, 1), jnp.stack(residuals, 1), jnp.stack(chosen, 1)


def train_rq_vae(
    vectors: NDArray[np.floating], levels: int, codes: int, *, seed: int = 0, **options: Any
) -> tuple[NDArray[np.int32], tuple[float, ...]]:
    """Trains an RQ-VAE on vectors.

    Args:
      vectors: [n, W]; they are scaled to a mean variance of 1.
      levels, codes: Number of levels L, and of codes a level.
      seed: Seed of parameters, order and restarts.
      **options: Fields of `RqVaeOptions`.

    Returns:
      Codes [n, L], each the nearest of its level, and the share of variance that decoding the first l levels leaves.
    """
    chosen = RqVaeOptions(**options)
    model = RqVae(vectors.shape[1], levels, codes, chosen)
    scaled = jnp.asarray(vectors / max(float(vectors.std()), 1e-12), jnp.float32)
    key = jax.random.key(seed)
    params: Any = model.init(key, scaled[:1])["params"]

    def run(params: Any, x: jax.Array, method: str | None = None) -> Any:
        return model.apply({"params": params}, x, method=method)

    # Codes begin where the latent vectors are, as in LC-Rec.
    start = np.asarray(run(params, scaled, "encode"), np.float64)
    params = {**params, "codebooks": jnp.asarray(residual_clusters(start, levels, codes, seed=seed)[1], jnp.float32)}
    tx = optax.adamw(chosen.learning_rate)
    size = min(chosen.batch_size, len(scaled))

    @jax.jit
    def epoch(params: Any, state: Any, key: jax.Array) -> tuple[Any, Any]:
        order, draw = jax.random.split(key)
        rows = jax.random.permutation(order, len(scaled))[: len(scaled) // size * size].reshape(-1, size)

        def step(carry: Any, rows: jax.Array) -> tuple[Any, Any]:
            def loss(params: Any) -> tuple[jax.Array, Any]:
                value, codes, residuals = run(params, scaled[rows])
                return value, (codes, residuals)

            params, state = carry
            grads, (found, residuals) = jax.grad(loss, has_aux=True)(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), (found, residuals)

        (params, state), (found, residuals) = jax.lax.scan(step, (params, state), rows)
        if chosen.restart:
            params = {**params, "codebooks": restarted(params["codebooks"], found, residuals[-1], draw)}
        return params, state

    state = tx.init(params)
    for number in range(chosen.epochs):
        params, state = epoch(params, state, jax.random.fold_in(key, number))

    @jax.jit
    def read(params: Any) -> tuple[jax.Array, jax.Array]:
        found, _, parts = quantize(run(params, scaled, "encode"), params["codebooks"])
        sums = jnp.cumsum(parts, axis=1).swapaxes(0, 1)
        decoded = jax.vmap(lambda some: run(params, some, "decode"))(sums)
        return found, jnp.square(decoded - scaled).sum((1, 2)) / jnp.square(scaled).sum()

    found, left = read(params)
    return np.asarray(found, np.int32), tuple(np.asarray(left, np.float64).tolist())


def restarted(codebooks: jax.Array, taken: jax.Array, residuals: jax.Array, key: jax.Array) -> jax.Array:
    """Moves the codes that nothing took to residuals drawn at random.

    Args:
      codebooks: [L, K, D].
      taken: Codes of an epoch, [..., L].
      residuals: Residuals [n, L, D] that each level was given last.
      key: Key of the draw.
    """
    levels, codes, _ = codebooks.shape
    level = jnp.arange(levels)
    counts = jnp.zeros((levels, codes), jnp.int32).at[level, taken.reshape(-1, levels)].add(1)
    drawn = jax.random.randint(key, (levels, codes), 0, len(residuals))
    return jnp.where(counts[..., None] > 0, codebooks, residuals[drawn, level[:, None]])


def _network(layers: Any, x: jax.Array) -> jax.Array:
    for layer in layers[:-1]:
        x = nn.relu(layer(x))
    return layers[-1](x)
