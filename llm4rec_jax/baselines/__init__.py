"""Baselines: scorers that are evaluated like any trained recommender."""
