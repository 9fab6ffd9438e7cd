"""Readers and writers of peft's types LORA (LoRA and DoRA), ADALORA and VERA.

Torch keeps the matrix of a linear layer as [out, in], so matrices are transposed. An array has the name of its module
in front: `base_model.model.encoder.layer.0.attention.self.query.lora_A.weight`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from llm4rec_jax.models.encoders.base import Family
from llm4rec_jax.models.encoders.huggingface import names_of
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.hf.adapter import (
    INSTEAD,
    ROOT,
    Adapter,
    Fields,
    InterchangeError,
    Modules,
    Shapes,
    Size,
    build,
    one_of,
    short,
    to_delta,
)
from llm4rec_jax.peft.hf.writing import Written, by_torch_name, targets, whole_modules
from llm4rec_jax.peft.methods.vera import draw_projections
from llm4rec_jax.peft.sites import Delta

# ------------------------------------------------------------------------------------------------------- lora and dora
_LORA = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
_LORA_HARMLESS = ("megatron_core", "qalora_group_size", "eva_config")
_KEEP_THE_BASE = (None, "gaussian", "orthogonal", "eva")
"""Initialisations of LoRA that leave the weights of the base unchanged."""


def _check_start(fields: Fields) -> None:
    """Refuses initialisations that change the base (PiSSA, OLoRA, …), over which the delta is another function."""
    start = fields.raw("init_lora_weights")
    if not isinstance(start, bool) and start not in _KEEP_THE_BASE:
        raise fields.error(
            f"init_lora_weights is {short(start)}, which changes the base's own weights",
            "convert it in peft (save_pretrained with path_initial_model_for_weight_conversion)",
        )


def _inputs_first(family: Family) -> bool:
    """Returns whether torch's modules hold their matrices as [in, out], as those of GPT-2 do."""
    return not names_of(family).source(f"layer_0/{family.sites.query}/kernel").rule.transpose


def read_lora(adapter: Adapter) -> tuple[Peft, Delta]:
    """Returns lora or dora with the delta of a LORA adapter."""
    fields = adapter.fields
    rank, alpha, dropout = fields.integer("r"), fields.number("lora_alpha"), fields.number("lora_dropout", 0.0)
    rslora, dora = fields.flag("use_rslora", False), fields.flag("use_dora", False)
    fields.names("target_modules")
    _check_start(fields)
    fields.refuse_others(*_LORA_HARMLESS, *(["fan_in_fan_out"] if _inputs_first(adapter.modules.family) else []))

    def shapes(name: str, size: tuple[Size, ...]) -> Shapes:
        both: Shapes = {_LORA["a"]: (rank, size[0]), _LORA["b"]: (size[1], rank)}
        return both | ({_LORA["magnitude"]: (size[1],)} if dora else {})

    delta = {
        site: {name: w[theirs].T for name, theirs in _LORA.items() if theirs in w}
        for site, w in adapter.by_site(shapes, outputs=(_LORA["b"], _LORA["magnitude"])).items()
    }
    options: dict[str, Any] = {"rank": rank, "dropout": dropout, "target": one_of(delta)}
    if dora:
        # The scale of DoRA here is alpha / rank.
        return build(adapter, "dora", alpha=alpha * rank**0.5 if rslora else alpha, **options), to_delta(delta)
    return build(adapter, "lora", alpha=alpha, rslora=rslora, **options), to_delta(delta)


def write_lora(options: Mapping[str, Any], delta: Delta, modules: Modules) -> Written:
    """Returns the adapter of lora, lora_plus or dora."""
    arrays, times = whole_modules(delta, modules)
    rslora = options.get("rslora", False)
    fields = {
        "peft_type": "LORA",
        "r": options["rank"] * times,
        "use_rslora": rslora,
        "use_dora": any("magnitude" in w for w in delta.values()),
        "target_modules": sorted(arrays),
    }
    if _inputs_first(modules.family):
        fields["fan_in_fan_out"] = True
    # The scale stays α / r, or α / √r.
    scaled = {**options, "alpha": options["alpha"] * (times**0.5 if rslora else times)}
    tensors = {f"{ROOT}{name}.{_LORA[leaf]}": array.T for name, w in arrays.items() for leaf, array in w.items()}
    return Written(fields | _lora_fields(scaled), tensors)


