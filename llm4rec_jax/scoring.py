"""Contexts of a whole catalogue and profiles of all users, as evaluation and recommendation need them.

Everything is computed in tiles of one fixed shape, so that a vector does not depend on what else is computed with it,
on how many devices, or in which batch. Vectors go to the host block by block as they are computed, so that no device
ever holds those of a whole catalogue: of a table of vectors it is given the part that it works on.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm4rec_jax.data.batches import TokenGroup, histories, token_group
from llm4rec_jax.data.buckets import text_bucket
from llm4rec_jax.data.split import Sequences
from llm4rec_jax.data.tokens import Tokens
from llm4rec_jax.models import users as user_models
from llm4rec_jax.models.graph import LightGcn
from llm4rec_jax.models.recommender import Recommender
from llm4rec_jax.models.users import User
from llm4rec_jax.peft.core import Peft, forward
from llm4rec_jax.peft.sites import Delta, Params, constant_below, parts_of
from llm4rec_jax.sharding import fetch, put
from llm4rec_jax.sizes import rows_of_a_tile

# Rows that a device computes before what it has goes to the host.
BLOCK = 16384

Prompts = Callable[[Sequence[np.ndarray], np.ndarray], TokenGroup]
"""(histories, user rows) -> their prompts' tokens [B, L]."""


class Scorer(Protocol):
    """What can be evaluated: a trained recommender, or a baseline."""

    def contexts(self) -> np.ndarray:
        """[I, D]."""
        ...

    def profiles(self, contexts: np.ndarray, history: Sequences, users: np.ndarray) -> np.ndarray:
        """User rows [n] to [n, D]."""
        ...

    @property
    def head(self) -> tuple[Callable[[Any, jax.Array, jax.Array], jax.Array], Any]:
        """(pairs, params): `pairs(params, profiles [B, D], contexts [N, D])` is [B, N]."""
        ...


def _by_length(tokens: Tokens) -> Iterator[tuple[np.ndarray, int]]:
    """Rows of texts that share a bucket, and the bucket."""
    lengths = np.array([text_bucket(int(n)) for n in tokens.lengths])
    for length in np.unique(lengths):
        yield np.flatnonzero(lengths == length), int(length)


