"""IISAN: side networks within and across modalities over states of frozen encoders (Fu et al. 2024, arXiv 2404.02059).

Within a modality m with the states h_1 … h_K of the chosen layers, and across modalities:

    s_1 = f_1(h_1),   s_k = f_k(μ_k s_{k-1} + (1 − μ_k) h_k),   μ_k = σ(γ_k / T)
    z_1 = g_1(x_1),   z_k = g_k(z_{k-1} + x_k),                 x_k = Σ_m β_km h_km
    C   = W [s_K of each modality; z_K] + b

f_k and g_k are the blocks of `models.layers.side_network`. The gates β_k over modalities are a softmax of logits / T
whose last logit is 0. For two modalities they are β and 1 − β with β = σ(γ / T), as in the paper.
"""

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.items.fusion import FUSIONS, Fusion, States
from llm4rec_jax.models.layers.side_network import gated, side_block


@FUSIONS.register("iisan")
class Iisan(Fusion):
    """IISAN (Fu et al. 2024, arXiv 2404.02059): side networks within and across modalities, and a linear map.

    It reads features with hidden states, which need the same number of layers. Vectors of other features, such as ids,
    enter the linear map beside the networks' outputs. A trained vector stands in the place of a missing feature, and
    the gates across modalities give its share to the others. With one modality there is no network across modalities.

    Attributes:
      hidden: Width of the bottleneck of a block.
      side_width: Width of the side networks, to which a linear map without a bias brings each state. None takes the
        width of the states, which all modalities must then share.
      temperature: T, the temperature of the gates.
    """

    hidden: int = 64
    side_width: int | None = None
    temperature: float = 0.1

    reads_states: ClassVar[bool] = True

    @nn.compact
    def __call__(self, parts: Sequence[jax.Array | States], present: jax.Array | None) -> jax.Array:
        """Vectors [..., D] and hidden states [..., K, W] of M features to embeddings [..., D]."""
        stacks = {m: self._narrowed(m, part.values) for m, part in enumerate(parts) if isinstance(part, States)}
        self._check({values.shape[-2:] for values in stacks.values()})
        made = []
        for m, part in enumerate(parts):
            if isinstance(part, States):
                part = WithinModality(self.hidden, self.temperature, name=f"within_{m}")(stacks[m])
            if present is not None:
                missing = jnp.asarray(self.param(f"missing_{m}", nn.initializers.normal(0.02), part.shape[-1:]))
                part = jnp.where(present[..., m, None], part, missing)
            made.append(part)
        if len(stacks) > 1:
            there = None if present is None else present[..., jnp.array(list(stacks))]
            across = AcrossModalities(self.hidden, self.temperature, name="across")
            made.append(across(jnp.stack(list(stacks.values()), axis=-1), there))
        return nn.Dense(self.width, name="output")(jnp.concatenate(made, axis=-1))

    def _narrowed(self, m: int, values: jax.Array) -> jax.Array:
        """The states [..., K, W] of feature m in the width of the side networks, each by a map of its own."""
        if self.side_width is None:
            return values
        shape = (*values.shape[-2:], self.side_width)
        init = nn.initializers.lecun_normal(batch_axis=0)
        return jnp.einsum("...kw,kws->...ks", values, jnp.asarray(self.param(f"reduce_{m}", init, shape)))

    def _check(self, shapes: set[tuple[int, ...]]) -> None:
        if len({layers for layers, _ in shapes}) > 1:
            numbers = " and ".join(str(layers) for layers, _ in sorted(shapes))
            raise ValueError(f"iisan: features have {numbers} hidden states; give each as many layers as the others")
        if len(shapes) > 1:
            widths = " and ".join(str(width) for _, width in sorted(shapes))
            raise ValueError(
                f"iisan: hidden states have the widths {widths}; give the option side_width, a width that all are "
                "brought to"
            )


class WithinModality(nn.Module):
    """The side network of one modality.

    Attributes:
      hidden: Width of the bottleneck of a block.
      temperature: Temperature of the gates.
    """

    hidden: int
    temperature: float

    @nn.compact
    def __call__(self, states: jax.Array) -> jax.Array:
        """States [..., K, S] of K layers to [..., S]."""
        count = states.shape[-2]
        gates = jnp.asarray(self.param("gates", nn.initializers.zeros, (count - 1,)))
        z = SideBlock(self.hidden, name="block_0")(states[..., 0, :])
        for k in range(1, count):
            z = gated(gates[k - 1], z, states[..., k, :], self.temperature)
            z = SideBlock(self.hidden, name=f"block_{k}")(z)
        return z


class AcrossModalities(nn.Module):
    """The side network that mixes the states of several modalities, layer by layer.

    Attributes:
      hidden: Width of the bottleneck of a block.
      temperature: Temperature of the gates.
    """

    hidden: int
    temperature: float

    @nn.compact
    def __call__(self, states: jax.Array, present: jax.Array | None) -> jax.Array:
        """States [..., K, S, M] of K layers and M modalities, of which `present` [..., M] are there, to [..., S]."""
        count, size, modalities = states.shape[-3:]
        gates = jnp.asarray(self.param("gates", nn.initializers.zeros, (count, modalities - 1)))
        logits = jnp.pad(gates, ((0, 0), (0, 1))) / self.temperature
        if present is None:
            weights = jax.nn.softmax(logits)
        else:
            there = present[..., None, :]
            # A row without any modality has zeros.
            weights = jax.nn.softmax(jnp.where(there, logits, -1e9)) * there
        mixed = (states * weights[..., None, :]).sum(-1)
        z = jnp.zeros((*mixed.shape[:-2], size), mixed.dtype)
        for k in range(count):
            z = SideBlock(self.hidden, name=f"block_{k}")(z + mixed[..., k, :])
        return z


class SideBlock(nn.Module):
    """A bottleneck with a residual connection, [..., S] -> [..., S]; it starts near the identity.

    Attributes:
      hidden: Width of the bottleneck.
    """

    hidden: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        size, near_zero, zeros = z.shape[-1], nn.initializers.normal(0.01), nn.initializers.zeros
        weights = {
            "down": self.param("down", near_zero, (size, self.hidden)),
            "down_bias": self.param("down_bias", zeros, (self.hidden,)),
            "up": self.param("up", near_zero, (self.hidden, size)),
            "up_bias": self.param("up_bias", zeros, (size,)),
        }
        return side_block({name: jnp.asarray(weight) for name, weight in weights.items()}, z)
