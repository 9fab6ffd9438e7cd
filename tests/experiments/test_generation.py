"""Semantic ids from a language model's vectors, by the commands."""

import json

import numpy as np

from llm4rec_jax.semantic_ids import collisions, load_index
from tests.helpers.commands import command, last_line


def test_ids_are_made_from_the_vectors_of_a_language_model(config, tmp_path):
    vectors = tmp_path / "items.npy"
    command("encode", f"--config={config}:frozen", f"--out={vectors}")
    items = json.loads((tmp_path / "items.ids.json").read_text())
    assert np.load(vectors).shape == (40, 16)
    arguments = (f"--vectors={vectors}", "--levels=2", "--codes=5")
    done = command("semantic_ids", *arguments, f"--out={tmp_path / 'tiny.index.json'}")
    ids, result = load_index(tmp_path / "tiny.index.json", items), last_line(done)
    assert result["items"] == collisions(ids).ids == 40
    assert result["ids"] == len(np.unique(ids.codes[:, :2], axis=0)) < 40
    assert result["sizes"] == [5, 5, result["largest"]]
    assert 1 > result["variance_left"][0] > result["variance_left"][1]
    refused = command(
        "semantic_ids", *arguments, "--option=balanced=maybe", f"--out={tmp_path / 'x.index.json'}", check=False
    )
    assert refused.returncode == 2
    assert "--option=balanced=maybe is not NAME=VALUE" in refused.stderr
