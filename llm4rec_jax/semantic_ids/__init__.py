"""Semantic ids: an item as a short tuple of codes, made from its vector, which a language model can generate.

vectors [I, W]  --QUANTIZERS-->  codes [I, L]  --with_extra_digit-->  one id an item  --Trie-->  beam search
"""

from llm4rec_jax.semantic_ids.codes import Collisions, SemanticIds, collisions, with_extra_digit
from llm4rec_jax.semantic_ids.index_file import load_index, save_index
from llm4rec_jax.semantic_ids.quantizers import QUANTIZERS, Quantized
from llm4rec_jax.semantic_ids.trie import Trie, build_trie

__all__ = [
    "QUANTIZERS",
    "Collisions",
    "Quantized",
    "SemanticIds",
    "Trie",
    "build_trie",
    "collisions",
    "load_index",
    "save_index",
    "with_extra_digit",
]
