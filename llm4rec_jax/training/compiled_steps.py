"""Programs that a training step is compiled to: one for each shape of its batches."""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import jax

from llm4rec_jax.training.flops import count_flops

_Shapes: TypeAlias = tuple[tuple[int, ...], ...]


class CompiledSteps:
    """Compiles a jitted function once for each shape of the batch that is its last argument.

    A call of the function finds the program that was compiled here. `len` counts the programs.

    Args:
      function: (…, batch) -> anything.
      devices: Number of devices that share a call.
    """

    def __init__(self, function: jax.stages.Wrapped, devices: int = 1) -> None:
        self._function, self._devices = function, devices
        self._begun: dict[_Shapes, Future[tuple[jax.stages.Compiled, float]]] = {}
        self._flops: dict[_Shapes, float] = {}

    def __len__(self) -> int:
        return len(self._flops)

    def __contains__(self, batch: Any) -> bool:
        return _shapes(batch) in self._flops

    def begin(self, *arguments: Any) -> None:
        """Compiles in a thread. All arguments but the batch may be shapes (`jax.ShapeDtypeStruct`).

        An error in the thread is raised by `compile`.
        """
        compiler = ThreadPoolExecutor(1)
        self._begun[_shapes(arguments[-1])] = compiler.submit(self._compiled, *arguments)
        compiler.shutdown(wait=False)

    def compile(self, *arguments: Any) -> jax.stages.Compiled:
        """Returns the program for these arguments; waits for it where it has been begun."""
        shapes = _shapes(arguments[-1])
        begun = self._begun.pop(shapes, None)
        program, self._flops[shapes] = begun.result() if begun else self._compiled(*arguments)
        return program

    def flops(self, batch: Any) -> float:
        """Returns the FLOPs of a call with a batch of this shape, on one device; 0 where they are not known."""
        return self._flops[_shapes(batch)]

    def _compiled(self, *arguments: Any) -> tuple[jax.stages.Compiled, float]:
        traced = self._function.trace(*arguments)
        flops = count_flops(traced.jaxpr) / self._devices
        return traced.lower().compile(), 0.0 if math.isnan(flops) else flops


def _shapes(batch: Any) -> _Shapes:
    return tuple(a.shape for a in jax.tree.leaves(batch))
