"""Item embeddings of a whole catalogue and user embeddings of all users, as evaluation and recommendation need them.

Everything is computed in fixed batches, so that an embedding does not depend on what else is computed with it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llm4rec_jax.data.batching.batch import TokenGroup
from llm4rec_jax.data.batching.windows import histories
from llm4rec_jax.data.features.columns import NO_COLUMNS, Column, Columns
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.splits.split import Sequences
from llm4rec_jax.inference.batched import map_in_fixed_batches
from llm4rec_jax.inference.ranks import scores_of
from llm4rec_jax.inference.text_encoder import BatchTextEncoder
from llm4rec_jax.models.recommender import Recommender
from llm4rec_jax.models.users.base import UserInputs, at_last_position
from llm4rec_jax.peft.core import Peft, forward
from llm4rec_jax.peft.sites import Delta, Params, parts_of
from llm4rec_jax.sharding import fetch

Prompts: TypeAlias = Callable[[Sequence[np.ndarray], np.ndarray], TokenGroup]
"""(histories, user rows) -> their prompts' tokens [B, L]."""

Weights: TypeAlias = tuple[Params, Delta]
OnHostOrDevice: TypeAlias = np.ndarray | jax.Array | None


class Scorer(Protocol):
    """A model that can be evaluated: a trained recommender, or a baseline. Its classes inherit from this one."""

    def item_embeddings(self) -> np.ndarray:
        """Embeddings of all items, [I, D]."""
        ...

    def user_embeddings(self, item_embeddings: np.ndarray, history: Sequences, users: np.ndarray) -> np.ndarray:
        """Embeddings [n, D] of the users in rows [n]."""
        ...

    @property
    def head(self) -> tuple[Callable[[Any, jax.Array, jax.Array], jax.Array], Any]:
        """(score_matrix, params): `score_matrix(params, user embeddings [B, D], item embeddings [N, D])` is [B, N]."""
        ...

    def score(self, history: Sequences, users: np.ndarray, items: np.ndarray, *, mesh: Mesh) -> np.ndarray:
        """Returns the scores [n, T] of the items in rows [n, T] for the users in rows [n]."""
        item_embeddings = self.item_embeddings()
        user_embeddings = self.user_embeddings(item_embeddings, history, users)
        return scores_of(*self.head, user_embeddings, item_embeddings, items, mesh)


class RowScorer(Scorer, Protocol):
    """A scorer whose embedding of a user is the row of its scores of all items, `user_embeddings` [n, I].

    Attributes:
      num_items: Number of items I.
    """

    num_items: int

    def item_embeddings(self) -> np.ndarray:
        # Row numbers are exact in float32 up to 2²⁴.
        return np.arange(self.num_items, dtype=np.float32)[:, None]

    @property
    def head(self) -> tuple[Callable[[Any, jax.Array, jax.Array], jax.Array], Any]:
        return _pick, None


def _pick(params: None, user_embeddings: jax.Array, item_embeddings: jax.Array) -> jax.Array:
    """Scores [B, I] at the item rows [N, 1]: [B, N]."""
    return jnp.take(user_embeddings, item_embeddings[:, 0].astype(jnp.int32), axis=1)


