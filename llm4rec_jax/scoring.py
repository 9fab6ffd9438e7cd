"""Contexts of a whole catalogue and profiles of all users, as evaluation and recommendation need them.

Everything is computed in tiles of one fixed shape, so that a vector does not depend on what else is computed with it,
on how many devices, or in which batch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm4rec_jax.data.batches import TokenGroup, histories, token_bucket, token_group
from llm4rec_jax.data.split import Sequences
from llm4rec_jax.data.tokens import Tokens
from llm4rec_jax.models import users as user_models
from llm4rec_jax.models.graph import LightGcn
from llm4rec_jax.models.recommender import Recommender
from llm4rec_jax.models.users import User
from llm4rec_jax.peft.core import Peft, forward
from llm4rec_jax.peft.sites import Delta, Params

TEXT_TILE, USER_TILE = 64, 64

Prompts = Callable[[Sequence[np.ndarray], np.ndarray], TokenGroup]
"""(histories, user rows) -> their prompts' tokens [B, L]."""


class Scorer(Protocol):
    """What can be evaluated: a trained recommender, or a baseline."""

    def contexts(self) -> jax.Array:
        """[I, D]."""
        ...

    def profiles(self, contexts: jax.Array, history: Sequences, users: np.ndarray) -> jax.Array:
        """User rows [n] to [n, D]."""
        ...

    @property
    def head(self) -> tuple[Callable[[Any, jax.Array, jax.Array], jax.Array], Any]:
        """(pairs, params): `pairs(params, profiles [B, D], contexts [N, D])` is [B, N]."""
        ...


