"""Rules between the tensors of a checkpoint and the parameters of an encoder, strict in both directions."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

_NUMBER = r"(0|[1-9]\d*)"
_BLOCK = re.compile(r"layer_(\d+)/")


class WeightError(ValueError):
    """Tensors that are not those of the encoder. The message names them."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A tensor of a checkpoint and the parameters that it becomes; `{i}` in both stands for the number of a block.

    Attributes:
      tensor: Name in the checkpoint, without the family's prefix.
      paths: Path of the parameter. Several: the tensor holds them side by side along the output, as fused projections
        do (`c_attn`), each as wide as the encoder's configuration makes it.
      transpose: The tensor is [out, in], the parameter [in, out].
      also: Other names that are read and never written.
      optional: The tensor is left out where the encoder has no such parameter, as the heads of language models are.
      leading: Number of axes of length 1 that the tensor has in front of those of the parameter.
    """

    tensor: str
    paths: tuple[str, ...]
    transpose: bool = False
    also: tuple[str, ...] = ()
    optional: bool = False
    leading: int = 0


def linear(tensor: str, *paths: str, bias: bool = True, transpose: bool = True) -> tuple[Rule, ...]:
    """Rules of a linear layer, weight and bias.

    Args:
      tensor: Name of the module in the checkpoint.
      *paths: Its site here; several for fused projections.
      bias: Whether it may have a bias.
      transpose: False where the checkpoint holds the matrix as [in, out] (`Conv1D` of GPT-2).

    Example:
      >>> [rule.tensor for rule in linear("h.{i}.attn.c_proj", "layer_{i}/attention/output", transpose=False)]
      ['h.{i}.attn.c_proj.weight', 'h.{i}.attn.c_proj.bias']
    """
    weight = Rule(f"{tensor}.weight", tuple(f"{path}/kernel" for path in paths), transpose)
    return (weight, Rule(f"{tensor}.bias", tuple(f"{path}/bias" for path in paths))) if bias else (weight,)


def norm(tensor: str, path: str, bias: bool = True) -> tuple[Rule, ...]:
    """Rules of a norm: scale and, unless it has none, bias. Old checkpoints call them `gamma` and `beta`."""
    scale = Rule(f"{tensor}.weight", (f"{path}/scale",), also=(f"{tensor}.gamma",))
    return (scale, Rule(f"{tensor}.bias", (f"{path}/bias",), also=(f"{tensor}.beta",))) if bias else (scale,)


def embedding(tensor: str, path: str, also: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    """The rule of an embedding table; `also` are other names of the module."""
    return (Rule(f"{tensor}.weight", (f"{path}/embedding",), also=tuple(f"{name}.weight" for name in also)),)


class Source(NamedTuple):
    """The tensor that a parameter comes from: its name, the rule, and the parameters that lie in it."""

    tensor: str
    rule: Rule
    paths: tuple[str, ...]


class Names:
    """The names of one family in both directions.

    Args:
      rules: Rules of the family.
      prefixes: Beginnings of tensor names that are ignored.
      dropped: Regular expressions of tensors without a use.

    Example:
      >>> names = Names(linear("encoder.layer.{i}.output.dense", "layer_{i}/ffn/down"), prefixes=("bert.",))
      >>> names.paths("bert.encoder.layer.3.output.dense.weight")
      ('layer_3/ffn/down/kernel',)
      >>> names.tensor("layer_3/ffn/down/bias")
      'encoder.layer.3.output.dense.bias'
    """

    def __init__(self, rules: Iterable[Rule], prefixes: Iterable[str] = (), dropped: Iterable[str] = ()) -> None:
        self._rules = tuple(rules)
        self._prefixes, self._dropped = tuple(prefixes), tuple(dropped)

    def bare(self, name: str) -> str:
        """The tensor's name without a prefix that the family ignores."""
        return next((name.removeprefix(p) for p in self._prefixes if name.startswith(p)), name)

    def source(self, path: str) -> Source:
        """The tensor that holds a parameter.

        Raises:
          WeightError: no rule has such a path.
        """
        for rule in self._rules:
            for template in rule.paths:
                if (found := _pattern(template).fullmatch(path)) is not None:
                    return _filled(rule, found)
        raise WeightError(f"{path} is not a parameter of this family")

    def tensor(self, path: str) -> str:
        """Name of the tensor that holds a parameter."""
        return self.source(path).tensor

    def module(self, site: str) -> str:
        """Name of the checkpoint's module for a site: "encoder.layer.3.output.dense" for "layer_3/ffn/down".

        Raises:
          WeightError: no rule has such a site.
        """
        for rule in self._rules:
            for template in rule.paths:
                if (found := _pattern(template.rpartition("/")[0]).fullmatch(site)) is not None:
                    return _filled(rule, found).tensor.rpartition(".")[0]
        raise WeightError(f"{site} is not a module of this family")

    def site(self, key: str) -> str | None:
        """The site whose module's name a key begins with; None when there is none."""
        bare = self.bare(key)
        for rule in self._rules:
            module = rule.tensor.rpartition(".")[0]
            if rule.paths and (found := _pattern(f"{module}.").match(bare)) is not None:
                return _filled(rule, found).paths[0].rpartition("/")[0]
        return None

    def paths(self, name: str) -> tuple[str, ...] | None:
        """Paths of the parameters that a tensor holds; none for one that is dropped, None for an unknown one."""
        source = self._read(name)
        return source if source is None else source.paths

    def _read(self, name: str) -> Source | None:
        # A name is looked up as it is first: a model without a head may have modules named like a prefix.
        for candidate in dict.fromkeys((name, self.bare(name))):
            for rule in self._rules:
                for template in (rule.tensor, *rule.also):
                    if (found := _pattern(template).fullmatch(candidate)) is not None:
                        return _filled(rule, found)
            if any(re.fullmatch(pattern, candidate) for pattern in self._dropped):
                return Source(candidate, Rule(candidate, ()), ())
        return None

    def to_params(
        self,
        tensors: Mapping[str, np.ndarray],
        shapes: Mapping[str, tuple[int, ...]],
        store: Callable[[str, np.ndarray], Any] = lambda path, array: array,
    ) -> dict[str, Any]:
        """The parameters {path: array} that the tensors of a checkpoint hold.

        Args:
          tensors: Arrays by name.
          shapes: Shapes of the encoder's parameters by path.
          store: Function of a parameter's path and array to the value that is kept, called before the next tensor is
            read.

        Raises:
          WeightError: a tensor that no rule knows, that is missing, beyond the encoder, twice there or misshapen.
        """
        read = {name: self._read(name) for name in tensors}
        if unused := [name for name, source in read.items() if source is None]:
            raise WeightError(f"tensors that no rule knows what to do with: {some(unused)}")
        sources = {name: source for name, source in read.items() if source is not None and _is_used(source, shapes)}
        flat: dict[str, Any] = {}
        for name, source in sources.items():
            # Some checkpoints hold tied tables under both of their names.
            if (other := flat.get(source.paths[0])) and not np.array_equal(tensors[name], tensors[other]):
                raise WeightError(f"{name} and {other} both stand for {source.paths[0]}, and differ")
            flat |= dict.fromkeys(source.paths, name)
        self.check_paths(flat, shapes)
        for name, source in sources.items():
            parts = _taken_apart(tensors[name], source, shapes)
            flat |= {path: store(path, array) for path, array in parts.items()}
        return flat

    def to_tensors(self, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors {name: array} of a checkpoint from the parameters {path: array}."""
        tensors = {}
        for path in flat:
            source = self.source(path)
            if source.tensor not in tensors:
                joined = np.concatenate([flat[p] for p in source.paths], -1) if len(source.paths) > 1 else flat[path]
                array = np.ascontiguousarray(joined.T if source.rule.transpose else joined)
                tensors[source.tensor] = array.reshape((1,) * source.rule.leading + array.shape)
        return tensors

    def check_depth(self, tensors: Iterable[str], depth: int) -> None:
        """Compares the number of blocks with the tensors that there are, before a model of that size is built.

        Raises:
          WeightError: there are fewer blocks; the message names the tensors that are missing.
        """
        templates: dict[str, None] = {}
        blocks = 0
        for source in map(self._read, tensors):
            if source is not None and source.paths and (found := _BLOCK.match(source.paths[0])) is not None:
                templates[source.rule.tensor] = None
                blocks = max(blocks, int(found[1]) + 1)
        if blocks < depth:
            per_block = templates or dict.fromkeys(rule.tensor for rule in self._rules if "{i}" in rule.tensor)
            # A damaged configuration may ask for billions of blocks.
            numbers = range(blocks, min(depth, blocks + 1000))
            missing = [name.replace("{i}", str(i)) for i in numbers for name in per_block]
            raise WeightError(f"tensors that the encoder needs are missing: {some(missing)}")

    def check_paths(self, there: Iterable[str], needed: Iterable[str]) -> None:
        """Compares paths with those of the encoder.

        Raises:
          WeightError: a parameter that is missing or beyond the encoder; the message names the tensors.
        """
        there, needed = set(there), set(needed)
        if missing := sorted(needed - there):
            names = dict.fromkeys(map(self.tensor, missing))
            raise WeightError(f"tensors that the encoder needs are missing: {some(names)}")
        if unused := sorted(there - needed):
            names = dict.fromkeys(map(self.tensor, unused))
            raise WeightError(f"tensors beyond what config.json describes: {some(names)}")


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{i\}", _NUMBER))


def _filled(rule: Rule, found: re.Match[str]) -> Source:
    number = found[1] if found.groups() else ""
    return Source(rule.tensor.replace("{i}", number), rule, tuple(p.replace("{i}", number) for p in rule.paths))


def _is_used(source: Source, shapes: Mapping[str, Any]) -> bool:
    return bool(source.paths) and not (source.rule.optional and shapes.keys().isdisjoint(source.paths))


def _taken_apart(tensor: np.ndarray, source: Source, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The parameters in a tensor. Two heads of keys beside six of queries, D 12: [12, 12 + 4 + 4] into 12, 4, 4."""
    parts = [shapes[path] for path in source.paths]
    whole = (*parts[0][:-1], sum(shape[-1] for shape in parts))
    need = (1,) * source.rule.leading + (whole[::-1] if source.rule.transpose else whole)
    if tensor.shape != need:
        raise WeightError(f"{source.tensor} is {tensor.shape}, but config.json makes it {need}")
    tensor = tensor.reshape(need[source.rule.leading :])
    array = tensor.T if source.rule.transpose else tensor
    cuts = np.cumsum([shape[-1] for shape in parts])[:-1]
    return dict(zip(source.paths, np.split(array, cuts, axis=-1), strict=True))


def some(names: Iterable[str], limit: int = 20) -> str:
    """The first of many, and how many they are.

    Example:
      >>> some(["a", "b", "c"], limit=2)
      'a, b, … (3 in all)'
    """
    names = list(names)
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
