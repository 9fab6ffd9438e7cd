"""The configuration of vision encoders and the `VisionFamily` record, the counterparts of `encoders.base` for images.

Parts have the names of `encoders.base`, so that one PEFT method reaches text and image encoders alike. Images add

    embeddings/patch                    the projection of patches
    embeddings/{class_token,positions}  arrays
    entry_norm                          the norm before the first block, where there is one
    layer_3/{attention,ffn}_scale       factors of the sublayers' outputs, where there are any
    head                                the layer that makes the pooled vector, where there is one
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from llm4rec_jax.models.encoders.pre_norm import PreNormConfig
from llm4rec_jax.models.encoders.weights import Rule
from llm4rec_jax.models.layers.activations import ACTIVATIONS
from llm4rec_jax.registry import Registry, import_all

HEADS = ("dense", "projection", "attention")


@dataclasses.dataclass(frozen=True)
class VisionConfig(PreNormConfig):
    """Fields of a vision encoder; names are Hugging Face's where it has them.

    Attributes:
      image_size: Height and width of the images that the table of positions was trained for.
      patch_size: Height and width P of a patch.
      num_channels: Number of channels C of an image.
      class_token: Whether a trained token stands before the patches.
      patch_bias: Whether the projection of patches has a bias.
      entry_norm: Whether a norm stands before the first block.
      norm_states: Whether the norm after the last block is part of the hidden states; otherwise only pooled vectors
        pass it.
      head: Layer that makes the pooled vector: "dense" and `pooler_act`, "projection", a linear layer without a bias,
        or "attention" over all states. None takes the normed state of the class token.
      head_size: Width of the pooled vector; None is that of the states.
      pooler_act: Activation of the head "dense".
    """

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    class_token: bool = True
    patch_bias: bool = True
    entry_norm: bool = False
    norm_states: bool = True
    head: str | None = None
    head_size: int | None = None
    pooler_act: str = "tanh"

    sizes = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size", "num_channels",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is less than patch_size {self.patch_size}")
        if self.pooler_act not in ACTIVATIONS:
            raise ValueError(f"pooler_act {self.pooler_act!r} is not one of {', '.join(ACTIVATIONS)}")
        if self.head is not None and self.head not in HEADS:
            raise ValueError(f"head {self.head!r} is not one of {', '.join(HEADS)}")

    @property
    def grid(self) -> int:
        """Number of patches along one side of an image of `image_size`."""
        return self.image_size // self.patch_size

    @property
    def num_positions(self) -> int:
        """Number of rows of the table of positions."""
        return self.grid**2 + self.class_token

    @property
    def vector_size(self) -> int:
        """Width of the pooled vector."""
        return self.hidden_size if self.head is None or self.head_size is None else self.head_size


NOT_IN_FILES = dict.fromkeys(
    (
        "model_type", "vocab_size", "max_position_embeddings", "pad_token_id", "gated", "causal", "class_token",
        "patch_bias", "entry_norm", "norm_states", "head", "head_size",
    ),
    "",
)  # fmt: skip
"""Fields that no `config.json` of a vision encoder has a say in, as `config_fields` takes them."""


@dataclasses.dataclass(frozen=True)
class VisionFamily:
    """One kind of vision encoder, by Hugging Face's `model_type`.

    Attributes:
      model_type: Its name.
      build: Makes the module from its configuration.
      config_from_hf: Makes the configuration from the fields of `config.json`, with the head that a folder may have; a
        ValueError names the key that asks for something which is not supported.
      weight_rules: Tensors by name and the parameters that they become, strict in both directions.
      prefixes: Beginnings of tensor names that are ignored.
      dropped: Regular expressions of tensors that are known and have no use here.
    """

    model_type: str
    build: Callable[[VisionConfig], Any]
    config_from_hf: Callable[[Mapping[str, Any]], VisionConfig]
    weight_rules: tuple[Rule, ...]
    prefixes: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


VISION_FAMILIES: Registry[VisionFamily] = Registry("vision family")
"""The families that have been imported; `vision_families` imports all."""


def register(family: VisionFamily) -> VisionFamily:
    """Adds a family under its `model_type`. Returns it.

    Raises:
      ValueError: There is one of that name.
    """
    return VISION_FAMILIES.register(family.model_type)(family)


@functools.cache
def _import_families() -> None:
    package = importlib.import_module("llm4rec_jax.models.vision")
    import_all(package.__name__, package.__path__)


def vision_families() -> Registry[VisionFamily]:
    """Returns all families of vision encoders by `model_type`.

    Example:
      >>> sorted(vision_families())[:2]
      ['clip', 'clip_vision_model']
    """
    _import_families()
    return VISION_FAMILIES
