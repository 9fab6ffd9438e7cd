"""The encoder of T5 (Raffel et al. 2020, arXiv 1910.10683) and of T5 v1.1 and Flan-T5, whose networks have a gate.

position_bias      number of a bucket of distances -> what it adds to the scores of each head, the same in all blocks
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from llm4rec_jax.models.encoders.attention import Attention
from llm4rec_jax.models.encoders.base import Encoder, EncoderConfig, Family, Sites, megatron_rules, register
from llm4rec_jax.models.encoders.config_json import config_fields, fields_to_hf, refuse
from llm4rec_jax.models.encoders.weights import Rule, embedding, linear, norm
from llm4rec_jax.models.layers.activations import ACTIVATIONS
from llm4rec_jax.models.layers.dropout import dropout
from llm4rec_jax.models.layers.linear import Dense, dense, normal
from llm4rec_jax.models.layers.norms import RMSNorm
from llm4rec_jax.models.layers.relative import BUCKETS, bias_by_distance

GATED = "t5_v1_1"
"""Name of the family with a gate. `config.json` calls both t5 and tells them apart by `feed_forward_proj`."""


@dataclasses.dataclass(frozen=True)
class T5Config(EncoderConfig):
    """Fields of the `config.json` of a T5 under BERT's names.

    Attributes:
      head_dim: Width of a head; the heads together need not be as wide as the hidden states.
      hidden_act: Activation of the feed-forward network, which has a gate in the family `t5_v1_1`.
      relative_attention_max_distance: Distances from this one on share a bucket.
      max_position_embeddings: Number of tokens of the longest text in training. There is no table that ends there.

    Example:
      >>> T5Config(hidden_size=512, num_attention_heads=6, head_dim=64).head_width
      64
    """

    model_type: str = "t5"
    vocab_size: int = 32128
    hidden_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    head_dim: int = 64
    hidden_act: str = "relu"
    relative_attention_num_buckets: int = BUCKETS
    relative_attention_max_distance: int = 128
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1

    sizes = (*EncoderConfig.sizes, "head_dim")
    dropout_rates = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    attention_dropout_rate = "attention_probs_dropout_prob"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"feed_forward_proj has {self.hidden_act!r}, which is not one of {', '.join(ACTIVATIONS)}")
        if (count := self.relative_attention_num_buckets) < 4 or count % 2:
            raise ValueError(f"relative_attention_num_buckets is {count}, must be even and at least 4")
        if (longest := self.relative_attention_max_distance) <= count // 4:
            raise ValueError(f"relative_attention_max_distance is {longest}, must be above {count // 4}")

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim

    @property
    def biased_scores(self) -> bool:
        """Whether attention scores have a part that depends on distances."""
        return True

    @property
    def gated(self) -> bool:
        """Whether the feed-forward network has a gate."""
        return self.model_type == GATED


class Embeddings(nn.Module):
    """Word embeddings. [B, L] -> [B, L, D]."""

    config: T5Config

    def setup(self) -> None:
        c = self.config
        self.word = nn.Embed(c.vocab_size, c.hidden_size, embedding_init=normal(c.initializer_range))

    def __call__(self, ids: jax.Array) -> jax.Array:
        c = self.config
        return dropout(self, self.word(ids).astype(c.dtype), c.hidden_dropout_prob)


class FeedForward(nn.Module):
    """down(act(up(x))), or down(act(gate(x)) · up(x)). [B, L, D] -> [B, L, D]."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, act = self.config, ACTIVATIONS[self.config.hidden_act]

        def project(features: int, name: str) -> Dense:
            return dense(features, name, c.dtype, c.initializer_range, bias=False)

        hidden = project(c.intermediate_size, "up")(x)
        hidden = act(project(c.intermediate_size, "gate")(x)) * hidden if c.gated else act(hidden)
        return project(c.hidden_size, "down")(dropout(self, hidden, c.hidden_dropout_prob))


