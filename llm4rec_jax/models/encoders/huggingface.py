"""A Hugging Face BERT, as a folder or a hub name, to (encoder, params) and back. Strict in both directions."""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from llm4rec_jax.io import replacing
from llm4rec_jax.models.encoders.bert import Bert, BertConfig, first_layers
from llm4rec_jax.trees import flatten, unflatten

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)


class PretrainedError(ValueError):
    """A pretrained folder that cannot be read as what it claims to be. The message says what, where, and the remedy."""


_LAYER = r"encoder\.layer\.(\d+)\."
_JOINTS = (
    (r"attention\.self\.(query|key|value)", r"attention/\2"),
    (r"attention\.output\.dense", "attention/output"),
    (r"attention\.output\.LayerNorm", "attention_norm"),
    (r"intermediate\.dense", "ffn/up"),
    (r"output\.dense", "ffn/down"),
    (r"output\.LayerNorm", "ffn_norm"),
)

# In order; the first that matches a whole name decides. `None` drops a tensor that the encoder has no use for.
RULES: tuple[tuple[str, str | None], ...] = (
    (r"embeddings\.(word|position|token_type)_embeddings\.weight", r"embeddings/\1/embedding"),
    (r"embeddings\.LayerNorm\.(?:weight|gamma)", "embeddings/norm/scale"),
    (r"embeddings\.LayerNorm\.(?:bias|beta)", "embeddings/norm/bias"),
    *((rf"{_LAYER}{j}\.(?:weight|gamma)", rf"layer_\1/{f}/scale") for j, f in _JOINTS if j.endswith("LayerNorm")),
    *((rf"{_LAYER}{j}\.(?:bias|beta)", rf"layer_\1/{f}/bias") for j, f in _JOINTS if j.endswith("LayerNorm")),
    *((rf"{_LAYER}{j}\.weight", rf"layer_\1/{f}/kernel") for j, f in _JOINTS if not j.endswith("LayerNorm")),
    *((rf"{_LAYER}{j}\.bias", rf"layer_\1/{f}/bias") for j, f in _JOINTS if not j.endswith("LayerNorm")),
    (r"embeddings\.position_ids", None),
    (r"(?:pooler|cls|classifier|qa_outputs)\..*", None),
)

# What a `BertConfig` says beside what a `config.json` does.
_OURS = {"compute_dtype", "remat", "attention"}