def _lora_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    alpha = options["alpha"]
    # peft calls it an integer.
    whole = int(alpha) if float(alpha).is_integer() else alpha
    return {"lora_alpha": whole, "lora_dropout": options["dropout"], "bias": "none"}


# ------------------------------------------------------------------------------------------------------------- adalora
def read_adalora(adapter: Adapter) -> tuple[Peft, Delta]:
    """Returns adalora with the delta of an ADALORA adapter."""
    fields = adapter.fields
    init_rank, rank, alpha = fields.integer("init_r"), fields.integer("target_r", 8), fields.number("lora_alpha")
    steps = fields.integer("total_step")
    initial, final = (fields.integer(name, 0, least=0) / steps for name in ("tinit", "tfinal"))
    rest: dict[str, Any] = {name: fields.number(name, 0.85) for name in ("beta1", "beta2")}
    rest |= {"dropout": fields.number("lora_dropout", 0.0), "penalty": fields.number("orth_reg_weight", 0.5)}
    rest |= {"every": fields.integer("deltaT", 1), "initial": initial, "final": final}
    fields.names("target_modules")
    kept = _kept(fields, adapter.modules, init_rank)
    _check_start(fields)
    # peft ignores r here.
    fields.refuse_others(*_LORA_HARMLESS, "r")

    def shapes(name: str, size: tuple[Size, ...]) -> Shapes:
        rows = kept.get(name, init_rank)
        return {"lora_A": (rows, size[0]), "lora_B": (size[1], rows), "lora_E": (rows, 1)}

    delta = {
        site: {"p": w["lora_A"].T, "lambda": w["lora_E"][:, 0], "q": w["lora_B"].T}
        for site, w in adapter.by_site(shapes).items()
    }
    # peft divides by the initial rank even where fewer triplets are left, and replaces an alpha of at most 0 by it.
    scale = {"init_rank": init_rank, "alpha": alpha if alpha > 0 else float(init_rank)}
    return build(adapter, "adalora", rank=min(rank, init_rank), target=one_of(delta), **scale, **rest), to_delta(delta)


def _kept(fields: Fields, modules: Modules, init_rank: int) -> dict[str, int]:
    """Returns the number of triplets that pruning left, by torch's name of the module; only those are saved."""
    pattern = fields.raw("rank_pattern") or {}
    if not isinstance(pattern, dict):
        raise fields.error(f"rank_pattern is {short(pattern)}, must hold a list for every module")
    known = {*modules.linear, *modules.unused}
    for name, marks in pattern.items():
        if not isinstance(marks, list) or len(marks) != init_rank or not all(isinstance(m, bool) for m in marks):
            raise fields.error(f"rank_pattern of {short(name)} is not a list of {init_rank} times true or false")
        if not name.endswith(".lora_E") or fields.bare(name.removesuffix(".lora_E")) not in known:
            raise fields.error(f"rank_pattern speaks of {short(name)}, which no module of this encoder is called")
    return {fields.bare(name.removesuffix(".lora_E")): sum(marks) for name, marks in pattern.items()}


def write_adalora(options: Mapping[str, Any], delta: Delta, modules: Modules) -> Written:
    """Returns the adapter of adalora."""
    if options["alpha"] <= 0:
        raise InterchangeError(f"adalora: alpha is {options['alpha']}, which peft takes for init_r; it must be above 0")
    # peft counts updates where the method has shares of a run, so the fields describe a run of a thousand updates.
    steps = 1000
    initial = min(round(options["initial"] * steps), steps - 1)
    fields = {
        "peft_type": "ADALORA",
        "init_r": options["init_rank"],
        "target_r": options["rank"],
        "total_step": steps,
        "tinit": initial,
        "tfinal": min(round(options["final"] * steps), steps - 1 - initial),
        "deltaT": options["every"],
        "beta1": options["beta1"],
        "beta2": options["beta2"],
        "orth_reg_weight": options["penalty"],
    }
    tensors = {}
    for site, w in delta.items():
        # Pruned triplets are written as zeros. An adapter from peft may have fewer triplets; they are filled up with
        # zeros, because peft warns of its own rank_pattern.
        fill = options["init_rank"] - len(w["lambda"])
        name = f"{ROOT}{modules.torch_name(site)}"
        tensors |= {
            f"{name}.lora_A": np.pad(w["p"].T, ((0, fill), (0, 0))),
            f"{name}.lora_E": np.pad(w["lambda"][:, None], ((0, fill), (0, 0))),
            f"{name}.lora_B": np.pad(w["q"].T, ((0, 0), (0, fill))),
        }
    return Written(fields | _lora_fields(options) | targets(delta, modules), tensors)


