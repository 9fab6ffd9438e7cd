"""Adapters as folders that Hugging Face's peft opens and writes, and merged models for all other libraries.

`save` and `load` are for the methods that peft has too, `merge` for those that can be folded into the weights. Only
safetensors and JSON are read, and strictly: an adapter that would be another function here is an error.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from llm4rec_jax import checksums
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.base import Encoder, Family
from llm4rec_jax.models.layers.quantized import dequantize_params
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.hf.adapter import (
    AGAIN,
    INSTEAD,
    Adapter,
    Fields,
    InterchangeError,
    Modules,
    modules_of,
    modules_spoken_of,
    short,
    some,
    without_head,
)
from llm4rec_jax.peft.hf.files import (
    CONFIG,
    OTHERS,
    WEIGHTS,
    check_files,
    check_pooling,
    flat_names,
    read_fields,
    read_others,
    read_tensors,
    tokenizer_folder,
    write_sentence_transformer,
)
from llm4rec_jax.peft.hf.formats import READERS, WRITERS
from llm4rec_jax.peft.sites import Delta, Params, stack
from llm4rec_jax.registry import unknown_name
from llm4rec_jax.sharding import digest, fetch
from llm4rec_jax.trees import flatten

__all__ = ["InterchangeError", "Loaded", "load", "merge", "save"]

BASE = "llm4rec_jax.base"
"""Key of the digest of the encoder's parameters in the metadata of the weights."""
FORMAT = "0.21.0"
"""Version of peft whose format is written."""
SHORT_BASE = "base"
"""Folder within an adapter's for the base of an encoder that was cut to its first layers."""


class Loaded(NamedTuple):
    """An adapter that was read.

    Attributes:
      method: The method; `forward(encoder, method, params, delta, …)` computes what peft does.
      delta: The trained arrays, for a bare encoder.
      others: Arrays of the recommender's other parts as nested dictionaries; None when there are none.
    """

    method: Peft
    delta: Delta
    others: dict[str, Any] | None


def save(
    path: str | os.PathLike[str],
    method: Peft,
    delta: Delta,
    params: Params,
    *,
    base: str = "",
    others: Mapping[str, Any] | None = None,
    family: Family | None = None,
    tokenizer_from: str | os.PathLike[str] | None = None,
    pooling: str = "mean",
    max_tokens: int = 256,
) -> Path:
    """Writes a folder that `peft.PeftModel.from_pretrained(model, path)` opens with equal outputs.

    With a tokenizer and a base, `sentence_transformers.SentenceTransformer(path)` opens it too, with equal vectors,
    unless the method is prefix or prompt, which it cannot load.

    Args:
      path: The folder; created if need be.
      method: A method that peft has: lora, lora_plus, dora, adalora, vera, ia3, oft, layernorm, prefix, prompt.
      delta: The trained arrays of a bare encoder, `delta["encoder"]` of a recommender.
      params: The encoder's parameters. Their digest is written too, so that `load` can recognise another encoder.
      base: The encoder's folder or hub name, for peft's base_model_name_or_path. When the folder has more layers than
        the encoder, the encoder is written to the folder `base` within the adapter's, and named instead.
      others: Arrays of the recommender's other parts as nested dictionaries, for `recommender.safetensors`.
      family: The family of the encoder; needed only where several families have parameters of the same names.
      tokenizer_from: A folder or hub name whose tokenizer files are copied; None copies none.
      pooling: Pooling for sentence-transformers; see `sentence_folder.MODES`. Used with a tokenizer.
      max_tokens: Number of tokens to which sentence-transformers cuts texts. Used with a tokenizer.

    Raises:
      InterchangeError: peft has no such method, or the delta is not of this method or not finite.
    """
    folder = Path(path)
    if method.name not in WRITERS:
        instead = (
            "write the model that it makes with `merge`" if method.merge else "keep the run's own checkpoint of it"
        )
        raise InterchangeError(
            f"peft has no counterpart of the method {method.name!r}, only of {', '.join(WRITERS)}: {instead}"
        )
    params = jax.tree.map(jnp.asarray, dict(params))
    modules = modules_of(params, family)
    _check_delta(method, delta, params)
    written = WRITERS[method.name](method.options, jax.tree.map(_host, delta), modules)
    if tokenizer_from is not None:
        tokenizer_from = tokenizer_folder(tokenizer_from)
        check_pooling(pooling)
    fields = {
        **written.fields,
        "task_type": "FEATURE_EXTRACTION",
        "inference_mode": True,
        "base_model_name_or_path": base or None,
        "peft_version": FORMAT,
    }
    tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in written.tensors.items()}
    notes = {"format": "pt", BASE: digest(params)}
    flat = flat_names(others or {})
    # Reading checks what is written.
    READERS[fields["peft_type"]](Adapter(Fields(folder / CONFIG, fields), folder / WEIGHTS, tensors, modules))
    _make(folder)
    if (shortened := _short_base(base, modules, params, folder)) is not None:
        fields["base_model_name_or_path"] = shortened
    if tokenizer_from is not None:
        pretrained.copy_tokenizer(tokenizer_from, folder)
        # transformers loads no adapters with virtual tokens.
        if method.name not in ("prefix", "prompt"):
            write_sentence_transformer(folder, stack(params, "save")[1], pooling, max_tokens)
    # A folder without weights is no adapter: old weights are removed first and new ones moved in last, each whole.
    (folder / WEIGHTS).unlink(missing_ok=True)
    (folder / OTHERS).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        text = json.dumps(fields, indent=2, sort_keys=True, allow_nan=False)
        (Path(scratch) / CONFIG).write_text(text + "\n", encoding="utf-8")
        if flat:
            save_file(flat, Path(scratch) / OTHERS)
        save_file(tensors, Path(scratch) / WEIGHTS, metadata=notes)
        names = (CONFIG, *([OTHERS] if flat else []), WEIGHTS)
        checksums.write_manifest(Path(scratch), names)
        for name in (checksums.MANIFEST, *names):
            os.replace(Path(scratch) / name, folder / name)
    return folder


