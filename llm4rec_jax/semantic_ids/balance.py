"""Assignment of rows to columns that uses all columns alike."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray


def sinkhorn(costs: Any, epsilon: float = 0.05, iterations: int = 50) -> Any:
    """Returns the transport plan of least cost under an entropy, by Sinkhorn's iteration.

    Args:
      costs: [n, K], a numpy or JAX array.
      epsilon: Weight of the entropy, as a multiple of the mean cost over a row's least.
      iterations: Number of times that columns and rows are scaled.

    Returns:
      [n, K], of the type of `costs`: each row sums to 1 and, after enough iterations, each column to n / K.

    References:
      Cuturi 2013, arXiv 1306.0895. Zheng et al. 2024 (LC-Rec), arXiv 2311.09049, balance codes by it.

    Example:
      >>> sinkhorn(np.array([[0.0, 1.0], [0.0, 1.0], [0.2, 0.9], [0.0, 0.1]])).argmax(axis=1).tolist()
      [0, 0, 1, 1]
    """
    xp = np if isinstance(costs, np.ndarray) else jnp
    above = costs - costs.min(axis=1, keepdims=True)
    # Far columns would be lost in rounding, and a column that no row is near to with them.
    plan = xp.exp(-above / (epsilon * above.mean())) + 1e-30
    share = len(costs) / costs.shape[1]

    def scaled(_: Any, plan: Any) -> Any:
        plan = plan * (share / plan.sum(axis=0, keepdims=True))
        return plan / plan.sum(axis=1, keepdims=True)

    if xp is jnp:
        return jax.lax.fori_loop(0, iterations, scaled, plan)
    return functools.reduce(lambda plan, _: scaled(_, plan), range(iterations), plan)


def balanced_assignment(costs: NDArray[np.floating]) -> NDArray[np.int64]:
    """Assigns each row to a column at low total cost, at most ⌈n / K⌉ rows to each.

    Rows are ranked by Sinkhorn's plan, whose scales of columns are the prices of their places. Round by round each row
    asks for its best column with a free place, and a column takes those that fit best.

    Args:
      costs: [n, K].

    Returns:
      Columns [n].

    Example:
      >>> balanced_assignment(np.array([[0.0, 1.0], [0.0, 0.1], [0.0, 1.0], [0.0, 0.2]])).tolist()
      [0, 1, 0, 1]
    """
    reduced = -np.log(sinkhorn(np.asarray(costs, np.float64)) + 1e-300)
    free = np.full(costs.shape[1], -(-len(costs) // costs.shape[1]))
    columns, waiting = np.full(len(costs), -1), np.arange(len(costs))
    while len(waiting):
        wish = np.where(free > 0, reduced[waiting], np.inf)
        best = wish.argmin(axis=1)
        order = np.lexsort((wish[np.arange(len(waiting)), best], best))
        asked = best[order]
        # Columns [0, 0, 2] in order: the places in the queue of each are [0, 1, 0].
        place = np.arange(len(asked)) - np.searchsorted(asked, asked)
        taken = order[place < free[asked]]
        columns[waiting[taken]] = best[taken]
        free -= np.bincount(best[taken], minlength=len(free))
        waiting = np.delete(waiting, taken)
    return columns
