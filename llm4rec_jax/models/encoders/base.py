"""The common parts of all language models: `Encoder`, its configuration, and the `Family` record.

A family is a Hugging Face `model_type`. Its module registers one record, and everything that works with language models
(loading, PEFT, adapters' files, sharding, pruning) asks that record. All families use the same names for the same
parts, so that one PEFT method reaches all of them:

    embeddings/{word,position,token_type}            tables
    .layers                                          the stack of blocks, hidden states in, hidden states out
    layer_3                                          one block
    layer_3/attention, layer_3/ffn                   its two sublayers
    layer_3/attention/{query,key,value,output}       projections; fused tensors of a checkpoint are split into them
    layer_3/attention.attend                         (q, k, v, mask): where a prefix adds keys and values
    layer_3/ffn/{gate,up,down}                       projections of the feed-forward network; not all have a gate
    layer_3/attention_norm, layer_3/ffn_norm         norms, before or after the sublayer as the family has it
    final_norm                                       the norm after the last block, where there is one
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm4rec_jax.models.encoders.weights import Rule
from llm4rec_jax.registry import Registry, import_all
from llm4rec_jax.sharding import Rules, ShardLongestAxis

OURS = ("compute_dtype", "remat", "attention", "packing")
"""Fields of a configuration that say how to compute and not what; a `config.json` has no say in them."""


ATTENTION = {"xla": "XLA's", "cudnn": "cuDNN's", "splash": "splash"}  # and their names in sentences


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Fields that every family has; names are Hugging Face's. A family adds its own and replaces defaults.

    Attributes:
      model_type: The family's name.
      hidden_size: Width D of the hidden states.
      compute_dtype: Type that activations are computed in; parameters stay float32.
      remat: Recompute each block in the backward pass instead of storing its activations.
      attention: "xla", or kernels that drop no attention weights: "cudnn" (NVIDIA GPUs, 16 bits), "splash" (TPUs).
      packing: Texts of a catalogue are encoded side by side in rows; see `Encoder.packed`.
    """

    model_type: str = ""
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    pad_token_id: int | None = 0
    compute_dtype: str = "float32"
    remat: bool = False
    attention: str = "xla"
    packing: bool = False

    sizes: ClassVar[tuple[str, ...]] = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "max_position_embeddings",
    )  # fmt: skip
    """Names of the fields that must be at least 1."""
    dropout_rates: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that are dropout rates."""
    attention_dropout_rate: ClassVar[str | None] = None
    """Name of the field with the dropout rate of attention weights."""

    def __post_init__(self) -> None:
        for name in self.sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.compute_dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"compute_dtype {self.compute_dtype!r} is not one of float32, bfloat16, float16")
        if self.attention not in ATTENTION:
            raise ValueError(f"attention {self.attention!r} is not one of {', '.join(ATTENTION)}")
        for name in self.dropout_rates:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 0 and below 1")
        if self.attention != "xla":
            self._check_kernel()

    def _check_kernel(self) -> None:
        if self.attention == "cudnn" and self.compute_dtype == "float32":
            raise ValueError("cuDNN's attention computes in 16 bits: give bfloat16 as compute_dtype, or xla")
        dropped = 0.0 if self.attention_dropout_rate is None else getattr(self, self.attention_dropout_rate)
        if dropped > 0:
            raise ValueError(
                f"{ATTENTION[self.attention]} attention drops no weights, but {dropped:g} of them are to be: "
                "give an encoder dropout of 0, or xla"
            )
        if self.attention == "splash" and self.biased_scores:
            raise ValueError(f"splash attention adds nothing to scores, and {self.model_type} adds distances: give xla")
        if self.attention == "cudnn" and self.head_width % 8:
            raise ValueError(
                f"cuDNN's attention wants heads of a multiple of 8, and these are {self.head_width} wide: give xla"
            )

    @property
    def dtype(self) -> Any:
        """Type that activations are computed in."""
        return jnp.dtype(self.compute_dtype)

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def biased_scores(self) -> bool:
        """Whether attention scores have a part that depends on distances."""
        return False

    @property
    def dropout(self) -> float:
        """The largest dropout rate; 0 when the encoder is the same function in training and in use."""
        return max((getattr(self, name) for name in self.dropout_rates), default=0.0)

    def with_dropout(self, rate: float) -> Self:
        """The configuration with every dropout rate replaced."""
        return dataclasses.replace(self, **dict.fromkeys(self.dropout_rates, rate))

    def with_layers(self, k: int) -> Self:
        """The configuration of the first k blocks."""
        return dataclasses.replace(self, num_hidden_layers=k)


class Encoder(nn.Module):
    """A language model M: token ids [B, L] and their mask [B, L] to hidden states [B, L, D].

    A family's module has `setup` make `self.blocks`, modules named `layer_0`, `layer_1`, …, and defines `embed`; with
    positions inside its blocks it defines `block_inputs`, with a norm at the end `finish`; `nn.nowrap` keeps these
    three from being sites. Masks that they get may tell texts of one row apart, see `layers.segments`. Dropout is on
    exactly when `apply` is given a `dropout` rng.
    """

    config: Any
    """An `EncoderConfig` of the family's kind."""

    @property
    def family(self) -> "Family":
        """The record of the encoder's family."""
        return find_family(self.config.model_type)

    @nn.nowrap
    def embed(self, ids: jax.Array, mask: jax.Array, token_type: jax.Array | None) -> jax.Array:
        """Hidden states before the first block, [B, L, D]."""
        raise NotImplementedError

    @nn.nowrap
    def block_inputs(self, x: jax.Array, mask: jax.Array) -> tuple[Any, ...]:
        """Arguments that every block takes after states and mask, such as angles of rotary positions or a bias.

        They depend on the shape of the states [B, L, D] and on the mask [B, L], both as the blocks see them, so a
        prompt in front of the text is counted.
        """
        return ()

    @nn.nowrap
    def finish(self, x: jax.Array) -> jax.Array:
        """Hidden states of the last layer [B, L, D] from those after the last block."""
        return x

    def __call__(self, ids: jax.Array, mask: jax.Array, token_type: jax.Array | None = None) -> jax.Array:
        """Hidden states of the last layer.

        Args:
          ids: [B, L] int token ids.
          mask: [B, L] bool or 0/1, which tokens are real.
          token_type: [B, L] int segment ids, zeros by default.

        Returns:
          [B, L, D] in the compute dtype.
        """
        mask = mask.astype(bool)
        return self.finish(self.layers(self.embed(ids, mask, token_type), mask)[-1])

    def packed(self, ids: jax.Array, texts: jax.Array) -> jax.Array:
        """Hidden states of rows that hold several texts, whose numbers [B, L] are the mask; see `layers.segments`."""
        return self.finish(self.layers(self.embed(ids, texts, None), texts)[-1])

    def hidden_states(self, ids: jax.Array, mask: jax.Array, stop: int) -> jax.Array:
        """Hidden states before block `stop`, [B, L, D]: constant while only blocks from it on are trained."""
        mask = mask.astype(bool)
        return self.layers(self.embed(ids, mask, None), mask, stop=stop)[-1]

    def all_hidden_states(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Hidden states before and after each block, [B, L, S, D] with S one more than the number of blocks."""
        mask = mask.astype(bool)
        return jnp.stack(self.layers(self.embed(ids, mask, None), mask), axis=2)

    def encode_from(self, layer: int | None, states: jax.Array, mask: jax.Array) -> jax.Array:
        """Hidden states of the last layer, [B, L, D], from those that were computed before.

        Args:
          layer: Block that the states stand before. None: they are those of `all_hidden_states`, and only what is
            beside the blocks runs.
          states: [B, L, D], or [B, L, S, D] when `layer` is None.
          mask: [B, L], which tokens are real.
        """
        mask = mask.astype(bool)
        if layer is not None:
            return self.finish(self.layers(states, mask, start=layer)[-1])
        known = [states[:, :, i] for i in range(states.shape[2])]
        return self.finish(self.layers(known[0], mask, known=known)[-1])

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
        states, more = [x], self.block_inputs(x, mask)
        for block in self.blocks[start:stop]:
            states.append(block(states[-1], mask, *more))
        return states


@dataclasses.dataclass(frozen=True)
class Sites:
    """Places of the parts that all language models have, below a block `layer_N`; None for a missing part.

    Names are the same in every family (see the module's docstring); the record says which of them there are.
    """

    query: str | None = "attention/query"
    key: str | None = "attention/key"
    value: str | None = "attention/value"
    output: str | None = "attention/output"
    gate: str | None = None
    up: str | None = "ffn/up"
    down: str | None = "ffn/down"
    norms: tuple[str, ...] = ("attention_norm", "ffn_norm")
    grouped: bool = False
    """Queries may have another width than the states, and keys and values another than queries."""

    @property
    def linear(self) -> dict[str, str]:
        """The projections that there are, {"query": "attention/query", …}."""
        named = dataclasses.asdict(self)
        return {name: named[name] for name in _PROJECTIONS if named[name] is not None}


_PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")


def megatron_rules(bias: bool = True, scope: str = ".*") -> Rules:
    """Places the arrays of a transformer on a mesh (Shoeybi et al. 2019, arXiv 1909.08053).

    Projections into heads and into the hidden layer are cut by column, those out of them by row, embeddings by
    vocabulary, or by width when the devices do not divide the vocabulary.

    Args:
      bias: The projections by column have biases; a rule that matches nothing is an error.
      scope: Regular expression for what stands before `layer_N` in a path.
    """
    into = rf"{scope}layer_\d+/(attention|ffn)/(position_)?(query|key|value|gate|up)"
    # A matrix of few bits is cut as its floats would be; its scales stay whole.
    kernel = "kernel(/codes)?"
    return (
        (f"{into}/{kernel}", PartitionSpec(None, "model")),
        *(((f"{into}/bias", PartitionSpec("model")),) if bias else ()),
        (rf"{scope}layer_\d+/(attention|ffn)/(output|down)/{kernel}", PartitionSpec("model", None)),
        (r".*/word/embedding", ShardLongestAxis("model")),
    )


TRANSFORMER_RULES = megatron_rules()
"""Those of a family whose projections have biases."""


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of language model, by Hugging Face's `model_type`.

    Attributes:
      model_type: Its name in `config.json`.
      build: Makes the module from its configuration.
      config_from_hf: Makes the configuration from the fields of `config.json`; a ValueError names the key that asks
        for something which is not supported. `config_json.config_fields` does most of the work.
      config_to_hf: The fields of `config.json` from the configuration, those that say how to compute left out.
      weight_rules: Tensors by name and the parameters that they become, strict in both directions.
      prefixes: Beginnings of tensor names that are ignored, as models with a head write them ("model.").
      dropped: Regular expressions of tensors that are known and have no use here.
      sites: Which of the common parts a block has.
      tables: Tables beside the embeddings that it always has; they tell its parameters from those of other families.
      unused_modules: Modules that Hugging Face's model has and no hidden state depends on, which adapters may hold.
      target_modules: Hugging Face's names of the modules that its peft adapts by default.
      past_keys: Whether Hugging Face's model attends to keys that come before its own, as peft's prefixes need.
      sharding_rules: Where the arrays belong on a mesh, by path; see `sharding.specs`.
      causal: Whether a token attends only to itself and those before it.
      pooling: Pooling that suits its hidden states, for folders that do not name one.
    """

    model_type: str
    build: Callable[[Any], Encoder]
    config_from_hf: Callable[[Mapping[str, Any]], Any]
    config_to_hf: Callable[[Any], dict[str, Any]]
    weight_rules: tuple[Rule, ...]
    prefixes: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    sites: Sites = Sites()
    tables: tuple[str, ...] = ()
    unused_modules: tuple[str, ...] = ()
    target_modules: tuple[str, ...] = ()
    past_keys: bool = True
    sharding_rules: Rules = TRANSFORMER_RULES
    causal: bool = False
    pooling: str = "mean"


FAMILIES: Registry[Family] = Registry("model family")
"""The families that have been imported; `find_family` and `families` import all."""


def register(family: Family) -> Family:
    """Adds a family under its `model_type`. Returns it.

    Raises:
      ValueError: there is one of that name.
    """
    return FAMILIES.register(family.model_type)(family)


@functools.cache
def _import_families() -> None:
    for name in ("encoders", "decoders"):
        package = importlib.import_module(f"llm4rec_jax.models.{name}")
        import_all(package.__name__, package.__path__)


def families() -> dict[str, Family]:
    """All families by `model_type`: those of this package and those that others have registered.

    Example:
      >>> families()["llama"].causal
      True
    """
    _import_families()
    # In one order whatever was imported first: parameters that fit several families are those of the first one.
    own = {name for name, family in FAMILIES.items() if family.build.__module__.startswith("llm4rec_jax.")}
    return {name: FAMILIES[name] for name in [*sorted(own), *sorted(set(FAMILIES) - own)]}


def find_family(model_type: str) -> Family:
    """The family of that name.

    Raises:
      ValueError: there is none; the message names the nearest and lists all.
    """
    _import_families()
    return FAMILIES.lookup(model_type)


def first_layers(encoder: Encoder, params: dict[str, Any], k: int) -> tuple[Encoder, dict[str, Any]]:
    """The encoder with only its first k layers (layer pruning, Sajjad et al. 2023), sharing their arrays.

    Raises:
      ValueError: k is not between 1 and the number of layers.
    """
    depth = encoder.config.num_hidden_layers
    if not 1 <= k <= depth:
        raise ValueError(f"cannot keep the first {k} layers of an encoder that has {depth}: give 1 to {depth}")
    kept = {n: p for n, p in params.items() if not n.startswith("layer_") or int(n.removeprefix("layer_")) < k}
    return encoder.clone(config=encoder.config.with_layers(k)), kept