def load(
    path: str | os.PathLike[str],
    params: Params | None = None,
    *,
    any_base: bool = False,
    family: Family | None = None,
) -> Loaded:
    """Reads a folder that `save` or peft's `save_pretrained` has written.

    An adapter of a model with a head (`BertForMaskedLM`) is read as one of the encoder within; arrays for the head are
    ignored.

    Args:
      path: The folder.
      params: The parameters of the encoder that the adapter is for. With them all modules and shapes are compared,
        without them the folder is compared with itself.
      any_base: Accept an adapter that was made over other parameters of the same shapes.
      family: The family of the encoder, as in `save`.

    Raises:
      InterchangeError: the folder is damaged, or holds something that has no counterpart here.
    """
    folder = Path(path)
    check_files(folder)
    raw = read_fields(folder)
    fields = Fields(folder / CONFIG, raw)
    tensors, notes = read_tensors(folder / WEIGHTS)
    kind = raw.get("peft_type")
    if not isinstance(kind, str) or kind not in READERS:
        named = kind[:80] if isinstance(kind, str) else short(kind)
        raise fields.error(f"{unknown_name('peft_type', named, READERS)} can be read", INSTEAD)
    for name, array in tensors.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise InterchangeError(f"{folder / WEIGHTS}: {name} is of {array.dtype}, not of floating point; {AGAIN}")
    if params is not None:
        params = jax.tree.map(jnp.asarray, dict(params))
        recorded = notes.get(BASE)
        if recorded is not None and not any_base and recorded != (here := digest(params)):
            raise InterchangeError(
                f"{folder / WEIGHTS} was made over an encoder with digest {recorded[:12]}…, but the one at hand has "
                f"{here[:12]}…: give the encoder that it was trained with, or any_base=True"
            )
    modules = modules_spoken_of(tensors) if params is None else modules_of(params, family)
    with np.errstate(over="ignore"):
        tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    prefix, tensors = without_head(tensors, modules.family)
    method, delta = READERS[kind](Adapter(fields.within(prefix, modules.family), folder / WEIGHTS, tensors, modules))
    return Loaded(method, delta, read_others(folder / OTHERS))


