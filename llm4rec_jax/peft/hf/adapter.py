"""The parts of an adapter of Hugging Face's peft, read strictly: its fields, its arrays, the modules that they name."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.base import Family, families
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.peft.sites import Delta, Params, sites


class InterchangeError(ValueError):
    """An adapter that cannot be written, or read as what it claims to be. The message says what, where, the remedy."""


Tensors = dict[str, np.ndarray]
Size = int | str
"""Of an axis: a number, or the name of one that is not known until an array has been seen."""
Shapes = dict[str, tuple[Size, ...] | None]
"""Of arrays by name; None is any shape."""

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
"""Fields that say nothing of what an adapter computes."""


class Modules(NamedTuple):
    """The modules of an encoder that an adapter can change.

    Attributes:
      linear, norms: torch's names to sites.
      sizes: of the sites, (in, out) of a linear layer and (width,) of a norm.
      depth: the number of blocks; without parameters, as many as the arrays speak of.
      width: D.
      family: the encoder's.
    """

    linear: dict[str, str]
    norms: dict[str, str]
    sizes: dict[str, tuple[Size, ...]]
    depth: int
    width: Size
    family: Family

    @property
    def unused(self) -> tuple[str, ...]:
        """Modules that torch's model may have and no hidden state depends on; nor is what an adapter holds for them."""
        return self.family.unused_modules

    def torch_name(self, site: str) -> str:
        """`layer_3/attention/query` to `encoder.layer.3.attention.self.query`."""
        return pretrained.names_of(self.family).module(site)


def modules_of(params: Params, family: Family | None = None) -> Modules:
    """Those of an encoder's parameters, whose family is found by their names unless it is given."""
    linear = {site: tuple(arrays["kernel"].shape) for site, arrays in sites(params, "kernel").items()}
    norms = {site: tuple(arrays["scale"].shape) for site, arrays in sites(params, "scale").items()}
    try:
        width = params["embeddings"]["word"]["embedding"].shape[1]
        return _modules(linear, norms, width, family or pretrained.family_of(params))
    except (ValueError, KeyError) as error:
        raise InterchangeError(
            f"these are not the parameters of an encoder, but {some(params)} ({error}): give those of the encoder "
            "alone, params['encoder'] of a recommender"
        ) from error


def modules_spoken_of(keys: Iterable[str]) -> Modules:
    """Those of the smallest encoder that has every block in the names of arrays, of the family that knows most."""
    keys = [key.removeprefix(ROOT) for key in keys]

    def sites_in(family: Family) -> list[str]:
        names = pretrained.names_of(family)
        return [site for key in keys if (site := names.site(key)) is not None]

    family = max(families().values(), key=lambda family: len(sites_in(family)))
    numbers = [int(found[1]) for site in sites_in(family) if (found := re.match(r"layer_(\d{1,3})/", site))]
    depth, has = max(numbers, default=-1) + 1, family.sites
    into, key, inner = ("query", "key", "inner") if has.grouped else ("width", "width", "inner")
    sizes: dict[str, tuple[Size, ...]] = {
        "query": ("width", into), "key": ("width", key), "value": ("width", key), "output": (into, "width"),
        "gate": ("width", inner), "up": ("width", inner), "down": (inner, "width"),
    }  # fmt: skip
    linear = {f"layer_{i}/{site}": sizes[name] for i in range(depth) for name, site in has.linear.items()}
    norms = {f"layer_{i}/{name}": ("width",) for i in range(depth) for name in has.norms}
    return _modules(linear, {"embeddings/norm": ("width",), **norms}, "width", family)


def _modules(linear: dict[str, Any], norms: dict[str, Any], width: Size, family: Family) -> Modules:
    blocks = {site.split("/")[0] for site in linear}
    names = pretrained.names_of(family)
    named, named_norms = ({names.module(site): site for site in kind} for kind in (linear, norms))
    return Modules(named, named_norms, linear | norms, len(blocks), width, family)


def some(names: Iterable[Any]) -> str:
    """The first of many, and how many they are; names from a file may be anything."""
    return pretrained.some(
        str(name) if str(name).isprintable() and len(str(name)) < 200 else short(name) for name in names
    )


