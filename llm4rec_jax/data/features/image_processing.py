"""Images to the arrays that a vision encoder reads, as `preprocessor_config.json` says."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llm4rec_jax.data.interactions import DataError

PROCESSOR = "preprocessor_config.json"
BILINEAR, BICUBIC = int(Image.Resampling.BILINEAR), int(Image.Resampling.BICUBIC)
_FILTERS = {int(kind) for kind in Image.Resampling}
_STANDARD = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_SHORTEST = {"resample": BICUBIC, "size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": _STANDARD,
    "CLIP": {**_CLIP, **_SHORTEST},
    "Siglip": {**_STANDARD, "resample": BICUBIC},
    "Bit": {**_CLIP, **_SHORTEST},
}


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """Resizes, crops and normalises images. Each step may be left out.

    Attributes:
      shortest_edge: Length that the shorter side is brought to, with the other in proportion; None takes `size`.
      size: Height and width that an image is brought to; None, and no `shortest_edge`, does not resize.
      resample: Number of Pillow's filter.
      crop: Height and width that are cut out of the middle; None cuts nothing.
      scale: Factor of grey levels from 0 to 255.
      mean, std: Subtracted from the scaled levels of red, green and blue, and divided by.
    """

    shortest_edge: int | None = None
    size: tuple[int, int] | None = (224, 224)
    resample: int = BILINEAR
    crop: tuple[int, int] | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the arrays.

        Raises:
          ValueError: They depend on the image, so that images do not fit into one batch.
        """
        shape = self.crop or self.size
        if shape is None:
            raise ValueError(
                f"the processor gives images of different sizes ({self}): set crop_size, or a size of height and width"
            )
        return shape

    def levels(self, image: Image.Image) -> np.ndarray:
        """Returns grey levels of an image, resized and cropped, uint8 [H, W, 3]."""
        image = image.convert("RGB")
        if self.shortest_edge is not None:
            width, height = image.size
            if width <= height:
                wanted = self.shortest_edge, int(self.shortest_edge * height / width)
            else:
                wanted = int(self.shortest_edge * width / height), self.shortest_edge
            image = image.resize(wanted, Image.Resampling(self.resample))
        elif self.size is not None:
            image = image.resize((self.size[1], self.size[0]), Image.Resampling(self.resample))
        levels = np.asarray(image)
        return levels if self.crop is None else _cropped(levels, self.crop)

    def normalise(self, levels: Any) -> Any:
        """Returns normalised values, float32 [..., 3], from grey levels, as an array of the same library."""
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        return (levels.astype(np.float32) * np.float32(self.scale) - mean) / std

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Returns the array that an encoder reads, float32 [H, W, 3].

        Example:
          >>> ImageProcessor(size=(2, 4))(Image.new("RGB", (9, 9), "white")).shape
          (2, 4, 3)
        """
        return self.normalise(self.levels(image))


def _cropped(levels: np.ndarray, crop: tuple[int, int]) -> np.ndarray:
    """Returns the middle of an image, with zeros around where it is smaller.

    A side of 3 to 5 begins one pixel before: 0 a b c 0. A side of 4 to 5: 0 a b c d. A side of 6 to 5: a b c d e.
    """
    for axis, wanted in enumerate(crop):
        have = levels.shape[axis]
        if have < wanted:
            before = (wanted - have + 1) // 2
            pads = [(0, 0)] * levels.ndim
            pads[axis] = before, wanted - have - before
            levels = np.pad(levels, pads)
        else:
            start = (have - wanted) // 2
            levels = levels.take(range(start, start + wanted), axis)
    return levels


def read_processor(folder: Path) -> ImageProcessor:
    """Reads the processor of a Hugging Face folder.

    Raises:
      DataError: There is no `preprocessor_config.json`, it is damaged, or it asks for something that is not supported.
    """
    file = folder / PROCESSOR
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        return from_fields(fields)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error}): it says how images are prepared; fetch it") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"{file} is not the configuration of an image processor ({error})") from error


def from_fields(fields: Mapping[str, Any]) -> ImageProcessor:
    """Makes a processor from the fields of `preprocessor_config.json`.

    Raises:
      ValueError: A field asks for something that is not supported; the message names it.

    Example:
      >>> from_fields({"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 48}}).shape
      (32, 48)
    """
    named = fields.get("image_processor_type") or fields.get("feature_extractor_type", "ViTImageProcessor")
    kind = (
        named.removesuffix("Fast").removesuffix("Pil").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    )
    if kind not in _DEFAULTS:
        supported = ", ".join(f"{name}ImageProcessor" for name in _DEFAULTS)
        raise ValueError(f"image_processor_type {named!r} is not one of {supported}")
    given = {**_DEFAULTS[kind], **{name: value for name, value in fields.items() if value is not None}}
    if given.get("do_pad"):
        raise ValueError("do_pad is set, and images are not padded here")
    if given.get("resample", BILINEAR) not in _FILTERS:
        raise ValueError(f"resample is {given['resample']!r}, which is no filter of Pillow")
    size = shortest = crop = None
    if given.get("do_resize", True):
        size, shortest = _size(given.get("size", 224), "size", square=kind not in ("CLIP", "Bit"))
    if given.get("do_center_crop", False):
        crop, edge = _size(given.get("crop_size", 224), "crop_size", square=True)
        if edge is not None:
            raise ValueError("crop_size has a shortest_edge: give height and width")
    mean, std = (tuple(map(float, given[name])) for name in ("image_mean", "image_std"))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"image_mean {mean} and image_std {std} must be three numbers, the latter above 0")
    normalises = given.get("do_normalize", True)
    return ImageProcessor(
        shortest_edge=shortest,
        size=size,
        resample=given.get("resample", BILINEAR),
        crop=crop,
        scale=float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 1.0,
        mean=mean if normalises else (0.0, 0.0, 0.0),
        std=std if normalises else (1.0, 1.0, 1.0),
    )


def _size(value: Any, name: str, square: bool) -> tuple[tuple[int, int] | None, int | None]:
    """Returns height and width, or the length of the shorter side."""
    if isinstance(value, int):
        return ((value, value), None) if square else (None, value)
    if set(value) == {"height", "width"}:
        size = (value["height"], value["width"]), None
    elif set(value) == {"shortest_edge"}:
        size = None, value["shortest_edge"]
    else:
        raise ValueError(f"{name} is {value!r}: only height and width, or a shortest_edge, are supported")
    for number in (*(size[0] or ()), *((size[1],) if size[1] is not None else ())):
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} is {value!r}, must be whole numbers of pixels")
    return size
