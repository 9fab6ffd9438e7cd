"""The pretrained text encoder of a run, and how it reads texts."""

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax import peft
from llm4rec_jax.data.features.tokens import tokenizer_fingerprint
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.sentence_folder import (
    PretrainedText,
    SentenceFolder,
    describe,
    load_text_encoder,
)
from llm4rec_jax.training import run_id

FROM_FOLDER = "folder"
"""Value of `config.encoder.pooling` that takes what the encoder's folder says of pooling and of layers after it."""


def reading_fingerprint(folder: SentenceFolder, pooling: str) -> str:
    """Returns the hash of an encoder folder's tokenizer, prompts and case, and of its pooling where that is used."""
    steps = folder.pooling if pooling == FROM_FOLDER else None
    read = folder.prompts, folder.prompt, folder.lower_case, repr(steps)
    return run_id.hash_of([tokenizer_fingerprint(folder.model), *read])


def create_method(config: Any, part: str = "encoder") -> peft.Peft:
    """Returns the method that `config.peft` names for a part, "encoder" or "users", over that part alone."""
    specs = {"encoder": config.method, "users": config.users or config.method}
    names = {of: {name.strip() for name in spec.split("+")} for of, spec in specs.items()}
    elsewhere = names["encoder"].union(names["users"]) - names[part]
    options = {name: dict(given) for name, given in config.options.items() if name not in elsewhere}
    return peft.create(specs[part], options)


def method_within(config: Any, reads_text: bool) -> peft.Peft:
    """Returns the methods of `config.peft` within the parts of the recommender that they adapt.

    Raises:
      ValueError: There is a method of the user model, and `within` does not name that part.
    """
    parts = config.within.split("+")
    if config.users is not None and "users" not in parts:
        raise ValueError(
            f"config.peft.users is {config.users!r}, but within is {config.within!r}: give within=encoder+users, or "
            "users alone"
        )
    if not reads_text and config.method == "frozen" and parts == ["encoder"]:
        return create_method(config)
    methods = [peft.within(create_method(config, part), part) for part in parts]
    return methods[0] if len(methods) == 1 else peft.chain(*methods)


def load_encoder(config: Any, path: str | Path, language_head: bool = False) -> PretrainedText:
    """The text encoder at a path, as `config.encoder` wants it.

    Raises:
      ValueError: Its weights are to be stored in few bits, and the method of `config.peft` would train them.
    """
    encoder = config.encoder
    pooling = encoder.pooling
    if pooling is None or encoder.quantize is not None:
        family, shape = pretrained.read_config(describe(pretrained.resolve(path)).model)
        pooling = pooling or family.pooling
        if encoder.quantize is not None and "encoder" in config.peft.within.split("+"):
            # By shapes, before any weights are read.
            shape = shape if encoder.layers is None else shape.with_layers(encoder.layers)
            shapes = pretrained.abstract_params(family.build(shape), encoder.quantize)
            jax.eval_shape(create_method(config.peft).init, jax.random.key(0), shapes)
    loaded = load_text_encoder(
        path,
        None if pooling == FROM_FOLDER else pooling,
        layers=encoder.layers,
        compute_dtype=encoder.dtype,
        remat=encoder.remat,
        attention=encoder.attention,
        packing=encoder.packing,
        dropout=encoder.dropout,
        language_head=language_head,
        quantize=encoder.quantize,
    )
    for notice in loaded.notices:
        warnings.warn(f"{notice}: give config.encoder.pooling={FROM_FOLDER} for what the folder says", stacklevel=2)
    if encoder.pretrained:
        return loaded
    # The same for every seed, so that runs which share a program share an encoder.
    tokens = np.zeros((1, 2), np.int32)
    drawn = jax.jit(loaded.encoder.init)(jax.random.key(0), tokens, tokens)["params"]
    if encoder.quantize is not None:
        drawn = pretrained.quantize_encoder(loaded.encoder, jax.tree.map(np.asarray, drawn), encoder.quantize)
        drawn = jax.tree.map(jnp.asarray, drawn)
    return loaded._replace(params={**loaded.params, "encoder": drawn})
