"""A small problem that trains in seconds: a dataset with structure, a random BERT, and a tokenizer for its words."""

from pathlib import Path

import numpy as np
import polars as pl
from transformers import BertTokenizerFast

from llm4rec_jax import peft
from llm4rec_jax.data.interactions import Dataset, Interactions
from llm4rec_jax.data.splits.protocols import leave_one_out
from llm4rec_jax.data.splits.split import Split
from llm4rec_jax.peft import Peft
from tests.conftest import random_bert

COLOURS = ("red", "green", "blue", "white")
THINGS = ("lamp", "chair", "table", "door", "clock", "vase", "shelf", "bench", "stool", "frame")


# Options of methods whose defaults are for wider encoders than that of `encoder_folder`.
METHOD_OPTIONS = {
    "adalora": {"init_rank": 4, "rank": 3, "alpha": 32.0},
    "compacter": {"n": 2, "reduction": 4},
    "galore": {"rank": 4, "every": 8},
    "houlsby": {"reduction": 4},
    "k_adapter": {"width": 8, "heads": 2, "blocks": 1},
    "last_k": {"k": 1},
    "lora_plus": {"ratio": 4.0},
    "oft": {"block": 8},
    "parallel": {"reduction": 4},
    "pfeiffer": {"reduction": 4},
    "prefix": {"length": 2},
    "prompt": {"length": 2},
    "side": {"width": 8},
    "vera": {"rank": 16},
}


def method(spec: str, within: str | None = "encoder") -> Peft:
    """A method or chain, at a size for the small encoder, within a part of the recommender or on its own."""
    chosen = {name: METHOD_OPTIONS[name] for name in spec.split("+") if name in METHOD_OPTIONS}
    method = peft.create(spec, chosen)
    return method if within is None else peft.within(method, within)


def dataset(users: int = 48, length: int = 9, seed: int = 0) -> Dataset:
    """Users walk through the 40 items in steps of one colour: what comes next can be learnt from ids and from text.

    The rating of an item is the same for everybody, 1 to 5.
    """
    rng = np.random.default_rng(seed)
    num_items = len(COLOURS) * len(THINGS)
    start, colour = rng.integers(0, len(THINGS), users), rng.integers(0, len(COLOURS), users)
    thing = (start[:, None] + np.arange(length)) % len(THINGS)
    item = (colour[:, None] * len(THINGS) + thing).astype(np.int32).ravel()
    items = pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(num_items)],
            "title": [f"{colour} {thing}" for colour in COLOURS for thing in THINGS],
        }
    )
    return Dataset(
        "tiny",
        Interactions(
            np.repeat(np.arange(users, dtype=np.int32), length),
            item,
            (1 + item % 5).astype(np.float32),
            np.arange(len(item), dtype=np.int64),
        ),
        items,
        pl.DataFrame({"user_id": [f"u{i}" for i in range(users)]}),
    )


def split(**options: int) -> Split:
    return leave_one_out(dataset(**options))


def encoder_folder(folder: Path, positions: int = 37, layers: int = 2) -> Path:
    """Writes a small random BERT, and a WordPiece tokenizer that knows the words of the tiny dataset."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "user", "bought", ":", ";", ".", *COLOURS, *THINGS]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    random_bert(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=layers,
        intermediate_size=32,
        max_position_embeddings=positions,
    ).save_pretrained(folder)
    return folder
