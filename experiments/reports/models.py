"""Tables of language models: the families there are, and one model with the memory that training it takes."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.reports.model_shapes import SHAPES
from experiments.reports.render import markdown_table
from experiments.reports.training_memory import training_memory
from llm4rec_jax import peft
from llm4rec_jax.data.features.tokens import tokenizer
from llm4rec_jax.models.encoders import huggingface
from llm4rec_jax.models.encoders.base import Family, families, find_family
from llm4rec_jax.models.encoders.checkpoint import Checkpoint
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.models.encoders.sentence_folder import SentenceFolder, describe
from llm4rec_jax.models.text_encoder import TextEncoder
from llm4rec_jax.peft.hf.formats import WRITERS

TRANSFORMERS = "5.24"
"""Version of transformers that every family has been compared with, states, logits and gradients."""
SIZED_ON_CPU = {
    # LLVM's passes take most of the time of a compilation and change no buffer.
    "xla_backend_optimization_level": 0,
    # On a CPU this pass removes the barriers of remat before buffers are assigned, so that nothing would be saved.
    "xla_disable_hlo_passes": "cse_barrier_expander",
}
"""Options of XLA for programs that are compiled on a CPU to be measured, and never run."""
# By default a CPU's program copies all weights to 16 bits before it begins.
_IN_ORDER = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
CARDS = (16, 80)
"""Memories of devices in GB that a training step is compared with."""


def family_rows() -> list[dict[str, Any]]:
    """Returns what there is to know of each family, by its record."""
    return [_family_row(family) for _, family in sorted(families().items())]


def _family_row(family: Family) -> dict[str, Any]:
    return {
        "model_type": family.model_type,
        "kind": "decoder" if family.causal else "encoder",
        "pooling": family.pooling,
        "methods": sorted(peft.METHODS),
        "exchanged": sorted(name for name in WRITERS if family.past_keys or name != "prefix"),
        "peft_targets": list(family.target_modules),
        "shapes": [name for name, fields in SHAPES.items() if fields["model_type"] == family.model_type],
        "transformers": TRANSFORMERS,
    }


def family_table() -> str:
    """Returns the families as a table in Markdown."""
    header = ["model_type", "kind", "pooling", "peft's default modules", "shapes by name"]
    rows = [
        [row["model_type"], row["kind"], row["pooling"], ", ".join(row["peft_targets"]), ", ".join(row["shapes"])]
        for row in family_rows()
    ]
    return (
        f"{markdown_table(header, rows)}\n\nStates, logits and gradients of every family have been compared with "
        f"transformers {TRANSFORMERS}.\nAll {len(peft.METHODS)} methods adapt every family (bitfit where there are "
        f"biases), and adapters of {len(WRITERS)} are exchanged\nwith peft: {', '.join(sorted(WRITERS))} "
        "(prefix where transformers\nattends to keys before a text's own)."
    )


@dataclasses.dataclass(frozen=True)
class Model:
    """A language model as it would be loaded, without its weights.

    Attributes:
      name: Folder, hub name, asset or shape.
      text: Encoder and pooling.
      folder: Parts of its folder beside the language model; None for a shape.
    """

    name: str
    text: TextEncoder
    folder: SentenceFolder | None

    @property
    def summary(self) -> dict[str, Any]:
        """Sizes and the parts of the folder that are applied; no weight is read."""
        config = self.text.encoder.config
        said = {
            "name": self.name,
            "family": config.model_type,
            "layers": config.num_hidden_layers,
            "width": config.hidden_size,
            "heads": config.num_attention_heads,
            "vocabulary": config.vocab_size,
            "positions": config.max_position_embeddings,
            "parameters": sum(map(math.prod, huggingface.parameter_shapes(self.text.encoder).values())),
        }
        if self.folder is None:
            return said
        return {
            **said,
            "stored": "+".join(Checkpoint(self.folder.model).types),
            "tokenizer": _tokenizer(self.folder.model),
            "pooling": "+".join(self.folder.pooling.poolings),
            "pooling_by": "folder" if self.folder.says_pooling else "family",
            "layers_after": [type(layer).__name__.lower() for layer in self.folder.pooling.layers],
            "prompts": self.folder.prompts,
            "max_tokens": self.folder.max_tokens,
        }


def find_model(name: str, **options: Any) -> Model:
    """Finds a model by the name of a shape, or by folder, asset or hub name.

    Args:
      name: Key of `SHAPES`, or what `huggingface.load` takes.
      **options: `layers`, and fields of `EncoderConfig`: `compute_dtype`, `remat`.

    Raises:
      PretrainedError: there is no such model.
    """
    layers = options.pop("layers", None)
    if name in SHAPES and not Path(name).exists():
        family = find_family(SHAPES[name]["model_type"])
        config, folder = family.config_from_hf(SHAPES[name]), None
    else:
        folder = describe(huggingface.resolve(name))
        family, config = huggingface.read_config(folder.model)
    config = dataclasses.replace(config if layers is None else config.with_layers(layers), **options)
    pooling = POOLINGS.build(family.pooling) if folder is None else folder.pooling
    return Model(name, TextEncoder(family.build(config.with_dropout(0.0)), pooling), folder)


def memory_rows(
    model: Model, methods: Sequence[str], texts: int, tokens: int, quantize: str | None = None
) -> list[dict[str, Any]]:
    """Returns the memory of a training step by method; see `training_memory`.

    Args:
      model: The model.
      methods: Names of methods or chains, with their default options.
      texts: Number of texts in a batch.
      tokens: Number of tokens of a text.
      quantize: Format of the frozen weights; None: float32.
    """
    options: dict[str, Any] = {}
    if jax.default_backend() == "cpu":
        options = SIZED_ON_CPU | ({} if model.text.encoder.config.compute_dtype == "float32" else _IN_ORDER)
    return [
        {"method": name, **training_memory(model.text, peft.create(name), texts, tokens, options, quantize)}
        for name in methods
    ]


def memory_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the memory of training by method as a table in Markdown, in GB of 10⁹ bytes."""
    parts = ("frozen", "trained", "temporary", "total")
    header = ["method", *parts, *(f"fits {card} GB" for card in CARDS)]
    cells = [
        [
            row["method"],
            *(f"{row[part] / 1e9:.2f}" for part in parts),
            *("yes" if row["total"] <= card * 1e9 else "no" for card in CARDS),
        ]
        for row in rows
    ]
    return markdown_table(header, cells)


def _tokenizer(folder: Path) -> str:
    try:
        loaded = tokenizer(folder)
    except ValueError as error:
        return f"none: {error}"
    return f"{type(loaded.backend_tokenizer.model).__name__}, {len(loaded):,} tokens"
