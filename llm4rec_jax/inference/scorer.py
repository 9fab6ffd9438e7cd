"""Contexts of a whole catalogue and user embeddings of all users, as evaluation and recommendation need them.

Everything is computed in `tiles`, so that a vector does not depend on what else is computed with it.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.batching.batch import TokenGroup, token_group
from llm4rec_jax.data.batching.buckets import text_bucket
from llm4rec_jax.data.batching.windows import histories
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.splits.split import Sequences
from llm4rec_jax.inference.batch_sizes import rows_of_a_tile
from llm4rec_jax.inference.batched import Tiled
from llm4rec_jax.models.graphs.lightgcn import LightGcn
from llm4rec_jax.models.recommender import Recommender
from llm4rec_jax.models.users import base as user_models
from llm4rec_jax.models.users.base import User
from llm4rec_jax.peft.core import Peft, forward
from llm4rec_jax.peft.sites import Delta, Params, constant_below, parts_of
from llm4rec_jax.sharding import fetch

Prompts = Callable[[Sequence[np.ndarray], np.ndarray], TokenGroup]
"""(histories, user rows) -> their prompts' tokens [B, L]."""


class Scorer(Protocol):
    """What can be evaluated: a trained recommender, or a baseline."""

    def item_embeddings(self) -> np.ndarray:
        """[I, D]."""
        ...

    def user_embeddings(self, item_embeddings: np.ndarray, history: Sequences, users: np.ndarray) -> np.ndarray:
        """User rows [n] to [n, D]."""
        ...

    @property
    def head(self) -> tuple[Callable[[Any, jax.Array, jax.Array], jax.Array], Any]:
        """(pairs, params): `score_matrix(params, user embeddings [B, D], item embeddings [N, D])` is [B, N]."""
        ...


def _by_length(tokens: Tokens, most: int) -> Iterator[tuple[np.ndarray, int]]:
    """Rows of texts that share a bucket, and the bucket, which has no more than `most` tokens."""
    lengths = np.array([text_bucket(int(n), most) for n in tokens.lengths])
    for length in np.unique(lengths):
        yield np.flatnonzero(lengths == length), int(length)


Known: TypeAlias = np.ndarray | jax.Array | None


def _on_host(known: Known) -> np.ndarray | None:
    return fetch(known) if isinstance(known, jax.Array) else known


def _from_states(
    run: Callable[..., jax.Array], layer: int | None, weights: Any, states: jax.Array, mask: jax.Array
) -> jax.Array:
    """Pooled vectors [n, W] from the hidden states before block `layer`, [n, L, W], or of all blocks, [n, L, S, W]."""
    if layer is None:
        return run("encode_over", weights, states, mask)
    return run("encode_above", weights, states, mask, layer)