def load(
    path_or_hub_name: str | os.PathLike[str],
    *,
    layers: int | None = None,
    compute_dtype: str = "float32",
    remat: bool = False,
    attention: str = "xla",
    dropout: float | None = None,
) -> tuple[Bert, dict[str, Any]]:
    """Reads a BERT encoder.

    Args:
      path_or_hub_name: a folder with `config.json` and `model.safetensors` (or `model.safetensors.index.json` and its
        shards), or the name of a repository on the Hugging Face hub.
      layers: keep only the first so many layers.
      compute_dtype: what activations are computed in; parameters are float32.
      remat: recompute blocks in the backward pass.
      attention: "xla" or "cudnn", see `BertConfig`.
      dropout: replaces both of the config's dropout rates.

    Returns:
      The encoder and its parameters: `encoder.apply({"params": params}, ids, mask)` is [B, L, D].

    Raises:
      ValueError: cuDNN's attention without an NVIDIA GPU, in float32, or with dropout.
      PretrainedError: not a BERT, a file that is missing or damaged, a tensor that is missing, unused or misshapen.
    """
    if attention == "cudnn" and jax.default_backend() != "gpu":
        raise ValueError(f"cuDNN's attention runs on an NVIDIA GPU, and this is a {jax.default_backend()}: give xla")
    folder = resolve(path_or_hub_name)
    config = _read_config(folder / "config.json")
    rates = {} if dropout is None else {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = dataclasses.replace(config, compute_dtype=compute_dtype, remat=remat, attention=attention, **rates)
    flat = _convert(_read_tensors(folder), folder)
    _check(flat, config, folder)
    encoder, params = Bert(config), unflatten({path: jnp.asarray(a, jnp.float32) for path, a in flat.items()})
    if layers is None:
        return encoder, params
    try:
        return first_layers(encoder, params, layers)
    except ValueError as error:
        raise PretrainedError(f"{folder}: {error}") from error


def resolve(path_or_hub_name: str | os.PathLike[str]) -> Path:
    """The folder that a path or a hub name stands for; a hub name is downloaded into the Hugging Face cache.

    Raises:
      PretrainedError: neither a folder nor a repository that can be reached.
    """
    name = os.fspath(path_or_hub_name)
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise PretrainedError(f"{name} is a file: give the folder that holds config.json and model.safetensors")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise PretrainedError(f"{name}: no such folder, and not the form of a hub name (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["config.json", "model*.safetensors", "model.safetensors.index.json", *TOKENIZER_FILES]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise PretrainedError(
            f"{name}: no such folder here, and not to be had from the hub ({type(error).__name__}): check the "
            "spelling and the connection, or give a local folder with config.json and model.safetensors"
        ) from error


def save(
    path: str | os.PathLike[str],
    encoder: Bert,
    params: dict[str, Any],
    *,
    tokenizer_from: str | os.PathLike[str] | None = None,
) -> Path:
    """Writes a folder that `transformers.BertModel.from_pretrained` opens with equal outputs.

    Args:
      path: the folder; created if need be.
      encoder, params: as `load` returns them.
      tokenizer_from: a folder whose tokenizer files are copied beside the weights.

    Raises:
      PretrainedError: the parameters are not those of the encoder.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    flat = {p: np.asarray(a, np.float32) for p, a in flatten(params).items()}
    _check(flat, encoder.config, folder)
    tensors = {to_torch_name(p): np.ascontiguousarray(a.T if p.endswith("/kernel") else a) for p, a in flat.items()}
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "position_embedding_type": "absolute",
        **{k: v for k, v in dataclasses.asdict(encoder.config).items() if k not in _OURS},
    }
    # The weights go last and by rename, so that a folder with weights is a whole one.
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if tokenizer_from is not None:
        for source in (Path(tokenizer_from) / name for name in TOKENIZER_FILES):
            if source.is_file():
                shutil.copyfile(source, folder / source.name)
    with replacing(folder / "model.safetensors") as scratch:
        save_file(tensors, scratch, metadata={"format": "pt"})
    return folder


def to_torch_name(path: str) -> str:
    """`layer_3/attention/query/kernel` to `encoder.layer.3.attention.self.query.weight`."""
    joints = {f: j for j, f in _JOINTS if f != r"attention/\2"}
    leaf = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
    module, _, last = path.rpartition("/")
    if m := re.fullmatch(r"embeddings/(word|position|token_type)", module):
        return f"embeddings.{m[1]}_embeddings.{leaf[last]}"
    if module == "embeddings/norm":
        return f"embeddings.LayerNorm.{leaf[last]}"
    if m := re.fullmatch(r"layer_(\d+)/attention/(query|key|value)", module):
        return f"encoder.layer.{m[1]}.attention.self.{m[2]}.{leaf[last]}"
    if (m := re.fullmatch(r"layer_(\d+)/(.+)", module)) and m[2] in joints:
        return f"encoder.layer.{m[1]}.{joints[m[2]].replace(chr(92), '')}.{leaf[last]}"
    raise PretrainedError(f"{path} is not a parameter of BERT")


def _read_config(file: Path) -> BertConfig:
    if not file.is_file():
        there = ", ".join(sorted(p.name for p in file.parent.iterdir())) or "nothing"
        raise PretrainedError(f"{file.parent} has no config.json (it holds {there}): give a Hugging Face model folder")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PretrainedError(f"{file} is not JSON ({error}): it is damaged, fetch it again") from error
    if not isinstance(raw, dict):
        raise PretrainedError(f"{file} holds {raw!r} instead of the fields of a model: it is damaged, fetch it again")
    if raw.get("model_type") != "bert":
        raise PretrainedError(f"{file}: model_type is {raw.get('model_type')!r}; only 'bert' can be read")
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise PretrainedError(f"{file}: position_embedding_type {raw['position_embedding_type']!r} is not supported")
    for unsupported in ("is_decoder", "add_cross_attention"):
        if raw.get(unsupported):
            raise PretrainedError(f"{file}: {unsupported} is set; only encoders can be read")
    given = {f: raw[f.name] for f in dataclasses.fields(BertConfig) if f.name in raw.keys() - _OURS}
    for field, value in given.items():
        kind = type(field.default)
        if not isinstance(value, (int, float) if kind is float else kind):
            raise PretrainedError(f"{file}: {field.name} is {value!r}, must be of type {kind.__name__}")
    try:
        return BertConfig(**{field.name: value for field, value in given.items()})
    except ValueError as error:
        raise PretrainedError(f"{file}: {error}") from error


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return _read_file(folder / "model.safetensors")
    if not index.is_file():
        raise PretrainedError(
            f"{folder} has neither model.safetensors nor {index.name}: weights saved by pickle (pytorch_model.bin) are "
            "not read, since unpickling runs code; convert them with `model.save_pretrained(folder)` in transformers"
        )
    try:
        weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        shards = sorted(map(str, set(weight_map.values())))
    except (ValueError, KeyError, TypeError) as error:
        raise PretrainedError(f"{index} is not an index of safetensors shards ({error!r}): fetch it again") from error
    tensors: dict[str, np.ndarray] = {}
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise PretrainedError(f"{index} names the shard {shard!r}, which is not a file of {folder}")
        tensors |= _read_file(folder / shard)
    if lacking := sorted(set(weight_map) - set(tensors)):
        raise PretrainedError(f"{index} promises tensors that no shard holds: {some(lacking)}")
    return tensors


def _read_file(file: Path) -> dict[str, np.ndarray]:
    try:
        # It checks that header and arrays lie within the file. A type that numpy lacks is an AttributeError.
        return load_file(file)
    except (SafetensorError, OSError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise PretrainedError(f"{file} cannot be read as safetensors ({error}): damaged or cut short?") from error


def _convert(tensors: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    unused = []
    for name, tensor in tensors.items():
        bare = name.removeprefix("bert.")
        for pattern, template in RULES:
            if (m := re.fullmatch(pattern, bare)) is None:
                continue
            if template is not None:
                path = m.expand(template)
                if path in flat:
                    raise PretrainedError(f"{folder}: {name} and another tensor both stand for {path}")
                flat[path] = tensor.T if path.endswith("/kernel") else tensor
            break
        else:
            unused.append(name)
    if unused:
        raise PretrainedError(f"{folder}: tensors that no rule knows what to do with: {some(unused)}")
    return flat


def _check(flat: dict[str, np.ndarray], config: BertConfig, where: Path) -> None:
    """Compares names and shapes with what the encoder needs."""
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    wanted = flatten(jax.eval_shape(Bert(config).init, jax.random.key(0), ids, ids)["params"])
    if missing := sorted(set(wanted) - set(flat)):
        raise PretrainedError(
            f"{where}: tensors that the encoder needs are missing: {some(map(to_torch_name, missing))}"
        )
    if unused := sorted(set(flat) - set(wanted)):
        raise PretrainedError(
            f"{where}: tensors beyond what config.json describes (num_hidden_layers={config.num_hidden_layers}): "
            f"{some(map(to_torch_name, unused))}"
        )
    for path, array in flat.items():
        if array.shape != wanted[path].shape:
            shape, need = (s[::-1] if path.endswith("/kernel") else s for s in (array.shape, wanted[path].shape))
            raise PretrainedError(f"{where}: {to_torch_name(path)} is {shape}, but config.json makes it {need}")


def some(names: Iterable[str], limit: int = 20) -> str:
    """The first of many, and how many they are."""
    names = list(names)
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
