"""The fields, arrays and modules of an adapter of Hugging Face's peft, read strictly."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.base import Family, families
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.patterns import matching
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, sites


class InterchangeError(ValueError):
    """An adapter that cannot be written, or read as what it claims to be.

    The message names the fault, the file and a remedy.
    """


Tensors = dict[str, np.ndarray]
Size = int | str
"""The size of an axis: a number, or a name for a size that is not known until an array has been seen."""
Shapes = dict[str, tuple[Size, ...] | None]
"""Shapes of arrays by name; None allows any shape."""

ROOT = "base_model.model."
AGAIN = "save it again with peft's save_pretrained, or fetch it again"
INSTEAD = "merge it in peft (merge_and_unload), save the model that results and start from that"

LAST_INT = 2**31 - 1
_HARMLESS = {
    "peft_type",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "inference_mode",
}
"""Fields that do not change the function that an adapter computes."""


class Modules(NamedTuple):
    """The modules of an encoder that an adapter can change.

    Attributes:
      linear, norms: Sites of linear layers and norms by the name of torch's module.
      fused: Sites that lie side by side in a module, by the name of torch's module.
      others: Sites that adapters are not read or written for, by the name of torch's module: embedding tables, and
        parts of modules of unknown size.
      sizes: Shapes by site, (in, out) of a linear layer and (width,) of a norm.
      depth: Number of blocks; without parameters, the number that the names of the arrays need.
      width: Width D of the encoder.
      family: The encoder's family.
    """

    linear: dict[str, str]
    norms: dict[str, str]
    fused: dict[str, tuple[str, ...]]
    others: dict[str, str]
    sizes: dict[str, tuple[Size, ...]]
    depth: int
    width: Size
    family: Family

    @property
    def unused(self) -> tuple[str, ...]:
        """Modules of torch's model that no hidden state depends on, so that adapters of them are ignored."""
        return self.family.unused_modules

    def size_of(self, parts: tuple[str, ...]) -> tuple[Size, ...]:
        """Returns the shape of a module of one or several projections: sites of (8, 6) and (8, 2) make (8, 8)."""
        if len(parts) == 1:
            return self.sizes[parts[0]]
        return (self.sizes[parts[0]][0], sum(int(self.sizes[site][1]) for site in parts))

    def torch_name(self, site: str) -> str:
        """Returns torch's name of a site: "encoder.layer.3.output.dense" for "layer_3/ffn/down"."""
        name = pretrained.names_of(self.family).module(site)
        if name in self.others or name in self.fused:
            raise InterchangeError(f"peft adapts {name} only as a whole, and this adapts {site}: write it with `merge`")
        return name


def modules_of(params: Params, family: Family | None = None) -> Modules:
    """Returns the modules of an encoder's parameters; their names tell its family unless it is given."""
    linear = {site: tuple(arrays["kernel"].shape) for site, arrays in sites(params, "kernel").items()}
    norms = {site: tuple(arrays["scale"].shape) for site, arrays in sites(params, "scale").items()}
    try:
        width = params["embeddings"]["word"]["embedding"].shape[1]
        return _modules(linear, norms, list(sites(params, "embedding")), width, family or pretrained.family_of(params))
    except (ValueError, KeyError) as error:
        raise InterchangeError(
            f"these are not the parameters of an encoder, but {some(params)} ({error}): give those of the encoder "
            "alone, params['encoder'] of a recommender"
        ) from error


