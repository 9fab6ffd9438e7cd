"""Programs that a training step is compiled to: one for each shape of its batches."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import jax

from llm4rec_jax.training.flops import count_flops
from llm4rec_jax.training.memory import FittingProgram, fitting_program

_Shapes: TypeAlias = tuple[tuple[int, ...], ...]


class CompiledSteps:
    """Compiles a jitted function once for each shape of the batch that is its last argument.

    Each program fits the memory of a device; see `fitting_program`. `len` counts the programs.

    Args:
      function: (…, batch, item_micro_batch=…) -> anything, the last a static argument.
      texts: Counts the texts that a batch encodes: (number of texts, padded number of tokens) of each group.
      limit: Bytes that a program may take on a device.
      item_micro_batch: Number of texts that are encoded at a time; 0 encodes all at once, None chooses.
      devices: Number of devices that share a call.
    """

    def __init__(
        self,
        function: jax.stages.Wrapped,
        texts: Callable[[Any], Sequence[tuple[int, int]]],
        limit: int,
        item_micro_batch: int | None = None,
        devices: int = 1,
    ) -> None:
        self._function, self._texts, self._limit = function, texts, limit
        self._item_micro_batch, self._devices = item_micro_batch, devices
        self._begun: dict[_Shapes, Future[tuple[FittingProgram, float]]] = {}
        self._programs: dict[_Shapes, FittingProgram] = {}
        self._flops: dict[_Shapes, float] = {}

    def __len__(self) -> int:
        return len(self._programs)

    def __contains__(self, batch: Any) -> bool:
        return _shapes(batch) in self._programs

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function; its program for this batch must have been compiled."""
        own = self._programs[_shapes(arguments[-1])]
        # The call finds the program among those that jit has compiled.
        return self._function(*arguments, item_micro_batch=own.item_micro_batch)

    def begin(self, *arguments: Any) -> None:
        """Compiles in a thread. All arguments but the batch may be shapes (`jax.ShapeDtypeStruct`).

        An error in the thread is raised by `compile`.
        """
        compiler = ThreadPoolExecutor(1)
        self._begun[_shapes(arguments[-1])] = compiler.submit(self._compiled, *arguments)
        compiler.shutdown(wait=False)

    def compile(self, *arguments: Any) -> FittingProgram:
        """Returns the program for these arguments; waits for it where it has been begun.

        Raises:
          ValueError: No program fits a device.
        """
        shapes = _shapes(arguments[-1])
        begun = self._begun.pop(shapes, None)
        self._programs[shapes], self._flops[shapes] = begun.result() if begun else self._compiled(*arguments)
        return self._programs[shapes]

    def flops(self, batch: Any) -> float:
        """Returns the FLOPs of a call with a batch of this shape, on one device; 0 where they are not known."""
        return self._flops[_shapes(batch)]

    def _compiled(self, *arguments: Any) -> tuple[FittingProgram, float]:
        flops = {}

        def compile_step(item_micro_batch: int) -> jax.stages.Compiled:
            traced = self._function.trace(*arguments, item_micro_batch=item_micro_batch)
            flops[item_micro_batch] = count_flops(traced.jaxpr) / self._devices
            return traced.lower().compile()

        fitting = fitting_program(compile_step, self._texts(arguments[-1]), self._limit, self._item_micro_batch)
        counted = flops[fitting.item_micro_batch]
        return fitting, 0.0 if math.isnan(counted) else counted


def _shapes(batch: Any) -> _Shapes:
    return tuple(a.shape for a in jax.tree.leaves(batch))
