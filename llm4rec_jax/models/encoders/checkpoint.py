"""The tensors of a checkpoint in safetensors files, each read when it is asked for."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llm4rec_jax.io import replacing
from llm4rec_jax.models.encoders.weights import some

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

FLOATS: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""The types that weights are read from. Others are codes whose scales are kept elsewhere, or no weights at all."""


class PretrainedError(ValueError):
    """A pretrained folder that cannot be read as what it claims to be. The message says what, where, and the remedy."""


class Place(NamedTuple):
    """The place of a tensor: its file, the first byte there, its type's name in safetensors, and its shape."""

    file: Path
    start: int
    kind: str
    shape: tuple[int, ...]


class Checkpoint(Mapping[str, np.ndarray]):
    """The tensors of a folder by name, float32. A tensor is read from its file each time that it is asked for.

    Args:
      folder: It holds `model.safetensors`, or `model.safetensors.index.json` and its shards.

    Raises:
      PretrainedError: no weights, or weights that are damaged or not of floating point. A lookup raises it for a tensor
        of another type, and for one with values that are not finite.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places = _places(folder)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def types(self) -> list[str]:
        """Names of the types that tensors are stored in, as safetensors has them."""
        return sorted({place.kind for place in self._places.values()})

    def __getitem__(self, name: str) -> np.ndarray:
        file, start, kind, shape = self._places[name]
        if kind not in FLOATS:
            raise PretrainedError(
                f"{file}: {name} is of type {kind}, not of floating point: quantised weights of other libraries are "
                "not read; give the original model, or dequantise it and save it again"
            )
        array = np.fromfile(file, FLOATS[kind], int(np.prod(shape, dtype=np.int64)), offset=start).reshape(shape)
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise PretrainedError(
                f"{file}: {name} has values that are not finite: the training that wrote it diverged, or the file is "
                "damaged; fetch it again or take an earlier checkpoint"
            )
        return array


def _places(folder: Path) -> dict[str, Place]:
    if (folder / WEIGHTS).is_file():
        return _header(folder / WEIGHTS)
    index = folder / INDEX
    if not index.is_file():
        raise PretrainedError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}: weights saved by pickle (pytorch_model.bin) are "
            "not read, since unpickling runs code; convert them with `model.save_pretrained(folder)` in transformers"
        )
    try:
        weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        shards = sorted(map(str, set(weight_map.values())))
    except (ValueError, KeyError, TypeError) as error:
        raise PretrainedError(f"{index} is not an index of safetensors shards ({error!r}): fetch it again") from error
    places: dict[str, Place] = {}
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise PretrainedError(f"{index} names the shard {shard!r}, which is not a file of {folder}")
        # A copy that the index does not name is not the tensor; a tensor without an entry must fit like all others.
        places |= {n: place for n, place in _header(folder / shard).items() if weight_map.get(n, shard) == shard}
    if lacking := sorted(set(weight_map) - set(places)):
        raise PretrainedError(
            f"{index} promises tensors that no shard holds: {some(lacking)} (each must lie in the shard that the index "
            "names); fetch the folder again"
        )
    return places


def _header(file: Path) -> dict[str, Place]:
    try:
        # It checks that header and tensors lie within the file, one after the other.
        with safe_open(file, framework="numpy"):
            pass
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise PretrainedError(f"{file} cannot be read as safetensors ({error}): damaged or cut short?") from error
    return {
        name: Place(file, 8 + size + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def write_weights(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes `model.safetensors`, whole or not at all."""
    with replacing(folder / WEIGHTS) as scratch:
        save_file(tensors, scratch, metadata={"format": "pt"})
