"""Tokens of texts, cached on disk."""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm4rec_jax.data import cache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FORMAT_VERSION = 1
_ENCODE_AT_ONCE = 8192
VOCABULARY_FILES = ("tokenizer.json", "*vocab*.txt", "*vocab*.json", "*.model", "*.tiktoken")
"""Patterns of the files that hold a tokenizer's vocabulary; its folder has at least one."""


class Tokens(NamedTuple):
    """Token ids int32 [n, L], padded on the right to the longest text, and lengths int32 [n] without padding."""

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]


def tokenizer(path_or_name: str | Path) -> "PreTrainedTokenizerFast":
    """Loads the tokenizer of a local model folder, or of a model on the Hugging Face hub.

    Raises:
        ValueError: if there is none, or it is not a fast tokenizer.
    """
    if Path(path_or_name).is_dir():
        check_vocabulary(Path(path_or_name))
    from transformers import AutoTokenizer  # Takes seconds to import

    try:
        # A folder asks nothing from the hub, and neither a folder nor the hub runs code.
        loaded = AutoTokenizer.from_pretrained(
            path_or_name, trust_remote_code=False, local_files_only=Path(path_or_name).is_dir()
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no tokenizer at {str(path_or_name)!r}: give a folder with tokenizer.json and tokenizer_config.json, "
            f"or the name of a model on the hub ({error})"
        ) from error
    if not loaded.is_fast:
        raise ValueError(f"the tokenizer at {str(path_or_name)!r} is not a fast one: save it with a tokenizer.json")
    return loaded


def check_vocabulary(folder: Path) -> None:
    """Checks that a folder has a tokenizer: without one, transformers makes one to which every word is unknown.

    Raises:
        ValueError: if it has none of the `VOCABULARY_FILES`.
    """
    if not any(any(folder.glob(pattern)) for pattern in VOCABULARY_FILES):
        raise ValueError(
            f"{folder} holds no tokenizer (none of {', '.join(VOCABULARY_FILES)}): copy the files of the "
            "tokenizer that the model was trained with into it, `tokenizer.save_pretrained(folder)` in transformers"
        )


def tokenise(
    texts: Sequence[str],
    tokenizer: "PreTrainedTokenizerFast | Path",
    max_length: int,
    cache_dir: str | Path | None = None,
) -> Tokens:
    """Tokenizes texts, with special tokens, each cut to `max_length` tokens of which the special ones are kept.

    The result is cached under a hash of texts, tokenizer and max_length. A damaged cache file is rebuilt, and a folder
    that cannot be written is done without, both with a warning. Leave TOKENIZERS_PARALLELISM unset, or false, where
    forked workers tokenize too: if true, they deadlock.

    Args:
        texts: the texts [n].
        tokenizer: the tokenizer, or its folder, from which it is loaded only if the cache lacks the texts.
        max_length: largest number of tokens of a text.
        cache_dir: folder of the cache; by default llm4rec_jax/tokens in $XDG_CACHE_HOME or ~/.cache.

    Returns:
        The tokens, padded with the tokenizer's padding token, or 0 if it has none.

    Raises:
        ValueError: if max_length leaves no room beside the special tokens, or a folder has no tokenizer.
    """
    by_folder = isinstance(tokenizer, Path)
    if by_folder:
        check_vocabulary(tokenizer)
    digest = _files_hash(tokenizer, max_length) if by_folder else settings_hash(tokenizer, max_length)
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    folder = Path(cache_dir) if cache_dir is not None else cache.default_folder("tokens")

    def made() -> dict[str, NDArray[np.int32]]:
        loaded = _loaded(tokenizer)
        special = loaded.num_special_tokens_to_add()
        if max_length <= special:
            raise ValueError(f"max_length {max_length} leaves no room beside {special} special tokens; raise it")
        return encode(texts, loaded, max_length)._asdict()

    return Tokens(**cache.get_or_compute(folder, digest.hexdigest(), "tokens", made))


def _loaded(given: "PreTrainedTokenizerFast | Path") -> "PreTrainedTokenizerFast":
    return tokenizer(given) if isinstance(given, Path) else given


def tokenizer_fingerprint(path: str | Path) -> str:
    """Returns the SHA-256, in hex, of all that a tokenizer's output depends on.

    A folder is hashed by its tokenizer's settings as they are loaded, so that equal tokenizers have one fingerprint
    whatever other files lie beside them. Compare it before tokens of two runs are taken for the same. The fingerprint
    of a folder is cached under a hash of its files, since it takes seconds to load a tokenizer.

    Args:
        path: a local model folder, or the name of a model on the Hugging Face hub.

    Raises:
        ValueError: if there is no fast tokenizer.
    """
    folder = Path(path)
    if not folder.is_dir():
        return settings_hash(tokenizer(path), max_length=0).hexdigest()
    check_vocabulary(folder)

    def made() -> dict[str, NDArray[np.uint8]]:
        return {"sha256": np.frombuffer(settings_hash(tokenizer(folder), max_length=0).digest(), np.uint8)}

    key = _files_hash(folder, max_length=0).hexdigest()
    return cache.get_or_compute(cache.default_folder("tokens"), key, "fingerprints", made)["sha256"].tobytes().hex()


def _files_hash(folder: Path, max_length: int) -> "hashlib._Hash":
    """Returns the SHA-256 of a folder's tokenizer files, the library's version and the length."""
    digest = hashlib.sha256(f"{_FORMAT_VERSION} {max_length} {importlib.metadata.version('transformers')}".encode())
    for file in sorted(
        path for path in folder.iterdir() if path.suffix in (".json", ".txt", ".model", ".codes", ".tiktoken")
    ):
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)} ".encode() + content)
    return digest


def settings_hash(tokenizer: "PreTrainedTokenizerFast", max_length: int) -> "hashlib._Hash":
    """Returns the SHA-256 of all settings that the tokens of a text depend on."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left over from the latest call; the next call sets them.
    del model["truncation"], model["padding"]
    settings = [_FORMAT_VERSION, max_length, tokenizer.truncation_side, tokenizer.pad_token_id, model]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode())


def encode(texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast", max_length: int) -> Tokens:
    """Tokenizes texts as `tokenise` does, without the cache and its checks."""
    rows = [np.empty(0, np.int32)]
    for start in range(0, len(texts), _ENCODE_AT_ONCE):
        encoded = tokenizer(
            list(texts[start : start + _ENCODE_AT_ONCE]),
            truncation=True,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        rows += [np.asarray(row, np.int32) for row in encoded["input_ids"]]
    lengths = np.array([len(row) for row in rows[1:]], np.int32)
    ids = np.full((len(lengths), lengths.max(initial=0)), tokenizer.pad_token_id or 0, np.int32)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return Tokens(ids, lengths)
