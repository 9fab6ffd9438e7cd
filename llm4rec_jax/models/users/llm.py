"""A language model that reads item embeddings in place of words."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.models.decoders.config import DecoderConfig
from llm4rec_jax.models.decoders.decoder import Decoder
from llm4rec_jax.models.users.base import USERS, UserEncoder, UserInputs


@USERS.register("llm")
class LanguageModel(UserEncoder):
    """A decoder over the history, as HLLM's user model (Chen et al. 2024, arXiv 2409.12740).

    Each item is one position, whose item embedding stands where a language model has the embedding of a word. Its
    parameters have the names of a language model's, so that parameter-efficient methods find them.

    Attributes:
      decoder: A causal language model whose hidden states are as wide as item embeddings, such as a pretrained one;
        None builds one of Llama's kind with the sizes below.
      layers: Number of blocks.
      heads: Attention heads a block; each has an even share of D.
      ffn: Width of the feed-forward layer, as a multiple of D.
      dropout: Rate on embeddings, attention weights and both sublayers, used when a dropout rng is given.
      positions: Length of the longest history.

    Example:
      >>> items = jnp.ones((1, 3, 8))
      >>> model = LanguageModel()
      >>> params = model.init(jax.random.key(0), UserInputs(items, jnp.ones((1, 3), bool)))
      >>> sorted(params["params"])
      ['final_norm', 'layer_0', 'layer_1']
    """

    decoder: Decoder | None = None
    layers: int = 2
    heads: int = 2
    ffn: int = 4
    dropout: float = 0.0
    positions: int = 100

    @nn.compact
    def __call__(self, inputs: UserInputs) -> jax.Array:
        length, width = inputs.history.shape[1:]
        decoder = self._from_scratch(width) if self.decoder is None else self.decoder
        nn.share_scope(self, decoder)
        c = decoder.config
        if not c.causal:
            raise ValueError(
                f"the user model reads its history by a {c.model_type} model, whose tokens see later ones: give a "
                "decoder"
            )
        if c.hidden_size != width:
            raise ValueError(
                f"item embeddings are {width} wide, but the decoder that reads them has hidden states of "
                f"{c.hidden_size}: give config.model.width={c.hidden_size} with a projection, or an encoder of that "
                "width with config.model.project=none"
            )
        if length > c.max_position_embeddings:
            raise ValueError(
                f"a history of {length} items, but the user model has {c.max_position_embeddings} positions"
            )
        return decoder.of_vectors(inputs.history, inputs.history_mask).astype(jnp.float32)

    @nn.nowrap
    def _from_scratch(self, width: int) -> Decoder:
        """Returns a decoder with rotary positions, gated networks and RMS norms."""
        if width % (2 * self.heads):
            raise ValueError(f"the width {width} is not a multiple of {self.heads} heads of an even width")
        config = DecoderConfig(
            vocab_size=1,  # No word is read.
            hidden_size=width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            head_dim=width // self.heads,
            intermediate_size=self.ffn * width,
            max_position_embeddings=self.positions,
        )
        return Decoder(config.with_dropout(self.dropout), name="decoder")
