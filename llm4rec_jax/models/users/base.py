"""User models: the item vectors of a history to user embeddings.

Each takes item vectors [B, H, D], the oldest first and padded at the end, and their mask [B, H], and returns the
profile after every position, [B, H, D]: position t has read items 0…t and nothing later. So one pass trains on every
position, and the profile of a user is the one at the last real item (`last`). Models of other kinds say so by `reads`.
"""

from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.layers.attention import attend
from llm4rec_jax.models.layers.linear import dot_general
from llm4rec_jax.registry import Registry

USERS: Registry = Registry("user model")


def reads(model: nn.Module | None) -> str:
    """What a user model is called with, and so how it is trained.

    "history": (items [B, H, D], mask [B, H]) -> the profile after every position [B, H, D].
    "gaps": the same with a third argument, the positions [B, H] that are hidden from it -> user embeddings [B, H, D], at the
      hidden positions those of what was there; without it, the profile that follows the history, at every position.
    "user": (user rows [B]) -> [B, D]; it knows nobody but the users of its training.
    """
    return getattr(model, "reads", "history")


def last(user_embeddings: jax.Array, mask: jax.Array) -> jax.Array:
    """The profile at the last real position: [B, H, D] and [B, H] to [B, D]; zeros for an empty history."""
    length = mask.astype(jnp.int32).sum(-1)
    index = jnp.maximum(length - 1, 0)[:, None, None]
    return jnp.take_along_axis(user_embeddings, index, axis=1)[:, 0] * (length > 0)[:, None]


@USERS.register("mean")
class Mean(nn.Module):
    """The mean of the items so far."""

    @nn.compact
    def __call__(self, items: jax.Array, mask: jax.Array) -> jax.Array:
        kept = mask.astype(items.dtype)[..., None]
        return jnp.cumsum(items * kept, axis=1) / jnp.maximum(jnp.cumsum(kept, axis=1), 1.0)


@USERS.register("attention")
class Attention(nn.Module):
    """Additive attention over the items so far (Wu et al. 2019, NRMS, equations 11 and 12).

    Attributes:
      hidden: width of the attention's hidden layer.
    """

    hidden: int = 64

    @nn.compact
    def __call__(self, items: jax.Array, mask: jax.Array) -> jax.Array:
        logits = nn.Dense(1, use_bias=False, name="query")(jnp.tanh(nn.Dense(self.hidden, name="hidden")(items)))[
            ..., 0
        ]
        allowed = _causal(mask)
        weights = jax.nn.softmax(jnp.where(allowed, logits[:, None, :], jnp.finfo(items.dtype).min), axis=-1) * allowed
        return jnp.einsum("bts,bsd->btd", weights, items)


@USERS.register("transformer")
class Transformer(nn.Module):
    """A causal transformer with learned positions (Kang & McAuley 2018, SASRec, arXiv 1808.09781), pre-norm.

    Attributes:
      layers, heads: depth, and attention heads a layer.
      ffn: width of the feed-forward layer, as a multiple of D.
      dropout: on embeddings and both sublayers, when a dropout rng is given.
      positions: the longest history.
    """

    layers: int = 2
    heads: int = 2
    ffn: int = 4
    dropout: float = 0.2
    positions: int = 100

    @nn.compact
    def __call__(self, items: jax.Array, mask: jax.Array) -> jax.Array:
        length = items.shape[1]
        if length > self.positions:
            raise ValueError(f"a history of {length} items, but the user model has {self.positions} positions")
        return blocks(self, items, _causal(mask), self.positions)


class _Attends(Protocol):
    layers: int
    heads: int
    ffn: int
    dropout: float

    def has_rng(self, name: str) -> bool: ...