def modules_spoken_of(keys: Iterable[str]) -> Modules:
    """Returns the modules of the smallest encoder that has every block that the names of arrays need.

    Its family is the one that knows most of the names.
    """
    keys = [key.removeprefix(ROOT) for key in keys]

    def sites_in(family: Family) -> list[str]:
        names = pretrained.names_of(family)
        return [site for key in keys if (site := names.site(key)) is not None]

    family = max(families().values(), key=lambda family: len(sites_in(family)))
    numbers = [int(m[1]) for site in sites_in(family) if (m := re.match(r"layer_(\d{1,3})/", site))]
    depth, has = max(numbers, default=-1) + 1, family.sites
    into, key, inner = ("query", "key", "inner") if has.grouped else ("width", "width", "inner")
    sizes: dict[str, tuple[Size, ...]] = {
        "query": ("width", into), "key": ("width", key), "value": ("width", key), "output": (into, "width"),
        "gate": ("width", inner), "up": ("width", inner), "down": (inner, "width"),
    }  # fmt: skip
    linear = {f"layer_{i}/{site}": sizes[name] for i in range(depth) for name, site in has.linear.items()}
    known = {path for rule in family.weight_rules for path in rule.paths}
    beside = [name for name in ("embeddings/norm", "final_norm") if f"{name}/scale" in known]
    norms = [*beside, *(f"layer_{i}/{name}" for i in range(depth) for name in has.norms)]
    return _modules(linear, dict.fromkeys(norms, ("width",)), ["embeddings/word"], "width", family)


def _modules(
    linear: dict[str, Any], norms: dict[str, Any], tables: Iterable[str], width: Size, family: Family
) -> Modules:
    blocks = {site.split("/")[0] for site in linear if site.startswith("layer_")}
    names = pretrained.names_of(family)
    within = {site: names.source(f"{site}/kernel").paths for site in linear}
    parts = {site: tuple(p.removesuffix("/kernel") for p in paths) for site, paths in within.items() if len(paths) > 1}

    def by_name(some_sites: Iterable[str]) -> dict[str, str]:
        return {names.module(site): site for site in sorted(some_sites)}

    single, unknown = by_name(linear.keys() - parts), parts if isinstance(width, str) else {}
    fused = {names.module(site): parts[site] for site in parts.keys() - unknown}
    others = by_name({*tables, *unknown})
    return Modules(single, by_name(norms), fused, others, linear | norms, len(blocks), width, family)


def without_head(tensors: Tensors, family: Family) -> tuple[str, Tensors]:
    """Returns the prefix of the encoder's modules in the model that peft wrapped, and the encoder's arrays without it.

    An adapter of `BertForMaskedLM` has "bert.encoder.layer.0…" beside arrays for the head, which are dropped.
    """
    names = pretrained.names_of(family)
    for prefix in family.prefixes:
        if any(key.startswith(ROOT + prefix) and names.site(key.removeprefix(ROOT)) for key in tensors):
            head = [key for key in tensors if names.paths(key.removeprefix(ROOT)) == ()]
            kept = {key: array for key, array in tensors.items() if key not in head}
            return prefix, {ROOT + key.removeprefix(ROOT).removeprefix(prefix): array for key, array in kept.items()}
    return "", tensors


def some(names: Iterable[Any]) -> str:
    """Lists the first names of many and their number; names from a file may hold any character."""
    return pretrained.some(
        str(name) if str(name).isprintable() and len(str(name)) < 200 else short(name) for name in names
    )


