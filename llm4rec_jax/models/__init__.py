"""Encoders, pooling, user models, scoring heads, and the recommender that joins them. Nothing here knows of PEFT."""
