"""Encoders, pooling, user models, scoring heads, and the recommender that joins them. Nothing here knows of PEFT."""

# They register themselves as user models.
from llm4rec_jax.models.graphs import lightgcn as graph
from llm4rec_jax.models.users import bert4rec as bidirectional

__all__ = ["bidirectional", "graph"]