# ---------------------------------------------------------------------------------------------------------------- vera
_VERA = {"d": "vera_lambda_d", "b": "vera_lambda_b"}
_PROJECTIONS = ("base_model.vera_A", "base_model.vera_B")


def read_vera(adapter: Adapter) -> tuple[Peft, Delta]:
    """Returns vera with the delta and the projections of a VERA adapter."""
    fields = adapter.fields
    rank, dropout, start = fields.integer("r"), fields.number("vera_dropout", 0.0), fields.number("d_initial", 0.1)
    fields.names("target_modules")
    if not fields.flag("save_projection", True):
        raise fields.error(
            "save_projection is false: A and B are not in the folder, torch's generator is to draw them anew, and only "
            "torch has its numbers",
            INSTEAD,
        )
    fields.refuse_others("projection_prng_key", "init_weights")
    arrays = adapter.by_site(lambda name, size: {_VERA["d"]: (rank,), _VERA["b"]: (size[1],)}, _PROJECTIONS)
    a, b = (adapter.tensors[name] for name in _PROJECTIONS)
    sizes = [adapter.modules.sizes[site] for site in arrays]
    outs = {size[1]: len(w[_VERA["b"]]) for size, w in zip(sizes, arrays.values(), strict=True)}
    known = [size if isinstance(size, int) else outs.get(size) for size, _ in sizes]
    need = (rank, max((size for size in known if size), default=1)), (max(outs.values()), rank)
    # A and B have the largest size. An unused module's may be larger, and without an encoder some sizes are unknown.
    exact = None not in known and not any(
        key.startswith(ROOT + name) for key in adapter.tensors for name in adapter.modules.unused
    )
    for name, array, shape in zip(_PROJECTIONS, (a, b), need, strict=True):
        fits = array.ndim == 2 and all(got >= size for got, size in zip(array.shape, shape, strict=True))
        axis = 0 if name == _PROJECTIONS[0] else 1
        if not fits or array.shape[axis] != rank or (exact and array.shape != shape):
            raise adapter.misshapen(name, shape)
    delta = {site: {name: w[theirs] for name, theirs in _VERA.items()} for site, w in arrays.items()}
    options = {"rank": rank, "d_initial": start, "dropout": dropout, "target": one_of(delta)}
    projections = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    return build(adapter, "vera", projections=projections, **options), to_delta(delta)


def write_vera(options: Mapping[str, Any], delta: Delta, modules: Modules) -> Written:
    """Returns the adapter of vera, with its projections."""
    ins, outs = zip(*(modules.sizes[site] for site in delta), strict=True)
    largest, rank = (max(ins), max(outs)), options["rank"]
    if options["projections"] is None:
        a, b = draw_projections(rank, options["seed"], *largest)
        # Here each site's A is scaled by the width of its input. The file holds one A for all, and λ_d takes the rest.
        delta = {
            site: w if size == largest[0] else {**w, "d": w["d"] * np.float32((largest[0] / size) ** 0.5)}
            for (site, w), size in zip(delta.items(), ins, strict=True)
        }
    else:
        a, b = options["projections"][0][: largest[0]], options["projections"][1][:, : largest[1]]
    fields = {
        "peft_type": "VERA",
        "r": rank,
        "save_projection": True,
        "vera_dropout": options["dropout"],
        "d_initial": options["d_initial"],
        "bias": "none",
    }
    tensors = by_torch_name(delta, _VERA, modules) | dict(zip(_PROJECTIONS, (a.T, b.T), strict=True))
    return Written(fields | targets(delta, modules), tensors)
