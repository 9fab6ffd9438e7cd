"""Memory-mapped arrays in .npy files, with checks that a file holds what was written."""

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
    """Concatenates the arrays of .npy files into one file, holding one part in memory at a time.

    Args:
        parts: [n_k] or [n_k, L_k] of one dtype; at least one.
        out: [sum of n_k] or [sum of n_k, largest L_k], narrower rows padded on the right.
        fill: value that pads them.
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
    """Returns a file's entry in a manifest: its size and SHA-256 and, for an .npy file, dtype and shape."""
    entry: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    if path.suffix == ".npy":
        array = _load(path)
        entry |= {"dtype": str(array.dtype), "shape": list(array.shape)}
    return entry


def check(path: Path, entry: dict[str, Any], content: bool) -> None:
    """Checks that a file has the size of its manifest entry and, with `content`, its SHA-256.

    Raises:
        FileNotFoundError: if the file is missing.
        DataError: if it differs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; prepare the data again")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise DataError(f"{path} is damaged: it has {size} bytes, not {entry['bytes']}; prepare the data again")
    if content and _sha256(path) != entry["sha256"]:
        raise DataError(f"{path} is damaged: its SHA-256 is not the manifest's; prepare the data again")


def opened(path: Path, entry: dict[str, Any]) -> NDArray[Any]:
    """Maps the array of an .npy file; raises DataError if its header differs from its manifest entry."""
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
    """Yields slices of at most `size` that cover `total`.

    Example:
        >>> list(chunks(5, 3))
        [slice(0, 3, None), slice(3, 5, None)]
    """
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


class _ByName(cloudpickle.Pickler):
    """A pickler that stores an array which is a whole mapped file by the file's name."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.memmap and isinstance(obj.base, mmap.mmap) and obj.mode == "r" and obj.filename is not None:
            # `join`, and np.save of one-dimensional columns, write in C order only.
            return np.memmap, (str(obj.filename), obj.dtype, "r", obj.offset, obj.shape)
        return super().reducer_override(obj)


def dumps(value: Any) -> bytes:
    """Pickles for a process on this machine, which maps mapped files again instead of receiving copies."""
    buffer = io.BytesIO()
    _ByName(buffer).dump(value)
    return buffer.getvalue()


def loads(content: bytes) -> Any:
    """Restores the output of `dumps` in a process that this one started, or that started this one."""
    return pickle.loads(content)


def _load(path: Path) -> NDArray[Any]:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
