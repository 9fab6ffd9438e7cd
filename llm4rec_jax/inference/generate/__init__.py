"""Texts that a decoder goes on with: greedy, drawn, or by beam search, with a cache of keys and values."""

from llm4rec_jax.inference.generate.generator import Generated, Generator

__all__ = ["Generated", "Generator"]