def _known_of(states: np.ndarray, tokens: Tokens, rows: np.ndarray, length: int) -> tuple[np.ndarray, Any]:
    """States of some texts, as long as their bucket, and their mask: the longest text may be shorter than that."""
    known = states[rows, :length]
    known = np.pad(known, ((0, 0), (0, length - known.shape[1]), *((0, 0),) * (known.ndim - 2)))
    return known, token_group(tokens, rows, length).mask


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
        self.encode = Tiled(partial(run, "encode"), mesh, texts=True)
        # By the block that states are the input of, None for states of all blocks.
        self._encode_from = functools.cache(lambda layer: Tiled(partial(_from_states, run, layer), mesh, texts=True))
        self._encoder = None if model.encoder is None else model.encoder.config
        self._context = Tiled(partial(run, "context"), mesh)
        self._context_of_ids = Tiled(lambda params, items: run("context", params, items, None), mesh)
        # Of a table of ids a tile is given its own rows, so that no device holds the table.
        tile = rows_of_a_tile(mesh)
        cut = None if model.num_items is None or isinstance(model.users, LightGcn) else model.clone(num_items=tile)
        self._has_rows = cut is not None

        def context_of_rows(params: tuple[Params, Delta], rows: jax.Array, *text: jax.Array) -> jax.Array:
            weights, delta = {**params[0], "ids": {"embedding": rows}}, params[1]
            assert cut is not None
            return forward(cut, method, weights, delta, np.arange(tile), *(text or (None,)), apply="context")

        self._context_of_rows = Tiled(context_of_rows, mesh)
        self._prompt_profile = Tiled(
            lambda params, ids, mask: run("prompt_profile", params, run("encode", params, ids, mask)), mesh
        )

        def profile(params: Any, vectors: jax.Array, mask: jax.Array) -> jax.Array:
            return user_models.last(run("user_embeddings", params, vectors, mask), mask)

        self._profile = Tiled(profile, mesh)
        self._profile_of_user = Tiled(
            lambda params, users: run("user_embeddings", params, None, None, users)[:, 0], mesh
        )
        self._known_users = model.users.num_users if isinstance(model.users, (User, LightGcn)) else None
        self.score_matrix = partial(run, "score_matrix")
        self._num_items = model.num_items
        self._reads_text = model.encoder is not None

    def text(self, params: Params, delta: Delta, states: np.ndarray | None = None) -> np.ndarray:
        """Pooled text vectors of the catalogue, [I, W].

        Args:
          states: what `states` gave for the lowest block that the delta changes (`sites.constant_below`), where it is
            known: the blocks below are not computed again then.
        """
        assert self._tokens is not None
        return self.encode_texts((params, delta), self._tokens, states)

    def encode_texts(
        self, weights: tuple[Params, Delta], tokens: Tokens, states: np.ndarray | None = None
    ) -> np.ndarray:
        """Pooled vectors of texts, [n, W]; each text is padded to a bucket that depends on its own length only."""
        assert self._encoder is not None
        groups = list(_by_length(tokens, self._encoder.max_position_embeddings))
        if states is None:
            parts = self.encode.each(weights, (token_group(tokens, *group) for group in groups))
        else:
            layer, every = constant_below(weights[1], self._encoder.num_hidden_layers)
            known = (_known_of(states, tokens, *group) for group in groups)
            parts = self._encode_from(None if every else layer).each(weights, known)
        vectors = np.concatenate(list(parts))
        return vectors[np.argsort(np.concatenate([rows for rows, _ in groups]))]

    def shape_of_text(self) -> jax.ShapeDtypeStruct:
        """That of `text`."""
        assert self._tokens is not None
        assert self._encoder is not None
        return jax.ShapeDtypeStruct((len(self._tokens.ids), self._encoder.hidden_size), np.float32)

    def shape_of_states(self, layer: int | None) -> jax.ShapeDtypeStruct:
        """That of `states`."""
        assert self._tokens is not None
        assert self._encoder is not None
        longest, c = int(self._tokens.lengths.max()), self._encoder
        blocks = () if layer is not None else (c.num_hidden_layers + 1,)
        return jax.ShapeDtypeStruct((len(self._tokens.ids), longest, *blocks, c.hidden_size), c.dtype)

    def states(self, params: Params, delta: Delta, layer: int | None) -> np.ndarray:
        """Hidden states of the catalogue's texts before the encoder's block `layer`, [I, L, W], zeros beyond a bucket.

        With `layer` None, those before and after every block, [I, L, S, W].
        """
        assert self._tokens is not None
        assert self._encoder is not None

        def states(weights: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
            if layer is None:
                return self._run("states_of_all", weights, ids, mask)
            return self._run("states_below", weights, ids, mask, layer)

        read = Tiled(states, self._mesh, texts=True)
        tokens, shape = self._tokens, self.shape_of_states(layer)
        groups = list(_by_length(tokens, self._encoder.max_position_embeddings))
        found, longest = np.zeros(shape.shape, shape.dtype), int(tokens.lengths.max())
        computed = read.each((params, delta), (token_group(tokens, *group) for group in groups))
        for (rows, length), own in zip(groups, computed, strict=True):
            found[rows, :length] = own[:, :longest]
        return found

    def of(self, params: Params, delta: Delta, text: Known = None, states: Known = None) -> "_Bound":
        """The scorer with these parameters; the catalogue's text [I, W], or its states (see `text`), where known."""
        return _Bound(self, params, delta, _on_host(text), _on_host(states))

    def contexts_of(self, weights: tuple[Params, Delta], items: np.ndarray, text: np.ndarray | None) -> np.ndarray:
        """Item rows [n] and their text vectors [n, W] to item embeddings [n, D]."""
        params, delta = weights
        # A method may have changed the table, though hardly any does.
        if self._has_rows and "ids" not in parts_of(delta):
            rows = fetch(params["ids"]["embedding"])[items]
            others = {name: part for name, part in params.items() if name != "ids"}
            return self._context_of_rows((others, delta), rows, *(() if text is None else (text,)))
        if text is None:
            return self._context_of_ids(weights, items)
        return self._context(weights, items, text)

    def profiles_of(
        self, weights: tuple[Params, Delta], item_embeddings: np.ndarray, history: Sequences, users: np.ndarray
    ) -> np.ndarray:
        """User rows [n] to user embeddings [n, D]."""
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
        return self._profile(weights, item_embeddings[items], mask)

    def catalogue(
        self, weights: tuple[Params, Delta], text: np.ndarray | None, states: np.ndarray | None = None
    ) -> np.ndarray:
        """Contexts of every item, [I, D]; see `of`."""
        if self._reads_text and text is None:
            text = self.text(*weights, states)
        items = self._items if self._num_items is None else np.arange(self._num_items)
        return self.contexts_of(weights, items, text)


class _Bound:
    """A `RecommenderScorer` with its parameters: a `Scorer`."""

    def __init__(
        self,
        scorer: RecommenderScorer,
        params: Params,
        delta: Delta,
        text: np.ndarray | None,
        states: np.ndarray | None,
    ) -> None:
        self._scorer, self._weights, self._text, self._states = scorer, (params, delta), text, states
        self._contexts: np.ndarray | None = None

    def item_embeddings(self) -> np.ndarray:
        # Validation, test and recommendations ask for the same.
        if self._contexts is None:
            self._contexts = self._scorer.catalogue(self._weights, self._text, self._states)
        return self._contexts

    def user_embeddings(self, item_embeddings: np.ndarray, history: Sequences, users: np.ndarray) -> np.ndarray:
        return self._scorer.profiles_of(self._weights, item_embeddings, history, users)

    @property
    def head(self) -> tuple[Callable[[Any, jax.Array, jax.Array], jax.Array], Any]:
        return self._scorer.score_matrix, self._weights
