"""S³-Rec's data (Zhou et al. 2020, CIKM): a sequence a user, with short texts that IDGenRec wrote for the items."""

import dataclasses
from pathlib import Path

from llm4rec_jax.data.interactions import Dataset
from llm4rec_jax.data.sources.reading import require
from llm4rec_jax.data.sources.registry import register
from llm4rec_jax.data.sources.sequences import load_sequences


@register("s3rec")
def load_s3rec(path: Path, *, subset: str = "Beauty", encoding: str = "utf-8") -> Dataset:
    """Loads `<subset>_sequences.txt` and `<subset>_items.tsv`.

    Beauty has 22,363 users, 12,101 items and 198,502 interactions. Items have text (3 to 7 words, lower case) and asin,
    both strings. To do without texts, load the sequences alone with source `sequences`. No timestamps but positions, as
    there. One item of Beauty has no text: `load` has the option no_text for it.

    Args:
        path: the folder of the files.
        subset: which data set.
        encoding: text encoding of the files.

    Raises:
        ValueError: if the subset is not a name but a path.
        FileNotFoundError: if a file is missing.
        DataError: if a file is malformed, or a sequence has an item that the table lacks.
    """
    if Path(subset).name != subset:
        raise ValueError(f"subset {subset!r} is not the name of a data set, such as 'Beauty'; give the folder as path")
    dataset = load_sequences(
        require(path / f"{subset}_sequences.txt"),
        items_path=path / f"{subset}_items.tsv",
        item="s3rec_item_id",
        item_columns={"text": "idgenrec_text", "asin": "asin"},
        encoding=encoding,
    )
    return dataclasses.replace(dataset, name=f"s3rec_{subset.lower()}")
