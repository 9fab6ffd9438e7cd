"""Files of semantic ids as LETTER, LC-Rec and MiniOneRec write them: {"0": ["<a_183>", "<b_70>", "<c_232>"], …}."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase

import numpy as np

from llm4rec_jax.io import write_text
from llm4rec_jax.semantic_ids.codes import SemanticIds


def save_index(path: Path, ids: SemanticIds, item_ids: Sequence[str]) -> None:
    """Writes ids as `*.index.json`, under the ids of the items.

    Raises:
      ValueError: There are more levels than letters, or item ids do not fit the codes.
    """
    if len(ids.sizes) > len(ascii_lowercase):
        raise ValueError(f"{len(ids.sizes)} levels, but the layout has letters for {len(ascii_lowercase)}")
    if len(item_ids) != len(ids.codes):
        raise ValueError(f"{len(item_ids)} item ids for the codes of {len(ids.codes)} items: give one each")
    tokens = {
        item: [f"<{letter}_{code}>" for letter, code in zip(ascii_lowercase, codes, strict=False)]
        for item, codes in zip(item_ids, ids.codes.tolist(), strict=True)
    }
    write_text(path, json.dumps(tokens) + "\n")


def load_index(path: Path, item_ids: Sequence[str], shift: int = 0) -> SemanticIds:
    """Reads the ids of some items from `*.index.json`.

    Args:
      path: The file.
      item_ids: Ids of the I items, in the order of the result.
      shift: Number that is added to a key of the file to give the item id. Published files count items from 0.

    Raises:
      ValueError: The file has another layout, or lacks an item.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): give an *.index.json file") from error
    if not isinstance(held, dict):
        raise ValueError(f"{path} holds a {type(held).__name__}, must be an object of item id: [codes]")
    try:
        tokens = {str(int(key) + shift) if shift else key: value for key, value in held.items()}
    except ValueError:
        raise ValueError(
            f"{path}: its keys are no numbers, so that nothing can be added to them: leave shift 0"
        ) from None
    if missing := [item for item in item_ids if item not in tokens]:
        raise ValueError(
            f"{path} has no codes for {len(missing)} of {len(item_ids)} items, the first being {missing[0]!r}; it has "
            f"the keys {', '.join(list(held)[:3])}, …. Where they are counted otherwise, give the shift between them"
        )
    codes = np.array([_codes(path, item, tokens[item]) for item in item_ids], object)
    if codes.ndim != 2:
        raise ValueError(f"{path}: items have different numbers of codes, must have the same")
    numbers = codes.astype(np.int32)
    return SemanticIds(numbers, tuple(int(size) + 1 for size in numbers.max(axis=0)))


def _codes(path: Path, item: str, tokens: object) -> list[int]:
    """Returns the codes of one item; the letter of each token tells its level."""
    codes = []
    for letter, token in zip(ascii_lowercase, tokens if isinstance(tokens, list) else [None], strict=False):
        match = re.fullmatch(rf"<{letter}_(\d+)>", token) if isinstance(token, str) else None
        if match is None:
            raise ValueError(f"{path}: item {item!r} has the codes {tokens!r}, must be like ['<a_12>', '<b_3>']")
        codes.append(int(match[1]))
    return codes
