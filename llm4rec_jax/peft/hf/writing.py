"""The fields and arrays of an adapter that is written for Hugging Face's peft."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from llm4rec_jax.peft.hf.adapter import ROOT, InterchangeError, Modules, Tensors
from llm4rec_jax.peft.sites import Delta


class Written(NamedTuple):
    """An adapter to be written.

    Attributes:
      fields: The configuration without the fields that all types share.
      tensors: The arrays by peft's names.
    """

    fields: dict[str, Any]
    tensors: Tensors


def targets(delta: Mapping[str, Any], modules: Modules) -> dict[str, Any]:
    """Returns the field `target_modules` for the sites of a delta."""
    return {"target_modules": sorted(map(modules.torch_name, delta))}


def by_torch_name(delta: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], modules: Modules) -> Tensors:
    """Returns the arrays {site: {name: array}} by peft's names, matrices transposed."""
    return {
        f"{ROOT}{modules.torch_name(site)}.{names[name]}": array.T
        for site, arrays in delta.items()
        for name, array in arrays.items()
    }


def whole_modules(delta: Delta, modules: Modules) -> tuple[dict[str, dict[str, np.ndarray]], int]:
    """Joins low-rank updates of the projections that lie side by side in one module.

    Projections of one A share its rank, those of several need a rank each: the module of A₁ B₁ and A₂ B₂ gets
    `[A₁ A₂]` and `[[B₁ 0] [0 B₂]]`. All modules get the same rank, with zeros where less is needed.

    Args:
      delta: Arrays "a", "b" and, for DoRA, "magnitude" by site.
      modules: The modules of the encoder.

    Returns:
      The arrays by the name of torch's module, and their rank as a multiple of the delta's.

    Raises:
      InterchangeError: DoRA adapts a part of a module only; the magnitudes of the rest are norms of the base's weights.
    """
    within = {site for parts in modules.fused.values() for site in parts}
    whole = {modules.torch_name(site): (site,) for site in delta if site not in within}
    whole |= {name: parts for name, parts in modules.fused.items() if not delta.keys().isdisjoint(parts)}
    bases = {name: _distinct(delta[site]["a"] for site in parts if site in delta) for name, parts in whole.items()}
    times = max(map(len, bases.values()))
    joined = {}
    for name, parts in whole.items():
        joined[name] = _low_rank(delta, parts, modules, bases[name], times)
        adapted = [delta[site] for site in parts if site in delta]
        if "magnitude" in adapted[0]:
            if len(adapted) < len(parts):
                raise InterchangeError(
                    f"peft adapts {name} only as a whole, and this adapts a part of it: write it with `merge`"
                )
            joined[name]["magnitude"] = np.concatenate([w["magnitude"] for w in adapted])
    return joined, times


def _distinct(arrays: Iterable[np.ndarray]) -> list[np.ndarray]:
    kept: list[np.ndarray] = []
    for array in arrays:
        if not any(np.array_equal(array, other, equal_nan=True) for other in kept):
            kept.append(array)
    return kept


def _low_rank(
    delta: Delta, parts: tuple[str, ...], modules: Modules, bases: list[np.ndarray], times: int
) -> dict[str, np.ndarray]:
    """Returns A and B of one module; parts without a delta have zeros in B."""
    rank = bases[0].shape[1]
    columns = []
    for site in parts:
        column = np.zeros((times * rank, int(modules.sizes[site][1])), np.float32)
        if site in delta:
            first = rank * next(i for i, a in enumerate(bases) if np.array_equal(a, delta[site]["a"], equal_nan=True))
            column[first : first + rank] = delta[site]["b"]
        columns.append(column)
    spare = (times - len(bases)) * rank
    return {"a": np.pad(np.concatenate(bases, 1), ((0, 0), (0, spare))), "b": np.concatenate(columns, 1)}
