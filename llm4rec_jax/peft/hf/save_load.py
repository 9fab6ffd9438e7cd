"""Adapters as folders that Hugging Face's peft opens and writes, and merged models for everything else.

`save` and `load` are for the methods that peft has too; `merge` is for those that can be folded into the weights. Only
safetensors and JSON are read, and strictly: an adapter that would compute something else here is an error.
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
from llm4rec_jax.data.features.tokens import check_vocabulary
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.base import Encoder, Family
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.models.encoders.sentence_folder import MODES
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.hf.adapter import (
    AGAIN,
    INSTEAD,
    Adapter,
    Fields,
    InterchangeError,
    modules_of,
    modules_spoken_of,
    short,
    some,
)
from llm4rec_jax.peft.hf.files import (
    CONFIG,
    OTHERS,
    WEIGHTS,
    check_files,
    flat_names,
    read_fields,
    read_others,
    read_tensors,
)
from llm4rec_jax.peft.hf.formats import READERS, WRITERS
from llm4rec_jax.peft.sites import Delta, Params
from llm4rec_jax.registry import unknown_name
from llm4rec_jax.sharding import fetch, path_name
from llm4rec_jax.training.checkpoint import digest

__all__ = ["InterchangeError", "Loaded", "load", "merge", "save"]

BASE = "llm4rec_jax.base"
"""The name beside the weights under which the digest of the encoder's parameters goes."""
FORMAT = "0.21.0"
"""The version of peft whose format is written."""


class Loaded(NamedTuple):
    """Attributes:
    method: `forward(encoder, method, params, delta, …)` is what peft computes.
    delta: what it trained, for a bare encoder.
    others: arrays of the recommender's other parts, nested dictionaries; None when there were none.
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
) -> Path:
    """Writes a folder that `peft.PeftModel.from_pretrained(model, path)` opens with equal outputs.

    Args:
      path: the folder; created if need be.
      method: a method that peft has: lora, lora_plus, dora, adalora, vera, ia3, oft, layernorm, prefix, prompt.
      delta: what it trained, of a bare encoder; of a recommender, `delta["encoder"]`.
      params: the encoder's parameters. Their digest is noted, so that `load` can tell another encoder.
      base: the encoder's folder or hub name, for peft's base_model_name_or_path.
      others: arrays of the recommender's other parts, nested dictionaries, for `recommender.safetensors`.
      family: the encoder's, `encoder.family`; needed only where several have parameters of the same names.

    Raises:
      InterchangeError: peft has no such method, or the delta is not this method's or not finite.
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
    # What is written must be what is read.
    READERS[fields["peft_type"]](Adapter(Fields(folder / CONFIG, fields), folder / WEIGHTS, tensors, modules))
    _make(folder)
    # Without weights there is no adapter: an old one goes first and the new one comes last, each whole.
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

    Args:
      path: the folder.
      params: the parameters of the encoder that it is for. With them all modules and shapes are compared; without, only
        what the folder says of itself.
      any_base: also when it was made over other parameters of the same shapes.
      family: the encoder's, as in `save`.

    Raises:
      InterchangeError: the folder is damaged, or says something that has no counterpart here.
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
    method, delta = READERS[kind](Adapter(fields, folder / WEIGHTS, tensors, modules))
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

    `transformers.AutoModel.from_pretrained(path)` has the same states, and, when a tokenizer is given,
    `sentence_transformers.SentenceTransformer(path)` the same pooled vectors.

    Args:
      path: the folder; created if need be.
      encoder, params: as `pretrained.load` returns them.
      method, delta: any method that merges, or a chain of such; the delta is that of a bare encoder.
      tokenizer_from: a folder or hub name whose tokenizer files are copied.
      pooling: One of those that sentence-transformers has: mean, cls, max, last, weighted_mean, mean_sqrt.
      max_tokens: sentence-transformers cuts texts to so many tokens.

    Raises:
      InterchangeError: the method cannot be merged, the result is not finite, or there is no such pooling there.
      PretrainedError: the parameters are not those of the encoder.
    """
    folder = Path(path)
    if method.merge is None:
        instead = "write the adapter with `save`" if method.name in WRITERS else "keep the run's own checkpoint of it"
        raise InterchangeError(f"the method {method.name!r} cannot be folded into the encoder's weights: {instead}")
    if pooling not in MODES:
        if pooling not in POOLINGS:
            raise InterchangeError(unknown_name("pooling", pooling, MODES))
        raise InterchangeError(
            f"sentence-transformers has no pooling {pooling!r}, only {', '.join(MODES)}: choose one of them, which "
            "gives other vectors, or keep the run's own checkpoint"
        )
    most = encoder.config.max_position_embeddings
    if not 1 <= max_tokens <= most:
        raise InterchangeError(f"max_tokens is {max_tokens}, but the encoder has {most} positions: give 1 to {most}")
    if tokenizer_from is not None:
        tokenizer_from = pretrained.resolve(tokenizer_from)
        try:
            check_vocabulary(tokenizer_from)
        except ValueError as error:
            raise InterchangeError(str(error)) from error
    params = jax.tree.map(jnp.asarray, dict(params))
    _check_delta(method, delta, params)
    merged = jax.tree.map(_host, method.merge(params, delta))
    if broken := [name for name, a in pretrained.flatten(merged).items() if not np.isfinite(a).all()]:
        raise InterchangeError(
            f"merged, these have values that are not finite: {some(broken)}; go back to a checkpoint"
        )
    _make(folder / "1_Pooling")
    # In the form of the first releases, which all later ones read too.
    described = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": encoder.config.hidden_size,
            **{flag: name == pooling for name, (_, flag) in MODES.items()},
        },
        "sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": None},
    }
    for name, content in described.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return pretrained.save(folder, encoder, merged, tokenizer_from=tokenizer_from)


# -------------------------------------------------------------------------------------------------------------- writing
def _host(array: Any) -> np.ndarray:
    return np.asarray(fetch(array) if isinstance(array, jax.Array) else array, np.float32)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InterchangeError(f"{folder} cannot be made a folder ({error}): give another path") from error


def _check_delta(method: Peft, delta: Delta, params: Params) -> None:
    """Compares a delta with what the method would train on these parameters."""
    what = f"this is not a delta of {method.name!r} over this encoder"
    remedy = "give what the method trained on the bare encoder, delta['encoder'] of a recommender"
    try:
        wanted = jax.eval_shape(method.init, jax.random.key(0), params)
    except ValueError as error:
        raise InterchangeError(f"{what} ({error}): {remedy}") from error
    there, needed = (
        {path_name(path): tuple(np.shape(a)) for path, a in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (delta, wanted)
    )
    if method.name == "adalora":
        # One that comes from peft may have fewer triplets.
        for site, own in wanted.items():
            rows = min((*there.get(f"{site}/lambda", ()), method.options["init_rank"]))
            shapes = {"p": (own["p"].shape[0], rows), "lambda": (rows,), "q": (rows, own["q"].shape[1])}
            needed |= {f"{site}/{name}": shape for name, shape in shapes.items()}
    elif "+" in method.name:
        there, needed = (dict.fromkeys(shapes, "there") for shapes in (there, needed))
    if differing := [name for name in sorted(there | needed) if there.get(name) != needed.get(name)]:
        listed = (f"{n} is {there.get(n, 'missing')} for {needed.get(n, 'nothing')}" for n in differing)
        raise InterchangeError(f"{what}: {some(listed)}; {remedy}")
