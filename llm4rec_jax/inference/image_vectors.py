"""Vectors or hidden states of images by a frozen vision encoder as a feature, cached on disk for all runs."""

import hashlib
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from llm4rec_jax.data import cache
from llm4rec_jax.data.features.columns import FEATURES, FittedFeature, Rows
from llm4rec_jax.data.features.image_processing import ImageProcessor, read_processor
from llm4rec_jax.data.features.images import Images, decoded, open_images
from llm4rec_jax.data.features.vectors import check_layers, fit_vectors, of_rows
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.models.encoders.huggingface import resolve
from llm4rec_jax.models.vision.encoder import VisionEncoder
from llm4rec_jax.models.vision.pretrained import load
from llm4rec_jax.registry import unknown_name
from llm4rec_jax.sharding import digest

DAMAGED = ("error", "missing")


@FEATURES.register("images")
def images(
    rows: Rows,
    *,
    path: str,
    model: str,
    key: str | None = None,
    column: str = "image",
    damaged: Literal["error", "missing"] = "error",
    head: bool | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int = 32,
    workers: int = 2,
    standardise: bool = True,
    project: str = "linear",
) -> FittedFeature:
    """Reads a vector for each item or user from its image by a frozen vision encoder. Rows without an image are masked.

    Args:
      rows: The table and its training rows.
      path: A folder or zip of files that are called by ids, or a Parquet file.
      model: Folder or hub name of the vision encoder, with its `preprocessor_config.json`.
      key: Column of ids in Parquet; None takes "item_id" or "user_id".
      column: Column of encoded images in Parquet.
      damaged: "error" names the first image that cannot be decoded. "missing" masks such rows and counts them.
      head: Whether vectors pass the encoder's own head; see `models.vision.pretrained.load`.
      layers: Layers whose hidden states are the feature, for the fusion "iisan": 0 stands before the first block, k
        after block k. None takes the pooled vector.
      batch_size: Number of images that are encoded at once.
      workers: Number of threads that decode images.
      standardise: Whether each dimension is brought to mean 0 and standard deviation 1 over the training rows.
      project: Name in `PROJECTIONS` of the network that reads the vectors; hidden states have none.

    Raises:
      FileNotFoundError: A file is missing.
      ValueError: An option is out of its range, or has no use beside `layers`.
      DataError: An image is damaged, no image belongs to a row of training, or the processor cannot be read.
      PretrainedError: The vision encoder cannot be read.
    """
    if damaged not in DAMAGED:
        raise ValueError(unknown_name("treatment of damaged images", damaged, DAMAGED))
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size is {batch_size} and workers is {workers}; both must be at least 1")
    if layers is not None and (head is not None or project != "linear"):
        raise ValueError("head and project are for pooled vectors, and layers asks for hidden states; leave them out")
    store = open_images(Path(path), key or f"{rows.name}_id", column)
    names = rows.table[:, 0].to_list()
    wanted = store.ids & set(names)
    if not wanted:
        raise DataError(
            f"{store.path} has an image of no {rows.name}; its ids are {', '.join(sorted(store.ids)[:5])} …, those of "
            f"the data {', '.join(map(str, names[:5]))} …: bring them into one form"
        )
    encoder, params = load(model, head=head)
    if layers is not None:
        layers = check_layers(layers, encoder.config.num_hidden_layers)
    processor = read_processor(resolve(model))
    encoded = image_vectors(
        encoder, params, processor, store, wanted, layers=layers, batch_size=batch_size, workers=workers
    )
    problems = {name: problem for name, problem in zip(encoded["ids"], encoded["problems"], strict=True) if problem}
    if problems and damaged == "error":
        name = next(iter(problems))
        raise DataError(
            f"{store.path}: the image of {rows.name} {str(name)!r} cannot be decoded ({problems[name]}); replace it, "
            "or mask such rows by the option damaged='missing'"
        )
    place = {name: row for row, name in enumerate(encoded["ids"].tolist()) if name not in problems}
    found = np.array([place.get(name, -1) for name in names])
    present = found >= 0
    if not (present & rows.trained).any():
        raise DataError(f"{store.path} has an image that can be decoded for no {rows.name} of training")
    taken = of_rows(encoded["vectors"], found)
    fitted = {"kind": "images", "rows": int(present.sum()), "damaged": len(problems), "width": taken.shape[-1]}
    if layers is not None:
        fitted["layers"] = list(layers)
    return fit_vectors(rows, taken, present, fitted, standardise=standardise, project=project)


def image_vectors(
    encoder: VisionEncoder,
    params: dict[str, Any],
    processor: ImageProcessor,
    store: Images,
    wanted: Set[str],
    *,
    layers: Sequence[int] | None = None,
    batch_size: int = 32,
    workers: int = 2,
    cache_dir: Path | None = None,
) -> dict[str, np.ndarray]:
    """Encodes images, or reads what was encoded before.

    Args:
      encoder, params: The vision encoder.
      processor: Sizes and normalisation of images.
      store: The images.
      wanted: Ids of the images to encode.
      layers: Layers whose hidden states are returned, see `VisionEncoder.layer_vectors`; None takes pooled vectors.
      batch_size: Number of images that are encoded at once.
      workers: Number of threads that decode images, while the encoder works.
      cache_dir: Folder of the cache, see `cache.get_or_compute`; by default llm4rec_jax/images in $XDG_CACHE_HOME or
        ~/.cache.

    Returns:
      "ids" [n], "vectors" float32 [n, W], or [n, K, W] for K layers, and "problems" [n], which are empty for images
      that could be decoded; the vectors of others are zeros.
    """
    height, width = processor.shape

    @jax.jit
    def encode(params: Any, levels: jax.Array) -> jax.Array:
        pixels = processor.normalise(levels)
        vectors: Any = (
            encoder.apply({"params": params}, pixels, method="vectors")
            if layers is None
            else encoder.apply({"params": params}, pixels, layers, method="layer_vectors")
        )
        return vectors.astype(np.float32)

    def read() -> dict[str, np.ndarray]:
        ids, problems, vectors = [], [], []
        # The last batch is filled up, so that one shape is compiled.
        levels = np.zeros((batch_size, height, width, 3), np.uint8)
        for image in decoded(store, wanted, processor, workers):
            if image.levels is not None:
                levels[len(ids) % batch_size] = image.levels
            ids.append(image.name)
            problems.append(image.problem)
            if len(ids) % batch_size == 0:
                # The result is fetched at once: memory holds one batch, and threads decode on meanwhile.
                vectors.append(np.asarray(encode(params, levels)))
        if len(ids) % batch_size:
            vectors.append(np.asarray(encode(params, levels)))
        stacked = np.concatenate(vectors)[: len(ids)]
        whole = np.array([not problem for problem in problems])
        stacked = stacked * whole.reshape(-1, *[1] * (stacked.ndim - 1))
        return {"ids": np.array(ids), "vectors": stacked, "problems": np.array(problems)}

    made_of = f"{digest(params)} {encoder.config} {processor} {store.digest(wanted)}"
    if layers is not None:
        made_of += f" layers {tuple(layers)}"
    folder = cache_dir or cache.default_folder("images")
    return cache.get_or_compute(folder, hashlib.sha256(made_of.encode()).hexdigest(), "vectors", read)