def blocks(model: _Attends, x: jax.Array, allowed: jax.Array, positions: int) -> jax.Array:
    """Learned positions, dropout, pre-norm blocks and a last norm, as parameters of the compact module that calls it.

    Args:
      model: the module, for its sizes.
      x: [B, H, D]; allowed: [B, H, H] bool, what each position reads.
      positions: how many there can be.

    Raises:
      ValueError: the heads do not divide D.
    """
    length, width = x.shape[1:]
    if width % model.heads:
        raise ValueError(f"the width {width} is not a multiple of {model.heads} heads")
    init = nn.initializers.normal(0.02)
    x = x + nn.Embed(positions, width, embedding_init=init, name="position")(jnp.arange(length))
    x = nn.Dropout(model.dropout, deterministic=not model.has_rng("dropout"))(x)
    for i in range(model.layers):
        x = Block(model.heads, model.ffn, model.dropout, name=f"layer_{i}")(x, allowed)
    return nn.LayerNorm(name="norm")(x)


class Block(nn.Module):
    """A pre-norm transformer block; `allowed` is [B, H, H] bool."""

    heads: int
    ffn: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array) -> jax.Array:
        off = not self.has_rng("dropout")
        attended = SelfAttention(self.heads, name="attention")(nn.LayerNorm(name="attention_norm")(x), allowed)
        x = x + nn.Dropout(self.dropout, deterministic=off)(attended)
        transformed = FeedForward(self.ffn, name="ffn")(nn.LayerNorm(name="ffn_norm")(x))
        return x + nn.Dropout(self.dropout, deterministic=off)(transformed)


class SelfAttention(nn.Module):
    """Multi-head attention with joints named as the encoder's are."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array) -> jax.Array:
        shape = (*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
        q, k, v = (_dense(x.shape[-1], name)(x).reshape(shape) for name in ("query", "key", "value"))
        return _dense(x.shape[-1], "output")(self.attend(q, k, v, allowed).reshape(x.shape))

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array) -> jax.Array:
        """q: [B, H, heads, D / heads]; k, v: [B, S, heads, D / heads]; allowed: [B, H, S] bool."""
        return attend(q, k, v, allowed[:, None])


class FeedForward(nn.Module):
    """down(GELU(up(x)))."""

    multiple: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        return _dense(width, "down")(jax.nn.gelu(_dense(self.multiple * width, "up")(x)))


@USERS.register("tower")
class Tower(nn.Module):
    """A network over the mean of the items so far, as in Covington et al. 2016 (doi 10.1145/2959100.2959190).

    Attributes:
      hidden: width of the hidden layer.
      dropout: on the hidden layer, when a dropout rng is given.
    """

    hidden: int = 128
    dropout: float = 0.2

    @nn.compact
    def __call__(self, items: jax.Array, mask: jax.Array) -> jax.Array:
        x = nn.LayerNorm(name="norm")(Mean()(items, mask))
        x = jax.nn.gelu(nn.Dense(self.hidden, name="hidden")(x))
        x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(x)
        return nn.Dense(items.shape[-1], name="output")(x)


@USERS.register("id")
class User(nn.Module):
    """A vector a user, which with a dot product is matrix factorisation (Koren et al. 2009).

    Attributes:
      num_users: U.
      width: D.
    """

    reads = "user"
    num_users: int
    width: int

    @nn.compact
    def __call__(self, users: jax.Array) -> jax.Array:
        return nn.Embed(self.num_users, self.width, embedding_init=nn.initializers.normal(0.02), name="table")(users)


@USERS.register("gru")
class Gru(nn.Module):
    """A gated recurrent unit (Hidasi et al. 2016, GRU4Rec, arXiv 1511.06939).

    Attributes:
      dropout: on the item vectors, when a dropout rng is given.
    """

    dropout: float = 0.2

    @nn.compact
    def __call__(self, items: jax.Array, mask: jax.Array) -> jax.Array:
        x = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(items)
        # Padding comes last, so the states at real positions never see it.
        states = nn.RNN(nn.GRUCell(items.shape[-1]), name="gru")(x)
        assert isinstance(states, jax.Array)
        return states


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, dot_general=dot_general, name=name)


def _causal(mask: jax.Array) -> jax.Array:
    """[B, H] to [B, H, H]: position t may read the real items s ≤ t."""
    length = mask.shape[-1]
    return jnp.tril(jnp.ones((length, length), bool)) & mask.astype(bool)[:, None, :]
