"""Encoders, pooling, user models, scoring heads, and the recommender that joins them. Nothing here knows of PEFT."""

# They register themselves as user models.
from llm4rec_jax.models import bidirectional, graph

__all__ = ["bidirectional", "graph"]
