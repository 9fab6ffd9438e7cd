"""Images of items or users from a folder, a zip or a Parquet file, decoded by several threads with little memory."""

import collections
import contextlib
import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Set
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from PIL import Image

from llm4rec_jax.data.features.image_processing import ImageProcessor
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.sources.reading import UNREADABLE, require

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of the files that are read; others in a folder or zip are left alone."""
_ROWS = 1024  # of a Parquet file that are held at once
_AHEAD = 16  # images for each thread that are decoded before they are asked for


class Images(NamedTuple):
    """A store of encoded images.

    Attributes:
      path: The folder or file, for messages.
      ids: Ids of the images.
      stream: Function of a set of ids that yields each of these ids with the bytes of its image, in the store's order.
    """

    path: Path
    ids: frozenset[str]
    stream: Callable[[Set[str]], Iterator[tuple[str, bytes]]]

    def digest(self, wanted: Set[str]) -> str:
        """Returns a hash of the ids and images that are wanted."""
        hashed = hashlib.sha256()
        for name, content in self.stream(wanted):
            hashed.update(f"{name} {len(content)} ".encode())
            hashed.update(content)
        return hashed.hexdigest()


class Decoded(NamedTuple):
    """An image that has been decoded.

    Attributes:
      name: Its id.
      levels: Grey levels, uint8 [H, W, 3]; None for a damaged image.
      problem: The reason why it could not be decoded.
    """

    name: str
    levels: np.ndarray | None
    problem: str = ""


def open_images(path: Path, key: str, column: str = "image") -> Images:
    """Opens a store of images. Nothing is decoded.

    Args:
      path: A folder or a zip whose files are called by ids, such as `B00ABC.jpg`; or a Parquet file.
      key: Column of ids in Parquet.
      column: Column of the images in Parquet: bytes, or structs with a field "bytes", as `datasets` writes them.

    Raises:
      FileNotFoundError: There is no such folder or file.
      DataError: It is damaged or holds no images, or two images have one id.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        read = contextlib.nullcontext(lambda name: (path / name).read_bytes())
        return _by_name(path, [file.name for file in files], lambda: read)
    file = require(path)
    return _from_parquet(file, key, column) if file.suffix == ".parquet" else _from_zip(file)


def _from_zip(file: Path) -> Images:
    @contextlib.contextmanager
    def opened() -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError) as error:
            raise DataError(f"{file} is no zip that can be read ({error}); make it again") from error

    @contextlib.contextmanager
    def reading() -> Iterator[Callable[[str], bytes]]:
        with opened() as archive:
            yield archive.read

    with opened() as archive:
        members = [name for name in archive.namelist() if PurePosixPath(name).suffix.lower() in SUFFIXES]
    return _by_name(file, members, reading)


def _by_name(path: Path, names: list[str], reading: Callable[[], Any]) -> Images:
    """Returns the store of files whose names without suffix are ids; `reading` is entered for a function of names."""
    files: dict[str, str] = {}
    for name in names:
        stem = PurePosixPath(name).stem
        if stem in files:
            raise DataError(f"{path} has two images of {stem!r}, {files[stem]} and {name}; keep one")
        files[stem] = name
    if not files:
        raise DataError(f"{path} holds no images; files end in one of {', '.join(SUFFIXES)}")

    def stream(wanted: Set[str]) -> Iterator[tuple[str, bytes]]:
        with reading() as read:
            for stem, name in files.items():
                if stem in wanted:
                    yield stem, read(name)

    return Images(path, frozenset(files), stream)


def _from_parquet(file: Path, key: str, column: str) -> Images:
    try:
        schema = pl.read_parquet_schema(file)
    except (*UNREADABLE, OSError) as error:
        raise DataError(f"{file} cannot be read as Parquet ({error})") from error
    for name in (key, column):
        if name not in schema:
            raise DataError(f"{file} has no column {name!r} but {', '.join(schema)}; name it")
    dtype, content = schema[column], pl.col(column)
    if isinstance(dtype, pl.Struct) and "bytes" in {field.name for field in dtype.fields}:
        content, dtype = content.struct.field("bytes"), pl.Binary()
    if dtype != pl.Binary:
        raise DataError(f"{file}: the column {column!r} holds {dtype} and no bytes; give one of encoded images")
    frame = pl.scan_parquet(file).select(name=pl.col(key).cast(pl.String).str.strip_chars(), content=content)
    there = frame.select("name", pl.col("content").is_not_null().alias("there")).collect()
    if len(twice := there.filter(pl.col("name").is_duplicated())):
        raise DataError(f"{file} has two images of {twice['name'][0]!r}; keep one")

    def stream(wanted: Set[str]) -> Iterator[tuple[str, bytes]]:
        for start in range(0, len(there), _ROWS):
            for name, image in frame.slice(start, _ROWS).collect().iter_rows():
                if name in wanted and image is not None:
                    yield name, image

    return Images(file, frozenset(there.filter("there")["name"].drop_nulls().to_list()), stream)


def decode(content: bytes, processor: ImageProcessor) -> np.ndarray:
    """Decodes an image, resizes and crops it.

    Args:
      content: The image as a file has it.
      processor: Sizes.

    Returns:
      Grey levels, uint8 [H, W, 3].

    Raises:
      ValueError: The image is damaged, or so large that it may be meant to exhaust the memory.

    Example:
      >>> file = io.BytesIO()
      >>> Image.new("L", (5, 5)).save(file, "png")
      >>> decode(file.getvalue(), ImageProcessor(size=(2, 2))).shape
      (2, 2, 3)
      >>> decode(file.getvalue()[:40], ImageProcessor())  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: ...
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return processor.levels(image)
    # Pillow's decoders raise whatever their format makes fail first.
    except (OSError, SyntaxError, ValueError, EOFError, TypeError, Image.DecompressionBombError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def decoded(images: Images, wanted: Set[str], processor: ImageProcessor, workers: int = 2) -> Iterator[Decoded]:
    """Decodes images by several threads, a few ahead of the one that is asked for.

    Args:
      images: The store.
      wanted: Ids of the images.
      processor: Sizes.
      workers: Number of threads. Pillow lets them run side by side.

    Yields:
      The images in the store's order, damaged ones too.
    """

    def attempt(name: str, content: bytes) -> Decoded:
        try:
            return Decoded(name, decode(content, processor))
        except ValueError as error:
            return Decoded(name, None, str(error))

    with ThreadPoolExecutor(workers) as pool:
        pending: collections.deque[Future[Decoded]] = collections.deque()
        for name, content in images.stream(wanted):
            pending.append(pool.submit(attempt, name, content))
            if len(pending) > _AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