def short(value: Any) -> str:
    """Returns the value as an error message shows it, cut to one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


class Fields:
    """The fields of an `adapter_config.json`. Each one that is read must be of the right type.

    Args:
      file: The file, for messages.
      raw: The fields.
      prefix: Beginning of torch's module names in the model that peft wrapped, "bert." in one with a head.
      head: Regular expressions for the modules of that head.
    """

    def __init__(self, file: Path, raw: Mapping[str, Any], prefix: str = "", head: Iterable[str] = ()) -> None:
        self._file, self._raw, self._prefix, self._head = file, raw, prefix, tuple(head)
        self._asked: set[str] = set()

    def within(self, prefix: str, family: Family) -> "Fields":
        """Returns the fields of an adapter of a model in which the encoder's modules have this prefix."""
        return Fields(self._file, self._raw, prefix, family.dropped if prefix else ())

    def error(self, what: str, remedy: str = AGAIN) -> InterchangeError:
        return InterchangeError(f"{self._file}: {what}; {remedy}")

    def raw(self, name: str) -> Any:
        """Returns the field unchecked, or None when it is missing."""
        self._asked.add(name)
        return self._raw.get(name)

    def _get(self, name: str, default: Any, fits: Callable[[Any], bool], kind: str) -> Any:
        if (value := self.raw(name)) is None:
            if default is None:
                raise self.error(f"{name} is missing, must be {kind}")
            return default
        if not fits(value):
            raise self.error(f"{name} is {short(value)}, must be {kind}")
        return value

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        def fits(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LAST_INT

        return self._get(name, default, fits, f"an integer from {least} to {LAST_INT}")

    def number(self, name: str, default: float | None = None) -> float:
        def fits(value: Any) -> bool:
            # An integer may be too long for a float.
            return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30

        return float(self._get(name, default, fits, "a finite number"))

    def flag(self, name: str, default: bool | None = None) -> bool:
        return self._get(name, default, lambda value: isinstance(value, bool), "true or false")

    def names(self, name: str) -> str | list[str]:
        """Returns a regular expression or a list of names."""

        def fits(value: Any) -> bool:
            return isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))

        return self._get(name, None, fits, "a list of names or a regular expression")

    def refuse_others(self, *harmless: str) -> None:
        """Refuses every field that is set and has not been read, because it may change the function."""
        if self.raw("bias") not in (None, "none"):
            raise self.error(f"bias is {short(self.raw('bias'))}, and trained biases are not read", INSTEAD)
        for name, value in self._raw.items():
            if name not in self._asked | _HARMLESS | set(harmless) and value not in (None, False, 0, "", [], {}):
                raise self.error(f"{short(name)} is {short(value)}, and an adapter that sets it is not read", INSTEAD)

    def matching(self, name: str, available: Iterable[str], linear: Iterable[str]) -> list[str]:
        """Returns the modules that a field names, as peft reads it.

        A string is a regular expression that matches a name in full, or "all-linear". A list holds whole names, or ends
        of names after a point.
        """
        target, modules = self.names(name), list(available)
        if isinstance(target, list):
            endings = {module: self._endings(module) for module in modules}
            unknown = set(target) - set().union(*endings.values())
            if stray := sorted(n for n in unknown if not any(re.fullmatch(head, n) for head in self._head)):
                raise self.error(f"{name} lists what no module of this encoder is called: {some(stray)}", INSTEAD)
            matched = [module for module in modules if not endings[module].isdisjoint(target)]
        elif target.lower() == "all-linear":
            return list(linear)
        else:
            matched = self.matching_pattern(name, target, modules)
        if not matched:
            raise self.error(f"{name} {short(target)} matches no module of this encoder")
        return matched

    def matching_pattern(self, name: str, pattern: str, modules: Iterable[str]) -> list[str]:
        """Returns the modules that the regular expression of a field matches."""
        try:
            whole = matching(pattern, [self._prefix + module for module in modules])
        except ValueError as error:
            raise self.error(f"{name} {short(pattern)} {error}", INSTEAD) from error
        return [self.bare(module) for module in whole]

    def bare(self, module: str) -> str:
        """Returns torch's name of a module without the prefix."""
        return module.removeprefix(self._prefix)

    def _endings(self, module: str) -> set[str]:
        whole = self._prefix + module
        return {whole, *(whole[m.end() :] for m in re.finditer(r"\.", whole))}


