"""Images: processors beside those of transformers, stores, and damage."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from llm4rec_jax.data.features.image_processing import PROCESSOR, ImageProcessor, from_fields, read_processor
from llm4rec_jax.data.features.images import decoded, open_images
from llm4rec_jax.data.interactions import DataError

# Processors that compute by Pillow; older versions of transformers call them otherwise.
BitImageProcessorPil, CLIPImageProcessorPil, SiglipImageProcessorPil, ViTImageProcessorPil = (
    getattr(pytest.importorskip(f"transformers.models.{name.lower()}.image_processing_pil_{name.lower()}"), kind)
    for name in ("Bit", "CLIP", "Siglip", "ViT")
    for kind in (f"{name}ImageProcessorPil",)
)
RNG = np.random.default_rng(0)
PROCESSORS = {
    "vit": ViTImageProcessorPil(size={"height": 11, "width": 14}, image_mean=[0.2, 0.4, 0.5]),
    "vit without rescaling": ViTImageProcessorPil(size={"height": 9, "width": 9}, do_rescale=False, do_normalize=False),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 9, "width": 10}),
    "clip without resizing": CLIPImageProcessorPil(do_resize=False, crop_size={"height": 15, "width": 14}),
    "siglip": SiglipImageProcessorPil(size={"height": 10, "width": 10}),
    "dinov2": BitImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 14, "width": 14}, image_std=[0.3, 0.2, 0.1]
    ),
}


def image(height: int, width: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def encoded(picture: Image.Image, form: str = "png") -> bytes:
    file = io.BytesIO()
    picture.save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors_are_those_of_transformers(name, tmp_path):
    theirs = PROCESSORS[name]
    theirs.save_pretrained(tmp_path)
    ours = read_processor(tmp_path)
    for picture in (image(30, 17), image(13, 40), image(16, 16), image(6, 7), image(20, 20)):
        want = theirs(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        pixels = ours(picture)
        assert pixels.shape == want.shape == (*ours.shape, 3)
        # In grey levels from 0 to 255.
        error = np.abs(pixels - want) * np.asarray(ours.std) / ours.scale
        assert error.max() <= 1.0


def test_images_of_other_modes_become_red_green_and_blue():
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        assert ImageProcessor(size=(4, 5))(image(9, 9, mode)).shape == (4, 5, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_processor_type": "DetrImageProcessor"}, "'DetrImageProcessor' is not one of ViTImageProcessor"),
        ({"size": {"longest_edge": 8}}, "only height and width, or a shortest_edge"),
        ({"size": {"height": 0, "width": 8}}, "must be whole numbers of pixels"),
        ({"do_pad": True}, "do_pad is set"),
        ({"resample": 17}, "no filter of Pillow"),
        ({"image_std": [0, 1, 1]}, "the latter above 0"),
    ],
)
def test_unsupported_processors_are_refused(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        from_fields(fields)
    (tmp_path / PROCESSOR).write_text(json.dumps(fields))
    with pytest.raises(DataError, match=PROCESSOR):
        read_processor(tmp_path)


def test_a_missing_processor_and_one_without_a_fixed_size_are_refused(tmp_path):
    with pytest.raises(DataError, match="it says how images are prepared"):
        read_processor(tmp_path)
    with pytest.raises(ValueError, match="set crop_size"):
        _ = from_fields({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}).shape


CONTENTS = {f"i{n}": encoded(image(8 + n, 9), "jpeg" if n % 2 else "png") for n in range(7)}


def store(kind: str, folder: Path, contents: dict[str, bytes]) -> Path:
    if kind == "folder":
        path = folder / "images"
        path.mkdir()
        for name, content in contents.items():
            (path / f"{name}.png").write_bytes(content)
        (path / "README.txt").write_text("no image")
    elif kind == "zip":
        path = folder / "images.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(f"some/{name}.JPG", content)
    else:
        path = folder / "images.parquet"
        column: list = list(contents.values())
        if kind == "structs":
            column = [{"bytes": content, "path": None} for content in column]
        pl.DataFrame({"item_id": list(contents), "image": column}).write_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "parquet", "structs"])
@pytest.mark.parametrize("workers", [1, 3])
def test_stores_hold_the_same_images(kind, workers, tmp_path):
    images = open_images(store(kind, tmp_path, CONTENTS), "item_id")
    assert images.ids == set(CONTENTS)
    wanted = {"i1", "i2", "i5", "no such"}
    processor = ImageProcessor(size=(6, 6))
    got = {each.name: each.levels for each in decoded(images, wanted, processor, workers)}
    assert set(got) == {"i1", "i2", "i5"}
    for name, levels in got.items():
        want = processor.levels(Image.open(io.BytesIO(CONTENTS[name])))
        np.testing.assert_array_equal(levels, want)
    assert images.digest(wanted) != images.digest({"i1", "i2"})


@pytest.mark.parametrize("damage", ["cut", "empty", "no image", "bomb"])
def test_a_damaged_image_is_told_from_the_others(damage, tmp_path, monkeypatch):
    good = CONTENTS["i4"]
    bad = {"cut": good[: len(good) // 2], "empty": b"", "no image": b"GIF or not", "bomb": encoded(image(60, 60))}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    images = open_images(store("folder", tmp_path, {**CONTENTS, "bad": bad[damage]}), "item_id")
    got = {each.name: each for each in decoded(images, images.ids, ImageProcessor(size=(6, 6)))}
    assert [name for name, each in got.items() if each.levels is None] == ["bad"]
    assert got["bad"].problem


def test_what_is_no_store_of_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images; files end in one of"):
        open_images(tmp_path / "empty", "item_id")
    for name in ("a.png", "a.jpg"):
        (tmp_path / "empty" / name).write_bytes(CONTENTS["i0"])
    with pytest.raises(DataError, match=r"two images of 'a', a\.jpg and a\.png"):
        open_images(tmp_path / "empty", "item_id")
    (tmp_path / "broken.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="no zip that can be read"):
        open_images(tmp_path / "broken.zip", "item_id")
    path = store("parquet", tmp_path, CONTENTS)
    with pytest.raises(DataError, match="no column 'asin' but item_id, image"):
        open_images(path, "asin")
    with pytest.raises(DataError, match="holds String and no bytes"):
        open_images(path, "image", "item_id")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_images(tmp_path / "missing.zip", "item_id")


def test_a_zip_whose_member_is_damaged_names_the_zip(tmp_path):
    path = store("zip", tmp_path, CONTENTS)
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    images = open_images(path, "item_id")
    with pytest.raises(DataError, match=r"images\.zip"):
        list(decoded(images, images.ids, ImageProcessor(size=(6, 6))))
