"""The recommender: encoder, pooling, user model and head together.

context  C_i = M(D_i)        `encode` then `context`
profile  P_u = M(D_u)        `user_embeddings` (a user model over item embeddings) or `prompt_profile` (M reads the history)
score    Y_ui = F(P_u, C_i)  `score`, `score_matrix`
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.models.graphs.lightgcn import Edges, LightGcn
from llm4rec_jax.models.heads import HEADS
from llm4rec_jax.models.users import base as user_models
from llm4rec_jax.models.users.base import USERS
from llm4rec_jax.registry import Registry

PROJECTIONS: Registry = Registry("projection")


@PROJECTIONS.register("linear")
class LinearProjection(nn.Module):
    """One linear layer to D."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.width, name="output")(x)


@PROJECTIONS.register("mlp")
class MlpProjection(nn.Module):
    """Norm, hidden layer, GELU, D. The norm gives any encoder's vectors the same scale.

    Attributes:
      width: D.
      hidden: width of the hidden layer.
      dropout: on the hidden layer, when a dropout rng is given.
    """

    width: int
    hidden: int = 256
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.gelu(nn.Dense(self.hidden, name="hidden")(nn.LayerNorm(name="norm")(x)))
        x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)
        return nn.Dense(self.width, name="output")(x)


class Recommender(nn.Module):
    """Encoder, pooling, projection, user model, head. Build it with `recommender`, which checks the combination.

    Attributes:
      encoder: M, or None when items are ids only.
      pooling: states to a text's vector.
      project: to D, or None to keep the encoder's width.
      project_prompt: the same for a profile that M reads from a prompt.
      users: the user model, or None when M reads the history as one prompt.
      head: F.
      num_items: I when items have an id embedding, else None.
      width: D.
      tower: on the id embeddings, or None.
    """

    encoder: Encoder | None
    pooling: nn.Module | None
    project: nn.Module | None
    project_prompt: nn.Module | None
    users: nn.Module | None
    head: nn.Module
    num_items: int | None
    width: int
    tower: nn.Module | None = None

    def setup(self) -> None:
        if self.num_items is not None and not isinstance(self.users, LightGcn):
            self.ids = nn.Embed(self.num_items, self.width, embedding_init=nn.initializers.normal(0.02))

    def __call__(
        self, ids: jax.Array, mask: jax.Array, items: jax.Array, history: jax.Array, history_mask: jax.Array
    ) -> jax.Array:
        """Runs every part once, to initialise it. ids, mask: [U, L]; items: [U]; history, history_mask: [B, H]."""
        item_embeddings = self.context(items, None if self.encoder is None else self.encode(ids, mask))
        if self.users is None:
            user_embeddings = self.prompt_profile(self.encode(ids, mask))
        else:
            user_embeddings = self.user_embeddings(
                item_embeddings[history], history_mask, jnp.zeros(len(history), jnp.int32)
            )[:, -1]
        return self.score_matrix(user_embeddings, item_embeddings) + self.score(
            user_embeddings[:1], item_embeddings[:1]
        )

    def encode(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Token ids [U, L] and mask [U, L] to pooled float32 vectors [U, W], W the encoder's width."""
        assert self.encoder is not None
        assert self.pooling is not None
        return self.pooling(self.encoder(ids, mask), mask).astype(jnp.float32)

    def states_below(self, ids: jax.Array, mask: jax.Array, layer: int) -> jax.Array:
        """Token ids [U, L] and mask [U, L] to the hidden states before the encoder's block `layer`, [U, L, W]."""
        assert self.encoder is not None
        return self.encoder.hidden_states(ids, mask, layer)

    def states_of_all(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Token ids [U, L] and mask [U, L] to the hidden states before and after each block, [U, L, S, W]."""
        assert self.encoder is not None
        return self.encoder.all_hidden_states(ids, mask)

    def encode_over(self, states: jax.Array, mask: jax.Array) -> jax.Array:
        """What `encode` gives, [U, W], from the hidden states of all blocks, [U, L, S, W]."""
        assert self.encoder is not None
        assert self.pooling is not None
        return self.pooling(self.encoder.encode_from(None, states, mask), mask).astype(jnp.float32)

    def encode_above(self, states: jax.Array, mask: jax.Array, layer: int) -> jax.Array:
        """What `encode` gives, [U, W], from the hidden states before block `layer`, [U, L, W]."""
        assert self.encoder is not None
        assert self.pooling is not None
        return self.pooling(self.encoder.encode_from(layer, states, mask), mask).astype(jnp.float32)

    def context(self, items: jax.Array, text: jax.Array | None) -> jax.Array:
        """Item rows [U] and their pooled text [U, W] to item embeddings [U, D]."""
        context = None
        if text is not None:
            context = text if self.project is None else self.project(text)
        if self.num_items is not None:
            ids = self.users.items()[items] if isinstance(self.users, LightGcn) else self.ids(items)
            if self.tower is not None:
                ids = self.tower(ids)
            context = ids if context is None else context + ids
        assert context is not None
        return context

    def user_embeddings(
        self,
        item_embeddings: jax.Array | None,
        mask: jax.Array | None,
        users: jax.Array | None = None,
        hidden: jax.Array | None = None,
    ) -> jax.Array:
        """Contexts of histories [B, H, D], padded at the end, to the profile after every position [B, H, D].

        What `users.reads` of the user model says it does not read may be None.

        Args:
          item_embeddings, mask: [B, H, D] and [B, H].
          users: rows of the user table [B], for a model that knows its users: user embeddings are [B, 1, D] then.
          hidden: positions [B, H] of gaps, for a model that fills them.
        """
        assert self.users is not None
        match user_models.reads(self.users):
            case "user":
                return self.users(users)[:, None]
            case "gaps":
                return self.users(item_embeddings, mask, hidden)
        return self.users(item_embeddings, mask)

    def prompt_profile(self, text: jax.Array) -> jax.Array:
        """Pooled prompts [B, W] to user embeddings [B, D]."""
        return text if self.project_prompt is None else self.project_prompt(text)

    def score(self, profile: jax.Array, context: jax.Array) -> jax.Array:
        """Profiles [..., D] against item embeddings [..., D], broadcast: [...]."""
        return self.head(profile, context)

    def score_matrix(self, user_embeddings: jax.Array, item_embeddings: jax.Array) -> jax.Array:
        """Every profile [B, D] against every context [N, D]: [B, N]."""
        return self.head.score_matrix(user_embeddings, item_embeddings)  # pyright: ignore[reportAttributeAccessIssue]


def recommender(
    *,
    encoder: Encoder | None = None,
    ids: int | None = None,
    people: int | None = None,
    edges: Edges | None = None,
    users: str = "transformer",
    head: str = "dot",
    pooling: str = "mean",
    project: str | None = "mlp",
    tower: str | None = None,
    width: int = 64,
    user_options: dict[str, Any] | None = None,
    head_options: dict[str, Any] | None = None,
    project_options: dict[str, Any] | None = None,
) -> Recommender:
    """A recommender from names.

    Args:
      encoder: M, for items that are text; None for ids only.
      ids: the number of items I, for items with an id embedding; with an encoder, both are added.
      people: the number of users, for the user models "id" and "graph", which have a vector for each.
      edges: the graph of the user model "graph", whose items are ids.
      users: a name in `USERS`, or "text": the history is one prompt that M reads.
      head, pooling, project: names in `HEADS`, `POOLINGS`, `PROJECTIONS`; project None keeps the encoder's width.
      tower: a name in `PROJECTIONS`, on the id embeddings.
      width: D; the encoder's own width when project is None.

    Raises:
      ValueError: a name or option that does not exist, or parts that do not go together.
    """
    if encoder is None and ids is None:
        raise ValueError("a recommender needs text (an encoder), ids (the number of items), or both")
    if encoder is None and users == "text":
        raise ValueError("users='text' lets the encoder read the history, but there is no encoder")
    if encoder is not None and project is None:
        width = encoder.config.hidden_size
    own: dict[str, Any] = {}
    if users in ("id", "graph"):
        if people is None:
            raise ValueError(f"users={users!r} has a vector for each user: give their number")
        own = {"num_users": people, "width": width}
    if users == "graph":
        if ids is None or encoder is not None or edges is None:
            raise ValueError(
                "users='graph' smooths vectors of users and items over their graph: give ids and edges, no encoder"
            )
        own |= {"num_items": ids, "edges": edges}
    projection = None
    if encoder is not None and project is not None:
        projection = PROJECTIONS.build(project, width=width, **(project_options or {}))
    return Recommender(
        encoder=encoder,
        pooling=POOLINGS.build(pooling) if encoder is not None else None,
        project=projection,
        project_prompt=projection.copy() if projection is not None and users == "text" else None,
        users=None if users == "text" else USERS.build(users, **own, **(user_options or {})),
        head=HEADS.build(head, **(head_options or {})),
        num_items=ids,
        width=width,
        tower=PROJECTIONS.build(tower, width=width) if tower is not None and ids is not None else None,
    )


def init(model: Recommender, key: jax.Array, encoder_params: dict[str, Any] | None = None) -> dict[str, Any]:
    """The recommender's parameters, the encoder's being those given (drawn at random when None).

    Returns:
      {"encoder": …, "project": …, "users": …, "head": …, "ids": …}, parts without parameters left out.
    """
    tokens = jnp.zeros((2, 2), jnp.int32)
    arguments = (tokens, tokens == 0, jnp.zeros(2, jnp.int32), tokens, tokens == 0)
    if model.encoder is None or encoder_params is None:
        return dict(jax.jit(model.init)(key, *arguments)["params"])

    def others(key: jax.Array) -> dict[str, Any]:
        # The encoder's own random parameters are never computed: jit drops what is not returned.
        return {name: part for name, part in model.init(key, *arguments)["params"].items() if name != "encoder"}

    return {**jax.jit(others)(key), "encoder": encoder_params}
