"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864) and the ways in which checkpoints stretch them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Fields that each type needs beside `theta`, and those that it may have.
ROPE_TYPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (
        ("short_factor", "long_factor", "original_max_position_embeddings"),
        ("attention_factor", "factor"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Rope:
    """The frequencies by which queries and keys are rotated; field names are Hugging Face's `rope_parameters`.

    Attributes:
      rope_theta: base of the wavelengths.
      rope_type: one of `ROPE_TYPES`. "dynamic" and "longrope" choose their frequencies by the length of the text; here
        they are those of texts of up to `longest` tokens, so that a vector does not depend on its batch.
      partial_rotary_factor: share of each head that is rotated, counted from its first feature.
      longest: number of tokens that may be read; None for no limit.
      factor, …: fields of the types, see `ROPE_TYPES`.
    """

    rope_theta: float = 10_000.0
    rope_type: str = "default"
    partial_rotary_factor: float = 1.0
    longest: int | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None


def rope_from_hf(raw: Mapping[str, Any], max_positions: int) -> Rope:
    """Reads one `rope_parameters` (or the older `rope_scaling`) of a Hugging Face config.

    Args:
      raw: the mapping, with `rope_theta` in it.
      max_positions: the config's `max_position_embeddings`.

    Raises:
      ValueError: a `rope_type` that is not implemented, or a field that its type lacks or does not know.

    Example:
      >>> rope_from_hf({"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, 2048).factor
      2.0
    """
    fields = {name: value for name, value in raw.items() if value is not None}
    kind = fields.pop("rope_type", fields.pop("type", "default"))
    fields.pop("type", None)
    # The first releases of Phi-3 call it so.
    kind = {"su": "longrope"}.get(kind, kind)
    if kind not in ROPE_TYPES:
        raise ValueError(f"rope_type {kind!r} is not one of {', '.join(ROPE_TYPES)}")
    needed, optional = ROPE_TYPES[kind]
    if "original_max_position_embeddings" in needed:
        fields.setdefault("original_max_position_embeddings", max_positions)
    if missing := [name for name in needed if name not in fields]:
        raise ValueError(f"rope_type {kind!r} needs {', '.join(missing)}, which rope_parameters lacks")
    known = {"rope_theta", "partial_rotary_factor", *needed, *optional}
    if kind == "default":
        # Configs keep fields of a type that was switched off.
        others = {name for pair in ROPE_TYPES.values() for names in pair for name in names}
        fields = {name: value for name, value in fields.items() if name not in others}
    if unknown := sorted(fields.keys() - known):
        raise ValueError(f"rope_parameters has {', '.join(unknown)}, which rope_type {kind!r} does not know")
    if kind == "longrope":
        # A config's own ratio is what scales attention, see `inverse_frequencies`.
        fields.setdefault("factor", max_positions / fields["original_max_position_embeddings"])
    longest = {"dynamic": max_positions, "longrope": fields.get("original_max_position_embeddings")}.get(kind)
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return Rope(rope_type=kind, longest=longest, **values)


def rope_to_hf(rope: Rope) -> dict[str, Any]:
    """The inverse of `rope_from_hf`: a `rope_parameters` of transformers 5."""
    left_out = {"longest"} | ({"partial_rotary_factor"} if rope.partial_rotary_factor == 1.0 else set())
    fields = {name: value for name, value in vars(rope).items() if value is not None and name not in left_out}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def inverse_frequencies(rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
    """Computes the angle that each pair of features turns by from one position to the next.

    Args:
      rope: base and stretching.
      head_dim: width of a head.

    Returns:
      Float32 [⌈d/2⌉] with d the width that is rotated, and the factor by which sines and cosines are scaled.

    Example:
      >>> inverse_frequencies(Rope(rope_theta=100.0), 4)[0].round(3).tolist()
      [1.0, 0.10000000149011612]
    """
    dim = int(head_dim * rope.partial_rotary_factor)
    powers = np.float32(rope.rope_theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    plain = (np.float32(1.0) / powers).astype(np.float32)
    if rope.rope_type == "linear":
        return plain / np.float32(_given(rope, "factor")), 1.0
    if rope.rope_type == "llama3":
        return _llama3(rope, plain), 1.0
    if rope.rope_type == "yarn":
        return _yarn(rope, plain, dim)
    if rope.rope_type == "longrope":
        factor, original = _given(rope, "factor"), _given(rope, "original_max_position_embeddings")
        scale = 1.0 if factor <= 1.0 else math.sqrt(1.0 + math.log(factor) / math.log(original))
        scale = scale if rope.attention_factor is None else rope.attention_factor
        return plain / np.asarray(_given(rope, "short_factor"), np.float32), scale
    return plain, 1.0


def _given(rope: Rope, name: str) -> Any:
    if (value := getattr(rope, name)) is None:
        raise ValueError(f"rope_type {rope.rope_type!r} needs {name}")
    return value


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """Long waves are stretched, short ones kept, those between interpolated (Llama 3.1)."""
    factor, low, high = (_given(rope, name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    original = _given(rope, "original_max_position_embeddings")
    wavelengths = 2 * math.pi / plain
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    return ((1 - smooth) * plain / factor + smooth * plain).astype(np.float32)


def _yarn(rope: Rope, plain: np.ndarray, dim: int) -> tuple[np.ndarray, float]:
    """YaRN (Peng et al. 2023, arXiv 2309.00071, section 3.2), with the scale of attention of its section 3.3."""
    factor, original = _given(rope, "factor"), _given(rope, "original_max_position_embeddings")

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    def feature(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    attention = scale(1.0) if rope.attention_factor is None else rope.attention_factor
    if rope.attention_factor is None and rope.mscale and rope.mscale_all_dim:
        attention = scale(rope.mscale) / scale(rope.mscale_all_dim)
    low, high = feature(rope.beta_fast or 32), feature(rope.beta_slow or 1)
    if rope.truncate is None or rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(len(plain)) - low) / max(high - low, 0.001), 0.0, 1.0)
    return (plain / factor * ramp + plain * (1 - ramp)).astype(np.float32), attention


def rotation(rope: Rope, head_dim: int, positions: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the angles at given positions, computed in float32.

    Args:
      rope: base and stretching.
      head_dim: width of a head.
      positions: [B, L] int.
      dtype: dtype of the result.

    Returns:
      Two arrays [B, L, 1, d / 2], d being the width that is rotated.

    Raises:
      ValueError: there are more positions than `rope.longest`.
    """
    if rope.longest is not None and positions.shape[-1] > rope.longest:
        raise ValueError(
            f"{positions.shape[-1]} tokens, but with rope_type {rope.rope_type!r} texts of up to {rope.longest} are "
            "read: truncate the text when tokenising"
        )
    frequencies, scale = inverse_frequencies(rope, head_dim)
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies
    return (jnp.cos(angles) * scale).astype(dtype), (jnp.sin(angles) * scale).astype(dtype)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the first features of every head, the first half of them paired with the second.

    With four features and d = 4, (a, b, c, e) turns to (a cos₀ − c sin₀, b cos₁ − e sin₁, c cos₀ + a sin₀,
    e cos₁ + b sin₁); with d = 2, to (a cos₀ − b sin₀, b cos₀ + a sin₀, c, e).

    Args:
      x: [B, L, heads, head_dim].
      cos, sin: [B, L, 1, d / 2], as `rotation` returns them.

    Returns:
      [B, L, heads, head_dim].
    """
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
