"""A Hugging Face folder or hub name to a vision encoder and its parameters. Strict in both directions."""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp

from llm4rec_jax.models.encoders.checkpoint import Checkpoint, PretrainedError
from llm4rec_jax.models.encoders.huggingface import read_fields, resolve
from llm4rec_jax.models.encoders.weights import Names, WeightError
from llm4rec_jax.models.vision.base import VisionConfig, VisionFamily, vision_families
from llm4rec_jax.models.vision.encoder import VisionEncoder
from llm4rec_jax.trees import flatten, unflatten


def load(
    path_or_hub_name: str | os.PathLike[str],
    *,
    head: bool | None = None,
    compute_dtype: str = "float32",
    remat: bool = False,
) -> tuple[VisionEncoder, dict[str, Any]]:
    """Loads a pretrained vision encoder of any family.

    Args:
      path_or_hub_name: A folder with `config.json` and `model.safetensors` or its shards, or the name of a repository
        on the Hugging Face hub. A folder of CLIP or SigLIP may hold both towers.
      head: Whether the pooled vector passes the layer that the family has for it: ViT's pooler, CLIP's projection into
        the space of texts and images, SigLIP's attention. None takes it where the folder has its weights.
      compute_dtype: Type that activations are computed in; parameters are float32.
      remat: Recompute blocks in the backward pass.

    Returns:
      The encoder and its parameters: `encoder.apply({"params": params}, pixels)` is [B, L, D], and with
      `method="vectors"` [B, W].

    Raises:
      PretrainedError: An unknown family, a file that is missing or damaged, or a tensor that is missing, unused or
        misshapen.
    """
    folder = resolve(path_or_hub_name)
    named, raw = read_fields(folder, vision_families())
    tensors = Checkpoint(folder)
    try:
        config = vision_families()[named].config_from_hf(raw)
        # One model_type may stand for several families.
        family = vision_families()[config.model_type]
        names = names_of(family)
        has_head = any(path.startswith("head/") for name in tensors for path in names.paths(name) or ())
        if head is False or not (head or has_head):
            config = dataclasses.replace(config, head=None)
            names = names_of(family, with_head=False)
        encoder = family.build(dataclasses.replace(config, compute_dtype=compute_dtype, remat=remat))
        names.check_depth(tensors, config.num_hidden_layers)
        flat = names.to_params(tensors, parameter_shapes(encoder), lambda path, array: jnp.asarray(array))
    except ValueError as error:
        where = folder if isinstance(error, WeightError) else folder / "config.json"
        raise error if isinstance(error, PretrainedError) else PretrainedError(f"{where}: {error}") from error
    return encoder, unflatten(flat)


def names_of(family: VisionFamily, with_head: bool = True) -> Names:
    """Returns the names of a family's tensors; without the head those of the head are dropped."""
    rules, dropped = family.weight_rules, family.dropped
    if not with_head:
        heads = [rule.tensor for rule in rules if rule.paths[0].startswith("head/")]
        rules = tuple(rule for rule in rules if rule.tensor not in heads)
        dropped += tuple(tensor.replace(".", r"\.") for tensor in heads)
    return Names(rules, family.prefixes, dropped)


def parameter_shapes(encoder: VisionEncoder) -> dict[str, tuple[int, ...]]:
    """Returns shapes of the parameters that an encoder needs, by path."""
    config: VisionConfig = encoder.config
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, config.num_channels), jnp.float32)
    params = jax.eval_shape(lambda p: encoder.init(jax.random.key(0), p, method="vectors"), pixels)["params"]
    return {path: tuple(array.shape) for path, array in flatten(params).items()}