class RecommenderScorer:
    """Embeds the items and users of a catalogue with a recommender and a method.

    A run makes one; `of` gives it parameters.

    Args:
      model: The recommender.
      method: Parameter-efficient method.
      mesh: The devices.
      tokens: Texts of the catalogue; None when items are ids only.
      prompts: Writes histories as text, for a user encoder that reads prompts.
      history: Length H of the longest history that is read.
      standardize: Changes the vectors of the catalogue's texts [I, W] together, as `inference.standardize` does; None
        leaves them as they are. For a frozen encoder.
      columns: Further features of items and users, where the model reads any.

    Attributes:
      standardizes: Whether vectors of texts are changed together.
      columns: The further features.
    """

    def __init__(
        self,
        model: Recommender,
        method: Peft,
        mesh: Mesh,
        tokens: Tokens | None,
        prompts: Prompts | None,
        history: int,
        standardize: Callable[[np.ndarray], np.ndarray] | None = None,
        columns: Columns | None = None,
    ) -> None:
        self._model, self._method, self._mesh = model, method, mesh
        self._tokens, self._prompts, self._history = tokens, prompts, history
        self._standardize, self.columns = standardize, columns or NO_COLUMNS
        self.standardizes = standardize is not None
        self._encoder = None if tokens is None else BatchTextEncoder(model.text_encoder, method, mesh)

        # Batches of rows are arrays one after another: the last ones are those of the columns.
        of_items, of_users = map(jax.tree.structure, self.columns)

        def embed_items(weights: Weights, items: jax.Array, *arrays: jax.Array) -> jax.Array:
            text, rest = arrays[: len(arrays) - of_items.num_leaves], arrays[len(arrays) - of_items.num_leaves :]
            features = {"ids": items, **({"text": text[0]} if text else {}), **of_items.unflatten(rest)}
            return forward(model.items, method, *weights, features)

        def embed_users(weights: Weights, inputs: UserInputs) -> jax.Array:
            return forward(model.matcher, method, *weights, inputs, apply="user_embeddings")

        def score_matrix(weights: Weights, user_embeddings: jax.Array, item_embeddings: jax.Array) -> jax.Array:
            """Scores [B, N] of user embeddings [B, D] with item embeddings [N, D]."""
            return forward(model.matcher, method, *weights, user_embeddings, item_embeddings, apply="score_matrix")

        def of_history(weights: Weights, items: jax.Array, mask: jax.Array, *rest: jax.Array) -> jax.Array:
            inputs = UserInputs(items, mask, features=of_users.unflatten(rest))
            return at_last_position(embed_users(weights, inputs), mask)

        def of_prompt(weights: Weights, ids: jax.Array, mask: jax.Array, *rest: jax.Array) -> jax.Array:
            text = forward(model.text_encoder, method, *weights, ids, mask)
            return embed_users(weights, UserInputs(prompt=text, features=of_users.unflatten(rest)))[:, 0]

        def of_user(weights: Weights, users: jax.Array, *rest: jax.Array) -> jax.Array:
            return embed_users(weights, UserInputs(users=users, features=of_users.unflatten(rest)))[:, 0]

        self._embed_items = map_in_fixed_batches(embed_items, mesh)
        self._of_history = map_in_fixed_batches(of_history, mesh)
        self._of_prompt = map_in_fixed_batches(of_prompt, mesh)
        self._of_user = map_in_fixed_batches(of_user, mesh)
        self.score_matrix = score_matrix

    def of(
        self, params: Params, delta: Delta, text: OnHostOrDevice = None, states: OnHostOrDevice = None
    ) -> "BoundScorer":
        """Returns the scorer with parameters.

        Args:
          params: Parameters of the recommender.
          delta: Arrays that the method trains.
          text: Vectors of the catalogue's texts, [I, W], where they are known.
          states: Hidden states of the catalogue's texts, where they are known; see `text`.
        """
        return BoundScorer(self, (params, delta), _on_host(text), _on_host(states))

    # ----------------------------------------------------------------------------------------------- texts of all items

    @property
    def _texts(self) -> tuple[BatchTextEncoder, Tokens]:
        if self._encoder is None or self._tokens is None:
            raise ValueError("this scorer has no texts of items: give it tokens")
        return self._encoder, self._tokens

    def text(self, params: Params, delta: Delta, states: np.ndarray | None = None) -> np.ndarray:
        """Returns the vectors of the catalogue's texts, [I, W]; for `states` see `BatchTextEncoder.encode`."""
        encoder, tokens = self._texts
        vectors = encoder.encode((params, delta), tokens, states)
        return vectors if self._standardize is None else self._standardize(vectors)

    def states(self, params: Params, delta: Delta, layer: int | None) -> np.ndarray:
        """Returns the hidden states of the catalogue's texts; see `BatchTextEncoder.hidden_states`."""
        encoder, tokens = self._texts
        return encoder.hidden_states((params, delta), tokens, layer)

    def shape_of_text(self) -> jax.ShapeDtypeStruct:
        """Returns shape and type of `text`."""
        encoder, tokens = self._texts
        return encoder.shape(tokens)

    def shape_of_states(self, layer: int | None) -> jax.ShapeDtypeStruct:
        """Returns shape and type of `states`."""
        encoder, tokens = self._texts
        return encoder.hidden_states_shape(tokens, layer)

    # ------------------------------------------------------------------------------------------------------- embeddings

    def item_embeddings(self, weights: Weights, items: np.ndarray, text: np.ndarray | None) -> np.ndarray:
        """Returns the embeddings [n, D] of the items in rows [n], whose texts have the vectors [n, W]."""
        params, delta = weights
        inputs: Any = items
        # Rows are looked up on the host, so that no device holds the table, unless a method has changed the table.
        if "ids" in params and "ids" not in parts_of(delta):
            inputs = fetch(params["ids"]["embedding"])[items]
            params = {name: part for name, part in params.items() if name != "ids"}
        return self._embed_items(
            (params, delta), inputs, *(() if text is None else (text,)), *_rows(self.columns.items, items)
        )

    def all_item_embeddings(
        self, weights: Weights, text: np.ndarray | None, states: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the embeddings of every item, [I, D]; see `of`."""
        if self._model.text is not None and text is None:
            text = self.text(*weights, states)
        of_rows = [array for array in (text, *jax.tree.leaves(self.columns.items)) if array is not None]
        num_items = len(of_rows[0]) if of_rows else self._model.num_items
        return self.item_embeddings(weights, np.arange(num_items), text)

    def user_embeddings(
        self, weights: Weights, item_embeddings: np.ndarray, history: Sequences, users: np.ndarray
    ) -> np.ndarray:
        """Returns the embeddings [n, D] of the users in rows [n]."""
        features = _rows(self.columns.users, users)
        if self._prompts is not None:
            read = [history.items[history.offsets[u] : history.offsets[u + 1]][-self._history :] for u in users]
            return self._of_prompt(weights, *self._prompts(read, users), *features)
        if (known := self._model.users.known_users) is not None:
            if len(strangers := users[users >= known]):
                raise ValueError(
                    f"user row {strangers[0]}: this model has a vector for each of the {known} users of its training "
                    "and none for anybody else; take a user model that reads histories"
                )
            return self._of_user(weights, users.astype(np.int32), *features)
        items, mask = histories(history, users, self._history)
        return self._of_history(weights, item_embeddings[items], mask, *features)


class BoundScorer(Scorer):
    """A `RecommenderScorer` with its parameters: a `Scorer`."""

    def __init__(
        self, scorer: RecommenderScorer, weights: Weights, text: np.ndarray | None, states: np.ndarray | None
    ) -> None:
        self._scorer, self._weights = scorer, weights
        self._embed_items = partial(scorer.all_item_embeddings, weights, text, states)

    @cached_property
    def _item_embeddings(self) -> np.ndarray:
        return self._embed_items()

    def item_embeddings(self) -> np.ndarray:
        # Validation, test and recommendations ask for the same.
        return self._item_embeddings

    def user_embeddings(self, item_embeddings: np.ndarray, history: Sequences, users: np.ndarray) -> np.ndarray:
        return self._scorer.user_embeddings(self._weights, item_embeddings, history, users)

    @property
    def head(self) -> tuple[Callable[[Any, jax.Array, jax.Array], jax.Array], Any]:
        return self._scorer.score_matrix, self._weights


def _rows(columns: Mapping[str, Column], rows: np.ndarray) -> list[np.ndarray]:
    """Returns the arrays of these rows; a row beyond the last one is that of somebody who is not in the data."""
    return [array[np.minimum(rows, len(array) - 1)] for array in jax.tree.leaves(columns)]


def _on_host(array: OnHostOrDevice) -> np.ndarray | None:
    return fetch(array) if isinstance(array, jax.Array) else array
