"""Decoders: language models in which a token attends only to those before it. A file registers its family."""
