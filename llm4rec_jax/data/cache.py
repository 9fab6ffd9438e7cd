"""Arrays that are expensive to compute, kept on disk between runs."""

import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llm4rec_jax.io import write_bytes

_DIGEST_BYTES = 32

Arrays = dict[str, np.ndarray]


def default_folder(kind: str) -> Path:
    """Returns llm4rec_jax/KIND in $XDG_CACHE_HOME or ~/.cache.

    Without a home folder, as in a container whose user has no passwd entry, it lies in the folder for temporary files,
    under the user's number.

    Example:
        >>> default_folder("tokens").parts[-2:]
        ('llm4rec_jax', 'tokens')
    """
    return cache_home() / "llm4rec_jax" / kind


def cache_home() -> Path:
    """Returns $XDG_CACHE_HOME, ~/.cache, or without a home folder one in that for temporary files."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"llm4rec_jax-cache-{os.getuid()}"


def get_or_compute(folder: Path, key: str, kind: str, make: Callable[[], Arrays]) -> Arrays:
    """Returns the arrays stored under a key in `folder`/KEY.npz, or computes and stores them.

    A damaged file, or one of another key, is computed again, and a folder that cannot be written is done without, both
    with a warning at the caller's caller.

    Args:
        folder: folder of the cache; made if it is missing.
        key: a hash of everything that the arrays depend on.
        kind: plural noun for warnings, such as "tokens".
        make: computes the arrays.
    """
    path = folder / f"{key}.npz"
    try:
        arrays = read(path, key)
        if arrays is not None:
            return arrays
    except ValueError:
        warnings.warn(f"cached {kind} {path} are damaged; they are made again", stacklevel=3)
    except OSError as error:
        warnings.warn(f"cannot read cached {kind} {path} ({error}); they are made again", stacklevel=3)
    arrays = make()
    try:
        write(path, key, arrays)
    except OSError as error:
        warnings.warn(f"{kind} are not cached: cannot write {path} ({error})", stacklevel=3)
    return arrays


def read(path: Path, key: str) -> Arrays | None:
    """Returns what `write` wrote, None if there is no file.

    Raises:
        ValueError: if the file is not what was written under this key.
        OSError: if it cannot be read.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    payload = content[:-_DIGEST_BYTES]
    # Before anything is parsed, so that damage of any kind ends here.
    if _checksum(key, payload) != content[-_DIGEST_BYTES:]:
        raise ValueError(f"{path} is damaged")
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        return dict(arrays)


def write(path: Path, key: str, arrays: Arrays) -> None:
    """Writes an .npz followed by a checksum, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    payload = buffer.getvalue()
    write_bytes(path, payload + _checksum(key, payload))


def _checksum(key: str, payload: bytes) -> bytes:
    return hashlib.sha256(key.encode() + payload).digest()
