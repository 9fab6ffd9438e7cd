"""The files of an adapter, JSON and safetensors, read strictly and without running code."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, deserialize

from llm4rec_jax.checksums import MANIFEST, Damaged, check_manifest
from llm4rec_jax.data.features.tokens import check_vocabulary
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.models.encoders.sentence_folder import MODES
from llm4rec_jax.peft.hf.adapter import AGAIN, InterchangeError, short, some
from llm4rec_jax.registry import unknown_name
from llm4rec_jax.sharding import fetch

CONFIG, WEIGHTS, OTHERS = "adapter_config.json", "adapter_model.safetensors", "recommender.safetensors"

DTYPES = {name: np.dtype(t) for name, t in (
    ("F64", np.float64), ("F32", np.float32), ("F16", np.float16), ("BF16", jnp.bfloat16), ("I64", np.int64),
    ("I32", np.int32), ("I16", np.int16), ("I8", np.int8), ("U64", np.uint64), ("U32", np.uint32), ("U16", np.uint16),
    ("U8", np.uint8), ("BOOL", np.bool_),
)}  # fmt: skip


def flat_names(others: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns nested dictionaries as {"a/b/c": array}.

    Raises:
      InterchangeError: a name or a type that safetensors cannot hold, or an array that is not finite.

    Example:
      >>> flat_names({"head": {"scale": np.float32(2)}})
      {'head/scale': array(2., dtype=float32)}
    """
    flat: dict[str, np.ndarray] = {}

    def visit(path: str, node: Mapping[str, Any]) -> None:
        for name, value in node.items():
            if not isinstance(name, str) or not name or "/" in name:
                raise InterchangeError(f"others: {short(name)} under {path or 'the root'} is no name: rename it")
            if isinstance(value, Mapping):
                visit(f"{path}{name}/", value)
                continue
            array = np.asarray(fetch(value) if isinstance(value, jax.Array) else value, order="C")
            if array.dtype not in DTYPES.values():
                raise InterchangeError(f"others: {path}{name} is of {array.dtype}, which safetensors has not: cast it")
            if not np.isfinite(array).all():
                raise InterchangeError(f"others: {path}{name} has values that are not finite: go back to a checkpoint")
            flat[path + name] = array

    visit("", others)
    return flat


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object, whose names must differ."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"{short(name)} stands there twice")
        fields[name] = value
    return fields


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def check_files(folder: Path) -> None:
    """Compares an adapter with the checksums that `save` wrote. An adapter of another program has none."""
    if not (folder / MANIFEST).exists():
        return
    try:
        check_manifest(folder)
    except Damaged as error:
        raise InterchangeError(
            f"{error}; {AGAIN}, or remove {MANIFEST} there if another program has written to the folder since"
        ) from error


def read_fields(folder: Path) -> dict[str, Any]:
    """Returns the fields of the adapter in a folder."""
    file = folder / CONFIG
    if not file.is_file():
        there = some(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else ""
        raise InterchangeError(
            f"{folder} has no {CONFIG} ({f'it holds {there}' if there else 'it is empty or no folder'}): give a folder "
            "that peft's save_pretrained has written; one on the hub must be downloaded first"
        )
    try:
        raw = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError, OSError) as error:
        raise InterchangeError(f"{file} cannot be read as JSON ({error}); {AGAIN}") from error
    if not isinstance(raw, dict):
        raise InterchangeError(f"{file} holds {short(raw)} instead of the fields of an adapter; {AGAIN}")
    return raw


def read_tensors(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the arrays of a safetensors file and its metadata."""
    if not file.is_file():
        if file.with_suffix(".bin").exists():
            raise InterchangeError(
                f"{file.parent} has its weights in {file.stem}.bin, and pickle is never read, since that runs code: "
                "open it in peft, where you trust it, and save it again with save_pretrained"
            )
        raise InterchangeError(f"{file} is missing; {AGAIN}")
    try:
        content = file.read_bytes()
        # `deserialize` checks that the header and every array lie within the file, one after the other.
        views = deserialize(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size], object_pairs_hook=_once)
        tensors = {
            name: np.frombuffer(view["data"], DTYPES[view["dtype"]]).reshape(view["shape"]) for name, view in views
        }
    except KeyError as error:
        raise InterchangeError(f"{file} has arrays of type {error}, which are not read; {AGAIN} as float32") from error
    except (SafetensorError, ValueError, RecursionError, OverflowError, OSError) as error:
        raise InterchangeError(
            f"{file} cannot be read as safetensors ({error}): damaged or cut short; {AGAIN}"
        ) from error
    return tensors, header.get("__metadata__", {})


def read_others(file: Path) -> dict[str, Any] | None:
    """Returns the nested dictionaries that `flat_names` flattened, or None when there is no file."""
    if not file.exists():
        return None
    tensors, _ = read_tensors(file)
    tree: dict[str, Any] = {}
    for path, array in tensors.items():
        *parents, name = path.split("/")
        node: Any = tree
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict) or name in node or "" in (*parents, name):
            raise InterchangeError(f"{file}: {short(path)} is no name beside the others there; save it again")
        if not np.isfinite(array).all():
            raise InterchangeError(f"{file}: {path} has values that are not finite; go back to a checkpoint")
        node[name] = array
    return tree


# ---------------------------------------------------------------------------------- tokenizer and sentence-transformers
def tokenizer_folder(path: str | os.PathLike[str]) -> Path:
    """Returns the folder of a path or hub name, which must hold a tokenizer."""
    folder = pretrained.resolve(path)
    try:
        check_vocabulary(folder)
    except ValueError as error:
        raise InterchangeError(str(error)) from error
    return folder


def check_pooling(pooling: str) -> None:
    """Raises InterchangeError when sentence-transformers has no such pooling."""
    if pooling in POOLINGS and pooling not in MODES:
        raise InterchangeError(
            f"sentence-transformers has no pooling {pooling!r}, only {', '.join(MODES)}: choose one of them, which "
            "gives other vectors, or keep the run's own checkpoint"
        )
    if pooling not in MODES:
        raise InterchangeError(unknown_name("pooling", pooling, MODES))


def write_sentence_transformer(folder: Path, width: int, pooling: str, max_tokens: int) -> None:
    """Writes the files that make a model's folder one of sentence-transformers.

    They have the form of its first releases, which all later ones read.
    """
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    modes = {flag: name == pooling for name, (_, flag) in MODES.items()}
    contents = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": width, **modes},
        "sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": None},
    }
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
