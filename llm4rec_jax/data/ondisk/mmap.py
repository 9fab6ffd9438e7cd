"""Arrays in files that are opened without being read, and what tells that a file is what was written."""

import hashlib
import io
import mmap
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import DataError

_AT_ONCE = 1 << 20


def join(parts: Sequence[Path], out: Path, fill: int = 0) -> None:
    """Writes the arrays of .npy files, one after the other, as one; one part is held at a time.

    Args:
        parts: [n_k] or [n_k, L_k] of one dtype; at least one.
        out: [sum of n_k] or [sum of n_k, largest L_k], narrower rows padded on the right.
        fill: what pads them.
    """
    shapes = [_load(part).shape for part in parts]
    rows, width = sum(shape[0] for shape in shapes), [max(shape[1] for shape in shapes)] if len(shapes[0]) == 2 else []
    with out.open("wb") as file:
        _header(file, _load(parts[0]).dtype, (rows, *width))
        for part in parts:
            array = _load(part)
            if width:
                array = np.pad(array, ((0, 0), (0, width[0] - array.shape[1])), constant_values=fill)
            file.write(np.ascontiguousarray(array).tobytes())


def described(path: Path) -> dict[str, Any]:
    """What a manifest says of a file: its bytes and SHA-256 and, of an .npy file, dtype and shape."""
    entry: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    if path.suffix == ".npy":
        array = _load(path)
        entry |= {"dtype": str(array.dtype), "shape": list(array.shape)}
    return entry


def check(path: Path, entry: dict[str, Any], content: bool) -> None:
    """Raises DataError unless a file is as `described`: its size, and with `content` its SHA-256.

    Raises:
        FileNotFoundError: the file is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; prepare the data again")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise DataError(f"{path} is damaged: it has {size} bytes, not {entry['bytes']}; prepare the data again")
    if content and _sha256(path) != entry["sha256"]:
        raise DataError(f"{path} is damaged: its SHA-256 is not the manifest's; prepare the data again")


def opened(path: Path, entry: dict[str, Any]) -> NDArray[Any]:
    """The array of an .npy file, mapped; DataError where its header isn't as `described`."""
    try:
        array = _load(path)
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); prepare the data again") from error
    if [str(array.dtype), list(array.shape)] != [entry["dtype"], entry["shape"]]:
        raise DataError(
            f"{path} is damaged: it holds {array.dtype} {array.shape}, not {entry['dtype']} {entry['shape']}; "
            "prepare the data again"
        )
    return array


def chunks(total: int, size: int = _AT_ONCE) -> Iterator[slice]:
    """Slices of at most `size` that cover `total`."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


class _ByName(cloudpickle.Pickler):
    """Pickles an array that is a whole mapped file by the file's name."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.memmap and isinstance(obj.base, mmap.mmap) and obj.mode == "r" and obj.filename is not None:
            # The order is C's: `join` and np.save of one-dimensional columns write no other.
            return np.memmap, (str(obj.filename), obj.dtype, "r", obj.offset, obj.shape)
        return super().reducer_override(obj)


def dumps(value: Any) -> bytes:
    """Pickles for a process on this machine, where mapped files are mapped again instead of copied."""
    buffer = io.BytesIO()
    _ByName(buffer).dump(value)
    return buffer.getvalue()


def loads(content: bytes) -> Any:
    """What `dumps` was given, in the process that this one started or was started by."""
    return pickle.loads(content)


def _load(path: Path) -> NDArray[Any]:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
