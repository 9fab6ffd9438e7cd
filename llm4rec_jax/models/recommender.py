"""The recommender: item encoder, user encoder and scoring head, and the text encoder that they read texts with.

    item embedding  C_i = M(D_i)        [U, D]
    user embedding  P_u = M(D_u)        [B, D]
    score           Y_ui = F(P_u, C_i)  [B, U]

A `Recommender` is four modules over one tree of parameters. Each is applied to the whole tree, and reads its own names:

    {"encoder", "pooling"}              text     token ids to vectors
    {"project", "ids", "tower",
     "feature_…", "fusion"}             items    ids, vectors of texts and further features to item embeddings
    {"users"} or {"project_prompt"},
    {"profile"}                         matcher  to user embeddings,
    {"head"}                                     and both to scores
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models import text_encoder
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.models.graphs.base import GRAPHS, Edges, GraphItems, GraphUsers
from llm4rec_jax.models.heads import HEADS, Head
from llm4rec_jax.models.items.item_encoder import Feature, FeatureEncoder, FeatureSet, IdTable
from llm4rec_jax.models.items.projection import PROJECTIONS
from llm4rec_jax.models.text_encoder import TextEncoder
from llm4rec_jax.models.users.base import USERS, UserEncoder, UserInputs
from llm4rec_jax.registry import unknown_name


class Matcher(nn.Module):
    """A user encoder, features of users that are fused with its output, and a scoring head."""

    users: UserEncoder
    head: Head
    profile: FeatureEncoder | None = None

    # Flax: a part keeps the name that it was made with. Parameters of prompts stand under "project_prompt".
    preserve_adopted_names: ClassVar[bool] = True

    def __call__(self, inputs: UserInputs, item_embeddings: jax.Array) -> jax.Array:
        """Inputs of B users and item embeddings [N, D] to scores [B, N] at the first position; uses every parameter."""
        users = self.user_embeddings(inputs)[:, 0]
        return self.score_matrix(users, item_embeddings) + self.score(users[:1], item_embeddings[:1])

    def user_embeddings(self, inputs: UserInputs) -> jax.Array:
        """Inputs of B users to user embeddings, [B, H, D] or [B, 1, D]; see `UserEncoder`."""
        user_embeddings = self.users(inputs)
        if self.profile is None:
            return user_embeddings
        features = jax.tree.map(lambda array: array[:, None], inputs.features)
        return self.profile({"history": user_embeddings, **features})

    def score(self, user_embeddings: jax.Array, item_embeddings: jax.Array) -> jax.Array:
        """User embeddings [..., D] and item embeddings [..., D], broadcast against each other, to scores [...]."""
        return self.head(user_embeddings, item_embeddings)

    def score_matrix(self, user_embeddings: jax.Array, item_embeddings: jax.Array) -> jax.Array:
        """Scores [B, N] of every user embedding [B, D] with every item embedding [N, D]."""
        return self.head.score_matrix(user_embeddings, item_embeddings)


@dataclasses.dataclass(frozen=True)
class Recommender:
    """Modules that share one tree of parameters. `recommender` makes one from names and checks the combination.

    Attributes:
      items: Features of items to item embeddings.
      matcher: User encoder and scoring head.
      text: Token ids to vectors; None when items are ids only.
      num_items: Number of items with a trained vector each; 0 when items are known by their texts only.
    """

    items: FeatureEncoder
    matcher: Matcher
    text: TextEncoder | None = None
    num_items: int = 0

    @property
    def users(self) -> UserEncoder:
        """The user encoder."""
        return self.matcher.users

    @property
    def width(self) -> int:
        """Width D of user and item embeddings."""
        return self.items.width

    @property
    def text_encoder(self) -> TextEncoder:
        """The text encoder.

        Raises:
          ValueError: Items are ids only.
        """
        if self.text is None:
            raise ValueError("this recommender reads no texts: its items are ids only")
        return self.text


def recommender(
    *,
    encoder: Encoder | None = None,
    num_items: int | None = None,
    num_users: int | None = None,
    edges: Edges | None = None,
    users: str = "transformer",
    head: str = "dot",
    pooling: str | nn.Module = "mean",
    project: str | None = "mlp",
    tower: str | None = None,
    features: FeatureSet | None = None,
    width: int = 64,
    options: Mapping[Literal["users", "head", "project"], Mapping[str, Any]] | None = None,
) -> Recommender:
    """Builds a recommender from names.

    Args:
      encoder: Language model, for items that are texts; None for ids only.
      num_items: Number of items I, for items with a trained vector each. With an encoder, items have both.
      num_users: Number of users, for user models with a vector for each.
      edges: Interactions of the training data, for user models in `GRAPHS`, whose items are ids.
      users: Name in `USERS` or `GRAPHS`. With "text" the language model reads the history as one prompt.
      head: Name in `HEADS`.
      pooling: Name in `POOLINGS`, or a module such as `load_text_encoder` gives.
      project: Name in `PROJECTIONS`, for vectors of texts; None or "none" keeps the encoder's width.
      tower: Name in `PROJECTIONS`, for the vectors of ids.
      features: Features of items and users beside text and ids, and how features are fused; None sums text and ids.
      width: Width D; the encoder's own width when there is no projection.
      options: Options of user model, head and projection, beyond their defaults.

    Returns:
      The recommender; `init` makes its parameters.

    Raises:
      ValueError: A name or option does not exist, or parts do not go together.

    Example:
      >>> model = recommender(num_items=9, users="gru", width=4, options={"users": {"dropout": 0.0}})
      >>> params = init(model, jax.random.key(0))
      >>> sorted(params)
      ['ids', 'users']
      >>> items = model.items.apply({"params": params}, {"ids": jnp.arange(9)})
      >>> history = UserInputs(items[jnp.array([[3, 5]])], jnp.ones((1, 2), bool))
      >>> model.matcher.apply({"params": params}, history, method="user_embeddings").shape
      (1, 2, 4)
    """
    options, users, features = options or {}, user_model_name(users), features or FeatureSet()
    if encoder is None and num_items is None and not features.items:
        raise ValueError("a recommender needs text (an encoder), ids (the number of items), or further features")
    text = (
        None
        if encoder is None
        else TextEncoder(encoder, POOLINGS.build(pooling) if isinstance(pooling, str) else pooling)
    )
    if text is not None and project in (None, "none"):
        width = text.width
    projection = PROJECTIONS.build(project or "none", width=width, **options.get("project", {})) if text else None

    graph = None
    if users in GRAPHS:
        if num_items is None or encoder is not None or edges is None:
            raise ValueError(
                f"users={users!r} smooths vectors of users and items over their graph: give num_items and edges, and "
                "no encoder"
            )
        sizes = {"num_users": _required(num_users, users), "num_items": num_items, "width": width}
        graph = GRAPHS.build(users, **sizes, edges=edges, **options.get("users", {}))

    inputs = []
    if projection is not None:
        inputs.append(Feature("text", (projection.clone(name="project"),)))
    if num_items is not None:
        table = IdTable(num_items, width, name="ids") if graph is None else GraphItems(graph, name="users")
        layers = () if tower in (None, "none") else (PROJECTIONS.build(tower, width=width).clone(name="tower"),)
        inputs.append(Feature("ids", (table, *layers)))

    if graph is not None:
        user_encoder = GraphUsers(graph)
    else:
        given: dict[str, Any] = {}
        match USERS.lookup(users).inputs:
            case "user_id":
                given = {"num_users": _required(num_users, users), "width": width}
            case "prompt":
                if projection is None:
                    raise ValueError(f"users={users!r} lets the encoder read the history, but there is no encoder")
                given = {"project": projection}
        user_encoder = USERS.build(users, **given, **options.get("users", {}))
        if user_encoder.inputs == "prompt":
            user_encoder = user_encoder.clone(name="project_prompt")
    matcher = Matcher(user_encoder, HEADS.build(head, **options.get("head", {})), features.of_users(width))
    return Recommender(features.of_items(tuple(inputs), width), matcher, text, num_items or 0)


def _required(num_users: int | None, users: str) -> int:
    if num_users is None:
        raise ValueError(f"users={users!r} has a vector for each user: give num_users")
    return num_users


def init(
    model: Recommender,
    key: jax.Array,
    encoder_params: Mapping[str, Any] | None = None,
    user_params: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Draws a recommender's parameters.

    Args:
      model: The recommender.
      key: Key of the random draws.
      encoder_params: Parameters of the language model, which are returned as they are; None draws them too.
      user_params: Parameters of the user encoder, where it is pretrained; None draws them.

    Returns:
      {"encoder": …, "project": …, "users": …, "head": …, "ids": …}, without the parts that have no parameters.
    """

    width, vectors, profile = model.width, jnp.zeros((2, model.width)), model.matcher.profile
    features = {"ids": jnp.zeros(2, jnp.int32), **model.items.example()}
    params = {}
    if model.text is not None:
        params = text_encoder.init(model.text, key, encoder_params)
        vectors = features["text"] = jnp.zeros((2, model.text.width))

    def draw(key: jax.Array) -> dict[str, Any]:
        mask, rows = jnp.zeros((2, 2), bool), jnp.zeros(2, jnp.int32)
        of_users = None if profile is None else profile.example()
        inputs = UserInputs(jnp.zeros((2, 2, width)), mask, None, rows, vectors, of_users)
        items: Any = model.items.init(key, features)
        matcher: Any = model.matcher.init(key, inputs, jnp.zeros((2, width)))
        # Parts that both have, as a graph's vectors, are the same: a draw depends on the key and the name alone.
        drawn = {**items.get("params", {}), **matcher.get("params", {})}
        # jit computes only what is returned.
        return {name: part for name, part in drawn.items() if name != "users" or user_params is None}

    drawn = {**params, **jax.jit(draw)(key)}
    return drawn if user_params is None else {**drawn, "users": dict(user_params)}


def user_model_name(name: str) -> str:
    """Returns the current name of a user model, in `USERS` or `GRAPHS`, with a warning when `name` is a former one.

    Raises:
      ValueError: There is no such user model.
    """
    name = GRAPHS.current_name(USERS.current_name(name))
    if name not in USERS and name not in GRAPHS:
        raise ValueError(unknown_name(USERS.kind, name, sorted({*USERS, *GRAPHS})))
    return name
