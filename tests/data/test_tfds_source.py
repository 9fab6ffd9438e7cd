"""A TFDS builder made here, prepared and read without TensorFlow."""

import subprocess
import sys
from pathlib import Path

import pytest

from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.sources import load
from tests.data.test_sources import rows, write

BUILDER = """
import numpy as np
import tensorflow_datasets as tfds


class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "user": tfds.features.Text(),
            "movie": np.int64,
            "title": tfds.features.Text(),
            "rating": np.float32,
            "time": np.int64,
            "genres": tfds.features.Sequence(np.int64),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(12):
            yield i, {
                "user": f"u{i % 3}",
                "movie": i % 4,
                "title": f"Été {i % 4}" if i < 12 - BAD else b"\\xff",
                "rating": i / 2,
                "time": 100 + i,
                "genres": [i % 4, 9],
            }


def prepare(folder, file_format="array_record"):
    Builder(data_dir=folder, file_format=file_format).download_and_prepare()
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """The data folder of two prepared builders, of which one holds text that is not UTF-8."""
    root = tmp_path_factory.mktemp("tfds")
    for name, bad in (("toy_movies", "0"), ("bad_movies", "1")):
        write(root / "code" / name / "__init__.py", "")
        write(root / "code" / name / f"{name}_dataset_builder.py", BUILDER.replace("BAD", bad))
        # A process of its own keeps the builder out of the registry of TFDS, as after a real preparation.
        code = f"from {name}.{name}_dataset_builder import prepare; prepare({str(root / 'data')!r})"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=root / "code", capture_output=True)
    return root / "data"


class TestTfds:
    OPTIONS = {"user": "user", "item": "movie", "rating": "rating", "timestamp": "time"}  # noqa: RUF012

    def test_reads_prepared_data_without_tensorflow(self, prepared):
        columns = {"title": "title", "genres": "genres"}
        dataset = load("tfds", prepared, builder="toy_movies", item_columns=columns, **self.OPTIONS)
        assert "tensorflow" not in sys.modules
        assert dataset.name == "toy_movies"
        expected = [(f"u{i % 3}", str(i % 4), i / 2, 100 + i) for i in range(12)]
        assert sorted(rows(dataset), key=lambda row: row[3]) == expected
        assert sorted(dataset.items.rows()) == [(str(i), f"Été {i}", [i, 9]) for i in range(4)]
        version = load("tfds", prepared / "toy_movies" / "1.0.0", item_columns=columns, **self.OPTIONS)
        assert version.fingerprint == dataset.fingerprint

    def test_errors(self, prepared, tmp_path):
        version = prepared / "toy_movies" / "1.0.0"
        with pytest.raises(DataError, match="unknown split 'test'; Choose from: train"):
            load("tfds", version, split="test", **self.OPTIONS)
        with pytest.raises(DataError, match=r"1\.0\.0: unknown feature 'movies'; did you mean 'movie'"):
            load("tfds", version, user="user", item="movies")
        with pytest.raises(FileNotFoundError, match="no prepared data"):
            load("tfds", prepared, **self.OPTIONS)
        with pytest.raises(FileNotFoundError, match=r"does not exist.*holds"):
            load("tfds", prepared / "other", **self.OPTIONS)
        with pytest.raises(ValueError, match="builder name or the path"):
            load("tfds", **self.OPTIONS)
        with pytest.raises(DataError, match=r"feature 'title' holds b'\\xff'.*UTF-8"):
            load("tfds", prepared, builder="bad_movies", item_columns={"t": "title"}, **self.OPTIONS)
