"""The user model that a configuration names: its options, and the decoder of one that is a language model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from llm4rec_jax.models.decoders.decoder import Decoder
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.checkpoint import PretrainedError
from llm4rec_jax.models.graphs.base import GRAPHS
from llm4rec_jax.models.users.base import USERS
from llm4rec_jax.registry import unknown_name

DECODER_OPTIONS = ("path", "pretrained", "layers", "dropout")
"""Options of the user model "llm" with the decoder of a folder."""


class UserModel(NamedTuple):
    """Options that a user model is built with, and its pretrained parameters, where it has any."""

    options: dict[str, Any]
    params: dict[str, Any] | None = None


def user_model(config: Any, name: str) -> UserModel:
    """Reads the options of a user model, and loads the decoder that they name.

    Args:
      config: A resolved configuration.
      name: Current name of its user model.

    Raises:
      ValueError: An option of "llm" that does not exist, or a language model that is no causal decoder.
      PretrainedError: The decoder cannot be loaded.
    """
    tables, former = config.model.user_options, {**USERS.aliases, **GRAPHS.aliases}
    names = (name, *(old for old, new in former.items() if new == name))
    options = next((dict(tables[known]) for known in names if known in tables), {})
    if name != "llm":
        return UserModel(options)
    if options.get("path") is None:
        of_folders = ("path", "pretrained")
        return UserModel({option: value for option, value in options.items() if option not in of_folders})
    return _load_decoder(config.encoder, options)


def _load_decoder(encoder: Any, options: Mapping[str, Any]) -> UserModel:
    """Loads the decoder of a folder without its word embeddings; it computes as `config.encoder` says."""
    for option in options:
        if option not in DECODER_OPTIONS:
            table = "key of config.model.user_options.llm with a path:"
            raise ValueError(unknown_name(table, option, DECODER_OPTIONS))
    decoder, params = pretrained.load(
        options["path"],
        layers=options.get("layers"),
        compute_dtype=encoder.dtype,
        remat=encoder.remat,
        attention=encoder.attention,
        dropout=options.get("dropout", 0.0),
    )
    if not isinstance(decoder, Decoder) or not decoder.config.causal:
        raise PretrainedError(
            f"config.model.user_options.llm.path is {options['path']}, a {decoder.config.model_type} model: give the "
            "folder of a causal decoder, such as smollm2"
        )
    if not options.get("pretrained", True):
        # The recommender draws them by the run's seed.
        return UserModel({"decoder": decoder})
    tables = {name: table for name, table in params["embeddings"].items() if name != "word"}
    blocks = {name: part for name, part in params.items() if name != "embeddings"}
    return UserModel({"decoder": decoder}, {**blocks, "embeddings": tables} if tables else blocks)
