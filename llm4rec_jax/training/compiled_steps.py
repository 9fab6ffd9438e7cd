"""Programs that a training step is compiled to: one for each shape of its batches."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import jax

_Shapes: TypeAlias = tuple[tuple[int, ...], ...]


class CompiledSteps:
    """Compiles a jitted function once for each shape of the batch that is its last argument.

    A call of the function finds the program that was compiled here. `len` counts the programs.

    Args:
      function: (…, batch) -> anything.
      loops: Whether the function holds loops. XLA counts the body of a loop once, however often it runs, so the FLOPs
        of such a function are not known.
    """

    def __init__(self, function: jax.stages.Wrapped, loops: bool = False) -> None:
        self._function, self._loops = function, loops
        self._begun: dict[_Shapes, Future[jax.stages.Compiled]] = {}
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
        program = begun.result() if begun else self._compiled(*arguments)
        self._flops[shapes] = 0.0 if self._loops else (program.cost_analysis() or {}).get("flops", 0.0)
        return program

    def flops(self, batch: Any) -> float:
        """Returns XLA's count for a call with a batch of this shape, on one device; 0 where it is not known."""
        return self._flops[_shapes(batch)]

    def _compiled(self, *arguments: Any) -> jax.stages.Compiled:
        return self._function.lower(*arguments).compile()


def _shapes(batch: Any) -> _Shapes:
    return tuple(a.shape for a in jax.tree.leaves(batch))