def tiled(function: Callable[..., jax.Array], mesh: Mesh) -> Callable[..., np.ndarray]:
    """`function(params, *arrays)` over the first axis of the arrays, a tile at a time, tiles split over all devices.

    Memory is that of `BLOCK` rows on each device, however many there are.

    Args:
      function: (params, *arrays [tile, …]) -> [tile, …].
      mesh: whose devices have a tile each at a time.

    Returns:
      (params, *numpy arrays [n, …]) -> [n, …] on the host.
    """
    split, whole, tile = PartitionSpec(mesh.axis_names), PartitionSpec(), rows_of_a_tile(mesh)
    function = jax.jit(function)  # is traced once though it is asked for its shape first

    @jax.jit
    def run(params: Any, tiles: int | jax.Array, *arrays: jax.Array) -> jax.Array:
        def local(params: Any, tiles: int | jax.Array, *arrays: jax.Array) -> jax.Array:
            def one(i: jax.Array, out: jax.Array) -> jax.Array:
                return out.at[i].set(function(params, *(a[i] for a in arrays)))

            made = jax.eval_shape(function, params, *(a[0] for a in arrays))
            # Beyond the tiles that hold rows nothing is computed.
            return jax.lax.fori_loop(0, tiles, one, jnp.zeros((len(arrays[0]), *made.shape), made.dtype))

        specs = (whole, whole, *(split for _ in arrays))
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)(params, tiles, *arrays)

    def block(params: Any, *arrays: np.ndarray) -> np.ndarray:
        n = len(arrays[0])
        each = -(-n // (tile * mesh.size))  # tiles of a device
        # Room for powers of two tiles, so that few programs are compiled whatever the number of rows.
        room = 1 << max(each - 1, 0).bit_length()
        laid = []
        for array in arrays:
            whole_tiles = np.pad(array, ((0, each * tile * mesh.size - n), *((0, 0),) * (array.ndim - 1)), mode="edge")
            of_devices = whole_tiles.reshape(mesh.size, each, tile, *array.shape[1:])
            spacious = np.pad(of_devices, ((0, 0), (0, room - each), *((0, 0),) * array.ndim))
            laid.append(put(spacious.reshape(-1, tile, *array.shape[1:]), NamedSharding(mesh, split)))
        out = fetch(run(params, each, *laid))
        return out.reshape(mesh.size, room, *out.shape[1:])[:, :each].reshape(-1, *out.shape[2:])[:n]

    def call(params: Any, *arrays: np.ndarray) -> np.ndarray:
        n, most = len(arrays[0]), BLOCK * mesh.size
        parts = [block(params, *(a[start : start + most] for a in arrays)) for start in range(0, max(n, 1), most)]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    return call


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
        self.encode = tiled(partial(run, "encode"), mesh)
        # By the block that states are the input of, None for states of all blocks.
        self._encode_from = functools.cache(lambda layer: tiled(partial(_from_states, run, layer), mesh))
        self._depth = 0 if model.encoder is None else model.encoder.config.num_hidden_layers
        self._context = tiled(partial(run, "context"), mesh)
        self._context_of_ids = tiled(lambda params, items: run("context", params, items, None), mesh)
        # Of a table of ids a tile is given its own rows, so that no device holds the table.
        tile = rows_of_a_tile(mesh)
        cut = None if model.num_items is None or isinstance(model.users, LightGcn) else model.clone(num_items=tile)
        self._has_rows = cut is not None

        def context_of_rows(params: tuple[Params, Delta], rows: jax.Array, *text: jax.Array) -> jax.Array:
            weights, delta = {**params[0], "ids": {"embedding": rows}}, params[1]
            assert cut is not None
            return forward(cut, method, weights, delta, np.arange(tile), *(text or (None,)), apply="context")

        self._context_of_rows = tiled(context_of_rows, mesh)
        self._prompt_profile = tiled(
            lambda params, ids, mask: run("prompt_profile", params, run("encode", params, ids, mask)), mesh
        )

        def profile(params: Any, vectors: jax.Array, mask: jax.Array) -> jax.Array:
            return user_models.last(run("profiles", params, vectors, mask), mask)

        self._profile = tiled(profile, mesh)
        self._profile_of_user = tiled(lambda params, users: run("profiles", params, None, None, users)[:, 0], mesh)
        self._known_users = model.users.num_users if isinstance(model.users, (User, LightGcn)) else None
        self.pairs = partial(run, "pairs")
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
        layer, every = constant_below(weights[1], self._depth)
        parts, order = [], []
        for rows, length in _by_length(tokens):
            group = token_group(tokens, rows, length)
            if states is None:
                parts.append(self.encode(weights, *group))
            else:
                known = states[rows, :length]
                # The longest text may be shorter than its bucket.
                known = np.pad(known, ((0, 0), (0, length - known.shape[1]), *((0, 0),) * (known.ndim - 2)))
                parts.append(self._encode_from(None if every else layer)(weights, known, group.mask))
            order.append(rows)
        return np.concatenate(parts)[np.argsort(np.concatenate(order))]

    def states(self, params: Params, delta: Delta, layer: int | None) -> np.ndarray:
        """Hidden states of the catalogue's texts before the encoder's block `layer`, [I, L, W], zeros beyond a bucket.

        With `layer` None, those before and after every block, [I, L, S, W].
        """
        assert self._tokens is not None

        def states(weights: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
            if layer is None:
                return self._run("states_of_all", weights, ids, mask)
            return self._run("states_below", weights, ids, mask, layer)

        read = tiled(states, self._mesh)
        longest = int(self._tokens.lengths.max())
        found: np.ndarray | None = None
        for rows, length in _by_length(self._tokens):
            own = read((params, delta), *token_group(self._tokens, rows, length))[:, :longest]
            if found is None:
                found = np.zeros((len(self._items), longest, *own.shape[2:]), own.dtype)
            found[rows, : own.shape[1]] = own
        assert found is not None
        return found

    def of(self, params: Params, delta: Delta, text: Known = None, states: Known = None) -> "_Bound":
        """The scorer with these parameters; the catalogue's text [I, W], or its states (see `text`), where known."""
        return _Bound(self, params, delta, _on_host(text), _on_host(states))

    def contexts_of(self, weights: tuple[Params, Delta], items: np.ndarray, text: np.ndarray | None) -> np.ndarray:
        """Item rows [n] and their text vectors [n, W] to contexts [n, D]."""
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
        self, weights: tuple[Params, Delta], contexts: np.ndarray, history: Sequences, users: np.ndarray
    ) -> np.ndarray:
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
        return self._profile(weights, contexts[items], mask)

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

    def contexts(self) -> np.ndarray:
        # Validation, test and recommendations ask for the same.
        if self._contexts is None:
            self._contexts = self._scorer.catalogue(self._weights, self._text, self._states)
        return self._contexts

    def profiles(self, contexts: np.ndarray, history: Sequences, users: np.ndarray) -> np.ndarray:
        return self._scorer.profiles_of(self._weights, contexts, history, users)

    @property
    def head(self) -> tuple[Callable[[Any, jax.Array, jax.Array], jax.Array], Any]:
        return self._scorer.pairs, self._weights