def merge(
    path: str | os.PathLike[str],
    encoder: Encoder,
    params: Params,
    method: Peft,
    delta: Delta,
    *,
    tokenizer_from: str | os.PathLike[str] | None = None,
    pooling: str = "mean",
    max_tokens: int = 256,
) -> Path:
    """Writes the encoder with the method folded in, as a model of its own.

    `transformers.AutoModel.from_pretrained(path)` has the same states, and with a tokenizer
    `sentence_transformers.SentenceTransformer(path)` the same pooled vectors.

    Args:
      path: The folder; created if need be.
      encoder: The encoder, from `huggingface.load`.
      params: Its parameters. Weights of few bits are merged and written as the floats that they stand for.
      method: A method that merges, or a chain of such methods.
      delta: The trained arrays of the bare encoder.
      tokenizer_from: A folder or hub name whose tokenizer files are copied; None copies none.
      pooling: Pooling for sentence-transformers; see `sentence_folder.MODES`.
      max_tokens: Number of tokens to which sentence-transformers cuts texts.

    Raises:
      InterchangeError: the method cannot be merged, the result is not finite, or sentence-transformers has no such
        pooling.
      PretrainedError: the parameters are not those of the encoder.
    """
    folder = Path(path)
    if method.merge is None:
        instead = "write the adapter with `save`" if method.name in WRITERS else "keep the run's own checkpoint of it"
        raise InterchangeError(f"the method {method.name!r} cannot be folded into the encoder's weights: {instead}")
    check_pooling(pooling)
    most = encoder.config.max_position_embeddings
    if not 1 <= max_tokens <= most:
        raise InterchangeError(f"max_tokens is {max_tokens}, but the encoder has {most} positions: give 1 to {most}")
    if tokenizer_from is not None:
        tokenizer_from = tokenizer_folder(tokenizer_from)
    params = dequantize_params(jax.tree.map(jnp.asarray, dict(params)))
    _check_delta(method, delta, params)
    merged = jax.tree.map(_host, method.merge(params, delta))
    if broken := [name for name, a in flatten(merged).items() if not np.isfinite(a).all()]:
        raise InterchangeError(
            f"merged, these have values that are not finite: {some(broken)}; go back to a checkpoint"
        )
    _make(folder)
    write_sentence_transformer(folder, encoder.config.hidden_size, pooling, max_tokens)
    if tokenizer_from is not None:
        pretrained.copy_tokenizer(tokenizer_from, folder)
    return pretrained.save(folder, encoder, merged)


# -------------------------------------------------------------------------------------------------------------- writing
def _host(array: Any) -> np.ndarray:
    return np.asarray(fetch(array) if isinstance(array, jax.Array) else array, np.float32)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InterchangeError(f"{folder} cannot be made a folder ({error}): give another path") from error


def _short_base(base: str, modules: Modules, params: Params, folder: Path) -> str | None:
    """Writes an encoder with fewer layers than its folder `base`, and returns its path; None when it has all layers."""
    if not Path(base, "config.json").is_file():
        return None
    family, config = pretrained.read_config(Path(base))
    if modules.depth == config.num_hidden_layers:
        return None
    encoder = family.build(config.with_layers(modules.depth))
    return str(pretrained.save(folder / SHORT_BASE, encoder, dict(params), tokenizer_from=base).resolve())


def _check_delta(method: Peft, delta: Delta, params: Params) -> None:
    """Compares the shapes of a delta with those that the method trains on these parameters."""
    what = f"this is not a delta of {method.name!r} over this encoder"
    remedy = "give what the method trained on the bare encoder, delta['encoder'] of a recommender"
    try:
        wanted = jax.eval_shape(method.init, jax.random.key(0), params)
    except ValueError as error:
        raise InterchangeError(f"{what} ({error}): {remedy}") from error
    there, needed = ({path: tuple(np.shape(a)) for path, a in flatten(tree).items()} for tree in (delta, wanted))
    if method.name == "adalora":
        # A delta from peft may have fewer triplets.
        for site, w in wanted.items():
            rows = min((*there.get(f"{site}/lambda", ()), method.options["init_rank"]))
            shapes = {"p": (w["p"].shape[0], rows), "lambda": (rows,), "q": (rows, w["q"].shape[1])}
            needed |= {f"{site}/{name}": shape for name, shape in shapes.items()}
    elif "+" in method.name:
        there, needed = (dict.fromkeys(shapes, "there") for shapes in (there, needed))
    if differing := [name for name in sorted(there | needed) if there.get(name) != needed.get(name)]:
        listed = (f"{n} is {there.get(n, 'missing')} for {needed.get(n, 'nothing')}" for n in differing)
        raise InterchangeError(f"{what}: {some(listed)}; {remedy}")
