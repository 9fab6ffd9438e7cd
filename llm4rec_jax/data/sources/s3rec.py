"""S³-Rec's data (Zhou et al. 2020, CIKM): a sequence a user, with short texts that IDGenRec wrote for the items."""

import dataclasses
from pathlib import Path

from llm4rec_jax.data.interactions import Dataset
from llm4rec_jax.data.sources.reading import require
from llm4rec_jax.data.sources.registry import register
from llm4rec_jax.data.sources.sequences import load_sequences


@register("s3rec")
def load_s3rec(path: Path, *, name: str = "Beauty", encoding: str = "utf-8") -> Dataset:
    """Loads `<name>_sequences.txt` and `<name>_items.tsv`: for Beauty 22,363 users, 12,101 items, 198,502 interactions.

    Items have asin and text (strings; a text is 3 to 7 words, lower case). Without texts, load the sequences alone with
    source `sequences`. No timestamps but positions, as there.

    Args:
        path: the folder of the files.
        name: which data set.
        encoding: text encoding of the files.

    Raises:
        FileNotFoundError: if a file is missing.
        DataError: if a file is malformed, or a sequence has an item that the table lacks.
    """
    dataset = load_sequences(
        require(path / f"{name}_sequences.txt"),
        items_path=path / f"{name}_items.tsv",
        item="s3rec_item_id",
        item_columns={"text": "idgenrec_text", "asin": "asin"},
        encoding=encoding,
    )
    return dataclasses.replace(dataset, name=f"s3rec_{name.lower()}")
