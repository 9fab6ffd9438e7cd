"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT without token types, under other names."""

import dataclasses
from functools import partial

from llm4rec_jax.models.encoders.base import Family, register
from llm4rec_jax.models.encoders.bert import EMBEDDING_RULES, Bert, BertConfig, config_from_hf
from llm4rec_jax.models.encoders.config_json import fields_to_hf
from llm4rec_jax.models.encoders.post_norm import PostNormConfig
from llm4rec_jax.models.encoders.weights import linear, norm


@dataclasses.dataclass(frozen=True)
class DistilBertConfig(BertConfig):
    """Fields of a DistilBERT under BERT's names.

    Example:
      >>> DistilBertConfig().num_hidden_layers
      6
    """

    model_type: str = "distilbert"
    num_hidden_layers: int = 6
    type_vocab_size: int = 0

    sizes = PostNormConfig.sizes


_RENAMED = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "layer_norm_eps": "",
    "type_vocab_size": "",
}
_BLOCK = "transformer.layer.{i}"

register(
    Family(
        model_type="distilbert",
        build=Bert,
        config_from_hf=partial(config_from_hf, DistilBertConfig, **_RENAMED),
        config_to_hf=partial(fields_to_hf, architecture="DistilBertModel", **_RENAMED),
        weight_rules=(
            *EMBEDDING_RULES,
            *linear(f"{_BLOCK}.attention.q_lin", "layer_{i}/attention/query"),
            *linear(f"{_BLOCK}.attention.k_lin", "layer_{i}/attention/key"),
            *linear(f"{_BLOCK}.attention.v_lin", "layer_{i}/attention/value"),
            *linear(f"{_BLOCK}.attention.out_lin", "layer_{i}/attention/output"),
            *norm(f"{_BLOCK}.sa_layer_norm", "layer_{i}/attention_norm"),
            *linear(f"{_BLOCK}.ffn.lin1", "layer_{i}/ffn/up"),
            *linear(f"{_BLOCK}.ffn.lin2", "layer_{i}/ffn/down"),
            *norm(f"{_BLOCK}.output_layer_norm", "layer_{i}/ffn_norm"),
        ),
        prefixes=("distilbert.",),
        dropped=(
            r"embeddings\.position_ids",
            r"(?:vocab_transform|vocab_layer_norm|vocab_projector|pre_classifier|classifier|qa_outputs)\..*",
        ),
        target_modules=("q_lin", "v_lin"),
        past_keys=False,
    )
)
