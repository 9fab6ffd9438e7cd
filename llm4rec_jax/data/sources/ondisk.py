"""Data prepared by `experiments.prepare`."""

from pathlib import Path

from llm4rec_jax.data.interactions import Dataset
from llm4rec_jax.data.ondisk.reader import open_dataset
from llm4rec_jax.data.sources.registry import register


@register("prepared")
def load_prepared(path: Path, *, verify: bool = True) -> Dataset:
    """Opens a prepared folder; see `ondisk.reader.open_dataset`."""
    return open_dataset(path, verify)
