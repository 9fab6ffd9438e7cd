"""Arrays that are dear to make, kept on disk between runs."""

import contextlib
import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

_DIGEST_BYTES = 32

Arrays = dict[str, np.ndarray]


def default_folder(kind: str) -> Path:
    """Returns llm4rec_jax/KIND in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm4rec_jax" / kind


def get_or_compute(folder: Path, key: str, kind: str, make: Callable[[], Arrays]) -> Arrays:
    """Returns the arrays of a key from `folder`/KEY.npz, or makes them and keeps them there.

    A damaged file, or one of another key, is made again, and a folder that cannot be written is done without, both with
    a warning at the caller's caller.

    Args:
        folder: made if need be.
        key: a hash of all that the arrays depend on.
        kind: what they are, in the plural, for warnings.
        make: gives them.
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
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".cache-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.write(_checksum(key, payload))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _checksum(key: str, payload: bytes) -> bytes:
    return hashlib.sha256(key.encode() + payload).digest()