def short(value: Any) -> str:
    """How a value is printed, cut to a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


class Fields:
    """The fields of an `adapter_config.json`; those that are asked for must be of the right type."""

    def __init__(self, file: Path, raw: Mapping[str, Any]) -> None:
        self._file, self._raw = file, raw
        self._asked: set[str] = set()

    def error(self, what: str, remedy: str = AGAIN) -> InterchangeError:
        return InterchangeError(f"{self._file}: {what}; {remedy}")

    def raw(self, name: str) -> Any:
        """As it is; None when it is missing."""
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
        """A regular expression, or a list of names."""

        def fits(value: Any) -> bool:
            return isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))

        return self._get(name, None, fits, "a list of names or a regular expression")

    def settle(self, *harmless: str) -> None:
        """Refuses every other field that is set: what it would change is not known here."""
        if self.raw("bias") not in (None, "none"):
            raise self.error(f"bias is {short(self.raw('bias'))}, and trained biases are not read", INSTEAD)
        for name, value in self._raw.items():
            if name not in self._asked | _HARMLESS | set(harmless) and value not in (None, False, 0, "", [], {}):
                raise self.error(f"{short(name)} is {short(value)}, and an adapter that sets it is not read", INSTEAD)

    def matching(self, name: str, available: Iterable[str], linear: Iterable[str]) -> list[str]:
        """The modules that a field names, as peft understands it.

        A string is a regular expression that matches a name in full, or "all-linear"; a list holds names, in full or
        from some point on.
        """
        target = self.names(name)
        endings = {module: {module, *(module[m.end() :] for m in re.finditer(r"\.", module))} for module in available}
        if isinstance(target, list):
            if stray := sorted(set(target) - set().union(*endings.values())):
                raise self.error(f"{name} lists what no module of this encoder is called: {some(stray)}")
            matched = [module for module, own in endings.items() if not own.isdisjoint(target)]
        elif target.lower() == "all-linear":
            return list(linear)
        else:
            try:
                matched = [module for module in endings if re.fullmatch(target, module)]
            except (re.error, RecursionError, OverflowError) as error:
                raise self.error(f"{name} {short(target)} is not a regular expression ({error})") from error
        if not matched:
            raise self.error(f"{name} {short(target)} matches no module of this encoder")
        return matched


class Adapter(NamedTuple):
    """An adapter as it lies in its folder.

    Attributes:
      fields: its configuration.
      file, tensors: its arrays and where they come from.
      modules: those of the encoder, or of the arrays when there is none.
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
    ) -> dict[str, Tensors]:
        """The arrays of every module that `target_modules` names, {site: {name: array}}; nothing else may be there.

        Args:
          shapes: (torch's name, sizes) of a module to the shapes of its arrays.
          beside: arrays that belong to no module.
          norms: the modules are norms and not linear layers.
        """
        unused = self.modules.unused
        linear = [*self.modules.linear, *unused]
        matched = self.fields.matching("target_modules", [*linear, *self.modules.norms], linear)
        kind = self.modules.norms if norms else self.modules.linear
        if stray := [name for name in matched if name not in kind and (norms or name not in unused)]:
            raise self.fields.error(f"target_modules includes what this type is not read for: {some(stray)}", INSTEAD)
        own = {name: shapes(name, self.modules.sizes[kind[name]]) for name in matched if name in kind}
        if not own:
            raise self.fields.error("target_modules names nothing that hidden states depend on")
        expected: Shapes = dict.fromkeys(beside)
        for name, arrays in own.items():
            expected |= {f"{ROOT}{name}.{leaf}": shape for leaf, shape in arrays.items()}
        beyond = {name: shapes(name, ("unused", "unused")) for name in unused if name in matched}
        self.expect(expected, {f"{ROOT}{name}.{leaf}" for name, arrays in beyond.items() for leaf in arrays})
        return {
            kind[name]: {leaf: self.tensors[f"{ROOT}{name}.{leaf}"] for leaf in arrays} for name, arrays in own.items()
        }

    def expect(self, expected: Shapes, ignored: Iterable[str] = ()) -> None:
        """Compares names and shapes, and refuses what is not finite."""
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


class Written(NamedTuple):
    """Attributes:
    fields: the configuration, but for what all types share.
    tensors: by peft's names.
    """

    fields: dict[str, Any]
    tensors: Tensors


def build(adapter: Adapter, name: str, **options: Any) -> Peft:
    """A method with the options that an adapter has."""
    try:
        return METHODS.build(name, **options)
    except ValueError as error:
        raise adapter.fields.error(str(error)) from error


def to_delta(arrays: Mapping[str, Mapping[str, np.ndarray]]) -> Delta:
    return {site: {name: jnp.asarray(a, jnp.float32) for name, a in own.items()} for site, own in arrays.items()}


def one_of(names: Iterable[str]) -> str:
    """A regular expression that matches exactly these; one that matches nothing when there are none."""
    return "|".join(map(re.escape, names)) or r"(?!)"


def targets(delta: Mapping[str, Any], modules: Modules) -> dict[str, Any]:
    return {"target_modules": sorted(map(modules.torch_name, delta))}


def by_torch_name(delta: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], modules: Modules) -> Tensors:
    """{site: {name: array}} to peft's names, matrices transposed."""
    return {
        f"{ROOT}{modules.torch_name(site)}.{names[name]}": array.T
        for site, own in delta.items()
        for name, array in own.items()
    }