class Adapter(NamedTuple):
    """The content of an adapter's folder.

    Attributes:
      fields: The configuration.
      file: The file of the arrays, for messages.
      tensors: The arrays by name.
      modules: The modules of the encoder, or without one those that the arrays need.
    """

    fields: Fields
    file: Path
    tensors: Tensors
    modules: Modules

    def error(self, what: str, remedy: str = AGAIN) -> InterchangeError:
        return InterchangeError(f"{self.file}: {what}; {remedy}")

    def misshapen(self, key: str, wanted: tuple[Any, ...]) -> InterchangeError:
        return self.error(
            f"{key} is {self.tensors[key].shape}, but must be {wanted}", f"give the encoder that it is for, or {AGAIN}"
        )

    def by_site(
        self,
        shapes: Callable[[str, tuple[Size, ...]], Shapes],
        beside: Iterable[str] = (),
        norms: bool = False,
        outputs: Iterable[str] = (),
    ) -> dict[str, Tensors]:
        """Returns the arrays of every module that `target_modules` names, {site: {name: array}}.

        Args:
          shapes: Function from torch's name and the sizes of a module to the shapes of its arrays.
          beside: Names of arrays that belong to no module.
          norms: The modules are norms and not linear layers.
          outputs: Names of arrays whose first axis is the output of a module. With them modules of several projections
            are read too: these arrays are taken apart, and the projections share all others.

        Raises:
          InterchangeError: an array is missing, misshapen or not finite, or there is one beyond these.
        """
        modules, unused = self.modules, self.modules.unused
        linear = [*modules.linear, *modules.fused, *unused]
        matched = self.fields.matching("target_modules", [*linear, *modules.norms, *modules.others], linear)
        kind = {name: (site,) for name, site in (modules.norms if norms else modules.linear).items()}
        kind |= modules.fused if outputs else {}
        if stray := [name for name in matched if name not in kind and (norms or name not in unused)]:
            raise self.fields.error(f"target_modules includes what this type is not read for: {some(stray)}", INSTEAD)
        adapted = {name: shapes(name, modules.size_of(kind[name])) for name in matched if name in kind}
        if not adapted:
            raise self.fields.error("target_modules names nothing that hidden states depend on")
        expected: Shapes = dict.fromkeys(beside)
        for name, arrays in adapted.items():
            expected |= {f"{ROOT}{name}.{leaf}": shape for leaf, shape in arrays.items()}
        beyond = {name: shapes(name, ("unused", "unused")) for name in unused if name in matched}
        self.expect(expected, {f"{ROOT}{name}.{leaf}" for name, arrays in beyond.items() for leaf in arrays})
        found: dict[str, Tensors] = {site: {} for name in adapted for site in kind[name]}
        for name, arrays in adapted.items():
            cuts = np.cumsum([modules.sizes[site][-1] for site in kind[name]][:-1]) if len(kind[name]) > 1 else []
            for leaf in arrays:
                array = self.tensors[f"{ROOT}{name}.{leaf}"]
                pieces = np.split(array, cuts) if leaf in outputs else [array] * len(kind[name])
                for site, piece in zip(kind[name], pieces, strict=True):
                    found[site][leaf] = piece
        return found

    def expect(self, expected: Shapes, ignored: Iterable[str] = ()) -> None:
        """Compares the names and shapes of arrays, and refuses values that are not finite."""
        if missing := sorted(expected.keys() - self.tensors.keys()):
            raise self.error(f"arrays that the configuration speaks of are missing: {some(missing)}")
        if unused := sorted(self.tensors.keys() - expected.keys() - set(ignored)):
            raise self.error(f"arrays that the configuration does not speak of: {some(unused)}")
        known: dict[str, int] = {}
        for key, shape in sorted(expected.items()):
            array = self.tensors[key]
            if shape is not None:
                for got, size in zip(array.shape, shape, strict=False):
                    # A size that nothing has said yet is that of the first array that has it.
                    if isinstance(size, str):
                        known.setdefault(size, got)
                wanted = tuple(known.get(size, size) if isinstance(size, str) else size for size in shape)
                if array.shape != wanted:
                    raise self.misshapen(key, wanted)
            if not np.isfinite(array).all():
                raise self.error(f"{key} has values that are not finite", "go back to one from before they arose")


def build(adapter: Adapter, name: str, **options: Any) -> Peft:
    """Returns a method with the options of an adapter."""
    try:
        return METHODS.build(name, **options)
    except ValueError as error:
        raise adapter.fields.error(str(error)) from error


def to_delta(arrays: Mapping[str, Mapping[str, np.ndarray]]) -> Delta:
    """Returns the arrays {site: {name: array}} as a delta."""
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), {site: dict(w) for site, w in arrays.items()})


def one_of(names: Iterable[str]) -> str:
    """Returns a regular expression that matches exactly these names, none of them when there are none."""
    return "|".join(map(re.escape, names)) or r"(?!)"
