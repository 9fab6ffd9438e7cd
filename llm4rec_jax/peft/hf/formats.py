"""Readers and writers of the types of adapters of Hugging Face's peft that have a method here."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from llm4rec_jax.models.encoders.base import Family
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.hf.adapter import (
    INSTEAD,
    ROOT,
    Adapter,
    InterchangeError,
    Modules,
    Size,
    build,
    one_of,
    some,
    to_delta,
)
from llm4rec_jax.peft.hf.low_rank import read_adalora, read_lora, read_vera, write_adalora, write_lora, write_vera
from llm4rec_jax.peft.hf.writing import Written, by_torch_name, targets
from llm4rec_jax.peft.methods.prefix import plain
from llm4rec_jax.peft.sites import Delta


# ------------------------------------------------------------------------------------------------- ia3, oft, layer norm
def _read_ia3(adapter: Adapter) -> tuple[Peft, Delta]:
    fields = adapter.fields
    fields.names("target_modules")
    inputs = fields.names("feedforward_modules")
    fields.refuse_others("init_ia3_weights")

    def scales_input(name: str) -> bool:
        # Unlike target_modules, a name in this list may begin anywhere.
        if isinstance(inputs, list):
            return any(name.endswith(entry) for entry in inputs)
        return bool(fields.matching_pattern("feedforward_modules", inputs, [name]))

    arrays = adapter.by_site(lambda name, size: {"ia3_l": (1, size[0]) if scales_input(name) else (size[1], 1)})
    feedforward = [site for site in arrays if scales_input(adapter.modules.torch_name(site))]
    method = build(adapter, "ia3", target=one_of(arrays), feedforward=one_of(feedforward))
    return method, to_delta({site: {"scale": w["ia3_l"].reshape(-1)} for site, w in arrays.items()})


def _write_ia3(options: Mapping[str, Any], delta: Delta, modules: Modules) -> Written:
    inputs = {site for site in delta if re.fullmatch(options["feedforward"], site)}
    arrays = {site: {"scale": w["scale"][:, None] if site in inputs else w["scale"][None]} for site, w in delta.items()}
    fields = {"peft_type": "IA3", "feedforward_modules": sorted(map(modules.torch_name, inputs))}
    return Written(fields | targets(delta, modules), by_torch_name(arrays, {"scale": "ia3_l"}, modules))


def _read_oft(adapter: Adapter) -> tuple[Peft, Delta]:
    fields = adapter.fields
    count, size = fields.integer("r", 0, least=0), fields.integer("oft_block_size", least=0)
    if (count == 0) == (size == 0):
        raise fields.error(f"r is {count} and oft_block_size {size}, one of which must be 0 and the other not")
    fields.names("target_modules")
    terms = fields.integer("num_cayley_neumann_terms", 5, least=3) if fields.flag("use_cayley_neumann") else 0
    version = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", str(fields.raw("peft_version")))
    if terms and (version is None or (int(version[1]), int(version[2])) < (0, 18)):
        raise fields.error(
            "peft before 0.18 had another series under use_cayley_neumann", "train it again with a newer"
        )
    # Block dropout matters in training only, eps for coft only, and the number of terms for the series only.
    fields.refuse_others("init_weights", "module_dropout", "eps", "num_cayley_neumann_terms")
    arrays = adapter.by_site(lambda name, size: {"oft_R.weight": None})
    blocks: set[int] = set()
    known: dict[str, int] = {}
    for site, w in arrays.items():
        shape = w["oft_R.weight"].shape
        block = (1 + math.isqrt(1 + 8 * shape[1])) // 2 if len(shape) == 2 and shape[1] else 0
        width = adapter.modules.sizes[site][0]
        if isinstance(width, str):
            width = known.setdefault(width, max(shape[0] * block, 1))
        number, block = _blocks(width, count, size)
        if shape != (wanted := (number, block * (block - 1) // 2)):
            raise adapter.misshapen(f"{ROOT}{adapter.modules.torch_name(site)}.oft_R.weight", wanted)
        blocks.add(block)
    if len(blocks) > 1:
        raise adapter.error(f"modules have blocks of {some(sorted(blocks))}, and one size for all can be read", INSTEAD)
    # Three terms and four are the same in peft.
    options = {"block": blocks.pop(), "neumann": max(terms, 4) if terms else 0, "target": one_of(arrays)}
    return build(adapter, "oft", **options), to_delta({site: {"skew": w["oft_R.weight"]} for site, w in arrays.items()})


def _blocks(width: int, count: int, size: int) -> tuple[int, int]:
    """Returns the number and size of peft's blocks of an input, rounded to the nearest divisor of its width."""
    given = min(count or size, width)
    divisors = {d for small in range(1, math.isqrt(width) + 1) if width % small == 0 for d in (small, width // small)}
    nearest = min(divisors, key=lambda d: (abs(d - given), d))
    return (nearest, width // nearest) if count else (width // nearest, nearest)


def _write_oft(options: Mapping[str, Any], delta: Delta, modules: Modules) -> Written:
    fields = {
        "peft_type": "OFT",
        "r": 0,
        "oft_block_size": options["block"],
        "use_cayley_neumann": options["neumann"] > 0,
        "num_cayley_neumann_terms": options["neumann"] or 5,
        "bias": "none",
    }
    tensors = {f"{ROOT}{modules.torch_name(site)}.oft_R.weight": w["skew"] for site, w in delta.items()}
    return Written(fields | targets(delta, modules), tensors)


_NORM = {"scale": "ln_tuning_layers.weight", "bias": "ln_tuning_layers.bias"}


def _read_layernorm(adapter: Adapter) -> tuple[Peft, Delta]:
    adapter.fields.names("target_modules")
    adapter.fields.refuse_others()
    arrays = adapter.by_site(lambda name, size: dict.fromkeys(_NORM.values(), size), norms=True)
    delta = {site: {name: w[theirs] for name, theirs in _NORM.items()} for site, w in arrays.items()}
    return build(adapter, "layernorm", target=one_of(delta)), to_delta(delta)


def _write_layernorm(options: Mapping[str, Any], delta: Delta, modules: Modules) -> Written:
    return Written({"peft_type": "LN_TUNING", **targets(delta, modules)}, by_torch_name(delta, _NORM, modules))


# --------------------------------------------------------------------------------------------------- prefix and prompt
_TABLE = "prompt_embeddings"


def _read_virtual(adapter: Adapter, needed: Size) -> tuple[int, int, int]:
    """Returns the number of virtual tokens, the number of layers, and the width, which must be as needed."""
    fields, modules = adapter.fields, adapter.modules
    length, layers, width = (fields.integer(name) for name in ("num_virtual_tokens", "num_layers", "token_dim"))
    heads = fields.integer("num_attention_heads", 1)
    if fields.integer("num_transformer_submodules", 1) != 1:
        raise fields.error("num_transformer_submodules is not 1: it is for an encoder with a decoder", "use another")
    if width % heads:
        raise fields.error(f"token_dim {width} is not a multiple of num_attention_heads {heads}")
    if isinstance(needed, int) and (layers, width) != (modules.depth, needed):
        raise fields.error(
            f"num_layers is {layers} and token_dim {width}, but the encoder has {modules.depth} layers of {needed}",
            "give the encoder that it was trained over",
        )
    return length, layers, width


def _check_past_keys(family: Family) -> None:
    if not family.past_keys:
        raise InterchangeError(
            f"prefix: transformers' {family.model_type} attends to no keys before its own, so that a prefix of peft's "
            "changes nothing there: choose another method, or keep the run's own checkpoint of it"
        )


def _read_prefix(adapter: Adapter) -> tuple[Peft, Delta]:
    _check_past_keys(adapter.modules.family)
    # Keys may be narrower than states, where several heads share them.
    length, layers, width = _read_virtual(adapter, adapter.modules.sizes.get("layer_0/attention/key", ("",))[-1])
    # The file holds the keys and values themselves, whatever network made them.
    adapter.fields.refuse_others("prefix_projection", "encoder_hidden_size", "init_weights")
    adapter.expect({_TABLE: (length, 2 * layers * width)})
    columns = adapter.tensors[_TABLE].reshape(length, 2 * layers, width)
    delta = {f"layer_{i}/attention": {"key": columns[:, 2 * i], "value": columns[:, 2 * i + 1]} for i in range(layers)}
    return build(adapter, "prefix", length=length), to_delta(delta)


def _write_prefix(options: Mapping[str, Any], delta: Delta, modules: Modules) -> Written:
    _check_past_keys(modules.family)
    if not options["shift"]:
        raise InterchangeError(
            "prefix: peft moves the text behind the prefix, this one does not: train it with shift=True"
        )
    with jax.default_matmul_precision("highest"):
        delta = jax.tree.map(np.asarray, plain(delta))
    if lacking := sorted({f"layer_{i}/attention" for i in range(modules.depth)} - delta.keys()):
        raise InterchangeError(
            f"prefix: peft has a prefix in every layer, and {some(lacking)} has no prefix: train it so"
        )
    columns = [delta[f"layer_{i}/attention"][name] for i in range(modules.depth) for name in ("key", "value")]
    # The parameters do not tell the number of heads; peft asks the model for it.
    fields = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": len(columns[0]),
        "num_layers": modules.depth,
        "token_dim": columns[0].shape[1],
        "num_attention_heads": None,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
    }
    return Written(fields, {_TABLE: np.concatenate(columns, axis=1)})


def _read_prompt(adapter: Adapter) -> tuple[Peft, Delta]:
    length, _, width = _read_virtual(adapter, adapter.modules.width)
    adapter.fields.refuse_others(
        "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"
    )
    adapter.expect({_TABLE: (length, width)})
    return build(adapter, "prompt", length=length), to_delta({"embeddings/word": {"prompt": adapter.tensors[_TABLE]}})


def _write_prompt(options: Mapping[str, Any], delta: Delta, modules: Modules) -> Written:
    table = delta["embeddings/word"]["prompt"]
    fields = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": len(table),
        "num_layers": modules.depth,
        "token_dim": modules.width,
        "num_attention_heads": None,
        "num_transformer_submodules": 1,
    }
    return Written(fields, {_TABLE: table})


# --------------------------------------------------------------------------------------------------------------- tables
READERS: dict[str, Callable[[Adapter], tuple[Peft, Delta]]] = {
    "LORA": read_lora,
    "ADALORA": read_adalora,
    "VERA": read_vera,
    "IA3": _read_ia3,
    "OFT": _read_oft,
    "LN_TUNING": _read_layernorm,
    "PREFIX_TUNING": _read_prefix,
    "PROMPT_TUNING": _read_prompt,
}
"""Functions by peft's type from an adapter to the method and the delta that `forward` runs as peft does."""

WRITERS: dict[str, Callable[[Mapping[str, Any], Delta, Modules], Written]] = {
    "lora": write_lora,
    "lora_plus": write_lora,
    "dora": write_lora,
    "adalora": write_adalora,
    "vera": write_vera,
    "ia3": _write_ia3,
    "oft": _write_oft,
    "layernorm": _write_layernorm,
    "prefix": _write_prefix,
    "prompt": _write_prompt,
}
"""Functions by method from (options, delta of numpy arrays, modules) to the adapter to be written."""
