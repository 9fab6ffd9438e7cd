"""The interactions that a configuration names, filtered and split."""

from typing import Any

from llm4rec_jax.data import download, filters, sources
from llm4rec_jax.data.interactions import Dataset
from llm4rec_jax.data.ondisk import reader as ondisk
from llm4rec_jax.data.splits import protocols as splits
from llm4rec_jax.data.splits.split import Split


def load_dataset(data: Any) -> Dataset:
    """Loads and filters the data.

    Args:
      data: The table `config.data` of a resolved configuration.

    Raises:
      FileNotFoundError: A file is missing.
      ValueError: A name or option does not exist, a file is malformed, or nothing is left.
    """
    path = download.resolve_data_path(data.path, data.published)
    dataset = sources.load(data.source, path, **data.options)
    if data.deduplicate is not None:
        dataset = filters.deduplicate(dataset, keep=data.deduplicate)
    if data.min_rating is not None:
        dataset = filters.min_rating(dataset, data.min_rating)
    if data.k_core is not None:
        dataset = filters.k_core(dataset, data.k_core)
    return dataset


def load_split(data: Any, dataset: Dataset, seed: int) -> Split:
    """Splits a dataset, or reads the split that is stored with it.

    Args:
      data: The table `config.data` of a resolved configuration.
      dataset: The interactions.
      seed: Seed of the training targets that `few_shot` keeps.

    Raises:
      ValueError: A name or option does not exist, or a part would be empty.
    """
    split = ondisk.stored_split(dataset, data.split, data.split_options)
    if split is None:
        split = splits.SPLITS.build(data.split, dataset, **data.split_options)
    if data.few_shot is not None:
        split = splits.few_shot(split, data.few_shot, per=data.few_shot_per, seed=seed)
    return split
