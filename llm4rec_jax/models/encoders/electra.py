"""ELECTRA's discriminator (Clark et al. 2020, arXiv 2003.10555): BERT whose embeddings may be narrower than D."""

import dataclasses
from functools import partial

from llm4rec_jax.models.encoders.base import Family, register
from llm4rec_jax.models.encoders.bert import (
    BLOCK_RULES,
    EMBEDDING_RULES,
    TOKEN_TYPE_RULES,
    Bert,
    BertConfig,
    config_from_hf,
)
from llm4rec_jax.models.encoders.config_json import fields_to_hf
from llm4rec_jax.models.encoders.weights import linear


@dataclasses.dataclass(frozen=True)
class ElectraConfig(BertConfig):
    """Fields of the `config.json` of an ELECTRA.

    Example:
      >>> ElectraConfig().embedding_width
      128
    """

    model_type: str = "electra"
    embedding_size: int = 128
    hidden_size: int = 256
    num_attention_heads: int = 4
    intermediate_size: int = 1024

    sizes = (*BertConfig.sizes, "embedding_size")

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings before they are projected to D."""
        return self.embedding_size


register(
    Family(
        model_type="electra",
        build=Bert,
        config_from_hf=partial(config_from_hf, ElectraConfig),
        config_to_hf=partial(fields_to_hf, architecture="ElectraModel"),
        weight_rules=(
            *EMBEDDING_RULES,
            *TOKEN_TYPE_RULES,
            *BLOCK_RULES,
            *linear("embeddings_project", "embeddings/project"),
        ),
        prefixes=("electra.",),
        dropped=(
            r"embeddings\.position_ids",
            r"(?:discriminator_predictions|generator_predictions|generator_lm_head|classifier|qa_outputs)\..*",
        ),
        target_modules=("query", "value"),
    )
)
