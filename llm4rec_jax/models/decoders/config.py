"""The one configuration of all decoders, and what their `config.json` files have in common."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from llm4rec_jax.models.encoders.base import EncoderConfig
from llm4rec_jax.models.encoders.config_json import config_fields
from llm4rec_jax.models.layers.activations import ACTIVATIONS
from llm4rec_jax.models.layers.rotary import Rope, rope_from_hf, rope_to_hf

FULL, SLIDING = "full_attention", "sliding_attention"
PLAIN = Rope()


@dataclasses.dataclass(frozen=True)
class DecoderConfig(EncoderConfig):
    """Switches of the one decoder that all families are; a family sets them from its `config.json`.

    Attributes:
      num_key_value_heads: Heads of keys and values; each serves several heads of queries where they are fewer.
      head_dim: Width of a head; the heads together need not be as wide as the hidden states.
      hidden_act: Activation of the feed-forward network.
      gated: The network is down(act(gate(x)) · up(x)) instead of down(act(up(x))).
      norm: "rms", "rms_offset" for weights 1 + w as Gemma has them, or "layer".
      norm_eps: ε of the norms.
      norm_bias: Norms of the form "layer" have biases.
      pre_norm: Sublayers read normed states, and the states after the last block are normed. Otherwise each sum of
        states and a sublayer's output is normed.
      embedding_norm: Embeddings are normed, so pre-norm attention of the first block has no norm of its own.
      qk_norm: Each head of queries and keys is normed before it is rotated.
      post_norms: The output of a sublayer is normed too, before it is added.
      query_bias, output_bias, ffn_bias: Biases of query, key and value; of the attention's output; of the network.
      type_vocab_size: Number of token types, which have a table of embeddings; 0 for none.
      learned_positions: Positions have a table of embeddings instead of rotary angles.
      rope: Rotary positions.
      sliding_rope: Rotary positions of blocks with a sliding window; None for those of all others.
      position_offset: Rows of the table of learned positions in front of that of the first token.
      layer_types: `FULL` or `SLIDING` for each block; empty for full attention in all.
      sliding_window: Tokens of a sliding block see those at a smaller distance.
      causal: Tokens see themselves and those before; otherwise all.
      attention_scale: Factor of q kᵀ; None for 1 / √head_dim.
      inverse_layer_scale: Block i divides that factor by i + 1.
      attention_softcap, logit_softcap: Bounds c of attention scores and of next-token logits by c tanh(s / c).
      embedding_scale: Factor of the word embeddings.
      tie_word_embeddings: Next-token logits are products with the word embeddings.
      language_head: An untied head is among the parameters; without it there are no logits. Not in `config.json`.
      bos_token_id, eos_token_id: Tokens that begin and end a text.
    """

    num_key_value_heads: int = 12
    head_dim: int = 64
    hidden_act: str = "silu"
    gated: bool = True
    norm: str = "rms"
    norm_eps: float = 1e-6
    norm_bias: bool = True
    pre_norm: bool = True
    embedding_norm: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    query_bias: bool = False
    output_bias: bool = False
    ffn_bias: bool = False
    type_vocab_size: int = 0
    learned_positions: bool = False
    rope: Rope = PLAIN
    sliding_rope: Rope | None = None
    position_offset: int = 0
    layer_types: tuple[str, ...] = ()
    sliding_window: int | None = None
    causal: bool = True
    attention_scale: float | None = None
    inverse_layer_scale: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float | None = None
    tie_word_embeddings: bool = True
    language_head: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    initializer_range: float = 0.02
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0

    sizes = (*EncoderConfig.sizes, "num_key_value_heads", "head_dim")
    dropout_rates = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    attention_dropout_rate = "attention_probs_dropout_prob"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {self.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        if not self.learned_positions and int(self.head_dim * self.rope.partial_rotary_factor) % 2:
            raise ValueError(f"head_dim {self.head_dim} has an odd number of features to rotate")
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} blocks, but num_hidden_layers is {self.num_hidden_layers}"
            )
        if unknown := sorted(set(self.layer_types) - {FULL, SLIDING}):
            raise ValueError(f"layer_types has {unknown[0]!r}; only {FULL} and {SLIDING} are supported")
        if SLIDING in self.layer_types and (self.sliding_window or 0) < 1:
            raise ValueError(f"sliding_window is {self.sliding_window}, but layer_types has {SLIDING}")
        if self.attention == "cudnn" and self.attention_softcap is not None:
            raise ValueError("cuDNN's attention has no soft cap: give xla as the encoder's attention")

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim

    def layer_type(self, index: int) -> str:
        """Returns the attention of block `index`: `FULL` or `SLIDING`."""
        return self.layer_types[index] if self.layer_types else FULL

    def rope_of(self, layer_type: str) -> Rope:
        """The rotary positions of the blocks of a type."""
        return self.sliding_rope if layer_type == SLIDING and self.sliding_rope is not None else self.rope

    def with_layers(self, k: int) -> "DecoderConfig":
        """The configuration of the first k blocks."""
        return dataclasses.replace(self, num_hidden_layers=k, layer_types=self.layer_types[:k])


_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_SAME = (
    *_REQUIRED,
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
_NAMES = {
    **{name: name for name in _SAME},
    "norm_eps": "rms_norm_eps",
    "attention_probs_dropout_prob": "attention_dropout",
}


def decoder_config(raw: Mapping[str, Any], renamed: Mapping[str, str] | None = None, **switches: Any) -> DecoderConfig:
    """Makes a configuration from the fields of a `config.json` and the switches of its family.

    Args:
      raw: Fields of `config.json`, over the family's defaults.
      renamed: Names in `config.json` by the configuration's, where they differ from those of Llama.
      **switches: Fields of the configuration that the family sets; they go before those of `config.json`.

    Raises:
      ValueError: a size is missing, a field is of another type, or another library has quantised the weights.
    """
    names = {**_NAMES, **(renamed or {})}
    if missing := [names[name] for name in _REQUIRED if raw.get(names[name]) is None and name not in switches]:
        raise ValueError(f"{', '.join(missing)} is missing")
    if raw.get("quantization_config"):
        raise ValueError(
            "quantization_config is set, and weights that another library has quantised are not read: give the "
            "checkpoint that it was made from"
        )
    known = {names[name]: raw[names[name]] for name in names if raw.get(names[name]) is not None}
    fields = {**config_fields(DecoderConfig, known, **names), **switches}
    fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
    fields.setdefault("head_dim", fields["hidden_size"] // max(fields["num_attention_heads"], 1))
    ends = fields.get("eos_token_id")
    return DecoderConfig(**{**fields, "eos_token_id": tuple(ends) if isinstance(ends, list) else ends})


def decoder_config_to_hf(
    config: DecoderConfig, architecture: str, renamed: Mapping[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """Makes the fields of a `config.json`: the inverse of `decoder_config`.

    Args:
      config: Configuration of a decoder.
      architecture: Name of the family's classes in transformers without what they end in, "Llama".
      renamed: As in `decoder_config`; None as a name leaves the field out.
      **more: Fields that the family adds, as `config.json` has them.
    """
    names = {**_NAMES, **(renamed or {})}
    kind = "ForCausalLM" if config.language_head or config.tie_word_embeddings else "Model"
    fields = {names[name]: getattr(config, name) for name in names if names[name]}
    ends = config.eos_token_id
    return {
        "architectures": [architecture + kind],
        "model_type": config.model_type,
        **fields,
        "eos_token_id": list(ends) if isinstance(ends, tuple) else ends,
        **more,
    }


def read_rope(raw: Mapping[str, Any], partial: bool = False) -> Rope:
    """Reads the rotary positions of a `config.json`, by transformers 5's `rope_parameters` or the keys before it.

    Args:
      raw: Fields of `config.json`, with `rope_theta` and `max_position_embeddings` among them.
      partial: Whether the family may rotate only a part of each head.

    Raises:
      ValueError: a `rope_type` that is not implemented, or a field that its type lacks or does not know.

    Example:
      >>> scaling = {"type": "linear", "factor": 2.0}
      >>> rope = read_rope({"rope_theta": 5e5, "max_position_embeddings": 64, "rope_scaling": scaling})
      >>> rope.rope_theta, rope.rope_type, rope.factor
      (500000.0, 'linear', 2.0)
    """
    # Both only where someone wrote it for both versions of transformers, which prefers the older key.
    given = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
    given.setdefault("rope_theta", raw["rope_theta"])
    share = given.setdefault("partial_rotary_factor", raw.get("partial_rotary_factor") or 1.0)
    if share != 1.0 and not partial:
        raise ValueError(f"partial_rotary_factor is {share}, but this family rotates whole heads")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind != "default" and raw.get("original_max_position_embeddings"):
        given["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
    return rope_from_hf(given, raw["max_position_embeddings"])


def rope_fields(rope: Rope) -> dict[str, Any]:
    """Makes the fields of a `config.json` that `read_rope` reads, for transformers 5 and those before it."""
    parameters = rope_to_hf(rope)
    older = {name: value for name, value in parameters.items() if name != "rope_theta"}
    scaling = {"rope_scaling": older} if rope.rope_type != "default" else {}
    return {"rope_parameters": parameters, "rope_theta": rope.rope_theta, **scaling}


def read_ropes(raw: Mapping[str, Any], scaled: tuple[str, ...] = (FULL,)) -> dict[str, Rope]:
    """Reads rotary positions that differ by type of block.

    Args:
      raw: Fields of `config.json`, with `max_position_embeddings` and the base of both types among them: `rope_theta`
        for full attention, `rope_local_base_freq` for blocks with a window.
      scaled: Types that the older `rope_scaling` is for.

    Returns:
      The configuration's `rope` and `sliding_rope`.

    Raises:
      ValueError: as in `read_rope`, or there are `rope_parameters` of another type of block.
    """
    by_type, scaling = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    if unknown := sorted(by_type.keys() - {FULL, SLIDING}):
        raise ValueError(f"rope_parameters has {', '.join(unknown)} beside {FULL} and {SLIDING}")

    def read(kind: str, theta: float) -> Rope:
        given = {**(by_type.get(kind) or {}), **(scaling if kind in scaled else {})}
        return read_rope({**raw, "rope_scaling": None, "rope_parameters": given, "rope_theta": theta})

    return {
        "rope": read(FULL, raw["rope_theta"]),
        "sliding_rope": read(SLIDING, raw["rope_local_base_freq"]),
    }


def read_windows(raw: Mapping[str, Any], layer_types: tuple[str, ...]) -> dict[str, Any]:
    """Reads `layer_types` and `sliding_window`: what `config.json` lists, otherwise what the family's rule gives.

    A model without a window has full attention in all blocks.
    """
    if (listed := raw.get("layer_types")) is not None:
        layer_types = tuple(listed)
    if SLIDING not in layer_types:
        everywhere = layer_types in ((), (FULL,) * raw["num_hidden_layers"])
        return {"layer_types": () if everywhere else layer_types, "sliding_window": None}
    return {"layer_types": layer_types, "sliding_window": raw.get("sliding_window")}
