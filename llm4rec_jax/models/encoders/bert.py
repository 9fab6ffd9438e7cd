"""BERT (Devlin et al. 2019, arXiv 1810.04805) in Flax Linen, with its joints named so that other code can reach them.

A joint is a method call that can be intercepted, named by the module's path and, unless it is `__call__`, the method:

    embeddings                                       [B, L] ids -> [B, L, D]
    .layers                                          the whole stack, hidden states in, hidden states out
    layer_3                                          one block
    layer_3/attention, layer_3/ffn                   the two sublayers, before residual and norm
    layer_3/attention/{query,key,value,output}       projections
    layer_3/attention.attend                         (q, k, v, mask): where a prefix adds keys and values
    layer_3/attention_norm, layer_3/ffn_norm         layer norms
    layer_3/ffn/{up,down}                            projections of the feed-forward network
"""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.layers.activations import ACTIVATIONS
from llm4rec_jax.models.layers.attention import attend
from llm4rec_jax.models.layers.dropout import dropout
from llm4rec_jax.models.layers.linear import dense, normal


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """What a Hugging Face `config.json` says of a BERT; field names are Hugging Face's.

    `compute_dtype` is what activations are computed in; parameters stay float32. `remat` recomputes each block in the
    backward pass instead of storing its activations. `attention` is "xla", or "cudnn" for cuDNN's kernel, which holds
    no weights of attention and so cannot drop any: for NVIDIA GPUs, in 16 bits, without dropout on those weights.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0
    compute_dtype: str = "float32"
    remat: bool = False
    attention: str = "xla"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                     "max_position_embeddings", "type_vocab_size"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {self.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        if self.compute_dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"compute_dtype {self.compute_dtype!r} is not one of float32, bfloat16, float16")
        if self.attention not in ("xla", "cudnn"):
            raise ValueError(f"attention {self.attention!r} is not one of xla, cudnn")
        if self.attention == "cudnn":
            if self.compute_dtype == "float32":
                raise ValueError("cuDNN's attention computes in 16 bits: give bfloat16 as compute_dtype, or xla")
            if self.attention_probs_dropout_prob > 0:
                raise ValueError(
                    f"cuDNN's attention drops no weights, but {self.attention_probs_dropout_prob:g} of them are to be: "
                    "give an encoder dropout of 0, or xla"
                )
            if (width := self.hidden_size // self.num_attention_heads) % 8:
                raise ValueError(
                    f"cuDNN's attention wants heads of a multiple of 8, and these are {width} wide: give xla"
                )

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.compute_dtype)


def _norm(config: BertConfig, name: str) -> nn.LayerNorm:
    # Statistics are taken in float32 whatever the compute dtype (flax does so); the two-pass variance is torch's.
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=config.dtype, use_fast_variance=False, name=name)


def _dense(config: BertConfig, features: int, name: str) -> nn.Dense:
    return dense(features, name, config.dtype, config.initializer_range)


class Embeddings(nn.Module):
    """Sum of word, position and token type embeddings, normed. [B, L] -> [B, L, D]."""

    config: BertConfig

    @nn.compact
    def __call__(self, ids: jax.Array, token_type: jax.Array | None = None) -> jax.Array:
        c = self.config
        if ids.shape[-1] > c.max_position_embeddings:
            raise ValueError(
                f"{ids.shape[-1]} tokens, but the encoder has {c.max_position_embeddings} positions: "
                "truncate the text when tokenising"
            )
        init = normal(c.initializer_range)
        # In float32 whatever the compute dtype: a gradient is the sum over all tokens of a kind, thousands of them.
        embed = partial(nn.Embed, features=c.hidden_size, embedding_init=init)
        words = embed(c.vocab_size, name="word")(ids)
        positions = embed(c.max_position_embeddings, name="position")(jnp.arange(ids.shape[-1]))
        kinds = jnp.int32(0) if token_type is None else token_type
        types = embed(c.type_vocab_size, name="token_type")(kinds)
        return dropout(self, _norm(c, "norm")(words + types + positions), c.hidden_dropout_prob)


class Attention(nn.Module):
    """Multi-head self-attention with its output projection. [B, L, D] -> [B, L, D]."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        c = self.config
        heads = (*x.shape[:-1], c.num_attention_heads, c.hidden_size // c.num_attention_heads)
        q, k, v = (_dense(c, c.hidden_size, name)(x).reshape(heads) for name in ("query", "key", "value"))
        return _dense(c, c.hidden_size, "output")(self.attend(q, k, v, mask).reshape(x.shape))

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        """Scaled dot-product attention.

        Args:
          q: [B, L, heads, D / heads]; k, v: [B, S, heads, D / heads].
          mask: [B, S] bool, which keys may be attended to.

        Returns:
          [B, L, heads, D / heads].
        """
        allowed = mask[:, None, None]
        if self.config.attention == "cudnn":
            if q.shape[1] % 2 or k.shape[1] % 2:
                raise ValueError(
                    f"cuDNN's attention wants an even number of tokens, and there are {q.shape[1]} over {k.shape[1]}: "
                    "give xla as the encoder's attention"
                )
            allowed = jnp.broadcast_to(allowed, (len(q), 1, q.shape[1], k.shape[1]))
            return jax.nn.dot_product_attention(q, k, v, mask=allowed, implementation="cudnn")
        return attend(q, k, v, allowed, lambda w: dropout(self, w, self.config.attention_probs_dropout_prob))


class FeedForward(nn.Module):
    """down(act(up(x))). [B, L, D] -> [B, L, D]."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        hidden = ACTIVATIONS[c.hidden_act](_dense(c, c.intermediate_size, "up")(x))
        return _dense(c, c.hidden_size, "down")(hidden)


class Layer(nn.Module):
    """A post-norm transformer block. [B, L, D] -> [B, L, D]."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        c = self.config
        attended = Attention(c, name="attention")(x, mask)
        x = _norm(c, "attention_norm")(x + dropout(self, attended, c.hidden_dropout_prob))
        transformed = FeedForward(c, name="ffn")(x)
        return _norm(c, "ffn_norm")(x + dropout(self, transformed, c.hidden_dropout_prob))


class Bert(nn.Module):
    """The encoder M: token ids [B, L] and their mask [B, L] to hidden states [B, L, D].

    Dropout is on exactly when `apply` is given a `dropout` rng.
    """

    config: BertConfig

    def setup(self) -> None:
        layer = nn.remat(Layer) if self.config.remat else Layer
        self.embeddings = Embeddings(self.config)
        self.blocks = [layer(self.config, name=f"layer_{i}") for i in range(self.config.num_hidden_layers)]

    def __call__(self, ids: jax.Array, mask: jax.Array, token_type: jax.Array | None = None) -> jax.Array:
        """Hidden states of the last layer.

        Args:
          ids: [B, L] int token ids.
          mask: [B, L] bool or 0/1, which tokens are real.
          token_type: [B, L] int segment ids, zeros by default.

        Returns:
          [B, L, D] in the compute dtype.
        """
        return self.layers(self.embeddings(ids, token_type), mask.astype(bool))[-1]

    def below(self, ids: jax.Array, mask: jax.Array, layer: int) -> jax.Array:
        """Hidden states before block `layer`, [B, L, D]: constant while only blocks from it on are trained."""
        return self.layers(self.embeddings(ids), mask.astype(bool), stop=layer)[-1]

    def above(self, states: jax.Array, mask: jax.Array, layer: int) -> jax.Array:
        """Hidden states of the last layer [B, L, D] from those before block `layer`."""
        return self.layers(states, mask.astype(bool), start=layer)[-1]

    def every(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Hidden states before and after each block, [B, L, S, D] with S one more than the number of blocks."""
        return jnp.stack(self.layers(self.embeddings(ids), mask.astype(bool)), axis=2)

    def over(self, states: jax.Array, mask: jax.Array) -> jax.Array:
        """Hidden states of the last layer [B, L, D] from those of `every`: only what is beside the blocks runs."""
        known = [states[:, :, i] for i in range(states.shape[2])]
        return self.layers(known[0], mask.astype(bool), known=known)[-1]

    def layers(
        self,
        x: jax.Array,
        mask: jax.Array,
        start: int = 0,
        stop: int | None = None,
        known: list[jax.Array] | None = None,
    ) -> list[jax.Array]:
        """The stack of blocks: states [B, L, D] and mask [B, L] to the states before and after each block.

        Args:
          start, stop: which blocks.
          known: the states, when they have been computed before.
        """
        if known is not None:
            return known
        states = [x]
        for block in self.blocks[start:stop]:
            states.append(block(states[-1], mask))
        return states


def first_layers(encoder: Bert, params: dict[str, Any], k: int) -> tuple[Bert, dict[str, Any]]:
    """The encoder with only its first k layers (layer pruning, Sajjad et al. 2023), sharing their arrays.

    Raises:
      ValueError: k is not between 1 and the number of layers.
    """
    depth = encoder.config.num_hidden_layers
    if not 1 <= k <= depth:
        raise ValueError(f"cannot keep the first {k} layers of an encoder that has {depth}: give 1 to {depth}")
    kept = {n: p for n, p in params.items() if not n.startswith("layer_") or int(n.removeprefix("layer_")) < k}
    return Bert(dataclasses.replace(encoder.config, num_hidden_layers=k)), kept