def tiled(function: Callable[..., jax.Array], mesh: Mesh, tile: int) -> Callable[..., jax.Array]:
    """`function(params, *arrays)` over the first axis of the arrays, a tile at a time, tiles split over the data axis.

    Args:
      function: (params, *arrays [tile, …]) -> [tile, …].
      mesh, tile: see the module.

    Returns:
      (params, *numpy arrays [n, …]) -> [n, …] on the device.
    """
    data, replicated = PartitionSpec("data"), PartitionSpec()

    @jax.jit
    def run(params: Any, *arrays: jax.Array) -> jax.Array:
        def local(params: Any, *arrays: jax.Array) -> jax.Array:
            return jax.lax.map(lambda parts: function(params, *parts), arrays)

        specs = (replicated, *(data for _ in arrays))
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=data, check_vma=False)(params, *arrays)

    def call(params: Any, *arrays: np.ndarray) -> jax.Array:
        n = len(arrays[0])
        whole = tile * mesh.shape["data"]
        # Powers of two tiles, so that few programs are compiled whatever the number of rows.
        size = whole << max((n - 1) // whole, 0).bit_length()
        padded = [np.pad(a, ((0, size - n), *((0, 0),) * (a.ndim - 1)), mode="edge") for a in arrays]
        split = [a.reshape(-1, tile, *a.shape[1:]) for a in padded]
        sharding = NamedSharding(mesh, data)
        out = run(params, *(jax.make_array_from_callback(a.shape, sharding, lambda i, a=a: a[i]) for a in split))
        out = jax.device_put(out, NamedSharding(mesh, replicated))
        return out.reshape(-1, *out.shape[2:])[:n]

    return call


class RecommenderScorer:
    """Scores with a recommender and a method. Built once a run; `of` gives it parameters.

    Args:
      model, method: the parts.
      mesh: where to compute.
      tokens: the catalogue's texts, None for ids only.
      prompts: for a user model that reads text.
      history: H, the longest history that is read.
    """

    def __init__(
        self, model: Recommender, method: Peft, mesh: Mesh, tokens: Tokens | None, prompts: Prompts | None, history: int
    ) -> None:
        self._tokens, self._prompts, self._history = tokens, prompts, history
        self._items = np.arange(0 if tokens is None else len(tokens.ids))
        self._mesh = mesh

        def run(apply: str, params: tuple[Params, Delta], *args: Any) -> jax.Array:
            return forward(model, method, *params, *args, apply=apply)

        self._run = run
        self.encode = tiled(partial(run, "encode"), mesh, TEXT_TILE)
        self._context = tiled(partial(run, "context"), mesh, TEXT_TILE)
        self._context_of_ids = tiled(lambda params, items: run("context", params, items, None), mesh, TEXT_TILE)
        self._prompt_profile = tiled(
            lambda params, ids, mask: run("prompt_profile", params, run("encode", params, ids, mask)), mesh, TEXT_TILE
        )

        def profile(params: Any, vectors: jax.Array, mask: jax.Array) -> jax.Array:
            return user_models.last(run("profiles", params, vectors, mask), mask)

        def profile_of_items(params: Any, items: jax.Array, mask: jax.Array) -> jax.Array:
            weights, contexts = params
            return profile(weights, contexts[items], mask)

        self._profile = tiled(profile_of_items, mesh, USER_TILE)
        self._profile_of_user = tiled(
            lambda params, users: run("profiles", params, None, None, users)[:, 0], mesh, USER_TILE
        )
        self._known_users = model.users.num_users if isinstance(model.users, (User, LightGcn)) else None
        self.pairs = partial(run, "pairs")
        self._num_items = model.num_items
        self._reads_text = model.encoder is not None

    def text(self, params: Params, delta: Delta) -> jax.Array:
        """Pooled text vectors of the catalogue, [I, W]."""
        assert self._tokens is not None
        return self.encode_texts((params, delta), self._tokens)

    def encode_texts(self, weights: tuple[Params, Delta], tokens: Tokens) -> jax.Array:
        """Pooled vectors of texts, [n, W]; each text is padded to a bucket that depends on its own length only."""
        lengths = np.array([token_bucket(n) for n in tokens.lengths])
        parts, order = [], []
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            parts.append(self.encode(weights, *token_group(tokens, rows, int(length))))
            order.append(rows)
        return jnp.concatenate(parts)[np.argsort(np.concatenate(order))]

    def states(self, params: Params, delta: Delta, layer: int | None) -> jax.Array:
        """Hidden states of the catalogue's texts before the encoder's block `layer`, [I, L, W].

        With `layer` None, those before and after every block, [I, L, S, W].
        """
        assert self._tokens is not None

        def states(weights: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
            if layer is None:
                return self._run("states_of_all", weights, ids, mask)
            return self._run("states_below", weights, ids, mask, layer)

        texts = token_group(self._tokens, self._items, int(self._tokens.lengths.max()))
        return tiled(states, self._mesh, TEXT_TILE)((params, delta), *texts)

    def of(self, params: Params, delta: Delta, text: jax.Array | None = None) -> "_Bound":
        """The scorer with these parameters; `text` [I, W] when it is known already."""
        return _Bound(self, params, delta, text)

    def contexts_of(self, weights: tuple[Params, Delta], items: np.ndarray, text: jax.Array | None) -> jax.Array:
        """Item rows [n] and their text vectors [n, W] to contexts [n, D]."""
        if text is None:
            return self._context_of_ids(weights, items)
        return self._context(weights, items, np.asarray(text))

    def profiles_of(
        self, weights: tuple[Params, Delta], contexts: jax.Array, history: Sequences, users: np.ndarray
    ) -> jax.Array:
        """User rows [n] to profiles [n, D]."""
        if self._prompts is not None:
            read = [history.items[history.offsets[u] : history.offsets[u + 1]][-self._history :] for u in users]
            return self._prompt_profile(weights, *self._prompts(read, users))
        if self._known_users is not None:
            if len(strangers := users[users >= self._known_users]):
                raise ValueError(
                    f"user row {strangers[0]}: this model has a vector for each of the {self._known_users} users of "
                    "its training and none for anybody else; take a user model that reads histories"
                )
            return self._profile_of_user(weights, users.astype(np.int32))
        items, mask = histories(history, users, self._history)
        return self._profile((weights, contexts), items, mask)

    def catalogue(self, weights: tuple[Params, Delta], text: jax.Array | None) -> jax.Array:
        """Contexts of every item, [I, D]."""
        if self._reads_text and text is None:
            text = self.text(*weights)
        items = self._items if self._num_items is None else np.arange(self._num_items)
        return self.contexts_of(weights, items, text)


class _Bound:
    """A `RecommenderScorer` with its parameters: a `Scorer`."""

    def __init__(self, scorer: RecommenderScorer, params: Params, delta: Delta, text: jax.Array | None) -> None:
        self._scorer, self._weights, self._text = scorer, (params, delta), text
        self._contexts: jax.Array | None = None

    def contexts(self) -> jax.Array:
        # Validation, test and recommendations ask for the same.
        if self._contexts is None:
            self._contexts = self._scorer.catalogue(self._weights, self._text)
        return self._contexts

    def profiles(self, contexts: jax.Array, history: Sequences, users: np.ndarray) -> jax.Array:
        return self._scorer.profiles_of(self._weights, contexts, history, users)

    @property
    def head(self) -> tuple[Callable[[Any, jax.Array, jax.Array], jax.Array], Any]:
        return self._scorer.pairs, self._weights
