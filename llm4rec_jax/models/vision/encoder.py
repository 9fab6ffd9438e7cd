"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929): one module for all families."""

from collections.abc import Sequence
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.models.encoders.post_norm import layer_norm
from llm4rec_jax.models.encoders.pre_norm import FeedForward, PreNormAttention, pre_norm_blocks
from llm4rec_jax.models.layers.activations import ACTIVATIONS
from llm4rec_jax.models.layers.dropout import dropout
from llm4rec_jax.models.layers.linear import dense, normal, product
from llm4rec_jax.models.vision.base import VisionConfig


class PatchProjection(nn.Module):
    """A linear map of every patch: a convolution whose stride is its width. [B, H, W, C] -> [B, H/P, W/P, D]."""

    config: VisionConfig

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        c, p = self.config, self.config.patch_size
        # A checkpoint has [D, C, rows, columns], which is this in reverse order.
        filters = self.param("filters", normal(c.initializer_range), (p, p, c.num_channels, c.hidden_size))
        rows, columns = pixels.shape[1] // p, pixels.shape[2] // p
        # Rows and columns of pixels that fill no patch are left out, as a convolution leaves them out.
        patches = pixels[:, : rows * p, : columns * p].reshape(-1, rows, p, columns, p, c.num_channels)
        patches = patches.transpose(0, 1, 3, 4, 2, 5).reshape(-1, rows, columns, p * p * c.num_channels)
        kernel = jnp.asarray(filters).reshape(-1, c.hidden_size)
        x = product(patches.astype(c.dtype), kernel.astype(c.dtype))
        if not c.patch_bias:
            return x
        return x + jnp.asarray(self.param("bias", nn.initializers.zeros, (c.hidden_size,))).astype(c.dtype)


class Embeddings(nn.Module):
    """Patches, a class token before them where there is one, and positions. [B, H, W, C] -> [B, L, D].

    For an image of another size than `image_size`, positions are interpolated.
    """

    config: VisionConfig

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        c = self.config
        if pixels.ndim != 4 or pixels.shape[-1] != c.num_channels or min(pixels.shape[1:3]) < c.patch_size:
            raise ValueError(
                f"images of shape {pixels.shape}: give [B, H, W, {c.num_channels}], H and W of at least "
                f"{c.patch_size} pixels"
            )
        patches = PatchProjection(c, name="patch")(pixels)
        batch, rows, columns, width = patches.shape
        x = patches.reshape(batch, rows * columns, width)
        init = normal(c.initializer_range)
        positions = jnp.asarray(self.param("positions", init, (c.num_positions, c.hidden_size)))
        first, of_patches = positions[: c.num_positions - c.grid**2], positions[c.num_positions - c.grid**2 :]
        if (rows, columns) != (c.grid, c.grid):
            of_patches = of_patches.reshape(c.grid, c.grid, width)
            down, across = bicubic_weights(c.grid, rows), bicubic_weights(c.grid, columns)
            of_patches = jnp.einsum("ri,cj,ijd->rcd", down, across, of_patches).reshape(-1, width)
        if c.class_token:
            token = jnp.asarray(self.param("class_token", init, (c.hidden_size,))).astype(c.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, width)), x], axis=1)
        x = x + jnp.concatenate([first, of_patches]).astype(c.dtype)
        return dropout(self, x, c.hidden_dropout_prob)


@cache
def bicubic_weights(old: int, new: int) -> np.ndarray:
    """Returns the matrix [new, old] that interpolates a row of values by cubic convolution, as torch does.

    Pixels are squares whose values stand at their centres, the kernel has a = -0.75, and values beyond the ends are
    those at the ends (Keys 1981; torch's `interpolate` with mode "bicubic" and `align_corners=False`).

    Args:
      old: Number of values.
      new: Number of values wanted.

    Example:
      >>> print(bicubic_weights(2, 4)[1].round(3))
      [0.773 0.227]
    """
    a = -0.75
    at = (np.arange(new) + 0.5) * old / new - 0.5
    base = np.floor(at).astype(int)
    weights = np.zeros((new, old), np.float32)
    for offset in range(-1, 3):
        distance = np.abs(at - (base + offset))
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        np.add.at(
            weights,
            (np.arange(new), np.clip(base + offset, 0, old - 1)),
            np.where(distance <= 1, near, far).astype(np.float32),
        )
    return weights


