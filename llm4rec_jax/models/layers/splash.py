"""Splash attention, JAX's Pallas kernel for TPUs: scores stay in fast memory, and masked blocks are skipped."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

_LANES = 128
"""The kernel takes numbers of tokens that are a multiple of this."""


def splash_attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Scaled dot-product attention among the tokens of a text, as `attend` computes it.

    Tokens are padded to a multiple of 128. Padding attends to padding.

    Args:
      q: [B, L, heads, d]; k, v: [B, S, key heads, d]. Keys beyond those of the tokens stand in front, as a prefix does,
        and all tokens attend to them.
      mask: [B, S] bool, or int numbers of texts; see `layers.segments`.
      causal: Tokens see themselves and those before; otherwise all.
      window: Tokens see those at a smaller distance; None for no limit.
      scale: Factor of q kᵀ; 1/√d by default.
      softcap: Bound c of the scores s, which become c tanh(s / c).

    Returns:
      [B, L, heads, d] in v's dtype.

    Raises:
      ValueError: rows hold several texts and there are keys in front: the kernel knows keys of one text or none.
    """
    length, before = q.shape[1], k.shape[1] - q.shape[1]
    if before and mask.dtype != bool:
        raise ValueError(
            "splash attention compares numbers of texts, so keys in front of a row are of one text only: give "
            "packing=False, or xla as the encoder's attention"
        )
    texts = mask.astype(jnp.int32)
    numbers = kernels.SegmentIds(*(_padded(part) for part in (texts[:, before:], texts)))
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    q, k, v = (_padded(states).transpose(0, 2, 1, 3) for states in (q, k, v))
    shape = q.shape[2], k.shape[2]
    visible = masks.FullMask(shape) if window is None else _window(shape, window, before)
    if causal:
        ordered = masks.CausalMask(shape, before)
        visible = ordered if window is None else visible & ordered
    # With residuals, which are not asked for, it would return a pair.
    kernel: Any = kernels.make_splash_mha(
        masks.MultiHeadMask([visible] * q.shape[1]),
        block_sizes=_blocks(*shape),
        attn_logits_soft_cap=softcap,
        head_shards=1,
        q_seq_shards=1,
    )
    return jax.vmap(kernel)(q, k, v, numbers).transpose(0, 2, 1, 3)[:, :length]


def _padded(x: jax.Array) -> jax.Array:
    """[B, L, …] with zeros up to the next multiple of 128 tokens."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _LANES), *((0, 0),) * (x.ndim - 2)))


def _window(shape: tuple[int, int], window: int, before: int) -> masks.Mask:
    near = masks.LocalMask(shape, (window - 1, window - 1), before)
    return near | masks.NumpyMask(np.broadcast_to(np.arange(shape[1]) < before, shape)) if before else near


def _blocks(queries: int, keys: int) -> kernels.BlockSizes:
    """The largest blocks of at most 512 tokens that divide both numbers of tokens."""
    bq, bkv = (next(size for size in (512, 256, _LANES) if tokens % size == 0) for tokens in (queries, keys))
    return kernels.BlockSizes(
        block_q=bq, block_kv=bkv, block_q_dkv=bq, block_kv_dkv=bkv, block_q_dq=bq, block_kv_dq=bkv
    )