class Layer(nn.Module):
    """A pre-norm transformer block. [B, L, D] -> [B, L, D]."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, bias: jax.Array) -> jax.Array:
        c = self.config
        states = RMSNorm(c.layer_norm_eps, c.dtype, name="attention_norm")(x)
        attended = Attention(c, scale=1.0, use_bias=False, name="attention")(states, mask, bias)
        x = x + dropout(self, attended, c.hidden_dropout_prob)
        states = RMSNorm(c.layer_norm_eps, c.dtype, name="ffn_norm")(x)
        return x + dropout(self, FeedForward(c, name="ffn")(states), c.hidden_dropout_prob)


class T5(Encoder):
    """The encoder of a T5."""

    config: T5Config

    def setup(self) -> None:
        c = self.config
        layer = nn.remat(Layer) if c.remat else Layer
        self.embeddings = Embeddings(c)
        self.blocks = [layer(c, name=f"layer_{i}") for i in range(c.num_hidden_layers)]
        self.final_norm = RMSNorm(c.layer_norm_eps, c.dtype)
        self.position_bias = nn.Embed(
            c.relative_attention_num_buckets, c.num_attention_heads, embedding_init=normal(c.initializer_range)
        )

    @nn.nowrap
    def embed(self, ids: jax.Array, mask: jax.Array, token_type: jax.Array | None) -> jax.Array:
        """Hidden states before the first block, [B, L, D]."""
        if token_type is not None:
            raise ValueError(f"{self.config.model_type} has no token types: leave token_type out")
        return self.embeddings(ids)

    @nn.nowrap
    def block_inputs(self, x: jax.Array, mask: jax.Array) -> tuple[Any, ...]:
        """The bias on the scores of every block, [1, heads, L, L]."""
        return (bias_by_distance(self.position_bias, x.shape[1], self.config.relative_attention_max_distance),)

    @nn.nowrap
    def finish(self, x: jax.Array) -> jax.Array:
        """Hidden states of the last layer [B, L, D] from those after the last block."""
        return dropout(self, self.final_norm(x), self.config.hidden_dropout_prob)


_RENAMED = {
    "model_type": "",
    "hidden_size": "d_model",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "d_ff",
    "head_dim": "d_kv",
    "max_position_embeddings": "n_positions",
    "hidden_act": "",
    "hidden_dropout_prob": "dropout_rate",
    "attention_probs_dropout_prob": "dropout_rate",
    "layer_norm_eps": "layer_norm_epsilon",
    "initializer_range": "",
}


def _from_hf(raw: Mapping[str, Any]) -> T5Config:
    gate, _, name = str(raw["feed_forward_proj"]).rpartition("-")
    if gate not in ("", "gated"):
        raise ValueError(
            f"feed_forward_proj is {raw['feed_forward_proj']!r}, must be an activation or gated-ACTIVATION"
        )
    # The GELU of gated-gelu is by tanh.
    act = "gelu_new" if raw["feed_forward_proj"] == "gated-gelu" else name
    refuse(raw, is_decoder=False, is_gated_act=bool(gate), dense_act_fn=act)
    return T5Config(**config_fields(T5Config, raw, **_RENAMED), model_type=GATED if gate else "t5", hidden_act=act)


def _to_hf(config: T5Config) -> dict[str, Any]:
    name = "gelu" if config.gated and config.hidden_act == "gelu_new" else config.hidden_act
    return {
        **fields_to_hf(config, "T5EncoderModel", **_RENAMED),
        "model_type": "t5",
        "feed_forward_proj": f"gated-{name}" if config.gated else name,
        "is_encoder_decoder": False,
    }


_BLOCK = "encoder.block.{i}"


def _register(model_type: str, feed_forward_proj: str, sites: Sites, ffn: tuple[Rule, ...]) -> None:
    register(
        Family(
            model_type=model_type,
            build=T5,
            config_from_hf=lambda raw: _from_hf({"feed_forward_proj": feed_forward_proj, **raw}),
            config_to_hf=_to_hf,
            weight_rules=(
                *embedding("shared", "embeddings/word", also=("encoder.embed_tokens",)),
                *embedding("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "position_bias"),
                *linear(f"{_BLOCK}.layer.0.SelfAttention.q", "layer_{i}/attention/query", bias=False),
                *linear(f"{_BLOCK}.layer.0.SelfAttention.k", "layer_{i}/attention/key", bias=False),
                *linear(f"{_BLOCK}.layer.0.SelfAttention.v", "layer_{i}/attention/value", bias=False),
                *linear(f"{_BLOCK}.layer.0.SelfAttention.o", "layer_{i}/attention/output", bias=False),
                *norm(f"{_BLOCK}.layer.0.layer_norm", "layer_{i}/attention_norm", bias=False),
                *ffn,
                *linear(f"{_BLOCK}.layer.1.DenseReluDense.wo", "layer_{i}/ffn/down", bias=False),
                *norm(f"{_BLOCK}.layer.1.layer_norm", "layer_{i}/ffn_norm", bias=False),
                *norm("encoder.final_layer_norm", "final_norm", bias=False),
            ),
            prefixes=("transformer.",),
            # The decoder of a whole T5, and heads.
            dropped=(r"decoder\..*", r"lm_head\..*", r"(?:classification_head|classifier|qa_outputs)\..*"),
            sites=sites,
            tables=("position_bias",),
            target_modules=("q", "v"),
            past_keys=False,
            sharding_rules=megatron_rules(bias=False),
        )
    )


_register(
    "t5",
    "relu",
    Sites(grouped=True),
    linear(f"{_BLOCK}.layer.1.DenseReluDense.wi", "layer_{i}/ffn/up", bias=False),
)
_register(
    GATED,
    "gated-gelu",
    Sites(gate="ffn/gate", grouped=True),
    (
        *linear(f"{_BLOCK}.layer.1.DenseReluDense.wi_0", "layer_{i}/ffn/gate", bias=False),
        *linear(f"{_BLOCK}.layer.1.DenseReluDense.wi_1", "layer_{i}/ffn/up", bias=False),
    ),
)