class ProbeAttention(PreNormAttention):
    """Attention of one trained query over all states. [B, L, D] -> [B, 1, D]."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *bias: jax.Array) -> jax.Array:
        c = self.config
        probe = jnp.asarray(self.param("probe", normal(c.initializer_range), (c.hidden_size,))).astype(c.dtype)
        query = self.project(c.hidden_size, "query")(jnp.broadcast_to(probe, (len(x), 1, c.hidden_size)))
        q, k, v = map(self.heads, (query, *(self.project(c.hidden_size, name)(x) for name in ("key", "value"))))
        mixed = self.attend(q, k, v, self.keys(mask), *bias)
        return self.project(c.hidden_size, "output")(mixed.reshape(len(x), 1, c.hidden_size))


class AttentionHead(nn.Module):
    """SigLIP's pooling: a trained query attends to all states, and a residual network follows. [B, L, D] -> [B, D]."""

    config: VisionConfig

    @nn.compact
    def __call__(self, states: jax.Array) -> jax.Array:
        c = self.config
        x = ProbeAttention(c, name="attention")(states, jnp.ones(states.shape[:2], bool))[:, 0]
        return x + FeedForward(c, name="ffn")(layer_norm(c, "norm")(x))


class DenseHead(nn.Module):
    """A linear layer and an activation, or a linear layer without a bias. [B, D] -> [B, W]."""

    config: VisionConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        with_activation = c.head == "dense"
        x = dense(c.vector_size, "output", c.dtype, c.initializer_range, with_activation)(x)
        return ACTIVATIONS[c.pooler_act](x) if with_activation else x


class VisionEncoder(nn.Module):
    """A vision transformer: images [B, H, W, C], normalised as its processor says, to states or vectors.

    Attributes:
      config: Its configuration.

    Example:
      >>> config = VisionConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16,
      ...                       image_size=8, patch_size=4)
      >>> encoder, images = VisionEncoder(config), jnp.ones((3, 8, 8, 3))
      >>> params = encoder.init(jax.random.key(0), images, method="vectors")["params"]
      >>> encoder.apply({"params": params}, images).shape
      (3, 5, 8)
      >>> encoder.apply({"params": params}, images, method="vectors").shape
      (3, 8)
    """

    config: VisionConfig

    def setup(self) -> None:
        c = self.config
        self.embeddings = Embeddings(c)
        if c.entry_norm:
            self.entry_norm = layer_norm(c, "entry_norm")
        self.blocks = pre_norm_blocks(c)
        self.final_norm = layer_norm(c, "final_norm")
        if c.head is not None:
            self.head = AttentionHead(c) if c.head == "attention" else DenseHead(c)

    @nn.nowrap
    def embed(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Hidden states before the first block, [B, L, D], and their mask [B, L], in which all are real."""
        x = self.embeddings(pixels)
        x = self.entry_norm(x) if self.config.entry_norm else x
        return x, jnp.ones(x.shape[:2], bool)

    def layers(self, x: jax.Array, mask: jax.Array) -> list[jax.Array]:
        """The stack of blocks: states [B, L, D] and mask [B, L] to the states before and after each block."""
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1], mask))
        return states

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Hidden states of the last layer.

        Args:
          pixels: [B, H, W, C] float.

        Returns:
          [B, L, D] in the compute dtype: the class token where there is one, and the patches row by row.
        """
        states = self.layers(*self.embed(pixels))[-1]
        return self.final_norm(states) if self.config.norm_states else states

    def all_hidden_states(self, pixels: jax.Array) -> jax.Array:
        """Hidden states before and after each block, [B, L, S, D] with S one more than the number of blocks."""
        return jnp.stack(self.layers(*self.embed(pixels)), axis=2)

    def layer_vectors(self, pixels: jax.Array, layers: Sequence[int]) -> jax.Array:
        """Vectors of images after chosen blocks, [B, K, D] for K layers; layer 0 is before the first block.

        They are the class token's states; without a class token, means of states.
        """
        states = self.layers(*self.embed(pixels))
        chosen = jnp.stack([states[layer] for layer in layers], axis=1)
        return chosen[:, :, 0] if self.config.class_token else chosen.mean(axis=2)

    def vectors(self, pixels: jax.Array) -> jax.Array:
        """Pooled vectors of images, [B, W], as the family defines them.

        Without a head they are the class token's state after the last norm; without a class token, the mean of states.
        """
        c = self.config
        states = self.final_norm(self.layers(*self.embed(pixels))[-1])
        if c.head == "attention":
            return self.head(states)
        pooled = states[:, 0] if c.class_token else states.mean(axis=1)
        return pooled if c.head is None else self.head(pooled)
