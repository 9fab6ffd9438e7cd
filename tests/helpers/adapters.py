"""Adapters for the tests of interchange, and ways to change their folders."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from llm4rec_jax.models.encoders.bert import Bert
from llm4rec_jax.peft import Peft, create, forward
from llm4rec_jax.peft.hf.save_load import InterchangeError, load
from tests.helpers.small import IDS, MASK, encoder, moved

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
QUERY = "base_model.model.encoder.layer.0.attention.self.query"

ADAPTERS = {
    "lora": ("lora", {"rank": 3, "alpha": 2.5, "dropout": 0.25, "rslora": True}),
    "lora_plus": ("lora_plus", {"rank": 3, "target": r".*"}),
    "dora": ("dora", {"rank": 3}),
    "adalora": ("adalora", {"init_rank": 4, "rank": 2, "penalty": 0.25, "every": 3}),
    "vera": ("vera", {"rank": 5}),
    "ia3": ("ia3", {}),
    "ia3 of outputs": ("ia3", {"target": r".*/value"}),
    "ia3 of inputs": ("ia3", {"target": r".*/(query|down)", "feedforward": r".*"}),
    "oft": ("oft", {"block": 4}),
    "oft series": ("oft", {"block": 8, "neumann": 6}),
    "layernorm": ("layernorm", {"target": r".*(_|/)norm"}),
    "prefix": ("prefix", {"length": 3}),
    "prompt": ("prompt", {"length": 3}),
}


def seeded(seed: int, model: Bert) -> dict[str, Any]:
    """Random parameters of an encoder."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), IDS, MASK)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0.0, 0.2, a.shape), a.dtype), shapes)


def made(params, key: str) -> tuple[Peft, Any]:
    name, options = ADAPTERS[key]
    method = create(name, {name: options})
    return method, moved(method.init(jax.random.key(0), params), 1)


def states(method, params, delta) -> np.ndarray:
    return np.asarray(forward(encoder(), method, params, delta, IDS, MASK))[MASK]


def fields_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text())


def edit(folder: Path, drop: str = "", **changes: Any) -> Path:
    fields = {name: value for name, value in (fields_of(folder) | changes).items() if name != drop}
    (folder / CONFIG).write_text(json.dumps(fields))
    return folder


def notes_of(folder: Path) -> dict[str, str]:
    with safe_open(folder / WEIGHTS, "np") as file:
        return file.metadata()


def rewrite(folder: Path, change) -> Path:
    tensors = load_file(folder / WEIGHTS)
    notes = notes_of(folder)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata=notes)
    return folder


def refused(folder: Path, message: str, params: Any = None, **options: Any) -> None:
    with pytest.raises(InterchangeError, match=message) as caught:
        load(folder, params, **options)
    assert folder.name in str(caught.value)
